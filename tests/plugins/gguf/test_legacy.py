"""Files from before GGUF: told, shown, and where their blocks are today's, converted to something that runs."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from modelhub import ModelhubError, WriteOptions, plugins
from modelhub.detect import inspect_path
from modelhub.engine import write_checkpoint
from modelhub.found import Found
from modelhub.verify import run_check
from modelhub_gguf import legacy_convert

from tests.corpus import ggml_files as files
from tests.corpus.ggml_files import F16, F32, OLD, Q4_0, Q4_2, Q8_0, build, llama


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def converted(source: Path, target: Path) -> Path:
    table = legacy_convert.derive([look(source).load_table()], {})
    write_checkpoint(plugins.get().formats["gguf"], table, str(target), WriteOptions(name=target.stem), sync=False)
    return target


@pytest.mark.parametrize(
    ("magic", "version", "title"),
    [(b"lmgg", 0, "ggml"), (b"fmgg", 1, "ggmf 1"), (b"tjgg", 1, "ggjt 1"), (b"tjgg", 2, "ggjt 2"), (b"tjgg", 3, "ggjt 3")],
)
def test_an_unquantized_llama_is_shown_and_converted_whatever_it_stands_in(
    tmp_path: Path, magic: bytes, version: int, title: str
) -> None:
    tensors = llama(F16)
    source = written(tmp_path / "ggml-model-f16.bin", build(tensors, magic, version, file_type=1))
    found = look(source)
    assert (found.format, found.state, found.architecture, found.precision) == ("ggml", "ready", "llama", "F16")
    assert found.metadata == {
        "architecture": "llama", "file_version": title, "vocab_size": 300, "embedding_length": 64, "block_count": 2,
        "head_count": 4, "feed_forward_length": 96, "quantization": "F16",
    }  # fmt: skip
    assert [(t.name, t.shape) for t in found.load_table().tensors] == [(name, shape) for name, shape, _, _ in tensors]

    reader = gguf.GGUFReader(converted(source, tmp_path / "out.gguf"))
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    words = values.pop("tokenizer.ggml.tokens")
    scores = values.pop("tokenizer.ggml.scores")
    kinds = values.pop("tokenizer.ggml.token_type")
    assert words[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert words[258:263] == ["<0xFF>", "▁a", "▁the", "é", "▁▁▁"]
    assert kinds[:4] == [2, 3, 3, 6]
    assert kinds[258:260] == [6, 1]
    assert scores[259:262] == ([0.0, -1.0, -2.5] if version else [0.0, 0.0, 0.0])
    assert values == {
        "general.architecture": "llama", "general.name": "ggml-model-f16.bin", "general.file_type": 1,
        "general.description": f"converted from legacy {title.replace(' ', ' v')}", "general.quantization_version": 2,
        "llama.context_length": 2048, "llama.embedding_length": 64, "llama.block_count": 2, "llama.feed_forward_length": 96,
        "llama.rope.dimension_count": 16, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": np.float32(5e-6), "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default", "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    assert [tensor.data.tobytes() for tensor in reader.tensors] == [data for _, _, _, data in tensors]


@pytest.mark.parametrize(("kind", "file_type"), [(Q4_0, 2), (3, 3), (6, 8), (7, 9), (Q8_0, 7), (F32, 0)])
def test_what_ggjt_3_becomes_runs_in_llama_cpp(tmp_path: Path, kind: int, file_type: int) -> None:
    source = written(tmp_path / "model.ggmlv3.bin", build(llama(kind, kv_heads=2), file_type=file_type))
    found = look(converted(source, tmp_path / "out.gguf"))
    assert found.precision == look(source).precision != "mixed"
    assert found.metadata["head_count_kv"] == 2
    assert not [finding for finding in run_check(found, "gguf-structure") if finding.severity == "error"]
    (finding,) = run_check(found, "gguf-runs")
    assert finding.message.startswith("runs in llama.cpp")


def test_llama_cpp_runs_a_split_of_ours(tmp_path: Path) -> None:
    source = written(tmp_path / "model.bin", build(llama(F16), file_type=1))
    table = legacy_convert.derive([look(source).load_table()], {})
    options = WriteOptions(name="part", max_shard_size=60_000)
    done = write_checkpoint(plugins.get().formats["gguf"], table, str(tmp_path / "part.gguf"), options, sync=False)
    assert len(done.files) > 2
    (finding,) = run_check(look(tmp_path / done.files[0]), "gguf-runs")
    assert finding.message.startswith("runs in llama.cpp")


@pytest.mark.parametrize(
    ("kind", "version", "converts"),
    [(Q4_0, 1, False), (Q4_0, 2, False), (Q8_0, 2, False), (6, 2, True), (7, 2, True), (6, 1, False), (Q4_2, 1, False)],
)
def test_blocks_of_another_layout_are_listed_and_not_taken_for_todays(
    tmp_path: Path, kind: int, version: int, converts: bool
) -> None:
    sizes = files.BYTES if converts else OLD
    source = written(tmp_path / "old.bin", build(llama(kind, sizes), version=version, file_type=kind))
    found = look(source)
    assert found.state == "ready", found.reason
    assert found.parameters == sum(int(np.prod(shape)) for _, shape, _, _ in llama())
    if converts:
        assert look(converted(source, tmp_path / "out.gguf")).state == "ready"
    else:
        with pytest.raises(ModelhubError, match=r"before the end of May 2023.*convert the original"):
            converted(source, tmp_path / "out.gguf")


def test_one_part_of_several_is_not_taken_for_a_model(tmp_path: Path) -> None:
    half = [(name, (*shape[:-1], shape[-1] // 2), kind, data[: len(data) // 2]) for name, shape, kind, data in llama(F16)]
    source = written(tmp_path / "ggml-model-f16.bin.1", build(half, b"lmgg", file_type=1))
    assert look(source).state == "ready"
    with pytest.raises(ModelhubError, match="one part of a model of several files"):
        converted(source, tmp_path / "out.gguf")


def test_a_model_of_whisper_cpp_is_shown(tmp_path: Path) -> None:
    source = written(tmp_path / "ggml-tiny.bin", files.whisper())
    found = look(source)
    assert (found.format, found.state, found.architecture, found.precision) == ("ggml", "ready", "whisper", "F16")
    assert found.metadata["n_mels"] == 80
    assert found.load_table().by_name["encoder.conv1.weight"].shape == (4, 2, 3)
    with pytest.raises(ModelhubError, match=r"whisper\.cpp"):
        converted(source, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("data", "state", "reason"),
    [
        (b"lmgg" + bytes(range(60)), "unsupported", "neither llama.cpp's nor whisper.cpp's"),
        (build(llama(), version=4), "unsupported", "version 4"),
        (build(llama(), b"fmgg", version=2), "unsupported", "version 2"),
        (b"tjgg\3\0\0\0", "incomplete", "the file ends at 8"),
        (build(llama())[:5000], "incomplete", "the file ends at 5000"),
        (build(llama())[:-1], "incomplete", "ends at byte"),
        (build(llama()) + b"\xff" * 12, "invalid", "something before it is longer or shorter"),
        (build(llama() + llama()[:1]), "invalid", "stands twice"),
        (build(llama(), vocabulary=[(b"x" * 5000, 0.0)]), "invalid", "5000 bytes long"),
        (build([("w", (1 << 31, 1 << 31, 1 << 31), F32, b"")]), "invalid", "overflow"),
        (build([("w", (1, 33), Q4_0, b"")]), "invalid", "rows of 33"),
        (build([("w", (1,), 77, b"")]), "unsupported", "type 77"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, state: str, reason: str) -> None:
    found = look(written(tmp_path / "bad.bin", data))
    assert (found.format, found.state) == ("ggml", state), found.reason
    assert reason in found.reason
    assert not [finding for finding in found.findings if finding.check == "plugin"]


def test_damage_is_survived(tmp_path: Path) -> None:
    data = build(llama(F16), file_type=1)
    chance = random.Random(6)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            at = chance.choice((chance.randrange(40), chance.randrange(4000), chance.randrange(len(data))))
            broken[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path = written(tmp_path / "broken.bin", bytes(broken))
        try:
            found = look(path)
        except ModelhubError:
            continue  # its magic is gone
        assert not [finding for finding in found.findings if finding.check == "plugin"], found.reason

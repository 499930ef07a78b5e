"""The expression engine and the parallel writer, on files that the tests write, against NumPy."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import Extent, Format, Inline, Patch, Put, StartFile, Table, Tail, Tensor, dtypes, ops
from modelhub.engine import Handles, read_tensor, tensor_chunks, write_checkpoint
from modelhub.engine import write as writing
from modelhub.errors import ConversionError, IncompleteFile, InvalidFile, ModelhubError


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[str, np.ndarray]:
    """A file of 64 junk bytes, then a million float32."""
    values = np.random.default_rng(7).standard_normal(1_000_000).astype("<f4")
    path = tmp_path / "numbers"
    path.write_bytes(b"\xaa" * 64 + values.tobytes())
    return str(path), values


def test_an_extent_is_its_bytes(numbers: tuple[str, np.ndarray]) -> None:
    path, values = numbers
    assert read_tensor(Tensor("t", "F32", (10,), Extent(path, 64 + 40, 40))).tobytes() == values[10:20].tobytes()


def test_a_truncated_file_is_an_error_and_not_a_signal(numbers: tuple[str, np.ndarray]) -> None:
    path, _ = numbers
    tensor = Tensor("t", "F32", (1_000_000,), Extent(path, 64, 4_000_000))
    with Handles() as handles:
        chunks = tensor_chunks(tensor, handles, 1 << 20)
        next(chunks)
        os.truncate(path, 2_000_000)
        with pytest.raises(IncompleteFile, match="truncated"):
            list(chunks)
        with pytest.raises(ModelhubError, match="changed while"):
            handles.check_unchanged()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_strided_gathers_what_numpy_gathers(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rank = data.draw(st.integers(0, 4))
    shape = [data.draw(st.integers(0, 5)) for _ in range(rank)]
    strides = [data.draw(st.integers(0, 7)) for _ in range(rank)]
    offset = data.draw(st.integers(0, 3))
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else offset
    run = np.arange(reach + 1 + data.draw(st.integers(0, 3)), dtype="<i4")
    window = data.draw(st.sampled_from([1, 1 << 20]))
    path = tmp_path_factory.mktemp("run") / "run"
    path.write_bytes(run.tobytes())
    node = ops.strided(Extent(str(path), 0, run.nbytes), "I32", shape, strides, offset)
    wanted = np.lib.stride_tricks.as_strided(run[offset:], shape, [4 * s for s in strides])
    import modelhub.storage_ops as storage

    before, storage.WINDOW = storage.WINDOW, window  # a small window takes the path that reads piece by piece
    try:
        assert read_tensor(Tensor("t", "I32", tuple(shape), node)).tobytes() == wanted.tobytes()
    finally:
        storage.WINDOW = before


@pytest.mark.parametrize(("shape", "strides"), [((3,), (6,)), ((3, 1), (6, 1)), ((2, 3), (1, 6)), ((), ())])
def test_a_sparse_view_is_read_element_by_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    monkeypatch.setattr("modelhub.storage_ops.WINDOW", 1)
    run = np.arange(40, dtype="<i4")
    (tmp_path / "run").write_bytes(run.tobytes())
    node = ops.strided(Extent(str(tmp_path / "run"), 0, run.nbytes), "I32", shape, strides, 2)
    wanted = np.lib.stride_tricks.as_strided(run[2:], shape, [4 * stride for stride in strides])
    assert read_tensor(Tensor("t", "I32", shape, node)).tobytes() == wanted.tobytes()


def test_a_view_beyond_its_storage_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="reaches element 10, its storage has 10"):
        ops.strided(Extent("/nowhere", 0, 40), "F32", (2, 6), (5, 1))


@pytest.mark.parametrize(("method", "pack"), [("deflate", -15), ("zlib", 15), ("gzip", 31)])
def test_inflate_reads_in_order_and_spools_when_it_must_jump(tmp_path: Path, method: str, pack: int) -> None:
    values = np.arange(600_000, dtype="<i4").reshape(600, 1000)
    machine = zlib.compressobj(6, zlib.DEFLATED, pack)
    packed = machine.compress(b"skipme" + values.tobytes()) + machine.flush()
    assert method != "gzip" or gzip.decompress(packed)[6:] == values.tobytes()
    path = tmp_path / "packed"
    path.write_bytes(packed)
    run = ops.inflate(Extent(str(path), 0, len(packed)), nbytes=values.nbytes, skip=6, method=method)
    assert read_tensor(Tensor("t", "I32", (600, 1000), ops.reshape(run, "I32", (600, 1000)))).tobytes() == values.tobytes()
    turned = Tensor("t", "I32", (1000, 600), ops.strided(run, "I32", (1000, 600), (1, 1000)))
    with Handles() as handles:
        parts = np.concatenate(list(tensor_chunks(turned, handles, 100_000)))
    assert parts.tobytes() == np.ascontiguousarray(values.T).tobytes()


def test_a_broken_stream_says_where(tmp_path: Path) -> None:
    packed = bytearray(zlib.compress(bytes(range(256)) * 4000)[2:])
    path = tmp_path / "broken"
    path.write_bytes(packed[: len(packed) // 2])
    node = ops.inflate(Extent(str(path), 0, len(packed) // 2), nbytes=1_024_000)
    with pytest.raises(InvalidFile, match=r"ends after|broken near"):
        read_tensor(Tensor("t", "U8", (1_024_000,), node))


def test_byteswap(tmp_path: Path) -> None:
    values = np.arange(12, dtype=">f8")
    node = ops.byteswap(Inline(values.tobytes()), "F64", (3, 4))
    assert read_tensor(Tensor("t", "F64", (3, 4), node)).tobytes() == values.astype("<f8").tobytes()


def test_place_puts_boxes_together_and_refuses_overlaps() -> None:
    whole = np.arange(24, dtype="<i2").reshape(4, 6)
    boxes = [[[0, 4], [0, 2]], [[0, 1], [2, 4]], [[1, 3], [2, 4]]]
    parts = [Inline(np.ascontiguousarray(whole[a : a + m, b : b + n]).tobytes()) for (a, m), (b, n) in boxes]
    node = ops.place(parts, boxes, "I16", (4, 6))
    assert read_tensor(Tensor("t", "I16", (4, 6), node)).tobytes() == whole.tobytes()
    with pytest.raises(ValueError, match=r"overlap|cover"):
        ops.place(parts, [boxes[0], boxes[1], [[0, 3], [2, 4]]], "I16", (4, 6))


def test_varints() -> None:
    values = np.array([0, 1, 127, 128, 300, 2**32, 2**64 - 1], np.uint64)
    coded = bytearray()
    for value in values.tolist():
        while value >= 0x80:
            coded.append(value & 0x7F | 0x80)
            value >>= 7
        coded.append(value)
    node = ops.varints(Inline(bytes(coded)), "U64", (7,))
    assert read_tensor(Tensor("t", "U64", (7,), node)).tobytes() == values.astype("<u8").tobytes()
    with pytest.raises(InvalidFile, match="varints found"):
        read_tensor(Tensor("t", "U64", (8,), ops.varints(Inline(bytes(coded)), "U64", (8,))))


def test_an_expression_survives_serialisation(numbers: tuple[str, np.ndarray]) -> None:
    path, _ = numbers
    view = ops.strided(Extent(path, 64, 4000), "F32", (10, 10), (1, 10))
    node = ops.cast(view, "F32", (10, 10), "BF16")
    again = ops.from_json(ops.to_json(node))
    assert again == node
    before, after = (read_tensor(Tensor("t", "BF16", (10, 10), value)) for value in (node, again))
    assert before.tobytes() == after.tobytes()


def test_a_foreign_expression_is_refused() -> None:
    deep: object = ["f", 0, 1]
    for _ in range(100):
        deep = {"op": "inflate", "version": 1, "args": {}, "inputs": [deep], "dtype": "U8", "shape": [1]}
    with pytest.raises(ValueError, match="deeper"):
        ops.from_json(deep)
    with pytest.raises(ValueError, match="not known here"):
        ops.from_json({"op": "warp", "version": 1, "args": {}, "inputs": [], "dtype": "U8", "shape": [1]})


# --- writing ------------------------------------------------------------------------------------------------------


def frames(table: Table, options: object) -> Iterator[object]:
    """A tiny format: per tensor a 4-byte CRC (patched) and its bytes; at the end the number of tensors."""
    for tensor in table.tensors:
        yield b"????"
        placed = yield Put(tensor, checksum="crc32")
        yield Patch(placed.offset - 4, lambda placed=placed: struct.pack("<I", placed.checksum()))
    yield Tail(lambda: struct.pack("<I", len(table.tensors)))


FRAMES = Format(name="frames", title="Frames", extension=".frames", create=frames)


def plain(table: Table, options: object) -> Iterator[object]:
    for tensor in table.tensors:
        yield Put(tensor, align=64)


PLAIN = Format(name="plain", title="Plain", extension=".plain", create=plain)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("kernel", ["copies", "refuses", "is not asked"])
def test_copies_encodes_patches_and_checksums(
    numbers: tuple[str, np.ndarray], tmp_path: Path, kernel: str, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values = numbers
    # As on a file system that shares blocks; where this one does not, the kernel copies all the same.
    monkeypatch.setattr(writing, "shares_blocks", lambda path: kernel != "is not asked")
    if kernel == "refuses":

        def refuse(*args: object) -> int:
            raise OSError(18, "another device")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(writing, "PIECE", 1 << 20)
    extent = Extent(path, 64, 4_000_000)
    table = Table(
        (
            Tensor("copied", "F32", (1_000_000,), extent),
            Tensor("cast", "BF16", (1000, 1000), ops.cast(extent, "F32", (1000, 1000), "BF16")),
            Tensor("turned", "F32", (1000, 1000), ops.strided(extent, "F32", (1000, 1000), (1, 1000))),
            Tensor("empty", "F32", (0, 3), Inline(b"")),
        )
    )
    seen: list[int] = []
    for format in (FRAMES, PLAIN):
        target = tmp_path / f"out{format.extension}"
        written = write_checkpoint(format, table, str(target), progress=seen.append, check=check)
        data = target.read_bytes()
        wanted = [values.tobytes(), None, np.ascontiguousarray(values.reshape(1000, 1000).T).tobytes(), b""]
        at = 0
        for tensor, bytes_ in zip(table.tensors, wanted, strict=True):
            nbytes = dtypes.get(tensor.dtype).nbytes(tensor.shape)
            if format is FRAMES:
                assert struct.unpack_from("<I", data, at)[0] == zlib.crc32(data[at + 4 : at + 4 + nbytes])
                at += 4
            else:
                at += -at % 64
            assert bytes_ is None or data[at : at + nbytes] == bytes_
            at += nbytes
        assert sum(nbytes for _, _, nbytes in written.checked.get("copied", ())) == (4_000_000 if check else 0)
        assert written.errors["cast"].count == 1_000_000
        assert 40 < written.errors["cast"].snr < 60
        assert written.errors["cast"].maximum <= np.abs(values).max() * 2**-8
    assert sum(seen) == written.nbytes * 2


def test_a_plain_cast_is_what_torch_casts(numbers: tuple[str, np.ndarray], tmp_path: Path) -> None:
    import torch

    path, values = numbers
    table = Table((Tensor("t", "BF16", (1_000_000,), ops.cast(Extent(path, 64, 4_000_000), "F32", (1_000_000,), "BF16")),))
    write_checkpoint(PLAIN, table, str(tmp_path / "x.plain"))
    assert (tmp_path / "x.plain").read_bytes() == torch.from_numpy(values).bfloat16().view(torch.int16).numpy().tobytes()


def test_the_first_failure_is_the_one_reported(numbers: tuple[str, np.ndarray], tmp_path: Path) -> None:
    path, _ = numbers
    tensors = [Tensor(f"t{i}", "F32", (1000,), Extent(path, 64, 4000)) for i in range(50)]
    tensors.insert(20, Tensor("bad", "F32", (1000,), Extent(path, 4_000_000, 4000)))
    with pytest.raises(ModelhubError, match="truncated"):
        write_checkpoint(PLAIN, Table(tuple(tensors)), str(tmp_path / "x.plain"), threads=2)


def test_a_writer_cannot_leave_its_directory(tmp_path: Path) -> None:
    def outside(table: Table, options: object) -> Iterator[object]:
        yield StartFile("../outside")

    with pytest.raises(ModelhubError, match="outside of its output"):
        write_checkpoint(Format(name="x", title="X", extension=".x", create=outside), Table(()), str(tmp_path / "d" / "x.x"))
    assert not (tmp_path / "outside").exists()


def test_a_full_disk_is_said_in_a_line(tmp_path: Path) -> None:
    table = Table((Tensor("t", "U8", (1 << 20,), Inline(bytes(1 << 20))),))
    os.symlink("/dev/full", tmp_path / "full")

    def fail(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(ConversionError, match="the disk is full; free some space"):
            write_checkpoint(PLAIN, table, str(tmp_path / "x.plain"))

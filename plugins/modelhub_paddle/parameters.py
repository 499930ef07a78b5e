"""The tensors of a ``.pdiparams`` file, one after another.

(``SerializeToStream``, ``framework/dense_tensor_serialize.cc`` and ``tensor_util.cc``: u32 version 0; u64 levels of detail, each
a u64 length and its bytes; u32 version 0; i32 length of a TensorDesc (1 data_type, 2 dims) and that; the bytes.)
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Extent, File, InvalidFile, Tensor, UnsupportedFile, dtypes, protobuf

from modelhub_paddle.elements import NUMBERS

MAX_TENSORS = 1_000_000
MAX_DESCRIBED = 4096
MAX_SIDES = 32


def read(file: File, names: list[str]) -> Iterator[Tensor]:
    """Every tensor. ``names`` in the order of the file; [] where no program says them: then they have numbers."""
    at = number = 0
    while at < file.size:
        name = (names[number] if number < len(names) else "") if names else f"tensor_{number}"
        if number >= MAX_TENSORS or (names and not name):
            raise InvalidFile(f"{file.name}: more tensors than the {len(names) or MAX_TENSORS} expected, at offset {at}")
        if int.from_bytes(file.read(at, 4), "little"):
            raise UnsupportedFile(f"{file.name}: {name!r:.200} at offset {at} has a version that is not 0")
        levels, at = int.from_bytes(file.read(at + 4, 8), "little"), at + 12
        if levels > 16:
            raise InvalidFile(f"{file.name}: {name!r:.200} has {levels} levels of detail at offset {at - 8}")
        for _ in range(levels):
            at += 8 + int.from_bytes(file.read(at, 8), "little")
        if int.from_bytes(file.read(at, 4), "little"):
            raise UnsupportedFile(f"{file.name}: {name!r:.200} at offset {at} has a version that is not 0")
        described = int.from_bytes(file.read(at + 4, 4), "little")
        if not 0 < described <= MAX_DESCRIBED:
            raise InvalidFile(f"{file.name}: a description of {described} bytes at offset {at + 4}")
        kind, shape = _described(file.read(at + 8, described), f"{file.name}: {name!r:.200}")
        at += 8 + described
        dtype = NUMBERS.get(kind, "")
        if not dtype:
            raise UnsupportedFile(
                f"{file.name}: {name!r:.200} has elements of type {kind}: where the next one begins is not known"
            )
        nbytes = dtypes.get(dtype).nbytes(shape)
        yield Tensor(name, dtype, shape, Extent(file.path, at, nbytes))
        at, number = at + nbytes, number + 1
    if names and number < len(names):
        raise InvalidFile(f"{file.name}: {number} tensors, and the program names {len(names)}")


def _described(data: bytes, where: str) -> tuple[int, tuple[int, ...]]:
    wire = protobuf.Wire(data, where)
    kind, sides = -1, []
    for key, what, start, end in wire.fields():
        if key == 1 and what == protobuf.VARINT:
            kind = start
        elif key == 2:
            sides += [start] if what == protobuf.VARINT else wire.varints(start, end, MAX_SIDES)
    if len(sides) > MAX_SIDES or not all(0 <= side < 1 << 48 for side in sides):
        raise InvalidFile(f"{where} has the shape {sides[:8]}")
    return kind, tuple(sides)

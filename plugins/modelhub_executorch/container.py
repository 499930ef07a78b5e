"""What a program and a file of tensors have in common: a header behind the FlatBuffers identifier, segments behind the buffer,
and tensors whose sides stand in any order.

(``schema/extended_header.cpp``: "eh00", its length, the program's bytes, where segments begin, their bytes;
``extension/flat_tensor/serialize/flat_tensor_header.cpp``: "FH01", its length, where the buffer goes on behind the header, its
bytes, where segments begin; ``schema/scalar_type.fbs``.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from modelhub import Extent, File, IncompleteFile, InvalidFile, Tensor, dtypes, flatbuffers, ops

SCALARS = {
    0: "U8", 1: "I8", 2: "I16", 3: "I32", 4: "I64", 5: "F16", 6: "F32", 7: "F64", 11: "BOOL", 15: "BF16", 23: "F8_E5M2",
    24: "F8_E4M3", 25: "F8_E5M2FNUZ", 26: "F8_E4M3FNUZ", 27: "U16", 28: "U32", 29: "U64",
}  # fmt: skip
MAX_SIDES = 64
MAX_SEGMENTS = 1_000_000
PROGRAM, TENSORS = b"eh00", b"FH01"


class Segment(NamedTuple):
    """Bytes ``offset``..``offset + nbytes`` of the file."""

    offset: int
    nbytes: int


class Container(NamedTuple):
    """The root table, and the segments as places in the file."""

    file: File
    root: flatbuffers.Table
    segments: list[Segment]


def opened(file: File, field: int) -> Container:
    """``field``: of the root table, where the segments are listed. `InvalidFile` where one lies outside of the file."""
    base, end = 0, file.size
    head = file.read(8, min(40, file.size - 8)) if file.size > 8 else b""
    if head[:4] == PROGRAM and len(head) >= 24:
        end, base = struct.unpack_from("<QQ", head, 8)
    elif head[:4] == TENSORS and len(head) >= 32:
        start, size, base = struct.unpack_from("<QQQ", head, 8)
        end = start + size
    if end > file.size or base > file.size:
        raise IncompleteFile(f"{file.name}: the header says {end} bytes, segments from {base} on; the file has {file.size}")
    root = flatbuffers.FlatBuffer(file, end=end).root()
    segments: list[Segment] = []
    for table in root.tables(field):
        offset, nbytes = base + table.number(0, "Q"), table.number(1, "Q")
        if len(segments) >= MAX_SEGMENTS or (nbytes and (not base or offset + nbytes > file.size)):
            where = f"{file.name}: segment {len(segments)}"
            raise IncompleteFile(f"{where} is {nbytes} bytes at offset {offset}, the file has {file.size}")
        segments.append(Segment(offset, nbytes))
    return Container(file, root, segments)


def shaped(sizes: Sequence[int], where: str) -> tuple[int, ...]:
    if len(sizes) > MAX_SIDES or any(side < 0 for side in sizes):
        raise InvalidFile(f"{where} has the shape {list(sizes)[:8]}")
    return tuple(sizes)


def nbytes_of(scalar: int, shape: Sequence[int]) -> int:
    """Bytes of a tensor; -1 where its elements are of no known size."""
    return dtypes.get(SCALARS[scalar]).nbytes(shape) if scalar in SCALARS else -1


def tensor(name: str, scalar: int, shape: tuple[int, ...], order: Sequence[int], place: Segment, file: File) -> Tensor:
    """A tensor whose bytes begin at ``place``. ``order``: its sides, from that with the largest stride to that with the least."""
    if scalar not in SCALARS:
        return Tensor(name, f"type {scalar}", shape, None, unsupported=f"tensor of ExecuTorch's type {scalar}")
    where, dtype = f"{file.name}: {name!r:.200}", SCALARS[scalar]
    wanted = nbytes_of(scalar, shape)
    if wanted > place.nbytes:
        raise InvalidFile(f"{where}: {dtype} {list(shape)} takes {wanted} bytes, {place.nbytes} are left of its segment")
    value = Extent(file.path, place.offset, wanted)
    if not order or list(order) == sorted(order) or prod(shape) == 0:
        return Tensor(name, dtype, shape, value)
    if sorted(order) != list(range(len(shape))):
        raise InvalidFile(f"{where}: {list(order)[:8]} is no order of {len(shape)} sides")
    strides, step = [0] * len(shape), 1
    for side in reversed(order):
        strides[side] = step
        step *= shape[side]
    return Tensor(name, dtype, shape, ops.strided(value, dtype, shape, strides))

"""An array's value as an expression over the places of its chunks.

A chunk at the edge is stored whole, and what reaches over the array is cut off. One that is not stored has the fill value
throughout: TensorStore leaves it out where it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Literal

from modelhub import Extent, IncompleteFile, Inline, InvalidFile, Node, Tensor, UnsupportedFile, crc32c, dtypes, ops

from modelhub_orbax import zstd
from modelhub_orbax.elements import filling
from modelhub_orbax.store import Store
from modelhub_orbax.zarr import Layout

MAX_CHUNKS = 1 << 18
"""Chunks that an array is put together from at the most."""
ABSENT = (1 << 64) - 1
MOST_DEFLATED = 1040
"""Deflate's blocks hold 1032 bytes for one at the most."""
Value = Extent | Inline | Node
Box = list[list[int]]


def tensor(name: str, layout: Layout, values: Mapping[str, Extent | Inline], store: Store, complete: bool) -> Tensor:
    """The array as a record. ``complete``: Orbax wrote every chunk, so that one that is not there is missing."""
    if layout.unsupported:
        return Tensor(name, layout.dtype or layout.kind, layout.shape, None, unsupported=layout.unsupported)
    where = f"array {name!r:.200}"
    if 0 in layout.shape:
        return Tensor(name, layout.dtype, layout.shape, Inline(b""))
    count = prod(layout.grid) * (prod(layout.inner.grid) if layout.inner else 1)
    if count > MAX_CHUNKS:
        raise UnsupportedFile(f"{where}: it is cut into {count} chunks; at most {MAX_CHUNKS} are put together")
    parts: list[Value] = []
    boxes: list[Box] = []
    for at in product(*map(range, layout.grid)):
        corner = [number * step for number, step in zip(at, layout.chunk, strict=True)]
        key = layout.key(at)
        if key not in values and complete:
            raise IncompleteFile(f"{where}: chunk {key!r:.80} is not there")
        for box, value in _chunk(layout, corner, values.get(key), store, where):
            parts.append(value)
            boxes.append(box)
    if len(parts) == 1:
        return Tensor(name, layout.dtype, layout.shape, _whole(parts[0], layout))
    return Tensor(name, layout.dtype, layout.shape, ops.place(parts, boxes, layout.dtype, layout.shape))


def _whole(value: Value, layout: Layout) -> Value:
    if isinstance(value, Extent) or (isinstance(value, Node) and (value.dtype, value.shape) == (layout.dtype, layout.shape)):
        return value
    return ops.reshape(value, layout.dtype, layout.shape)


def _chunk(
    layout: Layout, corner: list[int], stored: Extent | Inline | None, store: Store, where: str
) -> Iterator[tuple[Box, Value]]:
    """The boxes that a chunk fills, with their values: one, or as many as there are chunks in a shard."""
    box = _box(layout, corner)
    if stored is None:
        yield box, _filled(layout, box, where)
    elif layout.inner is None:
        yield box, _cut(layout, _unpacked(layout, stored, where), box)
    else:
        inner = layout.inner
        entries = _index(layout, stored, store, where)
        for at in product(*map(range, inner.grid)):
            offset, nbytes = next(entries)
            place = [start + number * step for start, number, step in zip(corner, at, inner.chunk, strict=True)]
            inside = _box(layout, place, inner.chunk)
            if not all(length > 0 for _, length in inside):
                continue
            if (offset, nbytes) == (ABSENT, ABSENT):
                yield inside, _filled(layout, inside, where)
            else:
                yield inside, _cut(inner, _unpacked(inner, _part(stored, offset, nbytes, where), where), inside)


def _box(layout: Layout, corner: list[int], chunk: tuple[int, ...] | None = None) -> Box:
    """The part of the array that a chunk at ``corner`` holds; a length is 0 or less where it lies outside."""
    sides = zip(layout.shape, corner, chunk or layout.chunk, strict=True)
    return [[start, min(step, whole - start)] for whole, start, step in sides]


def _filled(layout: Layout, box: Box, where: str) -> Value:
    one = filling(layout.fill, layout.dtype)
    if one is None:
        raise UnsupportedFile(f"{where}: chunks are left out, and what they are filled with is {layout.fill!r:.80}")
    return ops.strided(Inline(one), layout.dtype, [length for _, length in box], [0] * len(box))


def _unpacked(layout: Layout, value: Extent | Inline, where: str) -> Value:
    """A chunk's bytes as they were before what was done to them last to first."""
    nbytes, found = layout.chunk_bytes, value
    node: Node | None = None
    for number, name in enumerate(reversed(layout.packing)):
        if name == "crc32c":
            if number or _length(found) < 4:
                raise UnsupportedFile(f"{where}: a checksum that is compressed itself")
            found = _part(found, 0, _length(found) - 4, where)
            continue
        if number + 1 < len(layout.packing) and node is not None:
            raise UnsupportedFile(f"{where}: chunks compressed more than once")
        have = _length(found)
        if nbytes > have * (zstd.MOST if name == "zstd" else MOST_DEFLATED):
            raise InvalidFile(f"{where}: a chunk of {nbytes} bytes is said to be made of {have}: that is not possible")
        node = ops.node("orbax.zstd", found, nbytes=nbytes) if name == "zstd" else ops.inflate(found, nbytes=nbytes, method=name)
    if node is None and _length(found) != nbytes:
        problem = IncompleteFile if _length(found) < nbytes else InvalidFile
        raise problem(f"{where}: a chunk of {list(layout.chunk)} takes {nbytes} bytes, {_length(found)} are stored")
    return node or found


def _cut(layout: Layout, value: Value, box: Box) -> Value:
    """A chunk's bytes as the elements of its box, in C order and little-endian."""
    stored = tuple(layout.chunk[axis] for axis in layout.order)
    if layout.big_endian and dtypes.get(layout.dtype).block_bytes > 1:
        value = ops.byteswap(value, layout.dtype, stored)
    sides = [length for _, length in box]
    strides = [0] * len(sides)
    step = 1
    for axis in reversed(layout.order):
        strides[axis] = step
        step *= layout.chunk[axis]
    if tuple(sides) == layout.chunk and layout.order == tuple(range(len(sides))):
        return value
    return ops.strided(value, layout.dtype, sides, strides)


def _length(value: Extent | Inline) -> int:
    return value.nbytes if isinstance(value, Extent) else len(value.data)


def _part(value: Extent | Inline, offset: int, nbytes: int, where: str) -> Extent | Inline:
    if offset + nbytes > _length(value):
        raise InvalidFile(f"{where}: {nbytes} bytes at byte {offset} of a chunk of {_length(value)}")
    if isinstance(value, Inline):
        return Inline(value.data[offset : offset + nbytes])
    return Extent(value.file, value.offset + offset, nbytes)


def _index(layout: Layout, stored: Extent | Inline, store: Store, where: str) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of each chunk in a shard."""
    assert layout.inner is not None
    count = prod(layout.inner.grid)
    size = 16 * count + (4 if layout.index_checked else 0)
    if size > _length(stored):
        raise IncompleteFile(f"{where}: a shard of {_length(stored)} bytes, its index takes {size}")
    place = _part(stored, 0 if layout.index_first else _length(stored) - size, size, where)
    data = store.read(place, size, where)
    if layout.index_checked and crc32c(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
        raise InvalidFile(f"{where}: the checksum of a shard's index does not fit: it is damaged")
    order: Literal["big", "little"] = "big" if layout.index_big_endian else "little"
    for at in range(0, 16 * count, 16):
        yield int.from_bytes(data[at : at + 8], order), int.from_bytes(data[at + 8 : at + 16], order)

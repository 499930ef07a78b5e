"""Where the chunks of an HDF5 dataset stand: by a B-tree, or one of the newer indices.

Sections III.A.1 (B-tree of version 1), III.A.2 (of version 2) and VII.A to VII.C (implicit, fixed array) of the HDF5 File Format
Specification 3.0. The extensible array, for datasets that grow along one side in HDF5's latest format, is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras import dense
from modelhub_keras.container import Container, Cursor

OLD, SINGLE, IMPLICIT, FIXED, EXTENSIBLE, TREE = range(6)
"""Kinds of indices, by their numbers in a layout message of version 4; the first is what older ones have."""


class Index(NamedTuple):
    """An index: its kind, where it stands, the sides of a chunk, and of a single chunk its length and the filters left out."""

    kind: int
    address: int
    sides: tuple[int, ...]
    nbytes: int = 0
    skipped: int = 0


class Chunk(NamedTuple):
    """One stored chunk: where its first element belongs, its bytes, and which filters were left out."""

    corner: tuple[int, ...]
    address: int
    nbytes: int
    skipped: int


def chunks(file: Container, index: Index, shape: tuple[int, ...], nbytes: int, where: str) -> Iterator[Chunk]:
    """Every chunk that is stored. ``nbytes``: of a whole one that is not compressed."""
    sides = index.sides
    if index.kind == OLD:
        for key, address in file.entries(index.address, 1, 8 + 8 * (len(sides) + 1)):
            data = Cursor(key, where)
            size, skipped = data.number(4), data.number(4)
            yield Chunk(tuple(data.number(8) for _ in sides), address, size, skipped)
    elif index.kind == SINGLE:
        yield Chunk((0,) * len(sides), index.address, index.nbytes or nbytes, index.skipped)
    elif index.kind == IMPLICIT:
        for number, corner in enumerate(_corners(shape, sides)):
            yield Chunk(corner, index.address + number * nbytes, nbytes, 0)
    elif index.kind == FIXED:
        for corner, (address, size, skipped) in zip(
            _corners(shape, sides), _fixed(file, index.address, nbytes, where), strict=False
        ):
            if address != file.undefined:
                yield Chunk(corner, address, size, skipped)
    elif index.kind == TREE:
        yield from _tree(file, index, nbytes, where)


def _corners(shape: tuple[int, ...], sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*(range(0, whole, side) for whole, side in zip(shape, sides, strict=True)))


def _fixed(file: Container, address: int, nbytes: int, where: str) -> Iterator[tuple[int, int, int]]:
    """(address, length, filters left out) of each chunk of a fixed array, in the order of their places."""
    head = Cursor(file.at(address, 8 + file.lengths + file.offsets, "a fixed array"), where)
    if head.take(5) != b"FAHD\0":
        raise InvalidFile(f"{where}: no index of chunks at address {address}")
    filtered, size, bits = head.number(1), head.number(1), head.number(1)
    count, block = head.number(file.lengths), head.number(file.offsets)
    if block == file.undefined:
        return
    if bits > 32 or size < file.offsets + (5 if filtered else 0) or filtered > 1:
        raise InvalidFile(f"{where}: an index of chunks with entries of {size} bytes")
    at = block + 6 + file.offsets
    if file.at(block, 4, "a fixed array") != b"FADB":
        raise InvalidFile(f"{where}: no block of an index of chunks at address {block}")
    each = 1 << bits
    paged = count > each
    flags = file.at(at, (-(-count // each) + 7) // 8, "a fixed array") if paged else b"\x80"
    at += len(flags) + 4 if paged else 0
    for page in range(-(-count // each) if paged else 1):
        inside = min(each, count - page * each) if paged else count
        if flags[page // 8] & 0x80 >> page % 8:
            data = Cursor(file.at(at, inside * size, "a fixed array"), where)
            for _ in range(inside):
                place = data.number(file.offsets)
                yield (place, data.number(size - file.offsets - 4), data.number(4)) if filtered else (place, nbytes, 0)
        else:
            yield from ((file.undefined, 0, 0) for _ in range(inside))
        at += inside * size + 4


def _tree(file: Container, index: Index, nbytes: int, where: str) -> Iterator[Chunk]:
    """Chunks by the records of a B-tree of version 2 (types 10 and 11)."""
    rank = len(index.sides)
    for kind, record in dense.records(file, index.address, (10, 11)):
        data = Cursor(record, where)
        address, size, skipped = data.number(file.offsets), nbytes, 0
        if kind == 11:
            width = len(record) - file.offsets - 4 - 8 * rank
            size, skipped = data.number(width), data.number(4)
        yield Chunk(tuple(data.number(8) * side for side in index.sides), address, size, skipped)


def index_of(data: Cursor, file: Container) -> tuple[Index, str]:
    """(the index in a layout message of version 4, from its flags on; why it is not read)."""
    flags, rank, width = data.number(1), data.number(1), data.number(1)
    sides = tuple(data.number(width) for _ in range(rank))[:-1]
    kind = data.number(1)
    nbytes = skipped = 0
    if kind == SINGLE and flags & 2:
        nbytes, skipped = data.number(file.lengths), data.number(4)
    data.take({FIXED: 1, EXTENSIBLE: 5, TREE: 6}.get(kind, 0))
    if kind not in (SINGLE, IMPLICIT, FIXED, TREE) or flags & 1:
        return Index(kind, -1, sides), "dataset in chunks with an index of HDF5's latest format that is not read"
    return Index(kind, data.number(file.offsets), sides, nbytes, skipped), ""

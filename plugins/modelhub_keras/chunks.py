"""Where the chunks of an HDF5 dataset stand: by a B-tree, or one of the newer indices.

Sections III.A.1 (B-tree of version 1), III.A.2 (of version 2) and VII.A to VII.D (implicit, arrays) of the HDF5 File Format
Specification 3.0. Arrays number the chunks of the largest shape that the dataset may ever have.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras import arrays, dense
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


def chunks(
    file: Container, index: Index, shape: tuple[int, ...], limits: tuple[int, ...], nbytes: int, where: str
) -> Iterator[Chunk]:
    """Every chunk that is stored. ``limits``: the sides that the dataset may have at the most, -1 for no limit; ``nbytes``: of a
    whole chunk that is not compressed."""
    sides = index.sides
    if index.kind == OLD:
        for key, address in file.entries(index.address, 1, 8 + 8 * (len(sides) + 1)):
            data = Cursor(key, where)
            size, skipped = data.number(4), data.number(4)
            yield Chunk(tuple(data.number(8) for _ in sides), address, size, skipped)
    elif index.kind == SINGLE:
        yield Chunk((0,) * len(sides), index.address, index.nbytes or nbytes, index.skipped)
    elif index.kind in (IMPLICIT, FIXED, EXTENSIBLE):
        lookup = None
        if index.kind != IMPLICIT:
            lookup = (arrays.fixed if index.kind == FIXED else arrays.extensible)(file, index.address, where)
        for corner, number in _numbered(shape, limits, sides, index.kind == EXTENSIBLE, where):
            found = lookup(number) if lookup else arrays.Entry(index.address + number * nbytes)
            if found:
                yield Chunk(corner, found.address, nbytes if found.nbytes < 0 else found.nbytes, found.skipped)
    elif index.kind == TREE:
        yield from _tree(file, index, nbytes, where)


def _numbered(
    shape: tuple[int, ...], limits: tuple[int, ...], sides: tuple[int, ...], grows: bool, where: str
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Where each chunk of ``shape`` begins, and its number: that of the largest shape, in C order. The side without a limit
    counts as the first."""
    order = list(range(len(shape)))
    if grows:
        endless = [axis for axis in order if limits[axis] < 0]
        if len(endless) != 1:
            raise InvalidFile(f"{where}: {len(endless)} sides without a limit, and an index for one")
        order.remove(endless[0])
        order.insert(0, endless[0])
    elif any(limit < 0 for limit in limits):
        raise InvalidFile(f"{where}: a side without a limit, and an index of fixed size")
    steps, step = [0] * len(shape), 1
    for axis in reversed(order):
        steps[axis] = step
        step *= -(-limits[axis] // sides[axis]) if limits[axis] >= 0 else 1
    for corner in product(*(range(0, whole, side) for whole, side in zip(shape, sides, strict=True))):
        yield corner, sum(at // side * step for at, side, step in zip(corner, sides, steps, strict=True))


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
    if kind not in (SINGLE, IMPLICIT, FIXED, EXTENSIBLE, TREE) or flags & 1:
        return Index(kind, -1, sides), "dataset in chunks with an index of HDF5's latest format that is not read"
    return Index(kind, data.number(file.offsets), sides, nbytes, skipped), ""

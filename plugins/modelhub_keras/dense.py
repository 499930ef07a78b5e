"""Groups of many members in HDF5's newer format: their links stand in a fractal heap, by the records of a B-tree of version 2.

Sections III.A.2 and III.G of the HDF5 File Format Specification 3.0. Huge and filtered objects, as no link is, are refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from modelhub import InvalidFile, UnsupportedFile

from modelhub_keras.container import MAX_OBJECTS, Container, Cursor

_BY_NAME = 5
"""The type of records that index links by their names: a hash of four bytes, the place in the heap of seven."""
_SMALLEST, _LARGEST = {_BY_NAME: 11, 10: 8, 11: 13}, 1024
"""Bytes of a record."""
_NODE = 10
"""Bytes of a node that are no records: signature, version, type, checksum."""


def messages(file: Container, heap: int, tree: int) -> Iterator[bytes]:
    """The link messages of a group, in the order of their names' hashes."""
    opened = _Heap(file, heap)
    for _, record in records(file, tree, (_BY_NAME,)):
        yield opened.object(record[4:])


def _size(value: int) -> int:
    """Bytes that hold a number up to ``value``."""
    return max(0, value.bit_length() - 1) // 8 + 1


def records(file: Container, address: int, kinds: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """(type, record) of a B-tree of version 2, which is of one of these types; in no order that means anything."""
    what = f"{file.name}: the B-tree at {address}"
    head = Cursor(file.at(address, 22 + file.offsets + file.lengths, "a B-tree"), what)
    kind = head.take(6)[5] if head.data[:5] == b"BTHD\0" else -1
    if kind not in kinds:
        raise InvalidFile(f"{what} is no index of this kind")
    node_size, size, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root, count = head.number(file.offsets), head.number(2)
    if not _SMALLEST[kind] <= size <= _LARGEST or not _NODE + size < node_size <= 1 << 24 or depth > 16:
        raise InvalidFile(f"{what} has records of {size} bytes in nodes of {node_size}, {depth} deep")
    most = (node_size - _NODE) // size
    width = _size(most)  # of a node's count of records, wherever it stands
    totals = [0]  # of a subtree's count, by its depth
    whole = most
    for _ in range(depth):
        pointer = file.offsets + width + totals[-1]
        fits = max(0, node_size - _NODE - pointer) // (size + pointer)
        whole = (fits + 1) * whole + fits
        totals.append(_size(whole))
    seen: set[int] = set()
    stack = [(root, count, depth)] if root != file.undefined else []
    while stack:
        node, count, level = stack.pop()
        if node in seen or len(seen) > MAX_OBJECTS:
            raise InvalidFile(f"{what} leads back to itself, at {node}")
        seen.add(node)
        pointer = file.offsets + width + totals[level - 1] if level else 0
        data = Cursor(file.at(node, 6 + count * size + (count + 1) * pointer, "a B-tree's node"), f"{what}: the node at {node}")
        if data.take(4) != (b"BTIN" if level else b"BTLF"):
            raise InvalidFile(f"{data.what} is none")
        data.take(2)
        for _ in range(count):
            yield kind, data.take(size)
        for _ in range(count + 1 if level else 0):
            child, inside = data.number(file.offsets), data.number(width)
            data.take(totals[level - 1])
            stack.append((child, inside, level - 1))


class _Block(NamedTuple):
    """A block of the heap: what it spans, and where it stands."""

    start: int
    size: int
    address: int


class _Heap:
    """A fractal heap: objects by their places in its own space, which blocks of doubling sizes cover."""

    def __init__(self, file: Container, address: int) -> None:
        self.file, self.what = file, f"{file.name}: the fractal heap at {address}"
        head = Cursor(file.at(address, 22 + 12 * file.lengths + 3 * file.offsets, "a fractal heap"), self.what)
        if head.take(5) != b"FRHP\0":
            raise InvalidFile(f"{self.what} is none")
        head.take(2)
        filters = head.number(2)
        head.take(1)
        most = head.number(4)
        head.take(file.lengths + file.offsets + file.lengths + file.offsets + 8 * file.lengths)
        self.width, self.first, self.largest = head.number(2), head.number(file.lengths), head.number(file.lengths)
        bits = head.number(2)
        head.take(2)
        self.root, rows = head.number(file.offsets), head.number(2)
        if filters:
            raise UnsupportedFile(f"{self.what} is compressed, which is not read")
        sizes = (self.first, self.largest, self.width)
        if bits > 64 or rows > 64 or any(size < 1 or size & (size - 1) for size in sizes) or self.largest < self.first:
            raise InvalidFile(f"{self.what} has blocks from {self.first} to {self.largest} bytes, {self.width} in a row")
        self.offset_bytes = (bits + 7) // 8
        self.length_bytes = min((self.largest.bit_length() + 6) // 8, _size(most))
        self.blocks = self._blocks(rows)

    def _blocks(self, rows: int) -> list[_Block]:
        if self.root == self.file.undefined:
            return []
        if rows == 0:
            return [_Block(0, self.first, self.root)]
        found: list[_Block] = []
        seen: set[int] = set()
        stack = [(self.root, 0, rows)]
        while stack:
            address, start, rows = stack.pop()
            if address in seen or len(found) > MAX_OBJECTS:
                raise InvalidFile(f"{self.what} leads back to itself, at {address}")
            seen.add(address)
            skip = 5 + self.file.offsets + self.offset_bytes
            count = rows * self.width
            data = Cursor(self.file.at(address, skip + count * self.file.offsets, "a block"), self.what, skip)
            if data.data[:4] != b"FHIB":
                raise InvalidFile(f"{self.what} has no block of blocks at {address}")
            for row in range(rows):
                size = self.first << max(0, row - 1)
                for _ in range(self.width):
                    child = data.number(self.file.offsets)
                    if child != self.file.undefined and size <= self.largest:
                        found.append(_Block(start, size, child))
                    elif child != self.file.undefined:
                        inner = size.bit_length() - (self.first * self.width).bit_length() + 1
                        stack.append((child, start, max(0, inner)))
                    start += size
        return sorted(found)

    def object(self, place: bytes) -> bytes:
        """The object that a record names."""
        kind = place[0] >> 4 & 3
        if kind == 2:
            return place[1 : 2 + (place[0] & 15)]
        if kind or place[0] >> 6:
            raise UnsupportedFile(f"{self.what} has an object that stands by itself, which is not read")
        data = Cursor(place, self.what, 1)
        offset, length = data.number(self.offset_bytes), data.number(self.length_bytes)
        at = bisect_right(self.blocks, (offset, 1 << 70)) - 1
        block = self.blocks[at] if at >= 0 else _Block(0, 0, 0)
        if not block.start <= offset <= offset + length <= block.start + block.size:
            raise InvalidFile(f"{self.what} has no object of {length} bytes at {offset}")
        return self.file.at(block.address + offset - block.start, length, "a link")

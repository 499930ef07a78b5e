"""The entries of HDF5's two arrays of chunks, by their numbers: the fixed one, and the extensible one of datasets that grow along
one side.

Sections VII.C and VII.D of the HDF5 File Format Specification 3.0. An extensible array doubles: the first entries stand in its
index block, then come data blocks, ever larger and ever more of them, which secondary blocks list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras.container import Container, Cursor

MAX_BITS = 64


class Entry(NamedTuple):
    """A chunk's place, its bytes (-1: as many as a whole one has), and the filters left out."""

    address: int
    nbytes: int = -1
    skipped: int = 0


Lookup = Callable[[int], "Entry | None"]
"""The entry with a number; None where no chunk was written."""


def fixed(file: Container, address: int, where: str) -> Lookup:
    """A fixed array (VII.C)."""
    head = Cursor(file.at(address, 8 + file.lengths + file.offsets, "a fixed array"), where)
    if head.take(5) != b"FAHD\0":
        raise InvalidFile(f"{where}: no index of chunks at address {address}")
    filtered, size, bits = head.number(1), head.number(1), head.number(1)
    count, block = head.number(file.lengths), head.number(file.offsets)
    _check(file, filtered, size, bits, where)
    if block != file.undefined and file.at(block, 4, "a fixed array") != b"FADB":
        raise InvalidFile(f"{where}: no block of an index of chunks at address {block}")
    each = 1 << bits
    start = block + 6 + file.offsets

    def entry(number: int) -> Entry | None:
        if block == file.undefined or number >= count:
            return None
        if count <= each:
            return _entry(file, start + number * size, filtered, size, where)
        page, inside = divmod(number, each)
        flags = -(-count // each) + 7 >> 3
        if not file.at(start + page // 8, 1, "a fixed array")[0] & 0x80 >> page % 8:
            return None
        return _entry(file, start + flags + 4 + page * (each * size + 4) + inside * size, filtered, size, where)

    return entry


def _check(file: Container, filtered: int, size: int, bits: int, where: str) -> None:
    if bits > 32 or size < file.offsets + (5 if filtered else 0) or size > file.offsets + 12 or filtered > 1:
        raise InvalidFile(f"{where}: an index of chunks with entries of {size} bytes")


def _entry(file: Container, at: int, filtered: int, size: int, where: str) -> Entry | None:
    data = Cursor(file.at(at, size, "an index of chunks"), where)
    address = data.number(file.offsets)
    if address == file.undefined:
        return None
    return Entry(address, data.number(size - file.offsets - 4), data.number(4)) if filtered else Entry(address)


class _Super(NamedTuple):
    """Data blocks of one size: the number of the first entry in them, how many there are, entries of each; and how many data
    blocks come before them."""

    first: int
    blocks: int
    entries: int
    before: int


def extensible(file: Container, address: int, where: str) -> Lookup:
    """An extensible array (VII.D)."""
    head = Cursor(file.at(address, 12 + 6 * file.lengths + file.offsets, "an extensible array"), where)
    if head.take(5) != b"EAHD\0":
        raise InvalidFile(f"{where}: no index of chunks at address {address}")
    filtered, size, most, inside, fewest, pointers, bits = (head.number(1) for _ in range(7))
    head.take(6 * file.lengths)
    index = head.number(file.offsets)
    _check(file, filtered, size, bits, where)
    if not 0 < most <= MAX_BITS or fewest & fewest - 1 or not fewest or pointers & pointers - 1 or not pointers:
        raise InvalidFile(f"{where}: an index of chunks of {most} bits, with blocks of {fewest} and {pointers}")
    if index != file.undefined and file.at(index, 4, "an extensible array") != b"EAIB":
        raise InvalidFile(f"{where}: no block of an index of chunks at address {index}")
    supers: list[_Super] = []
    first = before = 0
    for number in range(1 + most - (fewest.bit_length() - 1)):
        one = _Super(first, 1 << number // 2, fewest << (number + 1) // 2, before)
        supers.append(one)
        first, before = first + one.blocks * one.entries, before + one.blocks
    direct = 2 * (pointers - 1)  # data blocks that the index block lists itself: those of the first so many sizes
    listed = 2 * (pointers.bit_length() - 1)
    width = (most + 7) // 8
    start = index + 6 + file.offsets
    page = 1 << bits

    def entry(number: int) -> Entry | None:
        if index == file.undefined:
            return None
        if number < inside:
            return _entry(file, start + number * size, filtered, size, where)
        number -= inside
        at = next((at for at, one in enumerate(supers) if number < one.first + one.blocks * one.entries), None)
        if at is None:
            raise InvalidFile(f"{where}: chunk {number} is beyond what its index of {most} bits can hold")
        one = supers[at]
        block, place = divmod(number - one.first, one.entries)
        pages = one.entries // page if one.entries > page else 0
        table = start + inside * size
        flags = 0
        if at < listed:
            data = _address(file, table + (one.before + block) * file.offsets)
        else:
            second = _address(file, table + (direct + at - listed) * file.offsets)
            if second == file.undefined:
                return None
            if file.at(second, 4, "an extensible array") != b"EASB":
                raise InvalidFile(f"{where}: no secondary block of an index of chunks at address {second}")
            flags = second + 6 + file.offsets + width
            each = (pages + 7) // 8
            data = _address(file, flags + one.blocks * each + block * file.offsets)
            flags += block * each
        if data == file.undefined:
            return None
        if file.at(data, 4, "an extensible array") != b"EADB":
            raise InvalidFile(f"{where}: no data block of an index of chunks at address {data}")
        data += 6 + file.offsets + width
        if not pages:
            return _entry(file, data + place * size, filtered, size, where)
        which, place = divmod(place, page)
        if flags and not file.at(flags + which // 8, 1, "an extensible array")[0] & 0x80 >> which % 8:
            return None
        return _entry(file, data + 4 + which * (page * size + 4) + place * size, filtered, size, where)

    return entry


def _address(file: Container, at: int) -> int:
    return int.from_bytes(file.at(at, file.offsets, "an index of chunks"), "little")

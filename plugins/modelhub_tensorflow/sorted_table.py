"""The sorted table that TensorFlow keeps its checkpoints' keys in: LevelDB's, without its log.

Facts: LevelDB ``doc/table_format.md``; TensorFlow ``core/lib/io/format.cc`` and ``block.cc``. A file is a row of blocks, each
followed by its kind (0 plain, 1 Snappy) and the masked CRC-32C of both; the 48 bytes at its end say where the index of blocks
lies. In a block each key tells how many bytes it shares with the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modelhub import File, InvalidFile, crc32c

from modelhub_tensorflow import snappy

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
TRAILER = 5
PLAIN, SNAPPY = 0, 1
MAX_BLOCKS = 1_000_000
MAX_ENTRIES = 5_000_000
MAX_KEY = 1 << 16
MOST, MAX_KEYS = 64, 512 << 20
"""Bytes of keys for each byte of their block, beyond the length of one key: every 16th is stored whole, the others at least say
how much of the one before they begin with. And of all keys of a table."""
_MASK = 0xA282EAD8


class Place(NamedTuple):
    """A block: where it lies, and how long it is without its trailer."""

    offset: int
    nbytes: int


class Entry(NamedTuple):
    """A key and its value. ``offset``: of the value in the file; -1 where its block was compressed."""

    key: bytes
    value: bytes
    offset: int


def masked(data: bytes, value: int = 0) -> int:
    """The CRC-32C of ``data`` as it is stored: turned and moved, so that checksums of checksums are none."""
    return mask(crc32c(data, value))


def mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def is_table(file: File) -> bool:
    return file.size >= FOOTER and file.tail.endswith(MAGIC)


def blocks(file: File) -> Iterator[tuple[bytes, Place]]:
    """(last key or one behind it, place) of each data block. `InvalidFile` where footer or index are none."""
    if not is_table(file):
        raise InvalidFile(
            f"{file.name} does not end in {MAGIC.hex()}, as a table of TensorFlow's does: it was cut, or is something else"
        )
    footer, at = file.tail[-FOOTER:], 0
    numbers = []
    for _ in range(4):
        number, at = varint(footer, at, len(footer) - len(MAGIC), file.name)
        numbers.append(number)
    if any(footer[at : -len(MAGIC)]):
        raise InvalidFile(f"{file.name}: the last {FOOTER} bytes are corrupt: zeros were expected behind their four numbers")
    block(file, Place(numbers[0], numbers[1]))  # of other things than keys; TensorFlow writes none, with a checksum
    for count, entry in enumerate(block(file, Place(numbers[2], numbers[3]))):
        offset, after = varint(entry.value, 0, len(entry.value), file.name)
        nbytes, _ = varint(entry.value, after, len(entry.value), file.name)
        if count >= MAX_BLOCKS:
            raise InvalidFile(f"{file.name}: more than {MAX_BLOCKS} blocks")
        yield entry.key, Place(offset, nbytes)


def block(file: File, place: Place) -> list[Entry]:
    """All entries of a block, its checksum held against its bytes."""
    inside(file, place)
    if place.nbytes > snappy.MAX_BLOCK:
        raise InvalidFile(f"{file.name}: a block of {place.nbytes} bytes at offset {place.offset}, which no index has")
    data = file.read(place.offset, place.nbytes + TRAILER)
    stored = int.from_bytes(data[-4:], "little")
    found = masked(data[:-4])
    if stored != found:
        raise InvalidFile(
            f"{file.name}: the block at offset {place.offset} is corrupt: its CRC-32C is {found:08x}, {stored:08x} was stored"
        )
    kind, data, base = data[-5], data[:-5], place.offset
    if kind == SNAPPY:
        try:
            data, base = snappy.decode(data), -1
        except ValueError as error:
            raise InvalidFile(f"{file.name}: the compressed block at offset {place.offset} is broken: {error}") from error
    elif kind != PLAIN:
        raise InvalidFile(f"{file.name}: the block at offset {place.offset} is of kind {kind}, not 0 (plain) or 1 (Snappy)")
    return list(_entries(data, base, f"{file.name}: the block at offset {place.offset}"))


def _entries(data: bytes, base: int, who: str) -> Iterator[Entry]:
    restarts = int.from_bytes(data[-4:], "little")
    end = len(data) - 4 * (restarts + 1)
    if len(data) < 4 or end < 0:
        raise InvalidFile(f"{who} says {restarts} restarts and has {len(data)} bytes")
    at, key, count, left = 0, b"", 0, MAX_KEY + MOST * len(data)
    while at < end:
        shared, at = varint(data, at, end, who)
        own, at = varint(data, at, end, who)
        nbytes, at = varint(data, at, end, who)
        if shared > len(key) or shared + own > MAX_KEY or at + own + nbytes > end:
            raise InvalidFile(f"{who} has an entry at {at} that runs out of it")
        left -= shared + own
        if left < 0:
            raise InvalidFile(f"{who} has keys of more than {MOST} times its {len(data)} bytes: no writer shares so much")
        key = key[:shared] + data[at : at + own]
        at += own
        yield Entry(key, data[at : at + nbytes], base + at if base >= 0 else -1)
        at += nbytes
        count += 1
        if count > MAX_ENTRIES:
            raise InvalidFile(f"{who} has more than {MAX_ENTRIES} entries")


def entries(file: File) -> Iterator[Entry]:
    """All keys and values in their order. `InvalidFile` where keys are not sorted: readers would differ in what they find."""
    last: bytes | None = None
    count, left = 0, MAX_KEYS
    for _, place in blocks(file):
        for entry in block(file, place):
            if last is not None and entry.key <= last:
                raise InvalidFile(f"{file.name}: key {entry.key[:80]!r} stands behind {last[:80]!r}: keys are sorted and unique")
            last = entry.key
            count, left = count + 1, left - len(entry.key)
            if count > MAX_ENTRIES or left < 0:
                raise InvalidFile(f"{file.name}: more than {MAX_ENTRIES} keys, or {MAX_KEYS} bytes of them")
            yield entry


def varint(data: bytes, at: int, end: int, who: str) -> tuple[int, int]:
    """The number at ``at``, and where it ends; `InvalidFile` where that is behind ``end``."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise InvalidFile(f"{who}: a number at {at} does not end")


def inside(file: File, place: Place) -> None:
    if place.offset + place.nbytes + TRAILER > file.size - FOOTER:
        raise InvalidFile(
            f"{file.name}: a block of {place.nbytes} bytes at offset {place.offset} reaches behind {file.size} bytes"
        )


# --- writing --------------------------------------------------------------------------------------------------------

BLOCK = 256 << 10
"""``table::Options::block_size`` in TensorFlow."""
RESTARTS = 16


def build(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole table of entries that are sorted by their keys, uncompressed."""
    out = bytearray()
    index: list[tuple[bytes, bytes]] = []
    held: list[tuple[bytes, bytes]] = []
    size = 0
    for entry in entries:
        held.append(entry)
        size += len(entry[0]) + len(entry[1])
        if size >= BLOCK:
            index.append((held[-1][0], _append(out, held)))
            held, size = [], 0
    if held:
        index.append((held[-1][0], _append(out, held)))
    footer = _append(out, []) + _append(out, index, restarts=1)
    return bytes(out + footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)


def _append(out: bytearray, entries: Iterable[tuple[bytes, bytes]], restarts: int = RESTARTS) -> bytes:
    """Put a block at the end of ``out``; its place, as an index and the footer have it."""
    data, starts, last = bytearray(), [0], b""
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % restarts == 0:
            if count:
                starts.append(len(data))
        else:
            most = min(len(last), len(key))
            while shared < most and last[shared] == key[shared]:
                shared += 1
        data += as_varint(shared) + as_varint(len(key) - shared) + as_varint(len(value)) + key[shared:] + value
        last = key
    for start in (*starts, len(starts)):
        data += start.to_bytes(4, "little")
    place = as_varint(len(out)) + as_varint(len(data))
    data.append(PLAIN)
    out += data + masked(bytes(data)).to_bytes(4, "little")
    return place


def as_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

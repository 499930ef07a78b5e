"""`StoredZip`: lays out zips of stored members, their data aligned, for formats whose container is a zip.

It writes nothing itself: it gives the bytes, patches and tail that a ``Format.create`` generator yields. CRCs are asked for as
late as possible, so that tensors are written in parallel. Section numbers are those of PKWARE's APPNOTE 6.3.10.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from modelhub.errors import ModelhubError
from modelhub.types import Patch, Placed, Tail
from modelhub.zip_records import CENTRAL, END, END64, FULL16, FULL32, LOCAL, LOCATOR

_UTF8 = 1 << 11
_ZIP64 = 0x0001


class _Written(NamedTuple):
    raw: bytes
    offset: int
    size: int
    crc: Callable[[], int]


class StoredZip:
    """Lays out a zip of stored members, for use in a ``Format.create`` generator. One for each output file::

        zip_ = StoredZip()
        yield zip_.add("version", b"3")                     # a small member, whole
        yield zip_.start("weights")                         # a member whose bytes a Put writes
        placed = yield Put(tensor, checksum="crc32")
        yield zip_.finish(placed)                           # patches sizes and CRC into the local header
        yield zip_.directory()                              # the last piece

    ``checksums=False`` leaves the CRCs of put members 0: faster, but other readers than PyTorch's call such members corrupt.
    """

    def __init__(self, *, checksums: bool = True) -> None:
        self.offset = 0
        """Where the next byte goes."""
        self._checksums = checksums
        self._members: list[_Written] = []
        self._open: tuple[bytes, int, int, bytes] | None = None

    def add(self, name: str, data: bytes, *, align: int = 1) -> bytes:
        """A whole member: what to write now."""
        raw = _raw(name)
        crc = zlib.crc32(data)
        header = _local_header(raw, len(data), crc, _padding(self.offset, raw, align))
        self._members.append(_Written(raw, self.offset, len(data), lambda: crc))
        self.offset += len(header) + len(data)
        return header + data

    def start(self, name: str, extra_header: bytes = b"", align: int = 64) -> bytes:
        """Open a member whose data are ``extra_header`` and then one `Put`; they start at a multiple of ``align``."""
        if self._open is not None:
            raise ValueError("a member is open already: finish it first")
        raw = _raw(name)
        padding = _padding(self.offset, raw, align)
        header = _local_header(raw, 0, 0, padding)
        self._open = (raw, self.offset, padding, extra_header)
        self.offset += len(header) + len(extra_header)
        return header + extra_header

    def finish(self, placed: Placed | None) -> Patch:
        """Close the member; the patch completes its local header once the bytes, and with them the CRC, are there."""
        if self._open is None or placed is None or placed.offset != self.offset:
            raise ValueError(f"finish() takes what the Put after start() gave back, at offset {self.offset}: {placed}")
        raw, at, padding, prefix = self._open
        self._open = None
        self.offset = placed.offset + placed.nbytes
        size = len(prefix) + placed.nbytes

        def crc() -> int:
            if not self._checksums:
                return 0
            return _combine(zlib.crc32(prefix), placed.checksum(), placed.nbytes) if prefix else placed.checksum()

        self._members.append(_Written(raw, at, size, crc))
        return Patch(at, lambda: _local_header(raw, size, crc(), padding))

    def directory(self) -> Tail:
        """The central directory and the end records, zip64 where the sizes ask for it."""
        if self._open is not None:
            raise ValueError("a member is still open: finish it first")
        start, members = self.offset, tuple(self._members)

        def data() -> bytes:
            entries = b"".join(_central_entry(member) for member in members)
            size, count = len(entries), len(members)
            parts = [entries]
            if count >= FULL16 or start >= FULL32 or size >= FULL32:
                parts.append(END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, count, count, size, start))
                parts.append(LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1))
            short, full = min(count, FULL16), (min(size, FULL32), min(start, FULL32))
            parts.append(END.pack(b"PK\x05\x06", 0, 0, short, short, *full, 0))
            return b"".join(parts)

        return Tail(data)


_PAD_TAG = 0x4246
"""The tag that PyTorch pads with ("FB", caffe2/serialize/inline_container.cc); every reader skips it."""
_ZIP64_FIELD = 20


def _padding(offset: int, raw: bytes, align: int) -> int:
    """Bytes of extra fields after the name: room for a zip64 field, which may turn out to be needed, and what aligns the data."""
    if len(raw) > FULL16 or align < 1 or align > 4096:
        raise ValueError(f"a zip member's name of {len(raw)} bytes, aligned to {align}")
    minimum = _ZIP64_FIELD + 4
    return minimum + -(offset + LOCAL.size + len(raw) + minimum) % align


def _raw(name: str) -> bytes:
    """A member's name as it is stored. ModelhubError for one that readers refuse, or cut."""
    raw = name.encode("utf-8", "surrogatepass")
    if not raw or b"\0" in raw or len(raw) > FULL16:
        raise ModelhubError(f"no member of a zip can be called {name[:80]!r} ({len(raw)} bytes)", "another format takes any name")
    return raw


def _local_header(raw: bytes, size: int, crc: int, padding: int) -> bytes:
    extra, short = b"", size
    if size >= FULL32:
        extra, short = struct.pack("<2H2Q", _ZIP64, 16, size, size), FULL32
    left = padding - len(extra) - 4
    extra += struct.pack("<2H", _PAD_TAG, left) + b"Z" * left
    version = 45 if size >= FULL32 else 20
    # 1980-01-01, the first date there is: outputs must not depend on the clock.
    return LOCAL.pack(b"PK\x03\x04", version, _UTF8, 0, 0, 0x21, crc, short, short, len(raw), len(extra)) + raw + extra


def _central_entry(member: _Written) -> bytes:
    wide = b""
    size, offset = member.size, member.offset
    if size >= FULL32:
        wide += struct.pack("<2Q", size, size)
        size = FULL32
    if offset >= FULL32:
        wide += struct.pack("<Q", offset)
        offset = FULL32
    extra = struct.pack("<2H", _ZIP64, len(wide)) + wide if wide else b""
    version = 45 if wide else 20
    head = (b"PK\x01\x02", version, version, _UTF8, 0, 0, 0x21, member.crc(), size, size)
    return CENTRAL.pack(*head, len(member.raw), len(extra), 0, 0, 0, 0, offset) + member.raw + extra


# --- CRCs of parts ------------------------------------------------------------------------------------------------

_POLYNOMIAL = 0xEDB88320


def _multiply(a: int, b: int) -> int:
    """a(x) * b(x) modulo the CRC-32 polynomial, bits reflected (zlib's ``multmodp``)."""
    product, bit = 0, 1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of two runs of bytes, from the CRC of each and the second's ``length`` (zlib's ``crc32_combine``)."""
    shift, power, bits = 1 << 31, 1 << 23, length  # x^0, x^8
    while bits:
        if bits & 1:
            shift = _multiply(power, shift)
        power = _multiply(power, power)
        bits >>= 1
    return _multiply(shift, first) ^ second

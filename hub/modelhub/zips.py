"""Zip archives as tables of extents, for every format whose container is a zip. `StoredZip` writes them, and is defined next
door.

`zip_members` is a parser of its own, because readers of zip files disagree with each other: which of two equal names counts,
whether a name's case does, whether the local header or the central directory is right. Where two readers could see different
files in the same bytes, the archive is rejected. Facts are from PKWARE's APPNOTE 6.3.10 (section numbers below).

Encrypted, split and self-extracting archives are not read; member data are never read here, except by `ZipMember.read`.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from modelhub.errors import InvalidFile, UnsupportedFile
from modelhub.files import File
from modelhub.types import Extent
from modelhub.zip_records import CENTRAL, END, END64, FULL16, FULL32, LOCAL, LOCATOR
from modelhub.zip_writer import StoredZip

__all__ = ["StoredZip", "ZipMember", "zip_members"]

MAX_MEMBERS = 1_000_000
"""No archive with more members is read. A state dict has a member for each storage."""
MAX_DIRECTORY = 256 << 20
"""The longest central directory that is read, in bytes."""
MAX_MEMBER_READ = 1 << 30
"""`ZipMember.read` gives no more than this unless told."""

_ENCRYPTED, _DESCRIPTOR, _PATCHED, _STRONG, _UTF8, _MASKED = 1, 1 << 3, 1 << 5, 1 << 6, 1 << 11, 1 << 13
_REFUSED = _ENCRYPTED | _PATCHED | _STRONG | _MASKED
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_GUESS = 128
"""Bytes read after a local header's name: the padding that aligns data to 64 fits."""


class ZipMember(NamedTuple):
    """One member. Its ``nbytes`` bytes at ``offset`` of ``file`` are its data, or the raw deflate stream of them (``deflated``);
    ``size`` is the length of the data. ``crc`` 0 may mean that the writer computed none."""

    name: str
    file: str
    offset: int
    nbytes: int
    size: int
    deflated: bool
    crc: int
    header_offset: int

    @property
    def extent(self) -> Extent:
        """The bytes in the file: the data, or for a deflated member what `modelhub.ops.inflate` takes."""
        return Extent(self.file, self.offset, self.nbytes)

    def read(self, file: File, *, limit: int = MAX_MEMBER_READ, check: bool = True) -> bytes:
        """The member's data. `InvalidFile` where they are longer than ``limit``, broken, or without the CRC that the directory
        declares (unless that is 0: unchecked)."""
        if self.size > limit:
            raise InvalidFile(f"{file.name}: member {self.name} has {self.size} bytes, at most {limit} are read")
        data = file.read(self.offset, self.nbytes)
        if self.deflated:
            machine = zlib.decompressobj(-15)
            try:
                data = machine.decompress(data, self.size + 1)
            except zlib.error as error:
                raise InvalidFile(f"{file.name}: member {self.name} is corrupt: {error}") from error
            if len(data) != self.size or not machine.eof or machine.unused_data:
                raise InvalidFile(f"{file.name}: member {self.name} does not inflate to the {self.size} bytes it declares")
        if check and self.crc and zlib.crc32(data) != self.crc:
            found = f"{zlib.crc32(data):08x}"
            raise InvalidFile(
                f"{file.name}: member {self.name} is corrupt: its CRC is {found}, the directory says {self.crc:08x}"
            )
        return data

    def peek(self, file: File, nbytes: int) -> bytes:
        """The first ``nbytes`` bytes of the data (fewer where there are fewer), without a look at the rest or the CRC."""
        data = file.read(self.offset, min(self.nbytes, nbytes))
        if not self.deflated:
            return data
        try:
            return zlib.decompressobj(-15).decompress(data, nbytes)
        except zlib.error as error:
            raise InvalidFile(f"{file.name}: member {self.name} is corrupt: {error}") from error


def zip_members(file: File, *, fold_case: bool = True) -> list[ZipMember]:
    """Every member of a zip, in the order of the central directory, each checked against its local header.

    `InvalidFile` for anything that two readers might take differently: duplicate names, names that differ by case alone
    (``fold_case``: some readers look names up without regard to it), a local header at odds with the directory, members that
    overlap, bytes before or after the archive; and for encrypted, split or oversized ones. `UnsupportedFile` for
    compression other than deflate. Costs one read of the directory and one of a few hundred bytes a member.
    """
    start, size, count = _locate(file)
    directory = file.read(start, size)
    entries, position = [], 0
    for _ in range(count):
        entry, position = _central(file, directory, position)
        entries.append(entry)
    if position != size:
        raise InvalidFile(f"{file.name}: the zip directory has {size} bytes, its {count} entries take {position}")
    _unique(file, entries, fold_case)
    reader = _Headers(file)
    members = [reader.member(entry) for entry in entries]
    _disjoint(file, members, start)
    return members


# --- the central directory ----------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    name: str
    raw: bytes
    flags: int
    method: int
    crc: int
    nbytes: int
    size: int
    offset: int


def _locate(file: File) -> tuple[int, int, int]:
    """(offset, size, entries) of the central directory, from the record at the file's end."""
    tail = file.tail
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 and file.size > len(tail):
        tail = file.read(max(0, file.size - END.size - FULL16), min(file.size, END.size + FULL16))
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END.size:
        raise InvalidFile(f"{file.name}: no zip directory at the end: truncated, or not a zip")
    end = file.size - len(tail) + at
    _, disk, start_disk, here, count, size, start, comment = END.unpack_from(tail, at)
    if end + END.size + comment != file.size:
        raise InvalidFile(f"{file.name}: {file.size - end - END.size} bytes follow the zip, a comment of {comment} is declared")
    limit = end
    locator = file.read(end - LOCATOR.size, LOCATOR.size) if end >= LOCATOR.size else b""
    if locator.startswith(b"PK\x06\x07"):
        _, disk64, at64, disks = LOCATOR.unpack(locator)
        if disk64 or disks > 1 or at64 + END64.size > end - LOCATOR.size:
            raise InvalidFile(f"{file.name}: the zip64 locator points to disk {disk64} of {disks}, offset {at64}")
        signature, length, _, _, d64, sd64, here64, count64, size64, start64 = END64.unpack(file.read(at64, END64.size))
        if signature != b"PK\x06\x06" or at64 + 12 + length != end - LOCATOR.size:
            raise InvalidFile(f"{file.name}: no zip64 record at offset {at64}, where the locator points")
        pairs = ((disk, d64), (start_disk, sd64), (here, here64), (count, count64), (size, size64), (start, start64))
        for number, (short, full) in enumerate(pairs):
            if short != full and short != (FULL16 if number < 4 else FULL32):
                raise InvalidFile(f"{file.name}: the zip64 record says {full} where the zip's end record says {short}")
        disk, start_disk, here, count, size, start, limit = d64, sd64, here64, count64, size64, start64, at64
    if disk or start_disk or here != count:
        raise InvalidFile(f"{file.name}: one part of a zip that is split over several disks")
    if count > MAX_MEMBERS or size > MAX_DIRECTORY or size < count * CENTRAL.size:
        raise InvalidFile(f"{file.name}: a zip directory of {count} members in {size} bytes")
    if start + size != limit:
        raise InvalidFile(f"{file.name}: the zip directory should end at {limit}, it is declared to end at {start + size}")
    return start, size, count


def _central(file: File, directory: bytes, position: int) -> tuple[_Entry, int]:
    if position + CENTRAL.size > len(directory):
        raise InvalidFile(f"{file.name}: the zip directory ends in the middle of an entry")
    fields = CENTRAL.unpack_from(directory, position)
    signature, _, _, flags, method, _, _, crc, nbytes, size, name_size, extra_size, comment, disk, _, _, offset = fields
    names = position + CENTRAL.size
    end = names + name_size + extra_size + comment
    if signature != b"PK\x01\x02" or end > len(directory):
        raise InvalidFile(f"{file.name}: no zip directory entry at {position} of the directory")
    raw = directory[names : names + name_size]
    name = _name(file, raw, flags)
    if extra_size:
        extra = _extra(file, name, directory[names + name_size : names + name_size + extra_size])
        if _UNICODE_PATH in extra and extra[_UNICODE_PATH][5:] != name.encode("utf-8", "surrogatepass"):
            raise InvalidFile(f"{file.name}: member {name} has a second, other name")
        wide = extra.get(_ZIP64, b"")
        for field, value in (("size", size), ("nbytes", nbytes), ("offset", offset)):
            if value == FULL32:
                if len(wide) < 8:
                    raise InvalidFile(f"{file.name}: member {name}: its zip64 {field} is missing")
                number = int.from_bytes(wide[:8], "little")
                wide = wide[8:]
                if field == "size":
                    size = number
                elif field == "nbytes":
                    nbytes = number
                else:
                    offset = number
        if disk == FULL16 and len(wide) >= 4:
            disk = int.from_bytes(wide[:4], "little")
    elif FULL32 in (size, nbytes, offset):
        raise InvalidFile(f"{file.name}: member {name}: its zip64 sizes are missing")
    if disk:
        raise InvalidFile(f"{file.name}: member {name} stands on another disk of a split zip")
    if flags & _REFUSED:
        raise InvalidFile(f"{file.name}: member {name} is encrypted or patched (flags {flags:#06x})")
    if method not in (0, 8):
        raise UnsupportedFile(f"{file.name}: member {name} has compression method {method}; only stored and deflate are read")
    if not method and nbytes != size:
        raise InvalidFile(f"{file.name}: member {name} is stored, yet has {nbytes} bytes for {size}")
    return _Entry(name, raw, flags, method, crc, nbytes, size, offset), end


def _name(file: File, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 or raw.isascii() else "cp437")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{file.name}: a member's name is not the UTF-8 it declares: {raw[:80]!r}") from error
    if not name or "\0" in name:
        raise InvalidFile(f"{file.name}: a member's name is empty or holds a NUL: {raw[:80]!r}")
    return name


def _extra(file: File, name: str, data: bytes) -> dict[int, bytes]:
    """The extra fields by their tags (4.5.1); the first of each counts. Padding too short for a tag is let be."""
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        tag, length = struct.unpack_from("<2H", data, position)
        if position + 4 + length > len(data):
            raise InvalidFile(f"{file.name}: member {name}: an extra field of {length} bytes ends after the extra fields do")
        if tag in (_ZIP64, _UNICODE_PATH) and tag in fields:
            raise InvalidFile(f"{file.name}: member {name} has the extra field {tag:#06x} twice")
        fields.setdefault(tag, data[position + 4 : position + 4 + length])
        position += 4 + length
    return fields


def _unique(file: File, entries: list[_Entry], fold_case: bool) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise InvalidFile(f"{file.name}: two members are called {entry.name}")
        seen.add(entry.name)
    if fold_case and len({name.lower() for name in seen}) != len(seen):
        lower: dict[str, str] = {}
        for entry in entries:
            other = lower.setdefault(entry.name.lower(), entry.name)
            if other != entry.name:
                raise InvalidFile(f"{file.name}: members {other} and {entry.name} differ by case alone")


def _disjoint(file: File, members: list[ZipMember], limit: int) -> None:
    end, before = 0, None
    for member in sorted(members, key=lambda member: member.header_offset):
        if before is not None and member.header_offset < end:
            raise InvalidFile(f"{file.name}: members {before.name} and {member.name} overlap at offset {member.header_offset}")
        if before is None and member.header_offset:
            raise InvalidFile(f"{file.name}: {member.header_offset} bytes stand before the zip's first member")
        end, before = member.offset + member.nbytes, member
    if end > limit:
        raise InvalidFile(f"{file.name}: a member ends at {end}, the zip directory starts at {limit}")


# --- local headers ------------------------------------------------------------------------------------------------


class _Headers:
    """Reads local headers, each with one short read; neighbours that stand in a window already read cost none."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.start = 0
        self.window = b""

    def _bytes(self, offset: int, nbytes: int, ahead: int) -> bytes:
        at = offset - self.start
        if at < 0 or at + nbytes > len(self.window):
            self.start, at = offset, 0
            self.window = self.file.read(offset, max(nbytes, min(ahead, self.file.size - offset)))
        return self.window[at : at + nbytes]

    def member(self, entry: _Entry) -> ZipMember:
        file, name = self.file, entry.name
        # A small member's neighbour most likely stands within the next 4 KiB; a large one's does not.
        fixed = LOCAL.size + len(entry.raw)
        header = self._bytes(entry.offset, fixed, 4096 if entry.nbytes < 4096 else fixed + _GUESS)
        signature, _, flags, method, _, _, crc, nbytes, size, name_size, extra_size = LOCAL.unpack_from(header)
        if signature != b"PK\x03\x04":
            raise InvalidFile(f"{file.name}: member {name}: no local header at offset {entry.offset}")
        if name_size != len(entry.raw) or header[LOCAL.size :] != entry.raw:
            raise InvalidFile(f"{file.name}: member {name} has another name in its local header, at offset {entry.offset}")
        if method != entry.method or (flags ^ entry.flags) & (_REFUSED | _UTF8):
            raise InvalidFile(f"{file.name}: member {name}: method or flags of its local header are not the directory's")
        # Saturated sizes are in the extra field; with a data descriptor the local ones may be zero, for they came later (4.4.4).
        if FULL32 in (nbytes, size):
            data = self._bytes(entry.offset, fixed + extra_size, fixed + extra_size)[fixed:]
            wide = _extra(file, name, data).get(_ZIP64, b"")
            if len(wide) < 16:
                raise InvalidFile(f"{file.name}: member {name}: its local zip64 sizes are missing")
            size, nbytes = struct.unpack_from("<2Q", wide)
        if (crc, nbytes, size) != (entry.crc, entry.nbytes, entry.size):
            later = flags & _DESCRIPTOR
            pairs = ((crc, entry.crc), (nbytes, entry.nbytes), (size, entry.size))
            if any(local != central and not (later and not local) for local, central in pairs):
                raise InvalidFile(
                    f"{file.name}: member {name}: CRC and sizes are {crc:08x}, {nbytes}, {size} in the local header, "
                    f"{entry.crc:08x}, {entry.nbytes}, {entry.size} in the directory"
                )
        offset = entry.offset + fixed + extra_size
        if offset + entry.nbytes > file.size:
            raise InvalidFile(f"{file.name}: member {name} ends at {offset + entry.nbytes}, the file at {file.size}")
        return ZipMember(name, file.path, offset, entry.nbytes, entry.size, bool(entry.method), entry.crc, entry.offset)

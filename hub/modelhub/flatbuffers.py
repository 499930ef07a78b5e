"""FlatBuffers read by offset, without generated code: for models whose tables stand among gigabytes of weights.

`FlatBuffer` opens one; a `Table` answers for its fields by their numbers, which are their places in the schema (a union counts
as two: its type, then its value). What is not asked for is never read, so that a vector of 2 GB costs nothing. This module knows
the layout alone (flatbuffers.dev, "FlatBuffer Internals"); what a field means is its caller's business. Every offset, length and
vtable is held against the buffer before it is followed, tables nest in bounded depth, and what is read of one buffer has a bound
though its offsets point at the same places a million times.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from modelhub.errors import IncompleteFile, InvalidFile
from modelhub.files import File

MAX_READ = 256 << 20
"""Bytes of texts and numbers that are read of one buffer at the most; a table counts as `TABLE_COST`, so that a million of them
are opened, as by FlatBuffers' own verifier."""
TABLE_COST, ITEM_COST = 256, 32
MAX_DEPTH = 64
MAX_TEXT = 1 << 20
MAX_NUMBERS = 1 << 20
WHOLE = 256 << 10
"""A buffer up to this long is read at once."""
PAGE = 16 << 10
PAGES = 256
"""A longer one is read in pages, of which so many are kept."""
MAX_VTABLES = 4096
"""Vtables that are remembered: tables of one kind share theirs."""

_SIZES = {"?": 1, "b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4, "d": 8}
"""The scalars, by their codes in `struct`: bool, byte, ubyte, short, ushort, int, uint, long, ulong, float, double."""
_READERS = {code: struct.Struct("<" + code) for code in _SIZES}


class FlatBuffer:
    """The buffer in a file, from ``start`` to ``end`` (default: all of it), or in ``bytes`` (``name`` is what errors call them
    then). Places that it tells count from the file's start."""

    __slots__ = ("_base", "_data", "_file", "_left", "_pages", "_vtables", "end", "name", "start")

    def __init__(
        self, source: File | bytes, name: str = "", *, start: int = 0, end: int | None = None, max_read: int = MAX_READ
    ) -> None:
        size = len(source) if isinstance(source, bytes) else source.size
        self.name = name or ("a buffer" if isinstance(source, bytes) else source.name)
        self.start, self.end = start, size if end is None else end
        if not 0 <= self.start <= self.end <= size:
            raise InvalidFile(f"{self.name}: a buffer from {start} to {self.end} lies outside of its {size} bytes")
        self._file: File | None = None
        self._data, self._base = b"", 0
        self._pages: dict[int, bytes] = {}
        self._vtables: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._left = max_read
        if isinstance(source, bytes):
            self._data = source
        elif self.end - self.start <= WHOLE:
            self._data, self._base = source.read(self.start, self.end - self.start), self.start
        else:
            self._file = source

    @property
    def identifier(self) -> bytes:
        """The four bytes behind the root's offset that tell what the buffer holds; b"" where it is too short for any."""
        return self.data(self.start + 4, self.start + 8) if self.end - self.start >= 8 else b""

    def root(self) -> Table:
        """The root table."""
        return self.open(self.target(self.start, "the root table"), 0)

    def open(self, at: int, depth: int) -> Table:
        """The table at ``at``. `InvalidFile` where there cannot be one."""
        if depth > MAX_DEPTH:
            raise InvalidFile(f"{self.name}: tables nest deeper than {MAX_DEPTH} at offset {at}")
        self.charge(at, TABLE_COST)
        where = at - int(self.number(at, "i", "a table"))
        known = self._vtables.get(where)
        if known is None:
            known = self._vtable(where, at)
            if len(self._vtables) < MAX_VTABLES:
                self._vtables[where] = known
        if known[0] > self.end - at:
            self._short(at, known[0], "a table")
        return Table(self, at, known[0], known[1], depth)

    def _vtable(self, where: int, at: int) -> tuple[int, tuple[int, ...]]:
        """(bytes of the table, offsets of its fields) as the vtable at ``where`` has them."""
        if where < self.start:
            raise InvalidFile(f"{self.name}: the vtable of the table at offset {at} would begin at {where}")
        size, inside = int(self.number(where, "H", "a vtable")), int(self.number(where + 2, "H", "a vtable"))
        if size < 4 or size % 2 or inside < 4:
            raise InvalidFile(f"{self.name}: the vtable at offset {where} has {size} bytes, for tables of {inside}: no vtable")
        if size > self.end - where:
            self._short(where, size, "a vtable")
        offsets = struct.unpack(f"<{size // 2 - 2}H", self.data(where + 4, where + size))
        if any(0 < offset < 4 or offset >= inside for offset in offsets):
            raise InvalidFile(f"{self.name}: the vtable at offset {where} places a field outside of its table of {inside} bytes")
        return inside, offsets

    def number(self, at: int, kind: str, what: str = "a number") -> Any:
        """The scalar of a `struct` code at ``at``."""
        reader = _READERS[kind]
        if at < self.start or at + reader.size > self.end:
            self._short(at, reader.size, what)
        if self._file is None:
            return reader.unpack_from(self._data, at - self._base)[0]
        page, within = divmod(at, PAGE)
        data = self._pages.get(page) or self._load(self._file, page)
        if within + reader.size <= len(data):
            return reader.unpack_from(data, within)[0]
        return reader.unpack(self._file.read(at, reader.size))[0]

    def data(self, start: int, end: int) -> bytes:
        """The bytes ``start``..``end`` of the buffer."""
        if not self.start <= start <= end <= self.end:
            self._short(start, end - start, "data")
        if self._file is None:
            return self._data[start - self._base : end - self._base]
        page, within = divmod(start, PAGE)
        if within + end - start <= PAGE:
            return (self._pages.get(page) or self._load(self._file, page))[within : within + end - start]
        return self._file.read(start, end - start)

    def vector(self, at: int, size: int, what: str = "a vector") -> tuple[int, int]:
        """(start, elements) of the vector at ``at``, whose elements of ``size`` bytes all lie in the buffer; none is read."""
        count, start = int(self.number(at, "I", what)), at + 4
        if count * size > self.end - start:
            self._short(start, count * size, f"{what} of {count} elements")
        return start, count

    def text(self, at: int, limit: int = MAX_TEXT) -> str:
        """The string at ``at``; `InvalidFile` where it is no UTF-8, or longer than ``limit`` bytes."""
        start, count = self.vector(at, 1, "a text")
        if count > limit:
            raise InvalidFile(f"{self.name}: a text of {count} bytes at offset {start}, at most {limit} are read")
        self.charge(start, ITEM_COST + count)
        try:
            return self.data(start, start + count).decode()
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{self.name}: the text at offset {start} is not UTF-8: {error.reason}") from error

    def target(self, at: int, what: str) -> int:
        """Where the offset that stands at ``at`` points: always forward, so that nothing can lead back to itself."""
        offset = int(self.number(at, "I", what))
        if offset < 4:
            raise InvalidFile(f"{self.name}: the offset of {what} at {at} is {offset}, which points at itself")
        if offset > self.end - at:
            self._short(at + offset, 4, what)
        return at + offset

    def _load(self, file: File, page: int) -> bytes:
        if len(self._pages) >= PAGES:
            self._pages.clear()
        data = self._pages[page] = file.read(page * PAGE, min(PAGE, self.end - page * PAGE))
        return data

    def charge(self, at: int, nbytes: int) -> None:
        """Count what is read; `InvalidFile` where it becomes more than one buffer is good for."""
        self._left -= nbytes
        if self._left < 0:
            raise InvalidFile(f"{self.name}: more tables and texts than are read of one buffer, at offset {at}")

    def _short(self, at: int, nbytes: int, what: str) -> None:
        raise (InvalidFile if at < self.start else IncompleteFile)(
            f"{self.name}: {what}: {nbytes} bytes at offset {at} expected, it goes from {self.start} to {self.end}"
        )


class Table:
    """One table. A ``field`` is its number in the schema; a field that is not there has its default, or is None or empty."""

    __slots__ = ("_depth", "_offsets", "_size", "at", "buffer")

    def __init__(self, buffer: FlatBuffer, at: int, size: int, offsets: tuple[int, ...], depth: int) -> None:
        self.buffer, self.at = buffer, at
        self._size, self._offsets, self._depth = size, offsets, depth

    def __contains__(self, field: int) -> bool:
        return field < len(self._offsets) and self._offsets[field] > 0

    def _place(self, field: int, nbytes: int) -> int:
        """Where a field of ``nbytes`` bytes stands; 0 where it does not."""
        offset = self._offsets[field] if field < len(self._offsets) else 0
        if offset and offset + nbytes > self._size:
            where = f"{self.buffer.name}: field {field} of the table at offset {self.at}"
            raise InvalidFile(f"{where} ends at byte {offset + nbytes}, the table has {self._size}")
        return self.at + offset if offset else 0

    def _follow(self, field: int, what: str) -> int:
        place = self._place(field, 4)
        return self.buffer.target(place, what) if place else 0

    def number(self, field: int, kind: str, default: Any = 0) -> Any:
        """A scalar, by its code in `struct` ("i" for int, "B" for ubyte, "f" for float, ...)."""
        place = self._place(field, _SIZES[kind])
        return self.buffer.number(place, kind) if place else default

    def struct(self, field: int, nbytes: int) -> bytes | None:
        """The bytes of a struct, which stands in the table itself."""
        place = self._place(field, nbytes)
        return self.buffer.data(place, place + nbytes) if place else None

    def text(self, field: int, default: str = "", *, limit: int = MAX_TEXT) -> str:
        place = self._follow(field, "a text")
        return self.buffer.text(place, limit) if place else default

    def table(self, field: int) -> Table | None:
        """A table inside; also the value of a union, by the number of its value."""
        place = self._follow(field, "a table")
        return self.buffer.open(place, self._depth + 1) if place else None

    def place(self, field: int, size: int = 1) -> tuple[int, int] | None:
        """(start, elements) of a vector of scalars or structs of ``size`` bytes each, not read; None where there is none."""
        place = self._follow(field, "a vector")
        return self.buffer.vector(place, size) if place else None

    def numbers(self, field: int, kind: str, *, most: int = MAX_NUMBERS) -> tuple[Any, ...]:
        """A vector of scalars. `InvalidFile` for more than ``most`` of them."""
        found = self.place(field, _SIZES[kind])
        if found is None:
            return ()
        start, count = found
        if count > most:
            raise InvalidFile(f"{self.buffer.name}: {count} numbers at offset {start}, at most {most} are read")
        self.buffer.charge(start, ITEM_COST + 8 * count)
        return struct.unpack(f"<{count}{kind}", self.buffer.data(start, start + count * _SIZES[kind]))

    def data(self, field: int, *, limit: int = MAX_TEXT) -> bytes:
        """A vector of bytes; `InvalidFile` for more than ``limit`` of them."""
        start, count = self.place(field) or (self.buffer.start, 0)
        if count > limit:
            raise InvalidFile(f"{self.buffer.name}: {count} bytes at offset {start}, at most {limit} are read")
        self.buffer.charge(start, ITEM_COST + count)
        return self.buffer.data(start, start + count)

    def count(self, field: int, size: int = 4) -> int:
        """Elements of a vector (of tables or texts, where nothing else is said)."""
        found = self.place(field, size)
        return found[1] if found else 0

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector, one after another."""
        start, count = self.place(field, 4) or (0, 0)
        for at in range(start, start + 4 * count, 4):
            yield self.buffer.open(self.buffer.target(at, "a table"), self._depth + 1)

    def texts(self, field: int, *, limit: int = MAX_TEXT) -> Iterator[str]:
        """The strings of a vector."""
        start, count = self.place(field, 4) or (0, 0)
        for at in range(start, start + 4 * count, 4):
            yield self.buffer.text(self.buffer.target(at, "a text"), limit)

"""Protobuf messages read by offset, without a schema: for headers that are protobuf and stand among gigabytes of weights.

`Wire` walks the fields of a message and says where each lies; what is not asked for is never read, so that a field of 2 GB costs
nothing. It knows the wire format alone (protobuf.dev, "Encoding"); what a field's number means is its caller's business. Every
length is held against its message and its file, and the number of fields and the depth of messages are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeAlias

from modelhub.errors import IncompleteFile, InvalidFile
from modelhub.files import File

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types in use; groups (3 and 4) are refused."""
WireField: TypeAlias = "tuple[int, int, int, int]"
"""(number, wire type, value, 0) of a `VARINT`; (number, wire type, start, end) of all others: offsets of the field's content."""

MAX_FIELDS = 8_000_000
"""Fields that one `Wire` walks over at the most: some seconds."""
MAX_DEPTH = 100
"""As deep as protobuf's own readers go."""
MAX_TEXT = 1 << 20
WHOLE = 128 << 10
"""A file up to this long is read at once."""
WINDOW = 64 << 10
STEP = 4 << 10
"""Read after a leap; what follows without one is read in ever larger windows."""
MARGIN = 20
"""The longest key and length: two varints of ten bytes."""
LOOK = 512
"""What is left of the window is not worth a skim when it is shorter."""
CHUNK = 1024
Skim: TypeAlias = "Callable[[bytes, int, int, int], tuple[int, int]]"
"""A caller's own short way through fields that it knows well. It gets the bytes that are read, the offset of their first, and the
message's part that is to be walked (start, end: absolute offsets); it returns where the first field begins that it did not take,
and how many it took: some thousand at the most. It may take a field that ends outside of the bytes, none outside of the
message."""


class Wire:
    """The messages in a file, or in ``bytes`` (``name`` is what errors call them then)."""

    __slots__ = ("_base", "_buffer", "_depth", "_file", "_left", "_step", "name", "size")

    def __init__(self, source: File | bytes, name: str = "", *, max_fields: int = MAX_FIELDS) -> None:
        self._file: File | None = None
        self._buffer, self._base, self._step = b"", 0, STEP
        self._depth, self._left = 0, max_fields
        if isinstance(source, bytes):
            self._buffer, self.size, self.name = source, len(source), name or "a message"
        else:
            self._file, self.size, self.name = source, source.size, name or source.name

    def fields(self, start: int = 0, end: int | None = None, *, skim: Skim | None = None) -> Iterator[WireField]:
        """The fields of the message at ``start``..``end`` (default: the whole source), in their order, without those that
        ``skim`` has taken.

        A message inside is walked by another call, with the offsets of its field, while this one is under way: that is how depth
        is counted. `IncompleteFile` where the file ends inside a field, `InvalidFile` where the bytes are no message."""
        stop = self.size if end is None else end
        if not 0 <= start <= stop <= self.size:
            raise InvalidFile(f"{self.name}: a message from {start} to {stop} lies outside of its {self.size} bytes")
        if self._depth >= MAX_DEPTH:
            raise InvalidFile(f"{self.name}: messages nest deeper than {MAX_DEPTH} at offset {start}")
        self._depth += 1
        try:
            while start < stop:
                if skim is not None:
                    after, taken = self._skimmed(start, stop, skim)
                    self._left -= taken
                    if taken and self._left >= 0:
                        start = after
                        continue
                found, start = self._some(start, stop, CHUNK if skim is None else 1)
                self._left -= len(found)
                if self._left < 0:
                    raise InvalidFile(f"{self.name}: more fields than are read of one file, at offset {start}")
                yield from found
        finally:
            self._depth -= 1

    def data(self, start: int, end: int) -> bytes:
        """The bytes ``start``..``end``."""
        low = start - self._base
        if low >= 0 and end - self._base <= len(self._buffer):
            return self._buffer[low : end - self._base]
        if self._file is None:
            raise IncompleteFile(f"{self.name}: {end - start} bytes at offset {start} expected, it ends at {self.size}")
        return self._file.read(start, end - start)

    def text(self, start: int, end: int, limit: int = MAX_TEXT) -> str:
        """The UTF-8 text at ``start``..``end``; `InvalidFile` where it is none, or longer than ``limit`` bytes."""
        if end - start > limit:
            raise InvalidFile(f"{self.name}: a text of {end - start} bytes at offset {start}, at most {limit} are read")
        try:
            return self.data(start, end).decode()
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{self.name}: the text at offset {start} is not UTF-8: {error.reason}") from error

    def varints(self, start: int, end: int, most: int) -> list[int]:
        """A packed run of varints, as unsigned numbers; `InvalidFile` for more than ``most`` of them."""
        if end - start > 10 * most:
            raise InvalidFile(f"{self.name}: {end - start} bytes of numbers at offset {start}, at most {most} numbers are read")
        data, at, found = self.data(start, end), 0, []
        try:
            while at < len(data):
                value, at = self._varint(data, at, start)
                found.append(value)
        except IndexError:  # the run ends where what is read does
            raise InvalidFile(f"{self.name}: a number at offset {start + at} runs out of its message") from None
        if len(found) > most:
            raise InvalidFile(f"{self.name}: {len(found)} numbers at offset {start}, at most {most} are read")
        return found

    def float32(self, start: int) -> float:
        """The `FIXED32` at ``start`` as a float."""
        value: float = struct.unpack("<f", self.data(start, start + 4))[0]
        return value

    # --- the walk ---------------------------------------------------------------------------------------------------

    def _skimmed(self, start: int, stop: int, skim: Skim) -> tuple[int, int]:
        """What ``skim`` says of the window, which holds all that is left of the message, or `LOOK` bytes of it."""
        low, have = start - self._base, len(self._buffer)
        if low < 0 or (low + LOOK > have and self._base + have < stop):
            self._load(start, stop)
        after, taken = skim(self._buffer, self._base, start, stop)
        if not start <= after <= stop:
            raise ValueError(f"a skim from {start} to {stop} went to {after}")
        return after, taken

    def _some(self, start: int, end: int, most: int = CHUNK) -> tuple[list[WireField], int]:
        """Some fields from ``start`` on, ``most`` or as far as they begin in the window, and where the next one begins."""
        buffer, base = self._buffer, self._base
        if start < base or (start + MARGIN >= base + len(buffer) < end):
            buffer, base = self._load(start, end)
        at, stop, have = start - base, end - base, len(buffer)
        limit = stop if stop <= have else have - MARGIN  # a key and a length that begin before it lie in the window
        found: list[WireField] = []
        try:
            while at < limit:
                here, key = at, buffer[at]
                at += 1
                if key >= 0x80:
                    key, at = self._varint(buffer, here, base)
                kind = key & 7
                if kind == BYTES:
                    length = buffer[at]
                    at += 1
                    if length >= 0x80:
                        high = buffer[at]
                        if high < 0x80:
                            length, at = length & 0x7F | high << 7, at + 1
                        else:
                            length, at = self._varint(buffer, at - 1, base)
                    value, after = base + at, at + length
                    at = after
                    field = (key >> 3, BYTES, value, base + after)
                elif kind == VARINT:
                    number = buffer[at]
                    at += 1
                    if number >= 0x80:
                        number, at = self._varint(buffer, at - 1, base)
                    field = (key >> 3, VARINT, number, 0)
                elif kind in (FIXED32, FIXED64):
                    value = base + at
                    at += 4 if kind == FIXED32 else 8
                    field = (key >> 3, kind, value, base + at)
                else:
                    raise InvalidFile(f"{self.name}: wire type {kind} at offset {base + here}: this is no protobuf message")
                if at > stop or not 8 <= key < 1 << 32:
                    self._refuse(base + here, base + at, end, key)
                found.append(field)
                if len(found) >= most:
                    break
        except IndexError:
            self._refuse(start, self.size + 1, end, 8)
        return found, base + at

    def _refuse(self, start: int, after: int, end: int, key: int) -> NoReturn:
        if not 8 <= key < 1 << 32:
            raise InvalidFile(f"{self.name}: field number {key >> 3} at offset {start}: this is no protobuf message")
        if end == self.size and after < 1 << 48:
            raise IncompleteFile(f"{self.name}: the field at offset {start} ends at {after}, the file at {self.size}")
        raise InvalidFile(f"{self.name}: the field at offset {start} ends at {after}, its message at {end}")

    def _varint(self, buffer: bytes, at: int, base: int) -> tuple[int, int]:
        """The varint at ``at``, and where it ends. IndexError where the buffer ends first."""
        value = shift = 0
        for index in range(at, at + 10):
            if index >= len(buffer) and base + index < self.size:
                raise InvalidFile(f"{self.name}: a number at offset {base + at} runs out of its message")
            byte = buffer[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, index + 1
            shift += 7
        raise InvalidFile(f"{self.name}: a number at offset {base + at} is longer than ten bytes")

    def _load(self, start: int, end: int) -> tuple[bytes, int]:
        """Make the window begin at ``start``: short after a leap, longer where one follows another."""
        if self._file is None:
            return self._buffer, 0
        if self.size <= WHOLE:
            base, nbytes = 0, self.size
        else:
            behind = start - (self._base + len(self._buffer))
            self._step = min(2 * self._step, WINDOW) if -LOOK <= behind <= 0 else STEP
            base, nbytes = start, min(self._step, self.size - start)
        self._buffer, self._base = self._file.read(base, nbytes), base
        return self._buffer, base


def signed(value: int) -> int:
    """A varint as the two's complement number of 64 bits that it stands for (int32, int64)."""
    return value - (1 << 64) if value >> 63 else value

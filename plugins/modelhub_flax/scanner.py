"""A bounded walk over msgpack: what stands where, without a look at the long values.

(msgpack specification: https://github.com/msgpack/msgpack/blob/master/spec.md.) Every length is checked against the file before
it is used; depth and number of values are limited.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from modelhub import File, InvalidFile

WINDOW = 1 << 16
MAX_TEXT = 1 << 16
"""Keys and other short texts are read up to this length."""


class Item(NamedTuple):
    """One value's head. ``kind``: map, array, str, bin, ext, or scalar (whose ``value`` is known). ``size``: entries of a
    map or an array, bytes of the others. ``start``: where its contents begin; ``code`` of an extension."""

    kind: str
    size: int
    start: int
    value: object = None
    code: int = 0


_FIXED = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"),
    0xDB: ("str", ">I"), 0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class Scanner:
    """Reads a file through a small window. ``position`` is where the next value begins."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.position = 0
        self._start = 0
        self._window = b""

    def bytes(self, nbytes: int) -> bytes:
        """The next ``nbytes`` bytes. `IncompleteFile` where the file ends before."""
        offset = self.position - self._start
        if offset < 0 or offset + nbytes > len(self._window):
            length = min(max(nbytes, WINDOW), max(nbytes, self.file.size - self.position))
            self._window, self._start, offset = self.file.read(self.position, length), self.position, 0
        self.position += nbytes
        return self._window[offset : offset + nbytes]

    def head(self) -> Item:
        """The head of the next value; contents of texts, byte strings and extensions are still ahead."""
        at = self.position
        code = self.bytes(1)[0]
        if code < 0x80 or code >= 0xE0:
            return Item("scalar", 0, self.position, code if code < 0x80 else code - 256)
        if code in _CONSTANTS:
            return Item("scalar", 0, self.position, _CONSTANTS[code])
        if code in _NUMBERS:
            layout = _NUMBERS[code]
            return Item("scalar", 0, self.position, struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0])
        extension = 0
        if 0xD4 <= code <= 0xD8:
            kind, size = "ext", 1 << (code - 0xD4)
        elif code in _FIXED:
            kind, layout = _FIXED[code]
            size = struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]
        elif code < 0xC0:
            kind = "map" if code < 0x90 else "array" if code < 0xA0 else "str"
            size = code & (0x1F if kind == "str" else 0x0F)
        else:
            raise InvalidFile(f"{self.file.name}: byte 0xc1 at offset {at} is no msgpack value")
        if kind == "ext":
            extension = struct.unpack(">b", self.bytes(1))[0]
        left = self.file.size - self.position
        if size > left:  # an entry takes a byte at least
            raise InvalidFile(f"{self.file.name}: a {kind} of {size} at offset {at}, and {left} bytes are left")
        return Item(kind, size, self.position, None, extension)

    def text(self, item: Item) -> str:
        """A short text (or byte string) whose head was just read."""
        if item.kind not in ("str", "bin") or item.size > MAX_TEXT:
            raise InvalidFile(f"{self.file.name}: a {item.kind} of {item.size} at offset {item.start}, a short text was expected")
        return self.bytes(item.size).decode("utf-8", "surrogateescape")

    def skip(self, item: Item) -> None:
        """Go past the contents of a text, byte string or extension."""
        if item.kind in ("str", "bin", "ext"):
            self.position = item.start + item.size

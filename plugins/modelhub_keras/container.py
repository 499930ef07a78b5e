"""HDF5 files read by offset: the superblock, objects' headers, B-trees. Nothing here knows Keras, or reads weights.

A reader of its own and not HDF5's library: that is C, and one in fifty of files with damaged headers corrupts its heap, which
is no way to look at what may be hostile. This one checks every length and address before it follows it, goes round no loop, and
opens no other file: what leads out of the file is told. Layouts are those of the HDF5 File Format Specification 3.0 (section
numbers below).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from modelhub import Extent, File, IncompleteFile, InvalidFile, Node, UnsupportedFile

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 1_000_000
MAX_READ = 512 << 20
"""Bytes of headers that are read of one file."""
MAX_TEXT = 256 << 20
MAX_BLOCKS = 10_000
"""Blocks of one object's header."""
DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, MORE, SYMBOLS = (
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11,
)  # fmt: skip
"""Types of header messages (IV.A.2)."""
_PAGE = 8192
Place = Callable[[int, int], "Extent | Node"]
"""(offset, nbytes) within the HDF5 file -> those bytes, wherever that file itself lies."""


class Message(NamedTuple):
    """One message of an object's header, and where its ``data`` begin in the file."""

    type: int
    data: bytes
    at: int


class Cursor:
    """Numbers of some bytes, one after another; `InvalidFile` where they end before."""

    def __init__(self, data: bytes, what: str, at: int = 0) -> None:
        self.data, self.what, self.at = data, what, at

    def take(self, nbytes: int) -> bytes:
        end = self.at + nbytes
        if nbytes < 0 or end > len(self.data):
            raise InvalidFile(f"{self.what}: {nbytes} bytes expected at byte {self.at} of {len(self.data)}")
        part, self.at = self.data[self.at : end], end
        return part

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def text(self, pad: int = 1) -> bytes:
        """Up to a zero byte, which is skipped, and on to a multiple of ``pad`` from where it began."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise InvalidFile(f"{self.what}: a name that does not end")
        found = self.data[self.at : end]
        self.take(-(-(len(found) + 1) // pad) * pad)
        return found


class Container:
    """An HDF5 file: all of ``source``, or its ``size`` bytes from ``base`` on. ``name`` is what errors call it."""

    def __init__(self, source: File | bytes, name: str, base: int = 0, size: int | None = None) -> None:
        self.name, self._source, self._base = name, source, base
        whole = len(source) if isinstance(source, bytes) else source.size
        self.size = whole - base if size is None else size
        self._left = MAX_READ
        self._pages: dict[int, bytes] = {}
        self._headers: dict[int, list[Message]] = {}
        self.kept: dict[int, Any] = {}
        """What others have read of an object, and may need again."""
        self.start = next((at for at in (0, *(512 << n for n in range(12))) if self._is_signature(at)), -1)
        if self.start < 0:
            raise InvalidFile(f"{name}: no HDF5 file: {MAGIC!r} stands nowhere")
        self._superblock()

    def _is_signature(self, at: int) -> bool:
        return at + 8 <= self.size and self.raw(at, 8) == MAGIC

    def _superblock(self) -> None:
        """II: sizes of numbers, the file's end, the root."""
        head = self.cursor(self.start, min(128, self.size - self.start), "the superblock")
        head.take(8)
        version = head.number(1)
        if version > 3:
            raise UnsupportedFile(f"{self.name}: a superblock of version {version}, at most 3 are read")
        if version < 2:
            head.take(4)
            self.offsets, self.lengths = head.number(1), head.number(1)
            head.take(9 if version == 0 else 13)
        else:
            self.offsets, self.lengths = head.number(1), head.number(1)
            head.take(1)
        if self.offsets not in (2, 4, 8) or self.lengths not in (2, 4, 8):
            raise InvalidFile(f"{self.name}: addresses of {self.offsets} bytes and lengths of {self.lengths}")
        self.undefined = (1 << (8 * self.offsets)) - 1
        head.take(2 * self.offsets)
        end = head.number(self.offsets)
        if version < 2:
            head.take(2 * self.offsets)
        self.root = head.number(self.offsets)
        if end > self.size and end != self.undefined:
            raise IncompleteFile(f"{self.name}: truncated file: it should end at {end}, it ends at {self.size}")

    # --- bytes ------------------------------------------------------------------------------------------------------

    def raw(self, at: int, nbytes: int) -> bytes:
        """Bytes at an offset of the file itself."""
        if at < 0 or nbytes < 0 or at + nbytes > self.size:
            raise IncompleteFile(f"{self.name}: {nbytes} bytes at offset {at} expected, the file ends at {self.size}")
        if isinstance(self._source, bytes):
            return self._read(at, nbytes)
        page, within = divmod(at, _PAGE)
        if within + nbytes <= _PAGE:
            if page not in self._pages:
                self._pages[page] = self._read(page * _PAGE, min(_PAGE, self.size - page * _PAGE))
            return self._pages[page][within : within + nbytes]
        return self._read(at, nbytes)

    def _read(self, at: int, nbytes: int) -> bytes:
        self._left -= nbytes
        if self._left < 0:
            raise InvalidFile(f"{self.name}: more than {MAX_READ >> 20} MiB of headers")
        if isinstance(self._source, bytes):
            return self._source[self._base + at : self._base + at + nbytes]
        if len(self._pages) > 4096:
            self._pages.clear()
        return self._source.read(self._base + at, nbytes)

    def at(self, address: int, nbytes: int, what: str) -> bytes:
        """Bytes at an address, which counts from the superblock."""
        if address == self.undefined:
            raise InvalidFile(f"{self.name}: {what} has no address")
        return self.raw(self.start + address, nbytes)

    def cursor(self, at: int, nbytes: int, what: str) -> Cursor:
        return Cursor(self.raw(at, nbytes), f"{self.name}: {what}")

    # --- headers (IV.A) ---------------------------------------------------------------------------------------------

    def messages(self, address: int) -> list[Message]:
        """The messages of the object at ``address``."""
        known = self._headers.get(address)
        if known is None:
            if len(self._headers) > 20_000:
                self._headers.clear()
            known = self._headers[address] = list(self._messages(address))
        return known

    def _messages(self, address: int, *, shared: bool = True) -> Iterator[Message]:
        what = f"the header at {address}"
        head = self.at(address, 4, what)
        if head == b"OHDR":
            first = Cursor(self.at(address, min(64, self.size - self.start - address), what), f"{self.name}: {what}", 5)
            flags = first.number(1)
            first.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
            size = first.number(1 << (flags & 3))
            blocks = [(address + first.at, size)]
            order: int | None = 2 if flags & 4 else 0
        elif head[0] == 1:
            size = int.from_bytes(self.at(address + 8, 4, what), "little")
            blocks, order = [(address + 16, size)], None
        else:
            raise InvalidFile(f"{self.name}: {head!r} at address {address}, expected an object's header")
        seen: set[int] = set()
        for where, length in blocks:  # grows while it is gone through
            if where in seen or len(seen) > MAX_BLOCKS:
                raise InvalidFile(f"{self.name}: {what} leads back to itself")
            seen.add(where)
            yield from self._block(where, length, order, blocks, what, shared)

    def _block(
        self, where: int, length: int, order: int | None, blocks: list[tuple[int, int]], what: str, shared: bool
    ) -> Iterator[Message]:
        if length > MAX_TEXT:
            raise InvalidFile(f"{self.name}: {what} has a block of {length} bytes")
        data = Cursor(self.at(where, length, what), f"{self.name}: {what}")
        prefix = 8 if order is None else 4 + order
        while data.at + prefix <= length:
            if order is None:
                kind, size, flags = data.number(2), data.number(2), data.number(1)
                data.take(3)
            else:
                kind, size, flags = data.number(1), data.number(2), data.number(1)
                data.take(order)
            at = self.start + where + data.at
            body = data.take(size)
            if flags & 2 and kind in (DATATYPE, DATASPACE, FILL, FILTERS):
                if shared:
                    yield self._shared(kind, body, what)
            elif kind == MORE:
                more = Cursor(body, f"{self.name}: {what}")
                start, nbytes = more.number(self.offsets), more.number(self.lengths)
                if order is not None:  # a signature before, a checksum behind
                    start, nbytes = start + 4, nbytes - 8
                blocks.append((start, nbytes))
            else:
                yield Message(kind, body, at)

    def _shared(self, kind: int, body: bytes, what: str) -> Message:
        """A message that stands in another object's header (IV.A.2, "Shared Message")."""
        data = Cursor(body, f"{self.name}: {what}")
        version, place = data.number(1), data.number(1)
        if version == 3 and place == 1:
            raise UnsupportedFile(f"{self.name}: {what} shares messages in a heap, which is not read")
        data.take(6 if version == 1 else 0)
        address = data.number(self.offsets)
        for message in self._messages(address, shared=False):  # what is shared stands there itself
            if message.type == kind:
                return message
        raise InvalidFile(f"{self.name}: {what} takes a message from {address}, which has none")

    def message(self, address: int, kind: int) -> Message | None:
        return next((message for message in self.messages(address) if message.type == kind), None)

    # --- B-trees (III.A.1) -------------------------------------------------------------------------------------------

    def entries(self, address: int, kind: int, key: int) -> Iterator[tuple[bytes, int]]:
        """(key, address) of what the lowest nodes of a B-tree of version 1 hold (III.A.1). Nodes are found from above alone, each
        once, and every level lies below the one before."""
        seen: set[int] = set()
        stack: list[tuple[int, int]] = [(address, 256)]
        while stack:
            node, above = stack.pop()
            head = Cursor(self.at(node, 8 + 2 * self.offsets, "a B-tree"), f"{self.name}: the B-tree's node at {node}")
            if head.take(4) != b"TREE" or head.number(1) != kind:
                raise InvalidFile(f"{self.name}: no node of a B-tree of this kind at address {node}")
            level, count = head.number(1), head.number(2)
            if node in seen or level >= above or len(seen) > MAX_OBJECTS:
                raise InvalidFile(f"{self.name}: the B-tree at {address} leads back to itself, at {node}")
            seen.add(node)
            width = key + self.offsets
            body = Cursor(self.at(node + 8 + 2 * self.offsets, count * width, "a B-tree"), head.what)
            pairs = [(body.take(key), body.number(self.offsets)) for _ in range(count)]
            if level == 0:
                yield from pairs
            else:
                stack.extend((child, level) for _, child in reversed(pairs))


def placed(file: File, base: int) -> Place:
    """Places of an HDF5 file that begins at ``base`` of ``file``."""

    def place(offset: int, nbytes: int) -> Extent | Node:
        if base + offset + nbytes > file.size:
            raise IncompleteFile(f"{file.name}: {nbytes} bytes at offset {base + offset} expected, the file ends at {file.size}")
        return Extent(file.path, base + offset, nbytes)

    return place

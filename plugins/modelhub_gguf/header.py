"""A GGUF header: parsed, and held against the rules of the format. No weights are read, and what the keys mean is
`modelhub_gguf.keys`' business.

GGUF specification (ggml ``docs/gguf.md``) and ``ggml/src/gguf.cpp``: the magic, the version (u32), the numbers of tensors and of
keys (u64), the keys with their values, the tensors' infos (name, number of dimensions, dimensions innermost first, type, offset),
zeros up to the alignment, the data. Version 3 may be big-endian throughout, which its version tells; version 2 is laid out alike;
version 1 had lengths of 32 bits.

A header may hold a vocabulary of hundreds of thousands of texts. Those are gone through, so that every length is checked, and not
made into anything: the field of a large value is the `Extent` where it stands, and `load` reads it for those who ask.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from modelhub import Columns, Extent, File, IncompleteFile, InvalidFile, UnsupportedFile

from modelhub_gguf.fields import ARRAY, BOOL, CODES, SIZES, STRING, TYPE_NAMES, U32, Field, describe
from modelhub_gguf.types import BY_NUMBER, REMOVED, GgmlType

MAGIC = b"GGUF"
ALIGNMENT = 32
"""Where ``general.alignment`` is not set (``GGUF_DEFAULT_ALIGNMENT``)."""
MAX_ALIGNMENT = 1 << 20
MAX_HEADER = 128 << 20
"""The largest vocabularies of today make headers of 20 MB."""
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME = (1 << 16) - 1
"""The specification's limit on a key's length; here also on a tensor's name."""
MAX_DIMENSIONS = 8
"""ggml holds four (which the structure check says); the format's own field would allow more."""

SMALL = 1 << 16
"""Texts and arrays up to so many bytes become Python values, ..."""
FEW = 256
"""... and arrays only up to so many items; what is larger stays an `Extent`."""

_MAX_COUNT = (1 << 63) - 1
_WALKED: dict[tuple[str, int], bytes] = {}
"""The last arrays of strings that were gone through, by byte order and number of items: the files of one directory are often one
model in many encodings, and comparing bytes is a hundred times faster than going through them."""
_REMEMBERED = 2
_WORTH, _TOO_MUCH = 1 << 14, 16 << 20

_FIRST_WINDOW, _LAST_WINDOW = 64 << 10, 4 << 20


class Header(NamedTuple):
    """``byteorder``: "little" or "big", of the weights too. ``fields`` in file order; of a big-endian file, an `Extent` in one
    holds big-endian bytes: see `native`. ``lengths``: items of each array. ``columns``: the tensors in the order of their infos.
    ``data_start``: where offsets count from."""

    file: str
    version: int
    byteorder: str
    fields: dict[str, Field]
    lengths: dict[str, int]
    columns: Columns
    alignment: int
    data_start: int


def parse(file: File) -> Header:
    """The header of one file. `InvalidFile`, `IncompleteFile` or `UnsupportedFile` say what is wrong, where."""
    version, byteorder = check_start(file)
    reader = _Reader(file, byteorder)
    tensors, keys = reader.unpack("QQ", "the numbers of tensors and keys")
    if keys > MAX_KEYS:
        raise InvalidFile(f"{file.name} declares {keys} keys, at most {MAX_KEYS} are read")
    if tensors > MAX_TENSORS:
        raise InvalidFile(f"{file.name} declares {tensors} tensors, at most {MAX_TENSORS} are read")
    fields: dict[str, Field] = {}
    lengths: dict[str, int] = {}
    for number in range(keys):
        key = reader.name(f"key {number}")
        if key in fields:
            raise InvalidFile(f"{file.name}: the key {key[:200]!r} stands twice in the header")
        if not key:
            raise InvalidFile(f"{file.name}: key {number} is empty")
        fields[key] = reader.field(key, lengths)
    alignment = _alignment(file, fields)
    names, kinds, shapes, offsets = _infos(reader, tensors)
    data_start = reader.position + -reader.position % alignment
    sizes = _sizes(file, names, kinds, shapes)
    _check_places(file, names, offsets, sizes, alignment)
    places = [data_start + offset for offset in offsets]
    columns = Columns(file.path, names, [kind.name for kind in kinds], shapes, places, sizes)
    return Header(file.path, version, byteorder, fields, lengths, columns, alignment, data_start)


def check_start(file: File) -> tuple[int, str]:
    """The version and the byte order that the first eight bytes tell. `InvalidFile` where there is no such version,
    `UnsupportedFile` for version 1 and for those to come."""
    head = file.head[:8]
    if not head.startswith(MAGIC):
        raise InvalidFile(f"{file.name} starts with {head[:4]!r}, {MAGIC!r} was expected")
    if len(head) < 8:
        raise IncompleteFile(f"{file.name} is {file.size} bytes long, a GGUF header takes 24 at least")
    byteorder = "little"
    version = int.from_bytes(head[4:], "little")
    if version and not version & 0xFFFF:
        byteorder, version = "big", int.from_bytes(head[4:], "big")
    if version == 1:
        raise UnsupportedFile(
            f"{file.name} is a GGUF of version 1, which nothing has written since August 2023",
            "convert the original model anew, or look for a newer file of it",
        )
    if version not in (2, 3):
        if 3 < version < 256:
            raise UnsupportedFile(f"{file.name} is a GGUF of version {version}; versions 2 and 3 are known here")
        raise InvalidFile(f"{file.name} declares version {version}; there are 1, 2 and 3")
    return version, byteorder


class _Reader:
    """Goes through a file's header from front to back. What it holds of the file is a window that grows as the header does."""

    def __init__(self, file: File, byteorder: str, position: int = 8) -> None:
        self.file = file
        self.order = "<" if byteorder == "little" else ">"
        self.base = 0
        self.data = file.head
        self.at = position
        self._window = _FIRST_WINDOW
        self._length = struct.Struct(self.order + "Q")
        self._structs: dict[str, struct.Struct] = {}

    @property
    def position(self) -> int:
        return self.base + self.at

    def need(self, nbytes: int, what: str) -> None:
        """Have the next ``nbytes`` in the window."""
        if self.at + nbytes <= len(self.data):
            return
        position = self.position
        if position + nbytes > MAX_HEADER:
            self._too_long(nbytes, what)
        if position + nbytes > self.file.size:
            raise IncompleteFile(
                f"{self.file.name}: {what} takes {nbytes} bytes at offset {position}, the file ends at {self.file.size}"
            )
        size = min(max(self._window, nbytes), self.file.size - position)
        self._window = min(2 * self._window, _LAST_WINDOW)
        self.data = self.file.read(position, size)
        self.base, self.at = position, 0

    def _too_long(self, nbytes: int, what: str) -> None:
        if nbytes > MAX_HEADER:
            raise InvalidFile(
                f"{self.file.name}: {what} would take {nbytes} bytes or more, no header takes more than {MAX_HEADER}"
            )
        raise UnsupportedFile(
            f"{self.file.name}: {what} stands {self.position} bytes from the start; headers up to {MAX_HEADER} are read"
        )

    def unpack(self, codes: str, what: str) -> tuple[Any, ...]:
        packed = self._structs.get(codes)
        if packed is None:
            packed = self._structs[codes] = struct.Struct(self.order + codes)
        self.need(packed.size, what)
        values = packed.unpack_from(self.data, self.at)
        self.at += packed.size
        return values

    def skip(self, nbytes: int, what: str) -> None:
        """Pass over bytes without having them; they must be there."""
        end = self.position + nbytes
        if end > MAX_HEADER:
            self._too_long(nbytes, what)
        if end > self.file.size:
            raise IncompleteFile(f"{self.file.name}: {what} reaches to byte {end}, the file ends at {self.file.size}")
        self.at += nbytes

    def string(self, what: str) -> bytes:
        (length,) = self.unpack("Q", what)
        self.need(length, what)
        self.at += length
        return self.data[self.at - length : self.at]

    def name(self, what: str) -> str:
        """A key or a tensor's name; bytes that are not UTF-8 are surrogate-escaped."""
        (length,) = self.unpack("Q", what)
        if length > MAX_NAME:
            raise InvalidFile(f"{self.file.name}: the name of {what} is {length} bytes long, the format allows {MAX_NAME}")
        self.need(length, f"the name of {what}")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "surrogateescape")

    def field(self, key: str, lengths: dict[str, int]) -> Field:
        """A value with its type; its place where it is large. Notes the length of an array."""
        what = f"the value of {key[:200]!r}"
        (kind,) = self.unpack("I", what)
        if kind in CODES:
            (value,) = self.unpack(CODES[kind], what)
            return Field(kind, bool(value) if kind == BOOL else value)
        start = self.position
        if kind == STRING:
            (length,) = self.unpack("Q", what)
            if length > SMALL:
                self.skip(length, what)
                return Field(STRING, Extent(self.file.path, start, 8 + length))
            self.need(length, what)
            self.at += length
            return Field(STRING, _text(self.data[self.at - length : self.at]))
        if kind != ARRAY:
            raise InvalidFile(f"{self.file.name}: {what} has the type {kind}; there are 0 to {len(TYPE_NAMES) - 1}")
        item, count = self.unpack("IQ", what)
        if item not in SIZES and item != STRING:
            why = "arrays of arrays are not read by anything" if item == ARRAY else f"items of type {item} do not exist"
            raise InvalidFile(f"{self.file.name}: {what}: {why}")
        lengths[key] = count
        items = self.position
        if item == STRING:
            self._skip_strings(count, what)
        else:
            self.skip(count * SIZES[item], what)
        extent = Extent(self.file.path, start, self.position - start)
        if count > FEW or self.position - items > SMALL:
            return Field(ARRAY, extent, item)
        return Field(ARRAY, _items(self.between(items, self.position), item, count, self.order), item)

    def _skip_strings(self, count: int, what: str) -> None:
        """Pass over ``count`` strings; each length is read, and what it claims must lie inside the file."""
        if 8 * count > MAX_HEADER:
            self._too_long(8 * count, what)
        if self._same_as_before(count, what):
            return
        unpack = self._length.unpack_from
        start = self.position
        done = 0
        while done < count:
            self.need(8, f"string {done} of {what}")
            data, at, passed = self.data, self.at, 0
            try:
                for passed in range(count - done):  # noqa: B007 - how many were passed is known after an error too
                    at += 8 + unpack(data, at)[0]
                passed = count - done
            except (struct.error, OverflowError):  # the next length does not lie in the window
                pass
            done += passed
            self.skip(at - self.at, f"string {done - 1} of {what}")
        if _WORTH <= self.position - start <= _TOO_MUCH:
            if len(_WALKED) >= _REMEMBERED:
                del _WALKED[next(iter(_WALKED))]
            _WALKED[self.order, count] = self.between(start, self.position)

    def _same_as_before(self, count: int, what: str) -> bool:
        """Pass over an array of strings that is one of the last ones, byte for byte."""
        before = _WALKED.get((self.order, count))
        if before is None or self.position + len(before) > min(self.file.size, MAX_HEADER):
            return False
        self.need(64, what)
        if not self.data.startswith(before[:64], self.at):
            return False
        self.need(len(before), what)
        if not self.data.startswith(before, self.at):
            return False
        self.at += len(before)
        return True

    def between(self, start: int, end: int) -> bytes:
        """Bytes that were passed over."""
        if start >= self.base and end - self.base <= len(self.data):
            return self.data[start - self.base : end - self.base]
        return self.file.read(start, end - start)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _items(data: bytes, item: int, count: int, order: str) -> list[Any]:
    """The items of an array, from their bytes (which `_Reader` went through before)."""
    if item != STRING:
        values = list(struct.unpack(f"{order}{count}{CODES[item]}", data))
        return [value != 0 for value in values] if item == BOOL else values
    unpack = struct.Struct(order + "Q").unpack_from
    texts: list[str | bytes] = []
    at = 0
    for _ in range(count):
        start = at + 8
        at = start + unpack(data, at)[0]
        texts.append(_text(data[start:at]))
    return texts


def _alignment(file: File, fields: Mapping[str, Field]) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return ALIGNMENT
    if field.type != U32:
        raise InvalidFile(f"{file.name}: general.alignment is a {describe(field)}, the format has it as u32")
    value: int = field.value
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise InvalidFile(f"{file.name}: general.alignment is {value}, a power of two up to {MAX_ALIGNMENT} was expected")
    return value


def _infos(reader: _Reader, count: int) -> tuple[list[str], list[GgmlType], list[tuple[int, ...]], list[int]]:
    """Names, types, shapes (outermost first) and offsets of the tensors."""
    names: list[str] = []
    kinds: list[GgmlType] = []
    shapes: list[tuple[int, ...]] = []
    offsets: list[int] = []
    file = reader.file.name
    for number in range(count):
        name = reader.name(f"tensor {number}")
        what = f"tensor {name[:200]!r}"
        (dimensions,) = reader.unpack("I", what)
        if dimensions > MAX_DIMENSIONS:
            raise InvalidFile(f"{file}: {what} has {dimensions} dimensions, ggml knows 4 (up to {MAX_DIMENSIONS} are read)")
        *sides, kind, offset = reader.unpack(f"{dimensions}QIQ", what)
        if kind not in BY_NUMBER:
            raise _unknown_type(file, what, kind)
        names.append(name)
        kinds.append(BY_NUMBER[kind])
        shapes.append(tuple(reversed(sides)))
        offsets.append(offset)
    if len({*names}) != count:
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidFile(f"{file}: a tensor called {twice[:200]!r} stands twice in the header")
    return names, kinds, shapes, offsets


def _unknown_type(file: str, what: str, kind: int) -> InvalidFile | UnsupportedFile:
    if kind in REMOVED:
        return UnsupportedFile(
            f"{file}: {what} is of type {REMOVED[kind]}, which llama.cpp has removed",
            "quantize the original model again; the types that were made for one processor are now made of Q4_0 at loading",
        )
    if kind < 256:
        return UnsupportedFile(f"{file}: {what} is of type {kind}, which ggml did not have when this was written")
    return InvalidFile(f"{file}: {what} is of type {kind}, which does not exist")


def _sizes(file: File, names: list[str], kinds: list[GgmlType], shapes: list[tuple[int, ...]]) -> list[int]:
    """Bytes of each tensor."""
    sizes = []
    for name, kind, shape in zip(names, kinds, shapes, strict=True):
        elements = prod(shape)
        if elements > _MAX_COUNT or (not elements and any(side > _MAX_COUNT for side in shape)):
            raise InvalidFile(f"{file.name}: tensor {name[:200]!r}: the dimensions {list(shape)} overflow 63 bits")
        row = shape[-1] if shape else 1
        if row % kind.block:
            raise InvalidFile(
                f"{file.name}: tensor {name[:200]!r}: rows of {row} elements; {kind.name} packs {kind.block} together"
            )
        sizes.append(elements // kind.block * kind.nbytes)
    return sizes


def _check_places(file: File, names: list[str], offsets: list[int], sizes: list[int], alignment: int) -> None:
    """Offsets are aligned, and no two tensors overlap. That they lie in the file is the core's to check: of a file that is still
    on its way the header is worth showing."""
    end = 0
    for offset, size, name in sorted(zip(offsets, sizes, names, strict=True)):
        if offset % alignment:
            raise InvalidFile(
                f"{file.name}: tensor {name[:200]!r} starts at {offset} of the data, which is no multiple of {alignment}"
            )
        if offset < end and size:
            raise InvalidFile(
                f"{file.name}: tensor {name[:200]!r} starts at {offset} of the data, inside the one before, which ends at {end}"
            )
        if offset + size > _MAX_COUNT:
            raise InvalidFile(f"{file.name}: tensor {name[:200]!r} ends at {offset + size} of the data: no file is so long")
        end = max(end, offset + size)


# --- for those who want the values --------------------------------------------------------------------------------


def load(header: Header, key: str) -> Any:
    """The Python value of a key, however large; KeyError where there is none."""
    field = header.fields[key]
    if not isinstance(field.value, Extent):
        return field.value
    path, offset, nbytes = field.value
    order = "<" if header.byteorder == "little" else ">"
    with File(path) as file:
        if field.type == STRING:
            return _text(file.read(offset + 8, nbytes - 8))
        return _items(file.read(offset + 12, nbytes - 12), field.item, header.lengths[key], order)


def native(header: Header) -> dict[str, Field]:
    """The fields as a writer takes them: a large value stays where it stands, unless it is big-endian."""
    if header.byteorder == "little":
        return dict(header.fields)
    return {key: field._replace(value=load(header, key)) for key, field in header.fields.items()}

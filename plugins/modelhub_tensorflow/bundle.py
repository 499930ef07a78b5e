"""A checkpoint of the second version (a *tensor bundle*): the keys in its index, and where their bytes lie in the data files.

Facts: TensorFlow ``core/protobuf/tensor_bundle.proto`` and ``core/util/tensor_bundle``; keys of slices:
``saved_tensor_slice_util.cc`` and ``core/lib/strings/ordered_code.cc``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from modelhub import File, InvalidFile, protobuf

from modelhub_tensorflow import elements, sorted_table
from modelhub_tensorflow.elements import Shape

INDEX = ".index"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_DATA = re.compile(r"(?P<stem>.+)\.data-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})", re.DOTALL)
MAX_SHARDS = 5_000
"""A header that promises more data files than this is broken, and no promise."""
OURS = (100, b"modelhub")
"""A field of the header, unknown to TensorFlow, that marks what is written here: all tensors are the model's, whatever their
names make one think, and one that stands under its name stands under the key of its object as well (`VALUE`)."""
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""What keys of objects end in."""
FULL = -1
"""The length of a slice's side that is all of the tensor's."""


class Slice(NamedTuple):
    """A box of a tensor that is stored under a key of its own: (start, length) of each side."""

    sides: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Stored:
    """A ``BundleEntryProto``: what stands under one key."""

    number: int = 0
    shape: Shape = field(default_factory=Shape)
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    slices: list[Slice] = field(default_factory=list)

    @property
    def same(self) -> Hashable:
        """Equal for entries of equal content, as far as a checksum tells; None where it does not."""
        return None if self.slices or not self.size else (self.number, self.shape, self.size, self.crc)


@dataclass(slots=True)
class Bundle:
    """An index. ``entries``: by name; ``slices``: of partitioned tensors, by the key that `slice_key` gives."""

    stem: str
    shards: int = 1
    big_endian: bool = False
    version: int = 0
    ours: bool = False
    entries: dict[str, Stored] = field(default_factory=dict)
    slices: dict[bytes, Stored] = field(default_factory=dict)

    def shard_name(self, number: int) -> str:
        return shard_name(self.stem, number, self.shards)

    def data(self) -> Iterator[tuple[str, Stored]]:
        """Every run of bytes that the index knows, with a name for it."""
        yield from ((name, entry) for name, entry in self.entries.items() if not entry.slices)
        yield from ((f"slice {key[:200]!r}", entry) for key, entry in self.slices.items())


def shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.data-{number:05d}-of-{count:05d}"


def shard_of(name: str) -> tuple[str, int, int] | None:
    """(stem, number, count) where ``name`` is that of a data file."""
    match = _DATA.fullmatch(name)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def read(file: File) -> Bundle:
    """The bundle whose index is ``file``. `InvalidFile` where it contradicts itself or its checksums."""
    bundle = Bundle(os.path.basename(file.path).removesuffix(INDEX))
    first = True
    for key, value, _ in sorted_table.entries(file):
        wire = protobuf.Wire(value, f"{file.name}: key {key[:200]!r}")
        if first:
            if key:
                raise InvalidFile(
                    f"{file.name} begins with key {key[:80]!r}: an index begins with its header, under the empty key"
                )
            parse_header(value, file.name, bundle)
            first = False
        elif key.startswith(b"\0"):
            bundle.slices[key] = _entry(wire, bundle)
        else:
            try:
                bundle.entries[key.decode()] = _entry(wire, bundle)
            except UnicodeDecodeError as error:
                raise InvalidFile(f"{file.name}: key {key[:80]!r} is not UTF-8") from error
    if first:
        raise InvalidFile(f"{file.name} has no keys, not even a header")
    if bundle.ours:
        bundle.entries = {key: entry for key, entry in bundle.entries.items() if not _is_second_key(key, entry, bundle)}
    return bundle


def _is_second_key(key: str, entry: Stored, bundle: Bundle) -> bool:
    return key.endswith(VALUE) and bundle.entries.get(key.removesuffix(VALUE)) == entry


def parse_header(data: bytes, name: str, bundle: Bundle) -> None:
    """The ``BundleHeaderProto`` that stands under the empty key."""
    wire = protobuf.Wire(data, f"{name}: the header")
    bundle.shards = 0
    for number, kind, a, b in wire.fields():
        if number == 1 and kind == protobuf.VARINT:
            bundle.shards = protobuf.signed(a)
        elif number == 2 and kind == protobuf.VARINT:
            bundle.big_endian = a == 1
        elif number == OURS[0] and kind == protobuf.BYTES:
            bundle.ours = wire.data(a, b) == OURS[1]
        elif number == 3 and kind == protobuf.BYTES:
            for inner, inner_kind, value, _ in wire.fields(a, b):
                if inner == 1 and inner_kind == protobuf.VARINT:
                    bundle.version = protobuf.signed(value)
    if not 0 < bundle.shards <= MAX_SHARDS:
        raise InvalidFile(f"{wire.name} says {bundle.shards} data files; 1 to {MAX_SHARDS} can be")


def _entry(wire: protobuf.Wire, bundle: Bundle) -> Stored:
    entry = Stored()
    for number, kind, a, b in wire.fields():
        if kind == protobuf.VARINT:
            if number == 1:
                entry.number = a % elements.REFERENCE
            elif number == 3:
                entry.shard = protobuf.signed(a)
            elif number == 4:
                entry.offset = protobuf.signed(a)
            elif number == 5:
                entry.size = protobuf.signed(a)
        elif number == 2 and kind == protobuf.BYTES:
            entry.shape = elements.shape(wire, a, b)
        elif number == 6 and kind == protobuf.FIXED32:
            entry.crc = int.from_bytes(wire.data(a, b), "little")
        elif number == 7 and kind == protobuf.BYTES:
            entry.slices.append(slice_of(wire, a, b))
    if entry.offset < 0 or entry.size < 0 or not 0 <= entry.shard < bundle.shards:
        place = f"{entry.size} bytes at offset {entry.offset} of data file {entry.shard}"
        raise InvalidFile(f"{wire.name}: {place}, of {bundle.shards}")
    if entry.shape.unknown or -1 in entry.shape.sides:
        raise InvalidFile(f"{wire.name}: the shape has open sides")
    return entry


def slice_of(wire: protobuf.Wire, start: int, end: int) -> Slice:
    """A ``TensorSliceProto``; an extent that says nothing is a whole side."""
    sides: list[tuple[int, int]] = []
    for number, kind, a, b in wire.fields(start, end):
        if number != 1 or kind != protobuf.BYTES:
            continue
        at, length = 0, FULL
        for inner, inner_kind, value, _ in wire.fields(a, b):
            if inner_kind == protobuf.VARINT and inner == 1:
                at = protobuf.signed(value)
            elif inner_kind == protobuf.VARINT and inner == 2:
                length = protobuf.signed(value)
        if len(sides) >= elements.MAX_RANK:
            raise InvalidFile(f"{wire.name}: a slice of more than {elements.MAX_RANK} sides at offset {start}")
        sides.append((at, length))
    return Slice(tuple(sides))


def box(piece: Slice, shape: tuple[int, ...], who: str) -> list[list[int]]:
    """[start, length] of each side, where a whole side is as long as the tensor's."""
    if len(piece.sides) != len(shape):
        raise InvalidFile(f"{who}: a slice of {len(piece.sides)} sides of {list(shape)}")
    found = [[0, whole] if length == FULL else [at, length] for (at, length), whole in zip(piece.sides, shape, strict=True)]
    if any(at < 0 or length < 0 or at + length > whole for (at, length), whole in zip(found, shape, strict=True)):
        raise InvalidFile(f"{who}: a slice {[list(side) for side in piece.sides]} reaches outside of {list(shape)}")
    return found


# --- keys of slices ------------------------------------------------------------------------------------------------


def slice_key(name: str, piece: Slice) -> bytes:
    """The key that a slice stands under: an ordered code of 0, the name, the number of sides, each side's start and length."""
    text = name.encode().replace(b"\0", b"\0\xff")  # 0xff, which has an escape as well, is not in UTF-8
    out = _number(0) + text + b"\0\1" + _number(len(piece.sides))
    for at, length in piece.sides:
        out += _signed(at) + _signed(length)
    return out


def _number(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """``WriteSignedNumIncreasing``: as many leading ones (zeros, of a negative number) as there are bytes, then the number."""
    positive = ~value if value < 0 else value
    if positive < 64:
        return bytes([(0x80 ^ value) & 0xFF])
    size = 2
    while positive >= 1 << (7 * size - 1):
        size += 1
    header = ((1 << size) - 1) << (7 * size)
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")


def missing(bundle: Bundle, beside: Mapping[str, int]) -> list[str]:
    """Names of data files that the header promises and that are not there."""
    return [name for name in map(bundle.shard_name, range(bundle.shards)) if name not in beside]

"""Checkpoints of the first version (TensorFlow before 2017): one sorted table with the tensors inside, each a message of its own.

Facts: TensorFlow ``core/util/saved_tensor_slice.proto`` and ``tensor_slice_writer.cc``. The entry under the empty key lists the
tensors and their slices; each slice has a key of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, InvalidFile, Metadata, Rejected, Tensor, ops, protobuf

from modelhub_tensorflow import bundle, elements, graph, objects, sorted_table
from modelhub_tensorflow.bundle import Slice
from modelhub_tensorflow.elements import Shape
from modelhub_tensorflow.reader import META, STATE, is_latest
from modelhub_tensorflow.sorted_table import MAX_ENTRIES, MAX_KEY, Place

MAGIC = b"\0\0"
"""The first entry shares nothing with one before it, and its key is empty."""
_GLANCE = 512
_FIRST_FIELD = 0x0A


@dataclass(slots=True)
class Listed:
    """A ``SavedSliceMeta``."""

    name: str = ""
    shape: Shape = field(default_factory=Shape)
    number: int = 0
    slices: list[Slice] = field(default_factory=list)


def detect(file: File) -> Detection | Rejected | None:
    """A table whose first value lists tensors. (That of the second version's index is a header.)"""
    if file.name.endswith(bundle.INDEX):
        return None
    if not sorted_table.is_table(file):
        return Rejected(f"it does not end in {sorted_table.MAGIC.hex()}: it was cut", 60, "incomplete") if _begins(file) else None
    try:
        _, start, end = next(_places(file))
        if end - start < 2 or file.read(start, 1) != b"\x0a":
            return None
    except FileProblem as problem:
        return Rejected(str(problem), 60) if _begins(file) else None
    except StopIteration:
        return None
    files = [file.name, *(name for name in (file.name + META,) if name in file.siblings)]
    if STATE in file.siblings and is_latest(file, file.name):
        files.append(STATE)
    return Detection(files, 92, name=file.name)


def _begins(file: File) -> bool:
    """Whether a file begins with the empty key, and a list of tensors whose first has a name."""
    head, at, after = file.head, len(MAGIC), -1
    try:
        for _ in range(4):  # the value, the list in it, a tensor in that, its name: each is the first field of the one before
            if after >= 0:
                if head[at] != _FIRST_FIELD:
                    return False
                at += 1
            length, at = sorted_table.varint(head, at, min(len(head), at + 10), file.name)
            if not length or (after >= 0 and at + length > after):
                return False
            after = at + length
    except (FileProblem, IndexError):
        return False
    return after <= len(head)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Tensors in the order that the file lists them in."""
    file = checkpoint.primary
    wire = protobuf.Wire(file)
    places = {key: (start, end) for key, start, end in _places(file)}
    if b"" not in places:
        raise InvalidFile(f"{file.name} does not list its tensors")
    listed = list(_listed(wire, *places[b""]))
    names = {entry.name for entry in listed}
    partitioned = state = 0
    for entry in listed:
        record = _tensor(entry, places, wire, file)
        if objects.is_state(entry.name, entry.name, names, objects.Names()):
            record, state = record._replace(view="stored"), state + 1
        partitioned += len(entry.slices) > 1
        yield record
    values: dict[str, Any] = {"checkpoint": "version 1", "partitioned": partitioned, "optimizer_tensors": state}
    meta = file.name + META
    if meta in checkpoint:
        beside = graph.of_meta(checkpoint.open(meta))
        yield from beside.findings
        values |= graph.describe(beside)
    yield Metadata(values={key: value for key, value in values.items() if value})


def _listed(wire: protobuf.Wire, start: int, end: int) -> Iterator[Listed]:
    for number, kind, a, b in wire.fields(start, end):
        if number != 1 or kind != protobuf.BYTES:
            continue
        for inner, inner_kind, c, d in wire.fields(a, b):
            if inner != 1 or inner_kind != protobuf.BYTES:
                continue
            found = Listed()
            for field_number, field_kind, e, f in wire.fields(c, d):
                if field_number == 1 and field_kind == protobuf.BYTES:
                    found.name = wire.text(e, f, MAX_KEY)
                elif field_number == 2 and field_kind == protobuf.BYTES:
                    found.shape = elements.shape(wire, e, f)
                elif field_number == 3 and field_kind == protobuf.VARINT:
                    found.number = e % elements.REFERENCE
                elif field_number == 4 and field_kind == protobuf.BYTES:
                    found.slices.append(bundle.slice_of(wire, e, f))
            if found.shape.unknown or -1 in found.shape.sides:
                raise InvalidFile(f"{wire.name}: tensor {found.name[:200]!r} has a shape with open sides")
            yield found


def _tensor(entry: Listed, places: dict[bytes, tuple[int, int]], wire: protobuf.Wire, file: File) -> Tensor:
    shape, dtype = entry.shape.sides, elements.DTYPES.get(entry.number)
    if dtype is None:
        other = elements.label(entry.number)
        return Tensor(entry.name, other.upper(), shape, None, unsupported=f"{other} tensor")
    who = f"{file.name}: tensor {entry.name[:200]!r}"
    parts, boxes = [], []
    for piece in entry.slices:
        place = places.get(bundle.slice_key(entry.name, piece))
        if place is None:
            raise InvalidFile(f"{who} is said to have a slice {[list(side) for side in piece.sides]}, which is not there")
        box = bundle.box(piece, shape, who)
        raw = _slice(wire, *place)
        if raw is None:
            raise InvalidFile(f"{who}: the entry at offset {place[0]} holds no numbers")
        raw = raw._replace(number=entry.number, sides=tuple(length for _, length in box))
        if not raw.field and all(raw.sides):
            raise InvalidFile(f"{who}: the entry at offset {place[0]} holds no numbers")
        part = elements.tensor(raw, entry.name, file.path, file.name, wire)
        if part.value is None:
            return part._replace(shape=shape)
        parts.append(part.value)
        boxes.append(box)
    if len(parts) == 1 and boxes[0] == [[0, side] for side in shape]:
        return Tensor(entry.name, dtype, shape, parts[0])
    try:
        return Tensor(entry.name, dtype, shape, ops.place(parts, boxes, dtype, shape))
    except ValueError as error:
        raise InvalidFile(f"{who}: its slices do not make it: {error}") from error


def _slice(wire: protobuf.Wire, start: int, end: int) -> elements.Raw | None:
    """The numbers of a ``SavedSlice`` in its ``SavedTensorSlices``."""
    for number, kind, a, b in wire.fields(start, end):
        if number == 2 and kind == protobuf.BYTES:
            for inner, inner_kind, c, d in wire.fields(a, b):
                if inner == 3 and inner_kind == protobuf.BYTES:
                    return elements.parse(wire, c, d)
    return None


def _places(file: File) -> Iterator[tuple[bytes, int, int]]:
    """(key, start, end) of every value. Blocks are as long as the tensors in them, so only their keys are read."""
    last: bytes | None = None
    count = 0
    for _, place in sorted_table.blocks(file):
        for key, start, end in _of_block(file, place):
            if last is not None and key <= last:
                raise InvalidFile(f"{file.name}: key {key[:80]!r} stands behind {last[:80]!r}: keys are sorted and unique")
            last = key
            count += 1
            if count > MAX_ENTRIES:
                raise InvalidFile(f"{file.name}: more than {MAX_ENTRIES} keys")
            yield key, start, end


def _of_block(file: File, place: Place) -> Iterator[tuple[bytes, int, int]]:
    who = f"{file.name}: the block at offset {place.offset}"
    sorted_table.inside(file, place)
    if place.nbytes < 4:
        raise InvalidFile(f"{who} has {place.nbytes} bytes")
    tail = file.read(place.offset + place.nbytes - 4, 5)
    if tail[4] != sorted_table.PLAIN:
        raise InvalidFile(f"{who} is compressed (kind {tail[4]}); such checkpoints are not read")
    end = place.offset + place.nbytes - 4 * (int.from_bytes(tail[:4], "little") + 1)
    if end < place.offset:
        raise InvalidFile(f"{who} says {int.from_bytes(tail[:4], 'little')} restarts and has {place.nbytes} bytes")
    at, key = place.offset, b""
    while at < end:
        data = file.read(at, min(_GLANCE, end - at))
        shared, used = sorted_table.varint(data, 0, len(data), who)
        own, used = sorted_table.varint(data, used, len(data), who)
        nbytes, used = sorted_table.varint(data, used, len(data), who)
        start = at + used + own
        if shared > len(key) or shared + own > MAX_KEY or start + nbytes > end:
            raise InvalidFile(f"{who} has an entry at {at} that runs out of it")
        more = data[used : used + own] if used + own <= len(data) else file.read(at + used, own)
        key = key[:shared] + more
        yield key, start, start + nbytes
        at = start + nbytes

"""ML programs: the operations of MIL, their constants, and the weights that they name in files beside the model.

(coremltools ``mlmodel/format/MIL.proto``; ``MILBlob/Blob/StorageFormat.hpp`` and ``BlobDataType.hpp`` for the files: a header of
64 bytes, and before the data of each tensor a record of 64 bytes, at the offset that the program names.)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from modelhub import Checkpoint, Extent, File, IncompleteFile, InvalidFile, Node, Tensor, UnsupportedFile, dtypes, ops, protobuf

from modelhub_coreml import compressed
from modelhub_coreml.names import unique

SENTINEL = 0xDEADBEEF
VERSION = 2
RECORD = 64
MODEL_PATH = "@model_path/"
MAX_SIDES = 64
MAX_NAME = 10_000
INLINE = 256
"""Values that stand in the program itself, and are no shorter than this, are listed; the rest is arithmetic."""
STORED = {
    1: "F16", 2: "F32", 3: "U8", 4: "I8", 5: "BF16", 6: "I16", 7: "U16", 8: "I4", 11: "U4", 14: "I32", 15: "U32", 16: "F8_E4M3",
    17: "F8_E5M2",
}  # fmt: skip
"""``BlobDataType``; 9, 10, 12 and 13 are unsigned numbers of 1, 2, 3 and 6 bits."""
_NARROW = {9: "UINT1", 10: "UINT2", 12: "UINT3", 13: "UINT6"}
_PACKED = {8: (4, True), 9: (1, False), 10: (2, False), 11: (4, False), 12: (3, False), 13: (6, False)}
"""Those of less than a byte: bits, and whether they are signed."""
INLINED = {10: "F16", 11: "F32", 21: "I8", 31: "U8"}
"""``MILSpec.DataType`` of values whose bytes are those of the tensor."""


class Place(NamedTuple):
    """A value: its declared type and shape, and where it is: in ``file`` at ``offset``, or (``file`` "") in the model."""

    kind: int
    shape: tuple[int, ...]
    file: str
    offset: int
    end: int


@dataclass(slots=True)
class Program:
    """What a program says besides its weights. ``constants``: small values, not listed. ``weights``: how they are compressed ->
    elements."""

    functions: list[str] = field(default_factory=list)
    opsets: set[str] = field(default_factory=set)
    operators: Counter[str] = field(default_factory=Counter)
    constants: int = 0
    weights: Counter[str] = field(default_factory=Counter)


class Reader:
    """One walk over a program. ``wire``: of the model's file."""

    def __init__(self, wire: protobuf.Wire, checkpoint: Checkpoint) -> None:
        self.wire = wire
        self.checkpoint = checkpoint
        self.program = Program()
        self.checked: dict[str, File] = {}
        self.seen: set[str] = set()
        self.sparse: dict[str, compressed.Sparse] = {}
        self.wholes: dict[str, tuple[Tensor, str]] = {}
        """What compressed constants stand for, by the names of their outputs, and how each is compressed."""

    def tensors(self, start: int, end: int) -> Iterator[Tensor]:
        """The weights of all functions; a name that was there before has a number behind it."""
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 2 and kind == protobuf.BYTES:
                name, value = self._pair(low, high)
                self.program.functions.append(name)
                if value:
                    yield from self._function(*value)

    def _function(self, start: int, end: int) -> Iterator[Tensor]:
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 3 and kind == protobuf.BYTES:
                opset, block = self._pair(low, high)
                self.program.opsets.add(opset)
                if block:
                    yield from self._block(*block)
        for whole, label in self.wholes.values():
            self.program.weights[label] += prod(whole.shape)
            yield whole._replace(name=unique(whole.name, self.seen))
        self.wholes.clear()

    def _block(self, start: int, end: int) -> Iterator[Tensor]:
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 3 and kind == protobuf.BYTES:
                yield from self._operation(low, high)

    def _operation(self, start: int, end: int) -> Iterator[Tensor]:
        operator = ""
        outputs: list[str] = []
        shape: tuple[int, ...] = ()
        values: list[tuple[str, Place]] = []
        names: dict[str, str] = {}
        axis = 0
        blocks: list[tuple[int, int]] = []
        for number, kind, low, high in self.wire.fields(start, end):
            if kind != protobuf.BYTES:
                continue
            if number == 1:
                operator = self.wire.text(low, high, MAX_NAME)
            elif number == 3:
                name, made = self._named_type(low, high)
                shape = shape if outputs else made
                outputs.append(name)
            elif number == 4:
                blocks.append((low, high))
            elif number == 2:
                key, argument = self._pair(low, high)
                bound = list(self._bound(*argument)) if argument else []
                values += [(key, place) for place in bound]
                axis = self._number(bound[0]) if key == "vector_axis" and bound else axis
                if argument and operator.startswith(compressed.PREFIX):
                    names[key] = self._reference(*argument)
            elif number == 5:
                key, value = self._pair(low, high)
                place = self._value(*value) if value else None
                if place:
                    values.append((key, place))
                    axis = self._number(place) if key == "axis" else axis
        self.program.operators[operator] += 1
        output = outputs[0] if outputs else ""
        if operator.startswith(compressed.PREFIX):
            yield from self._compressed(operator, outputs, shape, values, names, axis)
            return
        for key, place in values:
            name = output if operator == "const" and key == "val" else f"{output}/{key}"
            if place.file or place.end - place.offset >= INLINE:
                yield self._tensor(name, place)
            else:
                self.program.constants += 1
        for block in blocks:
            yield from self._block(*block)

    def _compressed(
        self,
        operator: str,
        outputs: list[str],
        shape: tuple[int, ...],
        values: list[tuple[str, Place]],
        names: Mapping[str, str],
        axis: int,
    ) -> Iterator[Tensor]:
        """A constant that the program decompresses: its parts as they are stored, and the whole where it is understood."""
        inputs = {key: self._made(name) for key, name in names.items() if name}
        for key, place in values:
            inputs[key] = self._input(place)
        made = compressed.whole(operator, inputs, shape, axis) if outputs else None
        for key, place in values:
            if not place.file and (prod(place.shape) < 2 or key == "shape"):
                self.program.constants += 1
                continue
            part = self._tensor(f"{outputs[0] if outputs else operator}/{key}", place)
            yield self._packed(part, place) if made else part
        if isinstance(made, compressed.Sparse):
            self.sparse[outputs[-1]] = made
        elif made and made.shape == shape:
            for name in names.values():  # what is made of another is no weight besides
                self.wholes.pop(name, None)
            self.wholes[outputs[0]] = Tensor(outputs[0], made.dtype, shape, made, view="logical"), _label(inputs)

    def _made(self, name: str) -> compressed.Input:
        """What an earlier operator made."""
        whole = self.wholes[name][0].value if name in self.wholes else None
        return compressed.Input(whole if isinstance(whole, Node) else None, sparse=self.sparse.get(name))

    def _packed(self, part: Tensor, place: Place) -> Tensor:
        """A part of a whole that is understood, as it is stored; elements that have no dtype are the bytes that they are in."""
        if part.value is None and place.file:
            file, kind, offset, nbytes = self._record(place)
            if kind in _PACKED:
                size = min(nbytes, -(-prod(place.shape) * _PACKED[kind][0] // 8))
                part = Tensor(part.name, "U8", (size,), Extent(file.path, offset, size))
        return part._replace(view="stored")

    def _input(self, place: Place) -> compressed.Input:
        """A value of a compressed constant, element by element; nothing where its bytes are not those of its type."""
        if not place.file:
            dtype, nbytes = INLINED.get(place.kind), place.end - place.offset
            if dtype is None or dtypes.get(dtype).nbytes(place.shape) != nbytes:
                return compressed.Input()
            return compressed.Input(ops.typed(Extent(self.checkpoint.files[0], place.offset, nbytes), dtype, place.shape))
        file, kind, offset, nbytes = self._record(place)
        if kind in _PACKED:
            bits, signed = _PACKED[kind]
            size = -(-prod(place.shape) * bits // 8)
            if size > nbytes:
                return compressed.Input()
            return compressed.Input(compressed.unpacked(Extent(file.path, offset, size), bits, place.shape, signed=signed))
        dtype = STORED.get(kind)
        if dtype is None or dtypes.get(dtype).nbytes(place.shape) != nbytes:
            return compressed.Input()
        extent = Extent(file.path, offset, nbytes)
        return compressed.Input(ops.typed(extent, dtype, place.shape), extent)

    # --- messages -------------------------------------------------------------------------------------------------

    def _pair(self, start: int, end: int) -> tuple[str, tuple[int, int] | None]:
        """An entry of a map: its key, and where its value lies."""
        key, value = "", None
        for number, kind, low, high in self.wire.fields(start, end):
            if kind == protobuf.BYTES and number == 1:
                key = self.wire.text(low, high, MAX_NAME)
            elif kind == protobuf.BYTES and number == 2:
                value = (low, high)
        return key, value

    def _named_type(self, start: int, end: int) -> tuple[str, tuple[int, ...]]:
        """An output: its name, and its shape where that is fixed."""
        name = ""
        shape: tuple[int, ...] = ()
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                name = self.wire.text(low, high, MAX_NAME)
            elif number == 2 and kind == protobuf.BYTES:
                try:
                    of_type = self._type(low, high)
                except InvalidFile:  # of open sides: no constant
                    of_type = None
                shape = of_type[1] if of_type else ()
        return name, shape

    def _reference(self, start: int, end: int) -> str:
        """The name that an argument is bound to, if it is one."""
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                for inner, wire, first, last in self.wire.fields(low, high):
                    if inner == 1 and wire == protobuf.BYTES:
                        return self.wire.text(first, last, MAX_NAME)
        return ""

    def _number(self, place: Place) -> int:
        """The one integer of a value that stands in the program; 0 where it is none."""
        found = self.wire.varints(place.offset, place.end, 1) if 0 < place.end - place.offset <= 10 and not place.file else []
        return protobuf.signed(found[0]) if found else 0

    def _bound(self, start: int, end: int) -> Iterator[Place]:
        """The values among an argument's bindings."""
        for number, kind, low, high in self.wire.fields(start, end):
            if number != 1 or kind != protobuf.BYTES:
                continue
            for inner, wire, start_, end_ in self.wire.fields(low, high):
                place = self._value(start_, end_) if inner == 2 and wire == protobuf.BYTES else None
                if place:
                    yield place

    def _value(self, start: int, end: int) -> Place | None:
        """A tensor's value; None for texts, lists and the like."""
        of_type: tuple[int, tuple[int, ...]] | None = None
        found: tuple[str, int, int] | None = None
        for number, kind, low, high in self.wire.fields(start, end):
            if kind != protobuf.BYTES:
                continue
            if number == 2:
                of_type = self._type(low, high)
            elif number == 3:
                found = self._immediate(low, high)
            elif number == 5:
                found = self._blob(low, high)
        if of_type is None or found is None:
            return None
        return Place(of_type[0], of_type[1], found[0], found[1], found[2])

    def _type(self, start: int, end: int) -> tuple[int, tuple[int, ...]] | None:
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                dtype, shape = 0, []
                for inner, wire, first, last in self.wire.fields(low, high):
                    if inner == 1 and wire == protobuf.VARINT:
                        dtype = first
                    elif inner == 3 and wire == protobuf.BYTES:
                        shape.append(self._side(first, last))
                if len(shape) > MAX_SIDES:
                    raise InvalidFile(f"{self.wire.name}: a tensor of {len(shape)} dimensions at offset {low}")
                return dtype, tuple(shape)
        return None

    def _side(self, start: int, end: int) -> int:
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                return next((size for inner, wire, size, _ in self.wire.fields(low, high) if (inner, wire) == (1, 0)), 0)
        raise InvalidFile(f"{self.wire.name}: the constant at offset {start} has a side of no fixed length")

    def _blob(self, start: int, end: int) -> tuple[str, int, int]:
        name, offset = "", 0
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                name = self.wire.text(low, high, MAX_NAME)
            elif number == 2 and kind == protobuf.VARINT:
                offset = low
        return name or "?", offset, offset

    def _immediate(self, start: int, end: int) -> tuple[str, int, int] | None:
        """Where the bytes of an immediate tensor lie: packed floats and plain bytes are as a tensor stores them."""
        for number, kind, low, high in self.wire.fields(start, end):
            if number != 1 or kind != protobuf.BYTES:
                continue
            for inner, wire, first, last in self.wire.fields(low, high):
                if inner in (1, 2, 7) and wire == protobuf.BYTES:
                    for deepest, last_wire, at, stop in self.wire.fields(first, last):
                        if deepest == 1 and last_wire == protobuf.BYTES:
                            return "", at, stop
                return "", first, first
        return None

    # --- weights --------------------------------------------------------------------------------------------------

    def _tensor(self, name: str, place: Place) -> Tensor:
        called = unique(name, self.seen)
        if not place.file:
            dtype = INLINED.get(place.kind)
            if dtype is None:
                return Tensor(
                    called, f"MIL type {place.kind}", place.shape, None, unsupported=f"a value of MIL's type {place.kind}"
                )
            path = self.checkpoint.files[0]
            return Tensor(called, dtype, place.shape, Extent(path, place.offset, place.end - place.offset))
        file, kind, offset, nbytes = self._record(place)
        dtype = STORED.get(kind)
        if dtype is None:
            label = _NARROW.get(kind, f"blob type {kind}")
            return Tensor(called, label, place.shape, None, unsupported=f"packed elements of type {label}")
        if prod(place.shape) % dtypes.get(dtype).block:
            return Tensor(called, dtype, place.shape, None, unsupported="packed, and the last byte is not full")
        return Tensor(called, dtype, place.shape, Extent(file.path, offset, nbytes))

    def _record(self, place: Place) -> tuple[File, int, int, int]:
        """(the file, the type of the elements, where they begin, their bytes) of a value that stands in another file."""
        file = self._file(place.file)
        record = file.read(place.offset, RECORD)
        sentinel, kind = (int.from_bytes(record[at : at + 4], "little") for at in (0, 4))
        if sentinel != SENTINEL:
            what = f"{file.name}: no weights at offset {place.offset}, where a tensor of {list(place.shape)} is said to be"
            raise InvalidFile(f"{what} (found {sentinel:#x}, expected {SENTINEL:#x})")
        nbytes, offset = (int.from_bytes(record[at : at + 8], "little") for at in (8, 16))
        return file, kind, offset, nbytes

    def _file(self, said: str) -> File:
        """The file of weights that a program calls ``said``, its header checked."""
        if said in self.checked:
            return self.checked[said]
        inside = said.removeprefix(MODEL_PATH)
        if inside == said or any(part in ("", ".", "..") for part in inside.split("/")) or "\0" in inside:
            raise InvalidFile(f"{self.wire.name}: weights in {said!r:.200}, which is none of the package's files")
        path = os.path.join(os.path.dirname(self.checkpoint.files[0]), inside)
        if path not in self.checkpoint:
            raise IncompleteFile(f"{self.wire.name}: its weights {inside!r:.200} are not there")
        file = self.checkpoint.open(path)
        version = int.from_bytes(file.read(0, RECORD)[4:8], "little")
        if version != VERSION:
            raise UnsupportedFile(f"{file.name}: version {version} of Core ML's weight storage, {VERSION} is read")
        self.checked[said] = file
        return file


def _label(inputs: compressed.Inputs) -> str:
    """As people say how a constant is compressed: "INT4", "LUT6" (palettized), "" where it is merely sparse."""
    lut = inputs["lut"].elements if "lut" in inputs else None
    data = next((inputs[name].elements for name in ("data", "quantized_data") if name in inputs), None)
    if data is not None and data.op == "coreml.lookup":  # entries of a table, scaled
        lut = data.inputs[1] if isinstance(data.inputs[1], Node) else None
    if lut is not None:
        entries = lut.shape[0] if len(lut.shape) == 1 else lut.shape[-2]
        return f"LUT{max(1, (entries - 1).bit_length())}"
    if data is None:
        return ""
    return f"INT{data.args['bits'] if data.op == 'coreml.unpack' else int(dtypes.get(data.dtype).bits)}"

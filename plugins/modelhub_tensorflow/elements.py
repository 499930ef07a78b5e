"""TensorFlow's element types (``core/framework/types.proto``), shapes and tensors (``TensorProto``), and how they are stored."""

from __future__ import annotations

from math import prod
from typing import NamedTuple, TypeAlias

from modelhub import Extent, Inline, InvalidFile, Node, Tensor, dtypes, ops, protobuf

Value: TypeAlias = "Extent | Inline | Node"

DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 11: "I8", 12: "U8", 13: "I32",
    14: "BF16", 15: "I16", 16: "U16", 17: "U16", 18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
    26: "F8_E4M3FNUZ", 28: "F8_E5M2FNUZ",
}  # fmt: skip
"""Number -> dtype; quantized integers (``qint8``, ...) are the integers that they are stored as."""
NARROW = {29: ("I8", True), 30: ("U8", False)}
"""int4 and uint4, of which a checkpoint has a byte each, with its low half in use: what they are read as, and whether signed."""
UNPACK = "tensorflow.unpack"
_QUANTIZED = (11, 12, 13, 15, 16)
NUMBERS = {name: number for number, name in DTYPES.items() if number not in _QUANTIZED}
OTHERS = {
    7: "string", 20: "resource", 21: "variant", 27: "float8_e4m3b11fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip
STRING = 7
REFERENCE = 100
"""Added to a type in graphs of TensorFlow 1: a reference to a variable of it."""
MAX_RANK = 254
"""``TensorShape::MaxDimensions``."""
CONTENT = 4
_FIELDS = {"F32": 5, "F64": 6, "C64": 9, "I64": 10, "BOOL": 11, "C128": 12, "U32": 16, "U64": 17, "F16": 13, "BF16": 13}
"""Where numbers stand that are not ``tensor_content``; all other integers are in ``int_val`` (7)."""
_INTEGERS, _FLOAT8 = 7, 18


def stored_dtype(number: int) -> str | None:
    """What an element in a checkpoint is read as; None for text and the like."""
    return DTYPES.get(number) or NARROW.get(number, (None,))[0]


def narrow(value: Value, number: int, sides: tuple[int, ...]) -> Node:
    """The numbers of half a byte that stand in a byte each."""
    dtype, signed = NARROW[number]
    halves = ops.node(UNPACK, value, bits=4, signed=signed, shape=[2 * prod(sides)])
    strides = [2 * prod(sides[side + 1 :]) for side in range(len(sides))]
    return ops.strided(halves, dtype, sides, strides)


def label(number: int) -> str:
    """A type as it is called in words."""
    number %= REFERENCE
    return DTYPES.get(number) or OTHERS.get(number) or f"type {number}"


class Shape(NamedTuple):
    """``sides``: -1 where a side is open; ``unknown``: whether not even their number is known."""

    sides: tuple[int, ...] = ()
    unknown: bool = False


def shape(wire: protobuf.Wire, start: int, end: int) -> Shape:
    """A ``TensorShapeProto``."""
    sides: list[int] = []
    unknown = False
    for number, kind, a, b in wire.fields(start, end):
        if number == 2 and kind == protobuf.BYTES:
            side = 0
            for inner, inner_kind, value, _ in wire.fields(a, b):
                if inner == 1 and inner_kind == protobuf.VARINT:
                    side = protobuf.signed(value)
            if side < -1 or len(sides) >= MAX_RANK:
                raise InvalidFile(f"{wire.name}: side {len(sides)} of a shape at offset {start} is {side}")
            sides.append(side)
        elif number == 3 and kind == protobuf.VARINT:
            unknown = bool(a)
    return Shape(tuple(sides), unknown)


class Raw(NamedTuple):
    """A ``TensorProto``: its type, its shape, and (field, start, end) of the run that its numbers stand in; field 0: none.
    ``odd``: why they cannot be read as one run."""

    number: int
    sides: tuple[int, ...]
    field: int
    start: int
    end: int
    odd: str = ""


_FIXED = {5: 4, 6: 8, 9: 4, 12: 8}


def parse(wire: protobuf.Wire, start: int, end: int) -> Raw:
    """The tensor message at ``start``..``end``; nothing of its numbers is read, but one that stands alone."""
    kind_number, found, places = 0, Shape(), []
    loose = 0
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == protobuf.VARINT:
            kind_number = a % REFERENCE
        elif number == 2 and kind == protobuf.BYTES:
            found = shape(wire, a, b)
        elif number == CONTENT and kind == protobuf.BYTES:
            if b > a:
                places.append((CONTENT, a, b))
        elif number >= 5 and kind == protobuf.BYTES:
            if number in (8, 14, 15):
                places[:] = [(number, a, b)]
            elif b > a:
                places.append((number, a, b))
        elif number >= 5:
            loose += 1
    if found.unknown or -1 in found.sides:
        raise InvalidFile(f"{wire.name}: the tensor at offset {start} has a shape with open sides")
    odd = "tensor whose numbers stand one by one" if loose else ""
    odd = odd or ("tensor whose numbers stand in several runs" if len(places) > 1 else "")
    field, a, b = places[0] if places else (0, 0, 0)
    return Raw(kind_number, found.sides, field, a, b, odd)


def tensor(raw: Raw, name: str, file: str, who: str, wire: protobuf.Wire) -> Tensor:
    """The record of a tensor whose message lies in ``file``. `InvalidFile` where its numbers do not fit its shape."""
    dtype = DTYPES.get(raw.number)
    if dtype is None:
        return Tensor(name, label(raw.number).upper(), raw.sides, None, unsupported=f"{label(raw.number)} tensor")
    if raw.odd:
        return Tensor(name, dtype, raw.sides, None, unsupported=raw.odd)
    known, count = dtypes.get(dtype), prod(raw.sides)
    who = f"{who}: tensor {name[:200]!r} of {dtype} {list(raw.sides)}"
    if not count or not raw.field:
        if count:
            value: Value = _splat(Inline(bytes(known.block_bytes)), dtype, raw.sides)
            return Tensor(name, dtype, raw.sides, value)
        return Tensor(name, dtype, raw.sides, Inline(b""))
    extent = Extent(file, raw.start, raw.end - raw.start)
    size = known.block_bytes
    if raw.field == CONTENT:
        if extent.nbytes != count * size:
            raise InvalidFile(f"{who} takes {count * size} bytes, {extent.nbytes} stand at offset {raw.start}")
        return Tensor(name, dtype, raw.sides, extent)
    want = _FIELDS.get(dtype, _FLOAT8 if dtype.startswith("F8") else _INTEGERS)
    if raw.field != want:
        raise InvalidFile(f"{who} has its numbers in field {raw.field}, expected {want}")
    if raw.field == _FLOAT8 or raw.field in _FIXED:
        have, rest = divmod(extent.nbytes, size)
        if rest:
            raise InvalidFile(f"{who}: {extent.nbytes} bytes at offset {raw.start} are no whole numbers")
        return Tensor(name, dtype, raw.sides, _filled(extent, dtype, raw.sides, have, who))
    have = _terminals(wire, raw.start, raw.end)
    if not have or have > count:
        raise InvalidFile(f"{who} has {have} numbers at offset {raw.start}, {count} were expected")
    integer = dtype if known.kind in ("int", "uint", "bool") else "U16"
    units = ops.varints(extent, integer, (have,))
    flat = units if integer == dtype else ops.reshape(units, dtype, (have,))
    return Tensor(name, dtype, raw.sides, _filled(flat, dtype, raw.sides, have, who))


_STEP = 1 << 20


def _terminals(wire: protobuf.Wire, start: int, end: int) -> int:
    """How many varints a run holds: bytes below 128."""
    count = 0
    low = bytes(range(128))
    for at in range(start, end, _STEP):
        data = wire.data(at, min(end, at + _STEP))
        count += len(data) - len(data.translate(None, low))
    return count


def _filled(value: Value, dtype: str, sides: tuple[int, ...], have: int, who: str) -> Value:
    """Where fewer numbers are stored than there are elements, the last one stands for all that follow (``tensor_util.cc``)."""
    count = prod(sides)
    if have > count or not have:
        raise InvalidFile(f"{who} has {have} numbers, {count} were expected")
    if have == count:
        return value if isinstance(value, Extent) else ops.typed(value, dtype, sides)
    if have == 1:
        return _splat(value, dtype, sides)
    flat = ops.typed(value, dtype, (have,))
    rest = ops.strided(value, dtype, (count - have,), (0,), have - 1)
    return ops.reshape(ops.concat([flat, rest]), dtype, sides)


def _splat(value: Value, dtype: str, sides: tuple[int, ...]) -> Value:
    return ops.strided(value, dtype, sides, (0,) * len(sides))


_WORDS = {
    "F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "I16": "int16", "I32": "int32",
    "I64": "int64", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
    "C128": "complex128",
}  # fmt: skip


def word(number: int) -> str:
    """A type as TensorFlow's users write it."""
    return _WORDS.get(label(number), label(number).lower())

"""One tensor of a model (``TensorProto``): its type, shape and name, and where its bytes lie.

Bytes stand in ``raw_data``, in a field of typed numbers, or in another file; none of them is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from modelhub import Extent, File, IncompleteFile, Inline, InvalidFile, Node, Tensor, dtypes, ops, protobuf

from modelhub_onnx.elements import DOUBLES, ELEMENTS, FLOATS, RAW, STRING, STRINGS, UNSIGNED, label
from modelhub_onnx.external import Externals

MAX_RANK = 1024
MAX_NAME = 1 << 16
MAX_UNPACKED = 1 << 16
"""Typed numbers that stand one by one, each with its key, are collected up to here: no library has written such for years."""
_TYPED = range(FLOATS, UNSIGNED + 1)
_UNITS = {1: "U8", 2: "U16", 4: "I32", 8: "I64"}
_WIDENED = {"I4": "I8", "U4": "U8", "I2": "I8", "U2": "U8"}
"""Packed integers whose last byte is not filled have no dtype here; they are bytes of this one."""


@dataclass(slots=True)
class Raw:
    """A ``TensorProto`` as it stands. ``places``: of raw or typed data, (field, start, end) of each run; ``loose``: typed numbers
    that stand one by one, as they were read, with the field's number in ``places``."""

    name: str = ""
    data_type: int = 0
    dims: tuple[int, ...] = ()
    places: list[tuple[int, int, int]] = field(default_factory=list)
    loose: bytearray = field(default_factory=bytearray)
    loose_numbers: int = 0
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    segmented: bool = False


def parse(wire: protobuf.Wire, start: int, end: int) -> Raw:
    """The tensor message at ``start``..``end``. `InvalidFile` where it contradicts itself."""
    raw = Raw()
    dims: list[int] = []
    for number, kind, a, b in wire.fields(start, end):
        if number == 1:
            dims += [a] if kind == protobuf.VARINT else wire.varints(a, b, MAX_RANK)
            if len(dims) > MAX_RANK:
                raise InvalidFile(f"{wire.name}: a tensor of more than {MAX_RANK} dimensions at offset {start}")
        elif number == 9 and kind == protobuf.BYTES:
            raw.places.append((RAW, a, b))
        elif number == 8 and kind == protobuf.BYTES:
            raw.name = wire.text(a, b, MAX_NAME)
        elif number == 2 and kind == protobuf.VARINT:
            raw.data_type = a
        elif number in _TYPED:
            _typed(wire, raw, number, kind, a, b)
        elif number == 13 and kind == protobuf.BYTES:
            key, value = _entry(wire, a, b)
            raw.external[key] = value
        elif number == 14 and kind == protobuf.VARINT:
            raw.is_external = a == 1
        elif number == 3:
            raw.segmented = True
    raw.dims = tuple(dims)
    if any(side >> 63 for side in dims):
        raise InvalidFile(f"{wire.name}: tensor {raw.name[:200]!r} has the shape {[protobuf.signed(side) for side in dims]}")
    return raw


def _typed(wire: protobuf.Wire, raw: Raw, number: int, kind: int, a: int, b: int) -> None:
    """Typed data: one packed run as a rule; numbers that stand one by one are to be read as well (protobuf.dev, "Encoding")."""
    if kind == protobuf.BYTES:
        if number != STRINGS or not raw.places:
            raw.places.append((number, a, b))
        return
    if raw.loose_numbers == 0:
        raw.places.append((number, 0, 0))
    raw.loose_numbers += 1
    if raw.loose_numbers <= MAX_UNPACKED:
        raw.loose += a.to_bytes(8, "little") if kind == protobuf.VARINT else wire.data(a, b)


def _entry(wire: protobuf.Wire, start: int, end: int) -> tuple[str, str]:
    """A ``StringStringEntryProto``."""
    key = value = ""
    for number, kind, a, b in wire.fields(start, end):
        if kind == protobuf.BYTES and number == 1:
            key = wire.text(a, b)
        elif kind == protobuf.BYTES and number == 2:
            value = wire.text(a, b)
    return key, value


def tensor(raw: Raw, name: str, file: File, externals: Externals, *, listed: bool = True) -> Tensor:
    """The record of a tensor. ``listed``: False where only its external place is to be checked (a small constant)."""
    who = f"{file.name}: tensor {name[:200]!r}"
    if raw.data_type == 0:
        raise InvalidFile(f"{who} has no type")
    if raw.is_external or raw.external:
        return _external(raw, name, who, externals)
    if not listed:
        return Tensor(name, "U8", (), None, unsupported="constant")
    element = ELEMENTS.get(raw.data_type)
    if element is None:
        what = "string tensor" if raw.data_type == STRING else f"tensor of ONNX's type {raw.data_type}, which is newer than this"
        return Tensor(name, label(raw.data_type).upper(), raw.dims, None, unsupported=what)
    if raw.segmented:
        return Tensor(name, element.dtype, raw.dims, None, unsupported="tensor stored in segments")
    fields = {place[0] for place in raw.places}
    if len(fields) > 1 or (RAW in fields and len(raw.places) > 1):
        raise InvalidFile(f"{who} has its data twice, in fields {sorted(fields)}: readers would differ in what they take")
    if not fields:
        if prod(raw.dims):
            raise InvalidFile(f"{who} of {element.label} {list(raw.dims)} has no data")
        return Tensor(name, element.dtype, raw.dims, Inline(b""))
    (number,) = fields
    if number not in (RAW, element.typed):
        raise InvalidFile(f"{who} of {element.label} has its data in field {number}, expected {element.typed} or {RAW}")
    odd = _odd(element.dtype, raw.dims)
    if odd and (element.dtype not in _WIDENED or raw.loose_numbers or len(raw.places) > 1):
        return Tensor(name, element.dtype, raw.dims, None, unsupported=odd)
    if raw.loose_numbers:
        return _loose(raw, name, element.dtype, number, who)
    if len(raw.places) > 1:
        return Tensor(name, element.dtype, raw.dims, None, unsupported="tensor whose numbers stand in several runs")
    _, start, end = raw.places[0]
    extent = Extent(file.path, start, end - start)
    if odd:
        return _widened(raw, name, element.dtype, extent, number == RAW, who)
    expected = dtypes.get(element.dtype).nbytes(raw.dims)
    if number in (RAW, FLOATS, DOUBLES):
        if end - start != expected:
            raise InvalidFile(
                f"{who}: {element.label} {list(raw.dims)} takes {expected} bytes, its data has {end - start} at offset {start}"
            )
        return Tensor(name, element.dtype, raw.dims, extent)
    return _varints(raw, name, element.dtype, extent, expected, who)


def _odd(dtype: str, dims: tuple[int, ...]) -> str:
    """Why a packed tensor has no value here, or ""."""
    block = dtypes.get(dtype).block
    return f"{dtype} tensor of {prod(dims)} elements, which do not fill its last byte" if prod(dims) % block else ""


def _packed_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    """Bytes of packed elements, the last of which need not be full."""
    return int(-(-prod(dims) * dtypes.get(dtype).bits // 8))


def _unpack(data: Node, dtype: str, dims: tuple[int, ...]) -> Node:
    width = int(dtypes.get(dtype).bits)
    return ops.node("onnx.unpack", data, bits=width, signed=dtype.startswith("I"), shape=list(dims))


def _widened(raw: Raw, name: str, dtype: str, extent: Extent, plain: bool, who: str) -> Tensor:
    """Integers of less than a byte that do not fill their last one, one by one; ``plain``: as bytes, not a varint for each."""
    expected = _packed_bytes(dtype, raw.dims)
    if extent.nbytes != expected if plain else not expected <= extent.nbytes <= 10 * expected:
        raise InvalidFile(f"{who}: {dtype} {list(raw.dims)} takes {expected} bytes, its data has {extent.nbytes}")
    data = ops.typed(extent, "U8", (expected,)) if plain else ops.varints(extent, "U8", (expected,))
    return Tensor(name, _WIDENED[dtype], raw.dims, _unpack(data, dtype, raw.dims))


def _varints(raw: Raw, name: str, dtype: str, extent: Extent, expected: int, who: str) -> Tensor:
    """Typed integers: a varint for each element, or for each byte of a packed type."""
    known = dtypes.get(dtype)
    if dtype.startswith("F6"):
        return Tensor(name, dtype, raw.dims, None, unsupported=f"{dtype} tensor with a number for each element")
    size = known.block_bytes if known.block == 1 else 1
    count = expected // size
    if not count <= extent.nbytes <= 10 * count:
        raise InvalidFile(
            f"{who}: {count} numbers expected, {extent.nbytes} bytes found at offset {extent.offset}, which cannot be"
        )
    if not count:
        return Tensor(name, dtype, raw.dims, Inline(b""))
    if known.kind in ("int", "uint", "bool") and known.block == 1:
        return Tensor(name, dtype, raw.dims, ops.varints(extent, dtype, raw.dims))
    units = ops.varints(extent, _UNITS[size], (count,))
    return Tensor(name, dtype, raw.dims, units if known.block > 1 else ops.reshape(units, dtype, raw.dims))


def _loose(raw: Raw, name: str, dtype: str, number: int, who: str) -> Tensor:
    if raw.loose_numbers > MAX_UNPACKED or len(raw.places) > 1:
        return Tensor(name, dtype, raw.dims, None, unsupported=f"tensor whose {raw.loose_numbers} numbers stand one by one")
    known = dtypes.get(dtype)
    data = bytes(raw.loose)
    if number not in (FLOATS, DOUBLES):
        size = known.block_bytes if known.block == 1 else 1
        data = b"".join(data[at : at + size] for at in range(0, len(data), 8))
    if len(data) != known.nbytes(raw.dims):
        raise InvalidFile(f"{who}: {dtype} {list(raw.dims)} takes {known.nbytes(raw.dims)} bytes, its numbers have {len(data)}")
    return Tensor(name, dtype, raw.dims, Inline(data))


def _external(raw: Raw, name: str, who: str, externals: Externals) -> Tensor:
    """A tensor in another file; the place is checked for every type, the listed ones become extents."""
    if raw.places and any(end > start for _, start, end in raw.places):
        raise InvalidFile(f"{who} has its data twice, in the model and in {raw.external.get('location', '')[:200]!r}")
    path = externals.path(raw.external.get("location", ""), name)
    element = ELEMENTS.get(raw.data_type)
    offset = _number(raw.external.get("offset"), "offset", who)
    length = _number(raw.external.get("length"), "length", who)
    if element is None:
        what = f"{label(raw.data_type)} tensor, kept in another file"
        return Tensor(name, label(raw.data_type).upper(), raw.dims, None, unsupported=what)
    odd = _odd(element.dtype, raw.dims)
    widened = bool(odd) and element.dtype in _WIDENED
    known = widened or not odd
    expected = _packed_bytes(element.dtype, raw.dims) if known else -1
    if expected >= 0 and length not in (None, expected):
        raise InvalidFile(f"{who}: {element.label} {list(raw.dims)} takes {expected} bytes, its external data has {length}")
    if not path:
        return Tensor(name, element.dtype, raw.dims, None, unsupported=f"tensor in {raw.external['location'][:200]}, not there")
    size, start = externals.files[path], offset or 0
    need = expected if expected >= 0 else length or 0
    place = f"{need} bytes of external data at offset {start} expected, {raw.external['location'][:200]!r} ends at {size}"
    if start > size or (start == size and need):
        raise InvalidFile(f"{who}: {place}")
    if start + need > size:  # perhaps it is still being written
        raise IncompleteFile(f"{who}: {place}")
    if widened:
        return _widened(raw, name, element.dtype, Extent(path, start, expected), True, who)
    if odd:
        return Tensor(name, element.dtype, raw.dims, None, unsupported=odd)
    return Tensor(name, element.dtype, raw.dims, Extent(path, start, expected))


def _number(text: str | None, what: str, who: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InvalidFile(f"{who}: the {what} of its external data is {text[:40]!r}, no number of bytes")
    return int(text)

"""What a model takes and gives: names, types and shapes (``ValueInfoProto``, ``TypeProto``; fields as in ``onnx.proto``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelhub import InvalidFile, protobuf
from modelhub.protobuf import BYTES, VARINT, Wire

from modelhub_onnx import elements, tensors

MAX_NESTED = 8


def value_info(wire: Wire, start: int, end: int) -> dict[str, Any]:
    """{name, dtype, shape} of a ``ValueInfoProto``; a side of the shape is a number, a name, or None where it is not known. What
    is no plain tensor has no shape, and says in its dtype what is in it: ``sequence(float32[n, 3])``."""
    found: dict[str, Any] = {"name": "", "dtype": "", "shape": None}
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == BYTES:
            found["name"] = wire.text(a, b, tensors.MAX_NAME)
        elif number == 2 and kind == BYTES:
            found["dtype"], found["shape"] = _type(wire, a, b, 0)
    return found


def typed(dtype: str, shape: Sequence[int | str | None] | None) -> str:
    """As people write it: ``float32[batch, 576]``."""
    return dtype if shape is None else f"{dtype}[{', '.join('?' if side is None else str(side) for side in shape)}]"


_CONTAINERS = {4: ("sequence", 1), 5: ("map", 2), 9: ("optional", 1)}
"""Field of a ``TypeProto`` -> (what it is, its field with the type inside)."""


def _type(wire: Wire, start: int, end: int, depth: int) -> tuple[str, list[int | str | None] | None]:
    """(dtype, shape) of a ``TypeProto``."""
    label, shape = "", None
    for number, kind, a, b in wire.fields(start, end):
        if kind != BYTES:
            continue
        if number in (1, 8):
            label, shape = _tensor_type(wire, a, b)
        elif number in _CONTAINERS:
            label, shape = _container(wire, number, a, b, depth), None
        elif number == 7:
            label, shape = "opaque", None
    return label, shape


def _container(wire: Wire, field: int, start: int, end: int, depth: int) -> str:
    """A sequence, a map or an optional, with what is in it."""
    called, at = _CONTAINERS[field]
    inside = []
    for number, kind, a, b in wire.fields(start, end):
        if field == 5 and number == 1 and kind == VARINT:  # key_type
            inside.append(elements.label(a))
        elif number == at and kind == BYTES and depth < MAX_NESTED:
            inside.append(typed(*_type(wire, a, b, depth + 1)))
    return f"{called}({', '.join(inside[:2])})"


def _tensor_type(wire: Wire, start: int, end: int) -> tuple[str, list[int | str | None] | None]:
    label, shape = "", None
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == VARINT:
            label = elements.label(a)
        elif number == 2 and kind == BYTES:
            shape = [_side(wire, c, d) for inner, inner_kind, c, d in wire.fields(a, b) if inner == 1 and inner_kind == BYTES]
            if len(shape) > tensors.MAX_RANK:
                raise InvalidFile(f"{wire.name}: a shape of {len(shape)} sides at offset {a}")
    return label, shape


def _side(wire: Wire, start: int, end: int) -> int | str | None:
    side: int | str | None = None
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == VARINT:
            side = protobuf.signed(a) if not a >> 63 else None  # -1 is written for any
        elif number == 2 and kind == BYTES:
            side = wire.text(a, b, 4096)
    return side

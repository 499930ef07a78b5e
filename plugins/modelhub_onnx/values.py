"""What a model takes and gives: names, types and shapes (``ValueInfoProto``, ``TypeProto``; fields as in ``onnx.proto``)."""

from __future__ import annotations

from typing import Any

from modelhub import InvalidFile, protobuf
from modelhub.protobuf import BYTES, VARINT, Wire

from modelhub_onnx import elements, tensors


def value_info(wire: Wire, start: int, end: int) -> dict[str, Any]:
    """{name, dtype, shape} of a ``ValueInfoProto``; a side of the shape is a number, a name, or None where it is not known."""
    found: dict[str, Any] = {"name": "", "dtype": "", "shape": None}
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == BYTES:
            found["name"] = wire.text(a, b, tensors.MAX_NAME)
        elif number == 2 and kind == BYTES:
            for inner, inner_kind, c, d in wire.fields(a, b):
                if inner in (1, 8) and inner_kind == BYTES:
                    found["dtype"], found["shape"] = _tensor_type(wire, c, d)
                elif inner in _KINDS:
                    found["dtype"] = _KINDS[inner]
    return found


_KINDS = {4: "sequence", 5: "map", 7: "opaque", 9: "optional"}


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

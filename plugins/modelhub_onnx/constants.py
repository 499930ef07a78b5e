"""Small constants by name: scales and zero points that stand in ``Constant`` nodes, as torch's older exporter and Paddle's write
them. They are not listed; but without them quantized weights cannot be told.

The nodes of the graph are walked once more for them, where a quantizing operator names what is no tensor of the table.
"""

from __future__ import annotations

from collections.abc import Collection

from modelhub import File, Inline, Tensor
from modelhub.protobuf import BYTES, FIXED32, Wire

from modelhub_onnx import tensors
from modelhub_onnx.model import Model

PARAMETERS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulNBits")
)
"""Operators whose inputs but the first are constants."""
MAX_WANTED = 20_000


def find(file: File, model: Model) -> dict[str, Tensor]:
    """The constants of the model's graph that its quantizing operators name and that are not listed."""
    listed = {*model.names, *(tensor.name for tensor in model.tensors)}
    wanted = {name for use in model.uses if use.operator in PARAMETERS for name in use.inputs[1:] if name not in listed}
    found: dict[str, Tensor] = {}
    if not wanted or len(wanted) > MAX_WANTED:
        return found
    wire = Wire(file)
    for number, kind, a, b in wire.fields():
        if number == 7 and kind == BYTES:
            for inner, inner_kind, c, d in wire.fields(a, b):
                if inner == 1 and inner_kind == BYTES and len(found) < len(wanted):
                    tensor = _constant(wire, c, d, wanted, file, model)
                    if tensor:
                        found[tensor.name] = tensor
    return found


def _constant(wire: Wire, start: int, end: int, wanted: Collection[str], file: File, model: Model) -> Tensor | None:
    """The tensor in a node, where it is a ``Constant`` that is wanted."""
    name, operator, attributes = "", b"", []
    for number, kind, a, b in wire.fields(start, end):
        if number == 2 and kind == BYTES:
            name = wire.text(a, b, tensors.MAX_NAME)
        elif number == 4 and kind == BYTES:
            operator = wire.data(a, b)
        elif number == 5 and kind == BYTES:
            attributes.append((a, b))
    if operator != b"Constant" or name not in wanted or len(attributes) != 1:
        return None
    for number, kind, a, b in wire.fields(*attributes[0]):
        if number == 5 and kind == BYTES:
            return tensors.tensor(tensors.parse(wire, a, b), name, file, model.externals)
        if number == 2 and kind == FIXED32:
            return Tensor(name, "F32", (), Inline(wire.data(a, b)))
    return None

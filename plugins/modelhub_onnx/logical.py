"""What quantized weights stand for: the tensors that a model means, by its own scales and zero points.

Five layouts are understood: weights and biases that a ``DequantizeLinear`` decodes (what its newer versions allow is in
`modelhub_onnx.dequantize`), those that operators on integers take with their scales (``QLinearConv``), those that onnxruntime's
quantizer names ``NAME_quantized`` beside ``NAME_scale`` and ``NAME_zero_point`` (``quantization/quant_utils.py``), blocks
(`modelhub_onnx.blocks`), and floats that are quantized on the way (`modelhub_onnx.trained`). Each becomes one F32 tensor under
the name that it had before; its parts stay in the table of what is stored. Anything else is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from modelhub import Checkpoint, Extent, Inline, Node, Tensor, dtypes, ops, protobuf

from modelhub_onnx import blocks, dequantize, trained
from modelhub_onnx.model import Model, Use

_INTEGERS = ("I8", "U8", "I16", "U16", "I32")
_DQ_NAME = re.compile(r"_DQ_Q\d+$")
_FACTORS = {
    "QLinearConv": (3, 8), "QLinearMatMul": (3, 0), "QGemm": (3, 6), "MatMulIntegerToFloat": (1, 0), "QAttention": (1, 0),
    "DynamicQuantizeMatMul": (1, 0),
}  # fmt: skip
"""Operators that multiply with integers -> which input is the weight, and which a bias in the product's scale (0: none is)."""
_PLACES = {"MatMulIntegerToFloat": (3, 5), "QAttention": (4, 7), "DynamicQuantizeMatMul": (2, 3)}
"""Where the weight's scale and zero point are not the two inputs behind it."""


def tensors(model: Model, checkpoint: Checkpoint) -> list[Tensor]:
    """All tensors of a model that has quantizing operators: parts of a weight as ``stored``, wholes as ``logical``."""
    every = model.all_tensors()
    by_name = model.small | {tensor.name: tensor for tensor in every}
    wholes: dict[str, Tensor] = {}
    parts: set[str] = set()
    for whole, used in _wholes(model, by_name, checkpoint):
        if whole.name not in wholes and (whole.name not in by_name or whole.name in used):
            wholes[whole.name] = whole
            parts.update(used)
    return [*(one._replace(view="stored") if one.name in parts else one for one in every), *wholes.values()]


def _wholes(model: Model, by_name: Mapping[str, Tensor], checkpoint: Checkpoint) -> Iterator[tuple[Tensor, list[str]]]:
    """(the tensor that is meant, the names of the tensors that it is made of)."""
    for use in model.uses:
        if use.operator == "DequantizeLinear" and len(use.inputs) > 1:
            plain = list(
                () if use.numbers.get("block_size") else _affine(by_name, use.inputs, use.numbers.get("axis", 1), checkpoint)
            )
            yield from plain or _linear(by_name, use)
        elif use.operator == "QuantizeLinear" and len(use.inputs) > 1 and not use.numbers.get("block_size"):
            yield from _trained(by_name, use)
        elif use.operator in blocks.OPERATORS:
            yield from blocks.wholes(by_name, use)
        elif use.operator in _FACTORS:
            yield from _factor(by_name, use, checkpoint)
    for name, tensor in by_name.items():
        base = name.removesuffix("_quantized")
        if base != name and f"{base}_scale" in by_name:
            yield from _affine(by_name, (name, f"{base}_scale", f"{base}_zero_point"), len(tensor.shape) - 1, checkpoint)


def _affine(
    by_name: Mapping[str, Tensor], names: Sequence[str], axis: int, checkpoint: Checkpoint
) -> Iterator[tuple[Tensor, list[str]]]:
    """(integers - zero points) x scales, for the whole tensor or along one axis."""
    weight, scale = by_name.get(names[0]), by_name.get(names[1])
    zero = by_name.get(names[2]) if len(names) > 2 and names[2] else None
    if weight is None or scale is None or weight.value is None or scale.value is None or not weight.shape:
        return
    if weight.dtype not in _INTEGERS or scale.dtype != "F32":
        return
    if zero is None and len(names) > 2 and names[2]:  # computed, or where it cannot be seen
        return
    if zero is not None and (zero.value is None or zero.dtype not in _INTEGERS or prod(zero.shape) != prod(scale.shape)):
        return
    axis += len(weight.shape) if axis < 0 else 0
    value = ops.typed(weight.value, weight.dtype, weight.shape)
    if prod(scale.shape) == 1:
        factor, offset = _number(scale, checkpoint), _number(zero, checkpoint) if zero else 0
        if factor is None or offset is None:
            return
        made = ops.dequant("affine", value, scale=factor, zero_point=offset)
    elif 0 <= axis < len(weight.shape) and scale.shape == (weight.shape[axis],):
        scales = ops.typed(scale.value, "F32", scale.shape)
        kind = zero.dtype if zero else "I8"
        blank = Inline(bytes(dtypes.get(kind).nbytes(scale.shape)))
        zeros = ops.typed(zero.value if zero and zero.value else blank, kind, scale.shape)
        made = ops.dequant("affine", value, scales, zeros, axis=axis)
    else:
        return
    used = [weight.name, scale.name, *([zero.name] if zero else [])]
    yield Tensor(weight.name.removesuffix("_quantized"), "F32", weight.shape, made, view="logical"), used


def _factor(by_name: Mapping[str, Tensor], use: Use, checkpoint: Checkpoint) -> Iterator[tuple[Tensor, list[str]]]:
    """The weight of a product or a convolution of integers, and its bias, whose scale is the weight's times the input's."""
    at, bias_at = _FACTORS[use.operator]
    places = _PLACES.get(use.operator, (at + 1, at + 2))
    name, scale_name, zero_name = (use.inputs[place] if len(use.inputs) > place else "" for place in (at, *places))
    weight, scale = by_name.get(name), by_name.get(scale_name)
    if weight is None or scale is None:
        return
    first = use.operator == "QLinearConv" or (use.operator == "QGemm" and use.numbers.get("transB", 0))
    yield from _affine(by_name, (name, scale_name, zero_name), 0 if first else len(weight.shape) - 1, checkpoint)
    bias = by_name.get(use.inputs[bias_at]) if 0 < bias_at < len(use.inputs) else None
    of_input = by_name.get(use.inputs[1])
    factor = _number(of_input, checkpoint) if of_input and of_input.dtype == "F32" else None
    if bias is None or bias.dtype != "I32" or bias.value is None or factor is None or len(bias.shape) != 1:
        return
    unscaled = {bias.name: bias, scale_name: scale}
    for whole, _ in _affine(unscaled, (bias.name, scale_name), 0, checkpoint):
        value = whole.value
        if isinstance(value, Node):
            yield whole._replace(value=ops.affine(value, scale=float(factor))), [bias.name]


def _linear(by_name: Mapping[str, Tensor], use: Use) -> Iterator[tuple[Tensor, list[str]]]:
    """What else a ``DequantizeLinear`` may be: of four bits, in blocks, with scales in half precision."""
    weight, scale = by_name.get(use.inputs[0]), by_name.get(use.inputs[1])
    named = use.inputs[2] if len(use.inputs) > 2 else ""
    zero = by_name.get(named) if named else None
    if weight is None or scale is None or (named and zero is None) or not weight.shape:
        return
    axis = use.numbers.get("axis", 1)
    axis += len(weight.shape) if axis < 0 else 0
    made = dequantize.whole(weight, scale, zero, axis, use.numbers.get("block_size", 0))
    if made:
        name = _DQ_NAME.sub("", weight.name.removesuffix("_quantized"))
        yield Tensor(name, "F32", weight.shape, made, view="logical"), [weight.name, scale.name, *([zero.name] if zero else [])]


def _trained(by_name: Mapping[str, Tensor], use: Use) -> Iterator[tuple[Tensor, list[str]]]:
    """A weight that is floats, and quantized on the way: it keeps its name."""
    weight, scale = by_name.get(use.inputs[0]), by_name.get(use.inputs[1])
    named = use.inputs[2] if len(use.inputs) > 2 else ""
    zero = by_name.get(named) if named else None
    if weight is None or scale is None or (named and zero is None):
        return
    axis = use.numbers.get("axis", 1)
    made = trained.whole(weight, scale, zero, axis + len(weight.shape) if axis < 0 else axis)
    if made:
        used = [weight.name, scale.name, *([zero.name] if zero else [])]
        yield Tensor(weight.name, "F32", weight.shape, made, view="logical"), used


def _number(tensor: Tensor, checkpoint: Checkpoint) -> float | int | None:
    """The one element of a scale or a zero point; None where it is not to be had as easily as that."""
    import numpy as np

    value = tensor.value
    if prod(tensor.shape) != 1 or value is None:
        return None
    if isinstance(value, Node):  # typed data: a varint
        inner = value.inputs[0] if value.op == "varints" else None
        if not isinstance(inner, Extent) or inner.nbytes > 10:
            return None
        data = checkpoint.open(inner.file).read(inner.offset, inner.nbytes)
        return protobuf.signed(protobuf.Wire(data, tensor.name).varints(0, len(data), 1)[0])
    data = value.data if isinstance(value, Inline) else checkpoint.open(value.file).read(value.offset, value.nbytes)
    item: float | int = np.frombuffer(data, dtypes.get(tensor.dtype).numpy)[0].item()
    return item


OPS = (*dequantize.OPS, *trained.OPS, *blocks.OPS)

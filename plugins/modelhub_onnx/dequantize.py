"""``DequantizeLinear`` in all that its newer versions allow: weights of four bits, scales in half precision, blocks.

(onnx ``docs/Operators.md``, DequantizeLinear-21 and on: with ``block_size`` the scale has the weight's shape but for one axis,
where one element stands for a block, the last of which may be shorter.) What is per tensor or per channel in whole bytes is the
core's own ``dequant.affine``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Inline, Node, Op, Tensor, bits, ops

BITS = {"U4": 4, "I4": 4, "U8": 8, "I8": 8, "U2": 2, "I2": 2}
SCALES = ("F32", "F16")

Specs = Sequence[tuple[str, tuple[int, ...]]]


def whole(weight: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, middle: int = 0) -> Node | None:
    """(weight - zero point) x scale; None where the parts do not fit each other. ``axis``: of the scale, where it has one side;
    ``block``: elements of it that share a scale, 0 for none; ``middle``: the zero point of all, where no tensor is."""
    if weight.dtype not in BITS or scale.dtype not in SCALES or weight.value is None or scale.value is None or not weight.shape:
        return None
    if zero is not None and (zero.dtype not in BITS or zero.value is None or prod(zero.shape) != prod(scale.shape)):
        return None
    sides = _sides(weight.shape, scale.shape, axis, block)
    if sides is None:
        return None
    parts = [ops.typed(scale.value, scale.dtype, scale.shape)]
    parts = [ops.reshape(parts[0], scale.dtype, sides)]
    if zero is not None and zero.value is not None:
        parts.append(_numbers(zero, sides))
    elif middle:
        parts.append(ops.reshape(Inline(bytes([middle])), "U8", (1,) * len(weight.shape)))
    try:
        return ops.dequant("onnx_linear", _numbers(weight, weight.shape), *parts, axis=axis, block=max(block, 1))
    except ValueError:
        return None


def _sides(weight: tuple[int, ...], scale: tuple[int, ...], axis: int, block: int) -> tuple[int, ...] | None:
    """The scale's shape with as many sides as the weight's."""
    if not 0 <= axis < len(weight):
        return None
    if block > 0:
        expected = (*weight[:axis], -(-weight[axis] // block), *weight[axis + 1 :])
        return scale if scale == expected else None
    if prod(scale) == 1:
        return (1,) * len(weight)
    return tuple(side if at == axis else 1 for at, side in enumerate(weight)) if scale == (weight[axis],) else None


def _numbers(tensor: Tensor, shape: tuple[int, ...]) -> Node:
    """Integers one by one: those of less than a byte follow each other from each byte's low bits on."""
    assert tensor.value is not None
    width = BITS[tensor.dtype]
    if width == 8:
        return ops.reshape(ops.typed(tensor.value, tensor.dtype, tensor.shape), tensor.dtype, shape)
    raw = ops.reshape(tensor.value, "U8", (-(-prod(shape) * width // 8),))
    return ops.node("onnx.unpack", raw, bits=width, signed=tensor.dtype.startswith("I"), shape=list(shape))


# --- the ops ------------------------------------------------------------------------------------------------------


def _infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    shape, axis, block = inputs[0][1], args["axis"], args["block"]
    if len(inputs) not in (2, 3) or inputs[1][0] not in SCALES or not 0 <= axis < len(shape) or block < 1:
        raise ValueError(f"dequant.onnx_linear takes integers, scales and perhaps zero points, not {list(inputs)}")
    if any(kind not in ("U8", "I8") for kind, _ in (inputs[0], *inputs[2:])):
        raise ValueError(f"dequant.onnx_linear: {[kind for kind, _ in inputs]}")
    for _, sides in inputs[1:]:
        if len(sides) != len(shape):
            raise ValueError(f"dequant.onnx_linear: {list(sides)} for {list(shape)}")
        for at, (side, have) in enumerate(zip(sides, shape, strict=True)):
            if side not in (1, have) and not (at == axis and side == -(-have // block)):
                raise ValueError(f"dequant.onnx_linear: {list(sides)} in blocks of {block} along {axis} for {list(shape)}")
    return "F32", shape


def _share(sides: Sequence[int], inputs_shape: Sequence[int], args: Mapping[str, Any], start: int, stop: int) -> tuple[int, int]:
    """Which rows of a scale rows ``start``..``stop`` of the weight take."""
    if sides[0] == inputs_shape[0]:
        return start, stop
    if sides[0] == 1:
        return 0, 1
    return start // args["block"], -(-stop // args["block"])


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """The difference in integers, the product in single precision (half-precision scales are widened first)."""
    import numpy as np

    shape, axis, block = sources[0].shape, args["axis"], args["block"]
    spread = []
    for source in sources[1:]:
        low, high = _share(source.shape, shape, args, start, stop)
        part = source.read(low, high)
        if axis == 0 and source.shape[0] not in (1, shape[0]):
            part = part[np.arange(start, stop) // block - low]
        elif axis > 0 and source.shape[axis] not in (1, shape[axis]):
            part = np.take(part, np.arange(shape[axis]) // block, axis)
        spread.append(part)
    values = sources[0].read(start, stop).astype(np.int32)
    if len(spread) > 1:
        values = values - spread[1].astype(np.int32)
    return np.ascontiguousarray(values.astype(np.float32) * spread[0].astype(np.float32))


def _needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    shape = inputs[0][1]
    return [(start, stop), *(_share(sides, shape, args, start, stop) for _, sides in inputs[1:])]


OPS = (
    bits.unpack_op("onnx.unpack"),
    Op(name="dequant.onnx_linear", rows=_rows, infer=_infer, needs=_needs),
)

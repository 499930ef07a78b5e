"""Weights that are floats still and are quantized on the way, as toolkits export quantization-aware training: what the model
computes with lies on the grid of its own scales, and that is what the tensor stands for.

``onnx.on_grid`` is a ``QuantizeLinear`` and the ``DequantizeLinear`` behind it: divided by the scale, rounded to nearest (ties to
even), the zero point added, held within the integers' range, and back (onnx ``docs/Operators.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Inline, Node, Op, Tensor, ops

RANGES = {"I8": (-128, 127), "U8": (0, 255), "I16": (-32768, 32767), "U16": (0, 65535)}
FLOATS = ("F32", "F16")
_Spec = tuple[str, tuple[int, ...]]


def whole(weight: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Node | None:
    """The floats that are meant, F32 of the weight's shape; None for what is not a matrix of floats with scales for the whole or
    along ``axis``."""
    kind = zero.dtype if zero else "U8"
    if weight.dtype not in FLOATS or scale.dtype not in FLOATS or kind not in RANGES or len(weight.shape) < 2:
        return None
    if weight.value is None or scale.value is None or (zero is not None and (zero.value is None or zero.shape != scale.shape)):
        return None
    count = prod(scale.shape)
    along = 0 <= axis < len(weight.shape) and scale.shape == (weight.shape[axis],)
    if count != 1 and not along:
        return None
    blank = Inline(bytes(count))
    parts = (
        ops.typed(weight.value, weight.dtype, weight.shape),
        ops.typed(scale.value, scale.dtype, (count,)),
        ops.typed(zero.value if zero and zero.value else blank, kind, (count,)),
    )
    return ops.node("onnx.on_grid", *parts, axis=axis if count != 1 else None)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    if len(inputs) != 3 or inputs[0][0] not in FLOATS or inputs[1][0] not in FLOATS or inputs[2][0] not in RANGES:
        raise ValueError(f"onnx.on_grid takes a weight, scales and zero points, not {[kind for kind, _ in inputs]}")
    shape, axis = inputs[0][1], args["axis"]
    if axis is not None and (type(axis) is not int or not 0 <= axis < len(shape)):
        raise ValueError(f"onnx.on_grid: there is no axis {axis!r:.20} of {list(shape)}")
    wanted = (1 if axis is None else shape[axis],)
    if not shape or inputs[1][1] != wanted or inputs[2][1] != wanted:
        raise ValueError(f"onnx.on_grid: {wanted[0]} scales and zero points were expected, not {[one for _, one in inputs[1:]]}")
    return "F32", shape


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    axis, rank = args["axis"], len(sources[0].shape)

    def along(source: Any) -> Any:
        values = source.read(0, source.shape[0]).astype(np.float32)
        values = values[start:stop] if axis == 0 else values
        return values.reshape([-1 if side == axis else 1 for side in range(rank)])

    low, high = RANGES[sources[2].dtype]
    scale, zero = along(sources[1]), along(sources[2])
    with np.errstate(all="ignore"):
        steps = np.clip(np.rint(sources[0].read(start, stop).astype(np.float32) / scale) + zero, low, high)
        values = (steps - zero) * scale
    return np.ascontiguousarray(values, np.float32)


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (0, inputs[1][1][0]), (0, inputs[2][1][0])]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    return int(20 * rows * prod(inputs[0][1][1:]) + 16 * prod(inputs[1][1]))


OPS = (Op(name="onnx.on_grid", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)

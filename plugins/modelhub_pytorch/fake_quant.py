"""The op of quantization-aware training: weights as the network sees them, rounded to the grid that it was trained on.

``fake_quantize`` takes a weight, its scale and its zero point (one, or one for each index along ``axis``), and where the layer is
fused with a batch norm that norm's weight and running variance: the grid is then that of the folded weight. What comes out are
floats, as of ``torch.fake_quantize_per_tensor_affine`` and ``torch.fake_quantize_per_channel_affine``, bit for bit. (The folding:
torch ``ao/nn/intrinsic/qat/modules/conv_fused.py``, ``_forward_approximate``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op

FLOATS = ("F32", "F16", "BF16")
EPS = 1e-5
"""What torch's batch norms add to the variance, unless told otherwise; a state dict does not say."""
_Spec = tuple[str, tuple[int, ...]]


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    kinds = [kind for kind, _ in inputs]
    if len(inputs) not in (3, 5) or kinds[0] not in FLOATS or kinds[1] != "F32" or kinds[2] not in ("I32", "I64", "F32"):
        raise ValueError(f"fake_quantize takes a weight, a scale and a zero point, not {list(inputs)[:5]}")
    shape = inputs[0][1]
    axis, low, high = args["axis"], args["low"], args["high"]
    if not all(type(number) is int and abs(number) < 1 << 32 for number in (low, high)) or low >= high:
        raise ValueError(f"a grid from {low!r:.20} to {high!r:.20} is none")
    wanted = 1
    if axis is not None:
        if type(axis) is not int or not 0 <= axis < len(shape):
            raise ValueError(f"there is no axis {axis!r:.20} of {list(shape)}")
        wanted = shape[axis]
    if any(prod(other) != wanted for _, other in inputs[1:3]):
        raise ValueError(f"{wanted} scales and zero points were expected, not {[list(other) for _, other in inputs[1:3]]}")
    if any(kind != "F32" or not shape or other != shape[:1] for kind, other in inputs[3:]):
        raise ValueError(f"a batch norm of {list(inputs[3][1])} does not fit {list(shape)}")
    return "F32", shape


def _all(source: Any) -> Any:
    found = source.state.get("all")
    if found is None:
        found = source.state["all"] = source.read(0, source.shape[0] if source.shape else 1).reshape(-1)
    return found


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    axis, rank = args["axis"], max(1, len(sources[0].shape))
    weight = sources[0].read(start, stop)
    weight = (weight.astype(np.uint32) << 16).view(np.float32) if sources[0].dtype == "BF16" else weight.astype(np.float32)

    def along(source: Any, place: int | None) -> Any:
        values = _all(source)
        values = values[start:stop] if place == 0 else values
        return values.reshape([-1 if side == place else 1 for side in range(rank)])

    scale, zero = along(sources[1], axis), along(sources[2], axis)
    with np.errstate(all="ignore"):
        factor = None
        if len(sources) == 5:
            factor = along(sources[3], 0) / np.sqrt(along(sources[4], 0) + np.float32(EPS))
        steps = (weight if factor is None else weight * factor) * (np.float32(1) / scale)
        inside = zero.dtype.kind == "f"  # torch rounds after it added a zero point that is no integer
        zero = zero.astype(np.float32)
        steps = np.rint(steps + zero) if inside else np.rint(steps) + zero
        steps = np.clip(steps, args["low"], args["high"]).astype(np.float64 if inside else np.float32)
        values = ((steps - zero) * scale).astype(np.float32)  # whole numbers are exact in single precision too
        if factor is not None:
            values = np.where(factor == 0, weight, values / factor)
    return np.ascontiguousarray(values, np.float32)


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), *((0, shape[0] if shape else 1) for _, shape in inputs[1:])]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    return int(20 * rows * prod(inputs[0][1][1:]) + sum(8 * prod(shape) for _, shape in inputs[1:]))


OPS = (Op(name="fake_quantize", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)

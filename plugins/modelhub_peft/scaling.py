"""Ops that merging needs besides sums and products: rows and columns multiplied with a vector (IA3), and rows brought to given
lengths (DoRA). Both compute in float32, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub import Node, Op, ops

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE = 1 << 20
"""Bytes that are computed in one go."""

Specs = Sequence[tuple[str, tuple[int, ...]]]


def scaled(value: Node, by: Node, axis: int) -> Node:
    """``value`` (F32) with element i along ``axis`` multiplied with ``by[i]`` (F32)."""
    return ops.node("peft.scaled", value, by, axis=axis)


def brought_to(value: Node, lengths: Node, measured: Node) -> Node:
    """Rows of ``value`` times ``lengths`` over the Euclidean norms of the rows of ``measured`` (all F32): DoRA's magnitudes
    (peft ``tuners/lora/variants.py``, ``DoraLinearVariant``)."""
    return ops.node("peft.magnitude", value, lengths, measured)


def _array(source: Any, start: int, stop: int) -> NDArray[Any]:
    import numpy as np

    rows: NDArray[Any] = np.ascontiguousarray(source.read(start, stop)).reshape(-1).view("<f4")
    return rows.reshape(stop - start, *source.shape[1:])


def _infer_scaled(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (by_dtype, by) = inputs
    axis = args["axis"]
    if {dtype, by_dtype} != {"F32"} or type(axis) is not int or not 0 <= axis < len(shape) or by != (shape[axis],):
        raise ValueError(f"scaled along axis {axis}: {by_dtype} {list(by)} does not fit {dtype} {list(shape)}")
    return dtype, shape


def _scaled_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    values, axis = _array(sources[0], start, stop), args["axis"]
    by = _array(sources[1], start, stop) if axis == 0 else _array(sources[1], 0, sources[1].shape[0])
    return values * by.reshape([-1 if side == axis else 1 for side in range(values.ndim)])


def _scaled_needs(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (start, stop) if args["axis"] == 0 else (0, inputs[1][1][0])]


def _infer_magnitude(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (_, lengths), (_, measured) = inputs
    if any(kind != "F32" for kind, _ in inputs) or len(shape) != 2 or measured != shape or lengths != (shape[0],):
        raise ValueError(f"magnitudes {list(lengths)} and {list(measured)} do not fit {list(shape)}")
    return dtype, shape


def _magnitude_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    values, lengths, measured = (_array(source, start, stop) for source in sources)
    norms = np.sqrt(np.einsum("ij,ij->i", measured, measured, dtype=np.float64)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction: it is not a number, as in peft
        return values * (lengths / norms)[:, None]


def _same(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] * len(inputs)


def _memory(inputs: Specs, args: Any, rows: int) -> int:
    return 4 * sum(rows * prod(shape[1:]) if len(shape) > 1 else shape[0] for _, shape in inputs)


OPS = (
    Op(name="peft.scaled", rows=_scaled_rows, infer=_infer_scaled, needs=_scaled_needs, memory=_memory, tile=TILE),
    Op(name="peft.magnitude", rows=_magnitude_rows, infer=_infer_magnitude, needs=_same, memory=_memory, tile=TILE),
)

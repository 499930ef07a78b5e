"""Ops that merging needs besides sums and products: rows and columns multiplied with a vector (IA3), rows brought to given
lengths (DoRA), products by elements (LoHa) and Kronecker's (LoKr), rows in the place of others (trained tokens). All compute in
float32, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def times(left: Node, right: Node) -> Node:
    """The product of two tensors of one shape (both F32), element by element."""
    return ops.node("peft.times", left, right)


def kronecker(left: Node, right: Node) -> Node:
    """Kronecker's product of the matrices (m, n) and (p, q), both F32: (m p, n q). ``left`` is held in memory: put the smaller
    one there."""
    return ops.node("peft.kronecker", left, right)


def with_rows(value: Node, rows: Node, places: Sequence[int]) -> Node:
    """``value`` (F32) with row ``places[i]`` replaced by row i of ``rows`` (F32), which are held in memory. The places are
    different ones."""
    return ops.node("peft.rows", value, rows, places=list(places))


def array(source: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows of an input as float32."""
    import numpy as np

    rows: NDArray[Any] = np.ascontiguousarray(source.read(start, stop)).reshape(-1).view("<f4")
    return rows.reshape(stop - start, *source.shape[1:])


def whole(source: Any) -> NDArray[Any]:
    """An input as float32, read once and kept as long as the op runs."""
    if "whole" not in source.state:
        source.state["whole"] = array(source, 0, source.shape[0])
    kept: NDArray[Any] = source.state["whole"]
    return kept


def _infer_scaled(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (by_dtype, by) = inputs
    axis = args["axis"]
    if {dtype, by_dtype} != {"F32"} or type(axis) is not int or not 0 <= axis < len(shape) or by != (shape[axis],):
        raise ValueError(f"scaled along axis {axis}: {by_dtype} {list(by)} does not fit {dtype} {list(shape)}")
    return dtype, shape


def _scaled_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    values, axis = array(sources[0], start, stop), args["axis"]
    by = array(sources[1], start, stop) if axis == 0 else array(sources[1], 0, sources[1].shape[0])
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

    values, lengths, measured = (array(source, start, stop) for source in sources)
    norms = np.sqrt(np.einsum("ij,ij->i", measured, measured, dtype=np.float64)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction: it is not a number, as in peft
        return values * (lengths / norms)[:, None]


def _infer_times(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    if len(inputs) != 2 or inputs[0] != inputs[1] or inputs[0][0] != "F32":
        raise ValueError(f"a product by elements of {[(dtype, list(shape)) for dtype, shape in inputs]}")
    return inputs[0]


def _times_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    return array(sources[0], start, stop) * array(sources[1], start, stop)


def _infer_kronecker(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    if len(inputs) != 2 or any(dtype != "F32" or len(shape) != 2 for dtype, shape in inputs):
        raise ValueError(f"a Kronecker product of {[(dtype, list(shape)) for dtype, shape in inputs]}")
    (_, left), (_, right) = inputs
    return "F32", (left[0] * right[0], left[1] * right[1])


def _kronecker_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    right, high = sources[1], sources[1].shape[0]
    left = whole(sources[0])
    out = np.empty((stop - start, left.shape[1], right.shape[1]), np.float32)
    at = start
    while at < stop:
        block, first = divmod(at, high)
        last = min(high, first + stop - at)
        rows = array(right, first, last)
        np.multiply(left[block][None, :, None], rows[:, None, :], out=out[at - start : at - start + last - first])
        at += last - first
    return out.reshape(stop - start, -1)


def _kronecker_needs(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    high = inputs[1][1][0]
    if start >= stop:
        return [(0, 0), (0, 0)]
    one = start // high == (stop - 1) // high
    return [(0, inputs[0][1][0]), (start % high, (stop - 1) % high + 1) if one else (0, high)]


def _infer_rows(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (rows_dtype, rows) = inputs
    places = args["places"]
    if {dtype, rows_dtype} != {"F32"} or not shape or rows != (len(places), *shape[1:]):
        raise ValueError(f"{len(places)} rows {list(rows)} do not fit {list(shape)}")
    if any(type(place) is not int or not 0 <= place < shape[0] for place in places) or len(set(places)) != len(places):
        raise ValueError(f"rows that are to be replaced are not different ones of {shape[0]}")
    return dtype, shape


def _rows_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    rows = whole(sources[1])
    places = np.asarray(args["places"], np.int64)
    values = array(sources[0], start, stop)
    inside = (places >= start) & (places < stop)
    if inside.any():
        values = values.copy()
        values[places[inside] - start] = rows[inside]
    return values


def _rows_needs(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (0, inputs[1][1][0])]


def held(which: int) -> Callable[[Specs, Any, int], int]:
    """Peak bytes of an op that holds one of its inputs whole."""

    def memory(inputs: Specs, args: Any, rows: int) -> int:
        return 4 * prod(inputs[which][1]) + 4 * rows * sum(prod(shape[1:]) for _, shape in inputs)

    return memory


def _same(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] * len(inputs)


def _memory(inputs: Specs, args: Any, rows: int) -> int:
    return 4 * sum(rows * prod(shape[1:]) if len(shape) > 1 else shape[0] for _, shape in inputs)


OPS = (
    Op(name="peft.scaled", rows=_scaled_rows, infer=_infer_scaled, needs=_scaled_needs, memory=_memory, tile=TILE),
    Op(name="peft.times", rows=_times_rows, infer=_infer_times, needs=_same, memory=_memory, tile=TILE),
    Op(
        name="peft.kronecker",
        rows=_kronecker_rows,
        infer=_infer_kronecker,
        needs=_kronecker_needs,
        memory=held(0),
        tile=TILE,
    ),
    Op(name="peft.rows", rows=_rows_rows, infer=_infer_rows, needs=_rows_needs, memory=held(1), tile=TILE),
    Op(name="peft.magnitude", rows=_magnitude_rows, infer=_infer_magnitude, needs=_same, memory=_memory, tile=TILE),
)

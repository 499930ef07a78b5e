"""Adapters that turn a matrix and add nothing to it: OFT and HRA. What goes into a module is turned, and so is every row of its
matrix.

    OFT   W R', with R a rotation in each of several blocks of columns      peft ``tuners/oft/layer.py``
    HRA   W (I - 2 u1 u1') (I - 2 u2 u2') ..., reflections                  ``tuners/hra/layer.py``

Computed in float32, row by row; the rotations, which are small, are held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelhub import Node, Op, ops

from modelhub_peft.config import AdapterConfig
from modelhub_peft.scaling import TILE, Specs, array, held, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TERMS = 100


def oft(value: Node, weight: Node, config: AdapterConfig) -> Node:
    """``value`` (rows, columns) turned by ``weight`` (blocks, size (size - 1) / 2): what is above the diagonal of skew-symmetric
    matrices, whose Cayley transforms, or the first terms of their series, the rotations are."""
    if len(weight.shape) != 2 or not weight.shape[0]:
        raise ValueError(f"its rotations have the shape {list(weight.shape)}: an older version of peft kept them otherwise")
    blocks, elements = weight.shape
    size = round((1 + (1 + 8 * elements) ** 0.5) / 2)
    raw, columns = config.raw, value.shape[1]
    shared = raw.get("block_share") is True
    if (
        size * (size - 1) // 2 != elements
        or columns % size
        or (not shared and blocks * size != columns)
        or (shared and blocks != 1)
    ):
        raise ValueError(f"{blocks} rotations of {size} columns do not fit {columns} columns")
    terms = raw.get("num_cayley_neumann_terms", 5) if raw.get("use_cayley_neumann") is True else 0
    if type(terms) is not int or not 0 <= terms <= MAX_TERMS:
        raise ValueError(f"num_cayley_neumann_terms is {terms!r:.40}, which is no such number")
    eps = raw.get("eps", 6e-5) if raw.get("coft") is True else 0.0
    if type(eps) not in (int, float) or not 0 <= eps < 1e6:
        raise ValueError(f"eps is {eps!r:.40}, which is no such number")
    turns = ops.node("peft.cayley", ops.affine(weight), size=size, terms=terms, eps=float(eps) / blocks**0.5)
    return ops.node("peft.turned", ops.affine(value), turns)


def hra(value: Node, vectors: Node, config: AdapterConfig) -> Node:
    """``value`` (rows, columns) reflected by the columns of ``vectors`` (columns, rank), each of them brought to the length 1;
    with ``apply_GS``, made orthogonal first."""
    return ops.node("peft.reflected", ops.affine(value), ops.affine(vectors), orthogonal=config.raw.get("apply_GS") is True)


def _infer_cayley(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), size = inputs[0], args["size"]
    if dtype != "F32" or len(shape) != 2 or type(size) is not int or shape[1] != size * (size - 1) // 2:
        raise ValueError(f"rotations of {size} columns from {dtype} {list(shape)}")
    return "F32", (shape[0], size, size)


def _cayley_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    given, size, terms, eps = array(sources[0], start, stop), args["size"], args["terms"], args["eps"]
    skew = np.zeros((stop - start, size, size), np.float32)
    above = np.triu_indices(size, 1)
    skew[:, above[0], above[1]] = given
    skew -= skew.transpose(0, 2, 1)
    if eps:  # constrained OFT: not farther than this from the identity
        norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
        skew = np.where(norms <= eps, skew, eps * (skew / np.maximum(norms, np.float32(1e-30)))).astype(np.float32)
    one = np.broadcast_to(np.eye(size, dtype=np.float32), skew.shape)
    if not terms:  # solved from the right
        both = np.linalg.solve((one + skew).transpose(0, 2, 1), (one - skew).transpose(0, 2, 1))
        return np.ascontiguousarray(both.transpose(0, 2, 1), np.float32)
    turns, power = one.copy(), skew
    last = max(terms - 1, 3) if terms > 2 else terms - 1  # peft's loop never ends before the third power
    for exponent in range(1, last + 1):
        power = power if exponent == 1 else power @ skew
        turns += power if exponent == last > 1 else 2 * power
    return turns


def _infer_turned(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (turn_dtype, turns) = inputs
    if {dtype, turn_dtype} != {"F32"} or len(shape) != 2 or len(turns) != 3 or turns[1] != turns[2] or not turns[1]:
        raise ValueError(f"{dtype} {list(shape)} turned by {turn_dtype} {list(turns)}")
    if shape[1] % turns[1] or turns[0] not in (1, shape[1] // turns[1]):
        raise ValueError(f"{turns[0]} rotations of {turns[1]} columns do not fit {shape[1]}")
    return dtype, shape


def _turned_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    turns: NDArray[Any] = whole(sources[1])
    values = array(sources[0], start, stop)
    blocks = values.reshape(len(values), -1, turns.shape[1]).transpose(1, 0, 2)
    return np.ascontiguousarray((blocks @ turns.transpose(0, 2, 1)).transpose(1, 0, 2)).reshape(values.shape)


def _infer_reflected(inputs: Specs, args: Any) -> tuple[str, tuple[int, ...]]:
    (dtype, shape), (vector_dtype, vectors) = inputs
    if {dtype, vector_dtype} != {"F32"} or len(shape) != 2 or len(vectors) != 2 or vectors[0] != shape[1] or not vectors[1]:
        raise ValueError(f"{dtype} {list(shape)} reflected by {vector_dtype} {list(vectors)}")
    return dtype, shape


def _reflected_rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    import numpy as np

    units = sources[1].state.get("units")
    if units is None:
        units = whole(sources[1]).T.copy()
        for number, unit in enumerate(units):
            for before in units[:number] if args["orthogonal"] else ():
                unit -= (before @ unit) * before
            with np.errstate(divide="ignore", invalid="ignore"):  # what has no direction is not a number, as in peft
                unit /= np.linalg.norm(unit)
        sources[1].state["units"] = units
    values = array(sources[0], start, stop)
    for unit in units:
        values = values - 2 * np.outer(values @ unit, unit)
    return values


def _rest_whole(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (0, inputs[1][1][0])]


def _same(inputs: Specs, args: Any, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)]


def _cayley_memory(inputs: Specs, args: Any, rows: int) -> int:
    return 4 * 8 * rows * int(args["size"]) ** 2


OPS = (
    Op(name="peft.cayley", rows=_cayley_rows, infer=_infer_cayley, needs=_same, memory=_cayley_memory, tile=TILE),
    Op(name="peft.turned", rows=_turned_rows, infer=_infer_turned, needs=_rest_whole, memory=held(1), tile=TILE),
    Op(name="peft.reflected", rows=_reflected_rows, infer=_infer_reflected, needs=_rest_whole, memory=held(1), tile=TILE),
)

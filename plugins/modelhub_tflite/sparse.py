"""Sparse constants: the values that are not zero, and where they belong.

A tensor is visited level by level: in an order of its sides, some of which are cut into blocks, so that a block has sides of its
own. A level is dense, or lists for each of its parents which of its children are there (``segments`` and ``indices``, as in
compressed rows). Facts: ``SparsityParameters`` in LiteRT's ``schema.fbs``, and its ``FormatConverter``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from modelhub import Extent, File, InvalidFile, Node, Op, dtypes, ops
from modelhub.flatbuffers import Table

from modelhub_tflite.schema import Dimension, Sparsity

MAX_DENSE = 1 << 30
"""Bytes of a tensor that is put together in memory."""
MAX_LEVELS = 64
_DENSE, _COMPRESSED = 0, 1
_KINDS = {1: ("I32", 4), 2: ("U16", 2), 3: ("U8", 1)}
"""``SparseIndexVector``: what the numbers of a compressed level are stored as."""


class Level(NamedTuple):
    """``size``: children of each parent; ``stride``: how far apart they are, in elements of the whole. ``segments`` and
    ``indices``: dtypes, "" for a dense level."""

    size: int
    stride: int
    segments: str = ""
    indices: str = ""


def densified(
    sparsity: Table, values: Extent, dtype: str, shape: tuple[int, ...], file: File, who: str
) -> tuple[Node | None, str]:
    """(the whole tensor, why it cannot be had). `InvalidFile` where the levels do not fit the shape."""
    order, blocks = (sparsity.numbers(field, "i", most=MAX_LEVELS) for field in (Sparsity.TRAVERSAL_ORDER, Sparsity.BLOCK_MAP))
    if not order or not shape:
        return None, "sparse tensor that does not say how"
    if dtypes.get(dtype).block > 1:
        return None, f"sparse tensor of {dtype}, which is packed"
    if dtypes.get(dtype).nbytes(shape) > MAX_DENSE:
        return None, f"sparse tensor of more than {MAX_DENSE >> 30} GiB when it is whole"
    rank = len(shape)
    found = list(sparsity.tables(Sparsity.DIMENSIONS)) if sparsity.count(Sparsity.DIMENSIONS) == len(order) else []
    if len(found) != rank + len(blocks) or sorted(order) != list(range(len(found))) or any(not 0 <= at < rank for at in blocks):
        raise InvalidFile(f"{who}: {len(found)} sparse levels in the order {list(order)}, with blocks of sides {list(blocks)}")
    # The sides of a block are dense, and say how large it is; a side is cut once at the most.
    inner = {at: int(found[order.index(rank + number)].number(Dimension.SIZE, "i")) for number, at in enumerate(blocks)}
    if len(inner) != len(blocks) or any(size < 1 or shape[at] % size for at, size in inner.items()):
        raise InvalidFile(f"{who}: blocks of {inner} do not fit {list(shape)}")
    levels: list[Level] = []
    inputs: list[Extent] = [values]
    for at, dimension in zip(order, found, strict=True):
        side = at if at < rank else blocks[at - rank]
        step = prod(shape[side + 1 :])
        size, stride = (shape[side] // inner.get(side, 1), step * inner.get(side, 1)) if at < rank else (inner[side], step)
        kind = int(dimension.number(Dimension.FORMAT, "b"))
        if kind == _DENSE:
            if int(dimension.number(Dimension.SIZE, "i")) != size:
                raise InvalidFile(f"{who}: a level of {dimension.number(Dimension.SIZE, 'i')}, {size} expected")
            levels.append(Level(size, stride))
            continue
        if kind != _COMPRESSED:
            return None, f"sparse tensor with levels of kind {kind}"
        lists = [_numbers(dimension, field, file, who) for field in (Dimension.SEGMENTS_TYPE, Dimension.INDICES_TYPE)]
        levels.append(Level(size, stride, *(dtype for dtype, _ in lists)))
        inputs += [extent for _, extent in lists]
    return ops.node("tflite.densify", *inputs, dtype=dtype, shape=list(shape), levels=[list(level) for level in levels]), ""


def _numbers(dimension: Table, field: int, file: File, who: str) -> tuple[str, Extent]:
    """(dtype, place) of a list of numbers, which is a union."""
    kind, table = int(dimension.number(field, "B")), dimension.table(field + 1)
    if kind not in _KINDS or table is None:
        raise InvalidFile(f"{who}: a compressed level without its lists")
    dtype, size = _KINDS[kind]
    start, count = table.place(0, size) or (0, 0)
    return dtype, Extent(file.path, start, count * size)


# --- the op -------------------------------------------------------------------------------------------------------


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    shape = tuple(args["shape"])
    levels = [Level(*level) for level in args["levels"]]
    if not all(type(side) is int and side >= 0 for side in shape) or prod(level.size for level in levels) != prod(shape):
        raise ValueError(f"tflite.densify: levels of {[level.size for level in levels]} in {list(shape)}")
    if len(inputs) != 1 + 2 * sum(bool(level.segments) for level in levels) or any(kind != "U8" for kind, _ in inputs):
        raise ValueError(f"tflite.densify: {len(inputs)} inputs for {len(levels)} levels")
    return args["dtype"], shape


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    state = sources[0].state
    if "dense" not in state:
        state["dense"] = _dense(sources, args)
    return state["dense"][start:stop]


def _dense(sources: Sequence[Any], args: Mapping[str, Any]) -> Any:
    import numpy as np

    unit = np.dtype(dtypes.get(args["dtype"]).numpy)
    whole = np.zeros(prod(args["shape"]), unit)
    values = sources[0].read(0, sources[0].shape[0]).view(unit)
    lists = iter(sources[1:])
    places = np.zeros(1, np.int64)
    for size, stride, segments_type, indices_type in args["levels"]:
        if not segments_type:
            if len(places) * size > len(whole):
                raise InvalidFile("a sparse tensor has more places than elements")
            places = (places[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
            continue
        segments, indices = (_read(next(lists), kind) for kind in (segments_type, indices_type))
        counts = np.diff(segments)
        if len(segments) != len(places) + 1 or segments[0] or segments[-1] != len(indices) or (counts < 0).any():
            raise InvalidFile(f"a sparse level has {len(segments)} segments for {len(places)} parents, or they are not in order")
        if len(indices) and not 0 <= indices.min() <= indices.max() < size:
            raise InvalidFile(f"a sparse level of {size} has an index of {indices.min()} or {indices.max()}")
        places = np.repeat(places, counts) + indices * stride
        if len(places) > len(whole):
            raise InvalidFile("a sparse tensor has more places than elements")
    if len(places) != len(values):
        raise InvalidFile(f"a sparse tensor has {len(values)} values for {len(places)} places")
    whole[places] = values
    return whole.reshape(args["shape"])


def _read(source: Any, kind: str) -> Any:
    import numpy as np

    return source.read(0, source.shape[0]).view(dtypes.get(kind).numpy).astype(np.int64)


def _memory(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any], rows: int) -> int:
    return dtypes.get(args["dtype"]).nbytes(args["shape"]) + 9 * inputs[0][1][0]


OPS = (Op(name="tflite.densify", rows=_rows, infer=_infer, memory=_memory),)

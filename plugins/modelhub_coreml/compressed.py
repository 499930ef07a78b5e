"""What the compressed constants of ML programs stand for: operators whose names begin with ``constexpr``, as expressions.

Numbers minus offsets times scales (per tensor, channel or block), entries of tables, and what is not zero beside a mask of bits;
also one on top of the other. The result has the type that the program gives it, and the bits that coremltools decompresses it to.
(coremltools ``mil/ops/defs/iOS16/constexpr_ops.py`` and ``iOS18/compression.py`` define the operators and their arithmetic.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from modelhub import Extent, InvalidFile, Node, Op, dtypes, ops

PREFIX = "constexpr_"
FLOATS = ("F16", "F32")
_PLAIN = ("U8", "I8", "U16", "I16", "I32", "U32", *FLOATS)


class Sparse(NamedTuple):
    """Values of which those count that a mask (U8, 0 or 1, of the whole's shape) has a 1 for."""

    mask: Node
    dense: Node


class Input(NamedTuple):
    """An argument of an operator: its elements one by one, or the bytes that it has; what else it may be is None."""

    elements: Node | None = None
    data: Extent | None = None
    sparse: Sparse | None = None


Inputs = Mapping[str, Input]


def whole(operator: str, inputs: Inputs, shape: tuple[int, ...], axis: int) -> Node | Sparse | None:
    """What an operator makes, ``shape`` being that of its output; None where it is not understood. ``axis``: of the scales, or
    along which a table's vectors lie."""
    make = _MAKE.get(operator)
    try:
        return make(inputs, shape, axis) if make else None
    except ValueError:  # what does not fit stays as it is stored
        return None


def _blocks(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Node | None:
    return _scaled(_elements(inputs, "data"), inputs)


def _scaled(data: Node | None, inputs: Inputs) -> Node | None:
    scale, offset = _elements(inputs, "scale"), _elements(inputs, "offset")
    if data is None or scale is None or (offset is None and "offset" in inputs):
        return None
    return ops.dequant("coreml", data, scale, *([offset] if offset else []), wide=False)


def _affine(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Node | None:
    data, scale, zero = (_elements(inputs, name) for name in ("quantized_data", "scale", "zero_point"))
    if data is None or scale is None or zero is None or not data.shape:
        return None
    parts = []
    for part in (scale, zero):
        sides = [1] * len(data.shape)
        if prod(part.shape) > 1:
            sides[axis] = part.shape[0]
        parts.append(ops.reshape(part, part.dtype, sides))
    return ops.dequant("coreml", data, *parts, wide=True)


def _table(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Node | None:
    lut, indices, data = _elements(inputs, "lut"), _elements(inputs, "indices"), inputs.get("indices", Input()).data
    if lut is None:
        return None
    if len(lut.shape) == 1:  # iOS 16: one table, and numbers of as many bits as it takes
        bits = (lut.shape[0] - 1).bit_length()
        if data is None or lut.shape[0] < 2:
            return None
        size = -(-prod(shape) * bits // 8)
        indices = unpacked(data._replace(nbytes=min(data.nbytes, size)), bits, shape)
        lut = ops.reshape(lut, lut.dtype, (*([1] * len(shape)), lut.shape[0], 1))
    return _looked_up(indices, lut, axis) if indices else None


def _looked_up(indices: Node, lut: Node, axis: int) -> Node:
    rank = len(indices.shape)
    return ops.node("coreml.lookup", indices, lut, axis=axis + rank if axis < 0 else axis)


def _sparse(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Node | None:
    if sparse := inputs.get("nonzero_data", Input()).sparse:
        return ops.node("coreml.where", sparse.mask, sparse.dense)
    mask, data = _elements(inputs, "mask"), inputs.get("mask", Input()).data
    if "shape" in inputs:  # iOS 16: the mask's bits are packed bytes
        mask = unpacked(data._replace(nbytes=min(data.nbytes, -(-prod(shape) // 8))), 1, shape) if data else None
    return _spread(mask, _elements(inputs, "nonzero_data"))


def _spread(mask: Node | None, values: Node | None) -> Node | None:
    return ops.node("coreml.sparse", mask, values) if mask and values else None


def _sparse_table(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Sparse | None:
    mask, lut = _elements(inputs, "indices_mask"), _elements(inputs, "lut")
    indices = _spread(mask, _elements(inputs, "indices_nonzero_data"))
    if mask is None or indices is None or lut is None or not lut.shape:
        return None
    dense = _looked_up(indices, lut, axis)
    if lut.shape[-1] > 1:  # a one of the mask stands for a whole vector
        mask = ops.node("coreml.repeat", mask, axis=dense.args["axis"], times=lut.shape[-1])
    return Sparse(mask, dense)


def _sparse_blocks(inputs: Inputs, shape: tuple[int, ...], axis: int) -> Sparse | None:
    mask = _elements(inputs, "data_mask")
    dense = _scaled(_spread(mask, _elements(inputs, "nonzero_data")), inputs)
    return Sparse(mask, dense) if mask and dense else None


_MAKE = {
    "constexpr_blockwise_shift_scale": _blocks,
    "constexpr_affine_dequantize": _affine,
    "constexpr_lut_to_dense": _table,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_lut_to_sparse": _sparse_table,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blocks,
}


def _elements(inputs: Inputs, name: str) -> Node | None:
    return inputs[name].elements if name in inputs else None


def unpacked(data: Extent, bits: int, shape: Sequence[int], *, signed: bool = False, order: str = "little") -> Node:
    """Integers of less than a byte, one behind the other from each byte's low bits on (``order`` "big": from its high bits), as
    one byte each."""
    return ops.node("coreml.unpack", data, bits=bits, signed=signed, order=order, shape=list(shape))


# --- the ops ------------------------------------------------------------------------------------------------------

Specs = Sequence[tuple[str, tuple[int, ...]]]


def _unpack_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    bits, shape = args["bits"], tuple(args["shape"])
    if (
        bits not in range(1, 9)
        or args["order"] not in ("little", "big")
        or not all(type(side) is int and side >= 0 for side in shape)
    ):
        raise ValueError(f"coreml.unpack: {bits} bits, {list(shape)}")
    if len(inputs) != 1 or inputs[0] != ("U8", (-(-prod(shape) * bits // 8),)):
        raise ValueError(f"coreml.unpack: {list(shape)} of {bits} bits do not fit {list(inputs)}")
    return "I8" if args["signed"] else "U8", shape


def _unpack_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    bits, shape = args["bits"], tuple(args["shape"])
    row = prod(shape[1:])
    first, last = start * row * bits, stop * row * bits
    stream = np.unpackbits(sources[0].read(first // 8, -(-last // 8)), bitorder=args["order"])[
        first % 8 : first % 8 + last - first
    ]
    weights = (1 << np.arange(bits)[:: 1 if args["order"] == "little" else -1]).astype(np.uint8)
    values = (stream.reshape(-1, bits) * weights).sum(axis=1, dtype=np.uint8)
    if args["signed"]:
        values = (values << (8 - bits)).view(np.int8) >> (8 - bits)
    return values.reshape((stop - start, *shape[1:]) if shape else ())


def _unpack_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    row = prod(args["shape"][1:]) * args["bits"]
    return [(start * row // 8, -(-stop * row // 8))]


def _divides(small: Sequence[int], large: Sequence[int]) -> bool:
    return len(small) == len(large) and all(part > 0 and side % part == 0 for part, side in zip(small, large, strict=True))


def _repeated(array: Any, shape: Sequence[int], whole: Sequence[int], start: int, stop: int, first: int) -> Any:
    """Rows ``start``..``stop`` of an array of ``shape`` whose elements stand for blocks of a ``whole``; ``array`` begins at its
    row ``first``."""
    import numpy as np

    taken = array[np.arange(start, stop) // (whole[0] // shape[0]) - first]
    for axis in range(1, len(whole)):
        if whole[axis] != shape[axis]:
            taken = np.repeat(taken, whole[axis] // shape[axis], axis)
    return taken


def _share(shape: Sequence[int], whole: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Which rows of the smaller array rows ``start``..``stop`` of the whole take."""
    block = max(1, whole[0] // max(1, shape[0]))
    return start // block, -(-stop // block)


def _dequant_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    if len(inputs) not in (2, 3) or inputs[1][0] not in FLOATS or not inputs[0][1]:
        raise ValueError(f"dequant.coreml takes numbers, F16 or F32 scales, and perhaps offsets, not {list(inputs)}")
    if any(not _divides(shape, inputs[0][1]) for _, shape in inputs[1:]):
        raise ValueError(f"dequant.coreml: {[list(shape) for _, shape in inputs[1:]]} do not divide {list(inputs[0][1])}")
    if any(kind not in _PLAIN for kind, _ in inputs):
        raise ValueError(f"dequant.coreml: {[kind for kind, _ in inputs]}")
    return inputs[1][0], inputs[0][1]


def _dequant_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """In the scales' own precision; those of iOS 16 (``wide``) in single, rounded once."""
    import numpy as np

    shape = sources[0].shape
    want = np.dtype(dtypes.get(sources[1].dtype).numpy)
    kind = np.dtype(np.float32) if args["wide"] else want
    parts = []
    for source in sources[1:]:
        low, high = _share(source.shape, shape, start, stop)
        parts.append(_repeated(source.read(low, high).astype(kind), source.shape, shape, start, stop, low))
    values = sources[0].read(start, stop).astype(kind)
    with np.errstate(all="ignore"):
        values = values - parts[1] if len(parts) > 1 else values
        return np.ascontiguousarray((parts[0] * values).astype(want))


def _dequant_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [_share(shape, inputs[0][1], start, stop) for _, shape in inputs]


def _linear_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    if len(inputs) not in (2, 3) or inputs[0][0] not in ("U8", "I8") or any(kind != "F32" for kind, _ in inputs[1:]):
        raise ValueError(f"dequant.coreml_linear takes small integers, F32 scales, and perhaps F32 biases, not {list(inputs)}")
    if not inputs[0][1] or any(not _divides(shape, inputs[0][1]) for _, shape in inputs[1:]):
        raise ValueError(f"dequant.coreml_linear: {[list(shape) for _, shape in inputs[1:]]} do not divide {list(inputs[0][1])}")
    return "F32", inputs[0][1]


def _linear_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """Number x scale + bias in double precision, rounded once."""
    import numpy as np

    shape = sources[0].shape
    parts = []
    for source in sources[1:]:
        low, high = _share(source.shape, shape, start, stop)
        parts.append(_repeated(source.read(low, high).astype(np.float64), source.shape, shape, start, stop, low))
    values = sources[0].read(start, stop).astype(np.float64) * parts[0]
    return np.ascontiguousarray((values + parts[1] if len(parts) > 1 else values).astype(np.float32))


def _lookup_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Tables are of shape (groups of each axis..., entries, length of an entry): an entry lies along ``axis`` of the whole."""
    (kind, shape), (table, sides) = inputs
    if kind != "U8" or not shape or len(sides) != len(shape) + 2 or not 0 < sides[-2] <= 256 or sides[-1] < 1:
        raise ValueError(f"coreml.lookup takes U8 and tables, not {list(inputs)}")
    if not _divides(sides[:-2], shape) or dtypes.get(table).block > 1:
        raise ValueError(f"coreml.lookup: tables of {list(sides)} do not fit {list(shape)}")
    return table, _lengthened(shape, args.get("axis", 0), sides[-1])


def _lengthened(shape: tuple[int, ...], axis: int, times: int) -> tuple[int, ...]:
    if not 0 <= axis < len(shape):
        raise ValueError(f"no axis {axis} of {list(shape)}")
    return (*shape[:axis], shape[axis] * times, *shape[axis + 1 :])


def _shorter(args: Mapping[str, Any], times: int, start: int, stop: int) -> tuple[int, int]:
    """Which rows of what is lengthened along an axis rows ``start``..``stop`` of the whole take."""
    return (start // times, -(-stop // times)) if args.get("axis", 0) == 0 else (start, stop)


def _lookup_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    shape, sides, axis = sources[0].shape, sources[1].shape, args.get("axis", 0)
    first, last = _shorter(args, sides[-1], start, stop)
    places = sources[0].read(first, last)
    if places.size and places.max() >= sides[-2]:
        raise InvalidFile(f"a weight is entry {places.max()} of a table of {sides[-2]}")
    low, high = _share(sides, shape, first, last)
    tables = sources[1].read(low, high).reshape(-1, *sides[-2:])  # by group
    numbers = np.arange(len(tables)).reshape(high - low, *sides[1:-2])
    found = tables[_repeated(numbers, sides[:-2], shape, first, last, low), places]
    whole = np.moveaxis(found, -1, axis + 1).reshape(_lengthened(places.shape, axis, sides[-1]))
    return np.ascontiguousarray(whole[start - first * sides[-1] :][: stop - start] if axis == 0 else whole)


def _lookup_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    (_, shape), (_, sides) = inputs
    rows = _shorter(args, sides[-1], start, stop)
    return [rows, _share(sides, shape, *rows)]


def _repeat_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    ((kind, shape),) = inputs
    if args["times"] < 1 or dtypes.get(kind).block > 1:
        raise ValueError(f"coreml.repeat: {args['times']} times {kind}")
    return kind, _lengthened(shape, args["axis"], args["times"])


def _repeat_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """Every element ``times`` times along ``axis``, one behind the other."""
    import numpy as np

    times = args["times"]
    first, last = _shorter(args, times, start, stop)
    whole = np.repeat(sources[0].read(first, last), times, args["axis"])
    return whole[start - first * times :][: stop - start] if args["axis"] == 0 else whole


def _repeat_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [_shorter(args, args["times"], start, stop)]


def _sparse_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    (kind, shape), (values, sides) = inputs
    if kind != "U8" or not shape or len(sides) != 1 or dtypes.get(values).block > 1:
        raise ValueError(f"coreml.sparse takes a mask and a row of values, not {list(inputs)}")
    return values, shape


def _sparse_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """The mask says where the values go; how many come before is counted once, row by row."""
    import numpy as np

    mask, values = sources
    row, first = sources[0].state.get("counted", (0, 0))
    if start < row:
        row, first = 0, 0
    while row < start:
        end = min(start, row + max(1, (8 << 20) // max(1, prod(mask.shape[1:]))))
        first += int(np.count_nonzero(mask.read(row, end)))
        row = end
    here = mask.read(start, stop) != 0
    count = int(np.count_nonzero(here))
    if first + count > values.shape[0]:
        raise InvalidFile(f"the mask has more than {values.shape[0]} ones, and there are no more values")
    mask.state["counted"] = stop, first + count
    taken = values.read(first, first + count)
    made = np.zeros(here.shape, taken.dtype)
    made[here] = taken
    return made


def _where_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    (kind, mask), (values, shape) = inputs
    if kind != "U8" or mask != shape or not shape:
        raise ValueError(f"coreml.where takes a mask and values, not {list(inputs)}")
    return values, shape


def _where_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    values = sources[1].read(start, stop)
    return np.where(sources[0].read(start, stop) != 0, values, np.zeros((), values.dtype))


OPS = (
    Op(name="coreml.unpack", rows=_unpack_rows, infer=_unpack_infer, needs=_unpack_needs),
    Op(name="coreml.lookup", rows=_lookup_rows, infer=_lookup_infer, needs=_lookup_needs),
    Op(name="coreml.repeat", rows=_repeat_rows, infer=_repeat_infer, needs=_repeat_needs),
    Op(name="coreml.sparse", rows=_sparse_rows, infer=_sparse_infer),
    Op(
        name="coreml.where",
        rows=_where_rows,
        infer=_where_infer,
        needs=lambda inputs, args, start, stop: [(start, stop)] * 2,
    ),
    Op(name="dequant.coreml_linear", rows=_linear_rows, infer=_linear_infer, needs=_dequant_needs),
    Op(name="dequant.coreml", rows=_dequant_rows, infer=_dequant_infer, needs=_dequant_needs),
)

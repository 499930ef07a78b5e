"""Ops that derive one tensor's value from others': rows in another order, axes exchanged, parts joined and cut, sums, products.

Those that only move elements work on stored units, so that every dtype (also block-quantized rows, where whole rows move) comes
through to the bit. Those that compute decode to float32, compute there and yield F32; a cast on top encodes again. Each reads
what its rows need and no more, so that an expression over a tensor of any size takes bounded memory. Like the storage ops they
are registered as any plugin's, and ``infer`` checks every argument before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.declared import Op
from modelhub.storage_ops import Spec, Specs, bytes_of, dims_of, one_run, row_bytes, unit_of
from modelhub.types import Args

if TYPE_CHECKING:
    from numpy.typing import NDArray

PANEL = 32 << 20
"""Bytes of a transposed whole that are gathered in one go: a larger tensor is read once for each panel of its output, and of each
of its rows only the piece that the panel holds."""
TILE = 1 << 20
"""Bytes of a sum or product that are computed in one go: with what they are made of they fit the second-level cache."""
SPAN = 8 << 20
"""Rows that are wanted in another order are read as one run up to this size, or up to four times what is wanted."""


# --- shapes in stored units ---------------------------------------------------------------------------------------


def _units(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a row in stored units: that of its elements, or with the last side in bytes where rows are packed. Packing
    that does not keep rows apart has one side: all the bytes."""
    kind, inner = dtypes.get(dtype), tuple(shape[1:])
    if kind.block == 1:
        return inner
    if kind.rowwise and inner:
        return (*inner[:-1], inner[-1] // kind.block * kind.block_bytes)
    return (kind.nbytes(inner),)


def _read(source: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows of a source, shaped as `_units` says."""
    rows: NDArray[Any] = source.read(start, stop)
    return rows.reshape((stop - start, *_units(source.dtype, source.shape)))


def _packed(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rows as an op answers them: two dimensions where several elements stand in a block."""
    return rows.reshape(len(rows), -1) if dtypes.get(dtype).block > 1 else rows


def _axis(args: Args, shape: Sequence[int], what: str) -> int:
    axis = args["axis"]
    if type(axis) is not int or not 0 <= axis < len(shape):
        raise ValueError(f"{what} along axis {axis} of a shape {list(shape)}")
    return axis


def _one(inputs: Specs, what: str) -> Spec:
    if len(inputs) != 1:
        raise ValueError(f"{what} takes one input, not {len(inputs)}")
    return inputs[0]


def _same_rows(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] * len(inputs)


# --- permute ------------------------------------------------------------------------------------------------------


def _permute_infer(inputs: Specs, args: Args) -> Spec:
    dtype, shape = _one(inputs, "permute")
    dims, axes = dims_of(args, "dims"), list(args["axes"])
    if sorted(axes) != list(range(len(dims))):
        raise ValueError(f"permute: {axes} is no order of {len(dims)} axes")
    if not shape or prod(dims) != shape[0]:
        raise ValueError(f"permute: {list(dims)} is not a way to split the {shape[0] if shape else 0} rows of {list(shape)}")
    return dtype, shape


def _permuted(args: Args, start: int, stop: int) -> NDArray[Any]:
    """Which row of the input each of the output's rows ``start``..``stop`` is."""
    import numpy as np

    dims, axes = args["dims"], args["axes"]
    place = np.unravel_index(np.arange(start, stop), [dims[axis] for axis in axes])
    origin = [place[axes.index(axis)] for axis in range(len(dims))]
    rows: NDArray[Any] = np.ravel_multi_index(origin, dims)
    return rows


def _permute_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source = sources[0]
    if start == stop:
        return source.read(start, stop)
    wanted = _permuted(args, start, stop)
    first, last = int(wanted.min()), int(wanted.max()) + 1
    row = max(1, row_bytes(source.dtype, source.shape))
    if (last - first) * row <= max(SPAN, 4 * (stop - start) * row):
        return source.read(first, last)[wanted - first]
    order = np.argsort(wanted, kind="stable")
    breaks = np.flatnonzero(np.diff(wanted[order]) > 1) + 1
    runs = np.split(wanted[order], breaks)
    gathered = np.concatenate([source.read(int(run[0]), int(run[-1]) + 1) for run in runs])
    out = np.empty_like(gathered)
    out[order] = gathered
    return out


def _permute_needs(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    if start >= stop:
        return [(0, 0)]
    wanted = _permuted(args, start, stop)
    return [(int(wanted.min()), int(wanted.max()) + 1)]


def _permute_memory(inputs: Specs, args: Args, rows: int) -> int:
    return max(SPAN, 4 * rows * row_bytes(*inputs[0]))


# --- transpose ----------------------------------------------------------------------------------------------------


def _transpose_infer(inputs: Specs, args: Args) -> Spec:
    dtype, shape, axes = dtypes.get(args["dtype"]), dims_of(args), list(args["axes"])
    have = one_run(inputs, "transpose")
    if dtype.block != 1:
        raise ValueError(f"{dtype.name} packs several elements together: it cannot be transposed, only a cast of it to floats")
    if have != dtype.nbytes(shape):
        raise ValueError(f"{dtype.name} {list(shape)} takes {dtype.nbytes(shape)} bytes, the run has {have}")
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"transpose: {axes} is no order of the axes of {list(shape)}")
    return dtype.name, tuple(shape[axis] for axis in axes)


def _transpose_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source, shape, axes = sources[0], tuple(args["shape"]), list(args["axes"])
    unit = unit_of(args["dtype"])
    if not shape:
        return bytes_of(source, 0, unit.itemsize).view(unit).reshape(())
    out_shape = [shape[axis] for axis in axes]
    if start == stop or 0 in shape:
        return np.empty((stop - start, *out_shape[1:]), unit)
    row = prod(out_shape[1:]) * unit.itemsize
    if axes[0] == 0:
        run = bytes_of(source, start * row, stop * row).view(unit)
        return np.ascontiguousarray(run.reshape(stop - start, *shape[1:]).transpose(axes))
    first, panel = source.state.get("panel", (0, None))
    if panel is None or start < first or stop > first + len(panel):
        count = (stop - start) * max(1, PANEL // max(1, row * (stop - start)))  # whole slices: none is cut by a panel's end
        last = min(out_shape[0], start + count)
        source.state.pop("panel", None)  # the old one goes before the new one comes
        panel = _panel(source, unit, shape, axes, start, last)
        first = start
        source.state["panel"] = first, panel
    return panel[start - first : stop - first]


def _panel(source: Any, unit: Any, shape: tuple[int, ...], axes: list[int], start: int, stop: int) -> NDArray[Any]:
    """Rows ``start``..``stop`` of the transposed whole: of the input's axis ``axes[0]`` that range, whatever stands before it."""
    import numpy as np

    axis = axes[0]
    before, side, after = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    piece = (stop - start) * after
    box = np.empty((before, piece), unit)
    size = unit.itemsize
    if stop - start == side:
        box[:] = bytes_of(source, 0, before * piece * size).view(unit).reshape(before, piece)
    elif source.dtype == "U8" and len(source.shape) == 1:
        for number in range(before):
            offset = (number * side + start) * after * size
            box[number] = bytes_of(source, offset, offset + piece * size).view(unit)
    else:  # an expression gives whole rows only: they go by, and the panel keeps its share
        step = max(1, SPAN // max(1, side * after * size))
        for at in range(0, before, step):
            end = min(before, at + step)
            run = bytes_of(source, at * side * after * size, end * side * after * size).view(unit)
            box[at:end] = run.reshape(end - at, side * after)[:, start * after : start * after + piece]
    view = box.reshape(*shape[:axis], stop - start, *shape[axis + 1 :]).transpose(axes)
    return np.ascontiguousarray(view)


def _transpose_memory(inputs: Specs, args: Args, rows: int) -> int:
    shape, axes = tuple(args["shape"]), list(args["axes"])
    row = int(prod(shape[axis] for axis in axes[1:]) * unit_of(args["dtype"]).itemsize)
    return 2 * max(PANEL, rows * row) + SPAN


# --- concat, slice ------------------------------------------------------------------------------------------------


def _concat_infer(inputs: Specs, args: Args) -> Spec:
    if not inputs:
        raise ValueError("concat takes at least one input")
    dtype, shape = inputs[0]
    axis = _axis(args, shape, "concat")
    for other_dtype, other in inputs[1:]:
        if other_dtype != dtype or len(other) != len(shape):
            raise ValueError(f"concat: {other_dtype} {list(other)} does not fit {dtype} {list(shape)}")
        if any(a != b for side, (a, b) in enumerate(zip(shape, other, strict=True)) if side != axis):
            raise ValueError(f"concat along axis {axis}: {list(other)} does not fit {list(shape)}")
    kind = dtypes.get(dtype)
    if axis and kind.block > 1:
        if not kind.rowwise:
            raise ValueError(f"concat along axis {axis}: {dtype} does not keep rows apart")
        if axis == len(shape) - 1 and any(other[axis] % kind.block for _, other in inputs):
            raise ValueError(f"concat along axis {axis}: {dtype} packs {kind.block} elements together")
    elif kind.block > 1 and not kind.rowwise and any(prod(other[1:]) % kind.block for _, other in inputs):
        raise ValueError(f"concat: {dtype} packs {kind.block} elements together, across rows")
    joined = sum(other[axis] for _, other in inputs)
    return dtype, (*shape[:axis], joined, *shape[axis + 1 :])


def _shares(inputs: Specs, start: int, stop: int) -> list[tuple[int, int]]:
    """Which rows of each part the rows ``start``..``stop`` of the whole are."""
    found, at = [], 0
    for _, shape in inputs:
        low, high = max(start - at, 0), min(stop - at, shape[0])
        found.append((low, high) if low < high else (0, 0))
        at += shape[0]
    return found


def _concat_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    if args["axis"]:
        whole = np.concatenate([_read(source, start, stop) for source in sources], axis=args["axis"])
        return _packed(whole, sources[0].dtype)
    shares = _shares([(source.dtype, source.shape) for source in sources], start, stop)
    parts = [source.read(*share) for source, share in zip(sources, shares, strict=True) if share[0] < share[1]]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else sources[0].read(0, 0)


def _concat_needs(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] * len(inputs) if args["axis"] else _shares(inputs, start, stop)


def _concat_memory(inputs: Specs, args: Args, rows: int) -> int:
    return rows * sum(row_bytes(*item) for item in inputs) if args["axis"] else rows * row_bytes(*inputs[0])


def _slice_infer(inputs: Specs, args: Args) -> Spec:
    dtype, shape = _one(inputs, "slice")
    axis, start, stop = _axis(args, shape, "slice"), args["start"], args["stop"]
    if type(start) is not int or type(stop) is not int or not 0 <= start <= stop <= shape[axis]:
        raise ValueError(f"slice {start}..{stop} of axis {axis}, which has {shape[axis]}")
    kind = dtypes.get(dtype)
    if kind.block > 1:
        unit = shape[-1] if kind.rowwise else prod(shape[1:])
        packed_across = axis if not kind.rowwise else axis == len(shape) - 1
        inside = start % kind.block or stop % kind.block or not kind.rowwise
        if (packed_across and inside) or (not kind.rowwise and unit % kind.block):
            raise ValueError(f"slice {start}..{stop} of axis {axis}: {dtype} packs {kind.block} elements together")
    return dtype, (*shape[:axis], stop - start, *shape[axis + 1 :])


def _slice_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source, axis = sources[0], args["axis"]
    if axis == 0:
        return source.read(args["start"] + start, args["start"] + stop)
    kind = dtypes.get(source.dtype)
    packed = kind.block > 1 and axis == len(source.shape) - 1
    low, high = (place // kind.block * kind.block_bytes if packed else place for place in (args["start"], args["stop"]))
    index = (slice(None),) * axis + (slice(low, high),)
    return _packed(np.ascontiguousarray(_read(source, start, stop)[index]), source.dtype)


def _slice_needs(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] if args["axis"] else [(args["start"] + start, args["start"] + stop)]


def _slice_memory(inputs: Specs, args: Args, rows: int) -> int:
    return 0 if args["axis"] == 0 else rows * row_bytes(*inputs[0])


# --- add, affine, matmul ------------------------------------------------------------------------------------------


def _floats(source: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows of a source as float32, shaped as its elements."""
    return _decoded_rows(source, source.read(start, stop), stop - start)


def _decoded_rows(source: Any, rows: NDArray[Any], count: int) -> NDArray[Any]:
    """``count`` rows that were read of a source, as float32, shaped as its elements."""
    import numpy as np

    from modelhub.codecs import codec_of

    shape = (count, *source.shape[1:]) if source.shape else ()
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    values: NDArray[Any] = codec_of(source.dtype, "decode").decode(data, prod(shape))
    return values.astype(np.float32, copy=False).reshape(shape)


def _numeric(inputs: Specs, what: str) -> None:
    for dtype, _ in inputs:
        if dtypes.get(dtype).kind not in ("float", "quantized", "int", "uint"):
            raise ValueError(f"{what} computes in float32, which {dtype} does not fit")


def _add_infer(inputs: Specs, args: Args) -> Spec:
    if len(inputs) < 2 or any(shape != inputs[0][1] for _, shape in inputs):
        raise ValueError(f"add takes two or more of one shape, not {[list(shape) for _, shape in inputs]}")
    _numeric(inputs, "add")
    return "F32", inputs[0][1]


def _add_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    total, owned = None, False
    for source in sources:
        rows = source.read(start, stop)
        values = _decoded_rows(source, rows, stop - start)
        mine = not np.may_share_memory(rows, values)  # decoded just now, and nobody else's
        if total is None:
            total, owned = values, mine
        elif owned:
            np.add(total, values, out=total)
        else:
            total, owned = np.add(total, values, out=values if mine else None), True
    return total


def _affine_infer(inputs: Specs, args: Args) -> Spec:
    _, shape = _one(inputs, "affine")
    _numeric(inputs, "affine")
    if not all(type(args[name]) in (int, float) for name in ("scale", "offset")):
        raise ValueError(f"affine: {args['scale']!r} and {args['offset']!r} are not two numbers")
    return "F32", shape


def _affine_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    values, scale, offset = _floats(sources[0], start, stop), np.float32(args["scale"]), np.float32(args["offset"])
    values = values if scale == 1 else values * scale
    return values if offset == 0 else values + offset


def _matmul_infer(inputs: Specs, args: Args) -> Spec:
    shapes = [shape for _, shape in inputs]
    if len(shapes) != 2 or any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][0]:
        raise ValueError(f"matmul takes (m, k) and (k, n), not {[list(shape) for shape in shapes]}")
    _numeric(inputs, "matmul")
    return "F32", (shapes[0][0], shapes[1][1])


def _matmul_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    right = sources[1].state.get("whole")
    if right is None:
        right = sources[1].state["whole"] = _floats(sources[1], 0, sources[1].shape[0])
    return _floats(sources[0], start, stop) @ right


def _matmul_needs(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (0, inputs[1][1][0])]


def _decoded(fixed: Callable[[Specs], int] = lambda inputs: 0) -> Callable[[Specs, Args, int], int]:
    """Peak bytes of an op that decodes every input's rows to float32."""

    def memory(inputs: Specs, args: Args, rows: int) -> int:
        return fixed(inputs) + sum(rows * (prod(shape[1:]) * 4 + row_bytes(dtype, shape)) for dtype, shape in inputs)

    return memory


def _right(inputs: Specs) -> int:
    return 4 * prod(inputs[1][1])


def _ops() -> Iterator[Op]:
    yield Op(name="permute", rows=_permute_rows, infer=_permute_infer, needs=_permute_needs, memory=_permute_memory)
    yield Op(name="transpose", rows=_transpose_rows, infer=_transpose_infer, memory=_transpose_memory)
    yield Op(name="concat", rows=_concat_rows, infer=_concat_infer, needs=_concat_needs, memory=_concat_memory)
    yield Op(name="slice", rows=_slice_rows, infer=_slice_infer, needs=_slice_needs, memory=_slice_memory)
    yield Op(name="add", rows=_add_rows, infer=_add_infer, needs=_same_rows, memory=_decoded(), tile=TILE)
    yield Op(name="affine", rows=_affine_rows, infer=_affine_infer, needs=_same_rows, memory=_decoded(), tile=TILE)
    yield Op(name="matmul", rows=_matmul_rows, infer=_matmul_infer, needs=_matmul_needs, memory=_decoded(_right), tile=TILE)


OPS = tuple(_ops())

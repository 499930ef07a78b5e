"""The core's own ops: how bytes are stored, and the one arithmetic op that plain quantized tensors need.

Each is registered like a plugin's. NumPy is imported where rows are computed, so that building an expression costs nothing. The
arguments come from plugins that parsed untrusted bytes: ``infer`` checks every one of them before anything is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.declared import Op
from modelhub.errors import InvalidFile
from modelhub.types import Args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Specs = Sequence[tuple[str, tuple[int, ...]]]
Spec = tuple[str, tuple[int, ...]]

INFLATE_STEP = 1 << 20
"""Compressed bytes are fed, and output is taken, this much at a time."""
WINDOW = 32 << 20
"""A strided gather reads its span in one go up to this size, or up to four times what it needs."""


def dims_of(args: Args, name: str = "shape") -> tuple[int, ...]:
    dims = tuple(args[name])
    if not all(type(dim) is int and dim >= 0 for dim in dims):
        raise ValueError(f"{name} {list(dims)[:8]} holds something that is not a count")
    return dims


def unit_of(dtype: str) -> np.dtype[Any]:
    import numpy as np

    return np.dtype(dtypes.get(dtype).numpy or "u1")


def one_run(inputs: Specs, what: str) -> int:
    """Bytes of the one input that ``what`` takes."""
    if len(inputs) != 1:
        raise ValueError(f"{what} takes one input, not {len(inputs)}")
    return dtypes.get(inputs[0][0]).nbytes(inputs[0][1])


def bytes_of(source: Any, start: int, stop: int) -> NDArray[np.uint8]:
    """Bytes ``start``..``stop`` of a U8 run, or of the C-order bytes of any other input (of which the rows that hold them are
    read)."""
    import numpy as np

    if source.dtype == "U8" and len(source.shape) == 1:
        run: NDArray[np.uint8] = source.read(start, stop)
        return run
    first, last, skip = 0, source.shape[0] if source.shape else 1, start
    if source.shape and (row := row_bytes(source.dtype, source.shape)):
        first, last = start // row, -(-stop // row)
        skip = start - first * row
    rows = np.ascontiguousarray(source.read(first, last))
    return rows.reshape(-1).view(np.uint8)[skip : skip + stop - start]


# --- inflate ------------------------------------------------------------------------------------------------------

_WINDOW_BITS = {"deflate": -15, "zlib": 15, "gzip": 31}


def _inflate_infer(inputs: Specs, args: Args) -> Spec:
    one_run(inputs, "inflate")
    if args["method"] not in _WINDOW_BITS:
        raise ValueError(f"inflate knows {', '.join(_WINDOW_BITS)}, not {args['method']!r}")
    if args["nbytes"] < 0 or args["skip"] < 0:
        raise ValueError("inflate: nbytes and skip count bytes")
    return "U8", (args["nbytes"],)


class _Inflater:
    """A decompressor that stands somewhere in its output; going back means starting over."""

    def __init__(self, source: Any, args: Args) -> None:
        self.source, self.total, self.args = source, source.shape[0], args
        self.taken = self.position = 0
        self.machine = zlib.decompressobj(_WINDOW_BITS[args["method"]])
        self.pending = b""

    def take(self, nbytes: int) -> bytes:
        """The next ``nbytes`` of output at the most; InvalidFile where the stream is broken or ends before."""
        parts, got = [], 0
        while got < nbytes:
            if not self.pending and not self.machine.eof:
                step = min(INFLATE_STEP, self.total - self.taken)
                self.pending = self.source.read(self.taken, self.taken + step).tobytes()
                self.taken += step
            if self.machine.eof or not self.pending:
                raise InvalidFile(f"a compressed run ends after {self.position + got} bytes, {self.position + nbytes} expected")
            try:
                part = self.machine.decompress(self.pending, min(nbytes - got, INFLATE_STEP))
            except zlib.error as error:
                raise InvalidFile(f"a compressed run is broken near byte {self.taken} of {self.total}: {error}") from error
            self.pending = self.machine.unconsumed_tail
            parts.append(part)
            got += len(part)
        self.position += got
        return b"".join(parts)


def _inflate_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source = sources[0]
    state: _Inflater | None = source.state.get("inflater")
    if state is None or state.position > start + args["skip"]:
        state = source.state["inflater"] = _Inflater(source, args)
    while state.position < start + args["skip"]:
        state.take(min(INFLATE_STEP, start + args["skip"] - state.position))
    return np.frombuffer(state.take(stop - start), np.uint8)


# --- byteswap, reshape --------------------------------------------------------------------------------------------


def _cast_infer(inputs: Specs, args: Args) -> Spec:
    have, shape = one_run(inputs, "reshape"), dims_of(args)
    want = dtypes.get(args["dtype"]).nbytes(shape)
    if have != want:
        raise ValueError(f"{args['dtype']} {list(shape)} takes {want} bytes, the run has {have}")
    return args["dtype"], shape


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    return dtypes.get(dtype).nbytes(shape[1:] if shape else ())


def _reshape_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    shape = tuple(args["shape"])
    row = row_bytes(args["dtype"], shape)
    data = bytes_of(sources[0], start * row, stop * row)
    unit = unit_of(args["dtype"])
    if dtypes.get(args["dtype"]).block > 1:
        return data.reshape((stop - start, row) if shape else (row,))
    return data.view(unit).reshape((stop - start, *shape[1:]) if shape else ())


def _byteswap_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    array = _reshape_rows(sources, args, start, stop)
    if args["dtype"] == "C32":  # two halves in one unit: each half is swapped by itself
        return array.view("<u2").byteswap().view("<u4").reshape(array.shape)
    return array.byteswap()


# --- strided ------------------------------------------------------------------------------------------------------


def _strided_infer(inputs: Specs, args: Args) -> Spec:
    dtype = dtypes.get(args["dtype"])
    if dtype.block != 1:
        raise ValueError(f"{dtype.name} packs several elements in a byte: it cannot be gathered by strides")
    have = one_run(inputs, "strided") // dtype.block_bytes
    shape, strides = dims_of(args), dims_of(args, "strides")
    if len(shape) != len(strides) or args["offset"] < 0:
        raise ValueError(f"{len(shape)} dimensions, {len(strides)} strides, offset {args['offset']}")
    if prod(shape):
        last = args["offset"] + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= have:
            raise ValueError(f"a view reaches element {last}, its storage has {have}")
    return dtype.name, shape


def _strided_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source, unit = sources[0], unit_of(args["dtype"])
    shape, strides = list(args["shape"]), list(args["strides"])
    if not shape:
        shape, strides = [1], [0]
    count = stop - start
    out_shape = (count, *shape[1:])
    if not prod(out_shape):
        return np.empty(out_shape, unit)
    base = args["offset"] + start * strides[0]
    return _gather(source, unit, base, [count, *shape[1:]], strides)


def _gather(source: Any, unit: np.dtype[Any], base: int, shape: list[int], strides: list[int]) -> Any:
    """Elements of a view. One read where the span is small or dense; else a read for each index of the largest stride."""
    import numpy as np

    size = unit.itemsize
    span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if span * size <= max(WINDOW, 4 * prod(shape) * size) or max(shape) == 1:
        run = bytes_of(source, base * size, (base + span) * size).view(unit)
        view = np.lib.stride_tricks.as_strided(run, shape, [stride * size for stride in strides])
        return np.array(view, order="C")  # not ascontiguousarray, which makes a row of a single element
    widest = max((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: strides[axis])
    out = np.empty(shape, unit)
    inner = shape[:widest] + shape[widest + 1 :]
    inner_strides = strides[:widest] + strides[widest + 1 :]
    target = np.moveaxis(out, widest, 0)
    for index in range(shape[widest]):
        target[index] = _gather(source, unit, base + index * strides[widest], inner, inner_strides)
    return out


def _strided_memory(inputs: Specs, args: Args, rows: int) -> int:
    shape = tuple(args["shape"])
    need = rows * row_bytes(args["dtype"], shape)
    return max(WINDOW, 4 * need)


# --- place --------------------------------------------------------------------------------------------------------


def _place_infer(inputs: Specs, args: Args) -> Spec:
    dtype, shape, boxes = dtypes.get(args["dtype"]), dims_of(args), args["boxes"]
    if len(boxes) != len(inputs) or dtype.block != 1:
        raise ValueError(f"{len(inputs)} parts, {len(boxes)} boxes of {dtype.name}")
    covered = 0
    for (part_dtype, part_shape), box in zip(inputs, boxes, strict=True):
        if len(box) != len(shape):
            raise ValueError(f"a box of {len(box)} sides in {len(shape)} dimensions")
        for (at, length), whole in zip(box, shape, strict=True):
            if at < 0 or length < 0 or at + length > whole:
                raise ValueError(f"a box {box} reaches outside of {list(shape)}")
        volume = prod(length for _, length in box)
        if dtypes.get(part_dtype).nbytes(part_shape) != volume * dtype.block_bytes:
            raise ValueError(f"a part of {list(part_shape)} {part_dtype} does not fill its box {box}")
        covered += volume
    if covered != prod(shape) or _overlap(boxes):
        raise ValueError(f"boxes cover {covered} elements of {prod(shape)}, or overlap")
    return dtype.name, shape


def _overlap(boxes: Sequence[Any]) -> bool:
    """Whether two boxes share an element: a sweep along the first side, so that thousands of chunks stay cheap."""
    full = sorted((box for box in boxes if all(length for _, length in box)), key=lambda box: [side[0] for side in box])
    active: list[Any] = []
    for box in full:
        if not box:
            return len(full) > 1
        active = [other for other in active if other[0][0] + other[0][1] > box[0][0]]
        for other in active:
            if all(a < b + m and b < a + n for (a, n), (b, m) in zip(box, other, strict=True)):
                return True
        active.append(box)
    return False


def _place_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    shape, unit = tuple(args["shape"]), unit_of(args["dtype"])
    if not shape:
        return bytes_of(sources[0], 0, unit.itemsize).view(unit).reshape(())
    out = np.zeros((stop - start, *shape[1:]), unit)
    for source, box in zip(sources, args["boxes"], strict=True):
        at, length = box[0]
        low, high = max(at, start), min(at + length, stop)
        if low >= high or not all(side[1] for side in box):
            continue
        row = prod(side[1] for side in box[1:]) * unit.itemsize
        data = bytes_of(source, (low - at) * row, (high - at) * row).view(unit)
        index = (slice(low - start, high - start), *(slice(a, a + n) for a, n in box[1:]))
        out[index] = data.reshape(high - low, *(side[1] for side in box[1:]))
    return out


# --- varints ------------------------------------------------------------------------------------------------------


def _varints_infer(inputs: Specs, args: Args) -> Spec:
    one_run(inputs, "varints")
    dtype = dtypes.get(args["dtype"])
    if dtype.kind not in ("int", "uint", "bool") or dtype.block != 1:
        raise ValueError(f"varints decode to integers, not {dtype.name}")
    return dtype.name, dims_of(args)


def _varints_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    source, shape, unit = sources[0], tuple(args["shape"]), unit_of(args["dtype"])
    values = source.state.get("varints")
    if values is None:
        values = source.state["varints"] = _decode_varints(bytes_of(source, 0, source.shape[0]), prod(shape)).astype(unit)
    return values.reshape(shape)[start:stop] if shape else np.asarray(values.reshape(()))


def _decode_varints(data: NDArray[np.uint8], count: int) -> NDArray[np.uint64]:
    import numpy as np

    ends = np.flatnonzero(data < 0x80)
    if len(ends) != count or (len(data) and data[-1] >= 0x80):
        raise InvalidFile(f"{len(ends)} varints found, {count} expected")
    starts = np.concatenate(([0], ends[:-1] + 1)) if count else ends
    lengths = ends - starts + 1
    if count and lengths.max() > 10:
        raise InvalidFile("a varint is longer than ten bytes")
    values = np.zeros(count, np.uint64)
    for place in range(int(lengths.max()) if count else 0):
        mask = lengths > place
        values[mask] |= (data[starts[mask] + place].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * place)
    return values


# --- dequant.affine -----------------------------------------------------------------------------------------------


def _affine_infer(inputs: Specs, args: Args) -> Spec:
    dtype, shape = inputs[0]
    if dtypes.get(dtype).kind not in ("int", "uint") or len(inputs) not in (1, 3):
        raise ValueError(
            f"dequant.affine takes integers, and scales and zero points or neither; not {len(inputs)} inputs, {dtype}"
        )
    if len(inputs) == 3:
        axis = args["axis"]
        if not 0 <= axis < len(shape) or any(other[1] != (shape[axis],) for other in inputs[1:]):
            raise ValueError(f"dequant.affine: scales of {inputs[1][1]} along axis {axis} of {shape}")
    return "F32", shape


def _affine_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    """(q - zero_point) * scale, the difference in integers and one float32 rounding: as PyTorch's ``dequantize``."""
    import numpy as np

    quantized = sources[0].read(start, stop).astype(np.int64)
    if len(sources) == 1:
        return ((quantized - int(args["zero_point"])).astype(np.float32) * np.float32(args["scale"])).astype(np.float32)
    axis, rank = args["axis"], len(sources[0].shape)
    scales, zeros = (source.read(0, source.shape[0]) for source in sources[1:])
    if axis == 0:
        scales, zeros = scales[start:stop], zeros[start:stop]
    view = [1] * rank
    view[axis] = -1
    # Per channel PyTorch multiplies by scales of their own precision, and its zero points may be floats.
    exact = zeros.dtype.kind != "f"
    centred = quantized - zeros.astype(np.int64).reshape(view) if exact else quantized.astype(np.float32) - zeros.reshape(view)
    return (centred.astype(np.float32) * scales.astype(np.float64).reshape(view)).astype(np.float32)


# --- cast ---------------------------------------------------------------------------------------------------------


def _cast_to_infer(inputs: Specs, args: Args) -> Spec:
    shape = dims_of(args)
    have, want = dtypes.get(args["source"]).nbytes(shape), one_run(inputs[:1], "cast")
    if have != want:
        raise ValueError(f"{args['source']} {list(shape)} takes {have} bytes, the input has {want}")
    dtype = dtypes.get(args["dtype"])
    dtype.nbytes(shape)
    if len(inputs) > 1:
        kind, sides = inputs[1]
        matrices = prod(sides[:-1])
        if len(inputs) > 2 or kind != "F32" or not dtype.rowwise or not sides or sides[-1] != (shape or (1,))[-1]:
            raise ValueError(f"importance of {kind} {list(sides)} does not fit {dtype.name} {list(shape)}: one weight a column")
        if not matrices or prod(shape[:-1]) % matrices:
            raise ValueError(f"importance for {matrices} matrices does not fit {list(shape)}")
    return args["dtype"], shape


def _cast_to_rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    import numpy as np

    from modelhub.engine.cast import Encoder

    shape, want = tuple(args["shape"]), dtypes.get(args["dtype"])
    row = row_bytes(args["source"], shape)
    data = bytes_of(sources[0], start * row, stop * row)
    columns = shape[-1] if shape else 1
    weights = None
    if len(sources) > 1:
        weights = np.ascontiguousarray(sources[1].read(0, sources[1].shape[0])).reshape(-1).view("<f4").reshape(-1, columns)
    encoder = Encoder("", args["source"], want.name, columns, weights, None)
    if weights is None or len(weights) == 1:
        encoded = encoder.encode(data)
    else:  # a stack of matrices, each with weights of its own
        each = len(weights) // shape[0] if len(weights) >= shape[0] else 1
        parts = np.split(data, (stop - start) * each)
        share = max(1, shape[0] // len(weights))
        numbers = [(start * each + number) // share for number in range(len(parts))]
        encoded = np.concatenate([encoder.encode(part, number) for part, number in zip(parts, numbers, strict=True)])
    lead = (stop - start,) if shape else ()
    if want.block > 1:
        return encoded.reshape((*lead, -1))
    return np.ascontiguousarray(encoded).view(unit_of(want.name)).reshape((*lead, *shape[1:]))


OPS = (
    Op(name="cast", rows=_cast_to_rows, infer=_cast_to_infer),
    Op(name="inflate", rows=_inflate_rows, infer=_inflate_infer, seekable=False),
    Op(name="byteswap", rows=_byteswap_rows, infer=_cast_infer),
    Op(name="strided", rows=_strided_rows, infer=_strided_infer, memory=_strided_memory),
    Op(name="place", rows=_place_rows, infer=_place_infer),
    Op(name="varints", rows=_varints_rows, infer=_varints_infer),
    Op(name="dequant.affine", rows=_affine_rows, infer=_affine_infer),
    Op(name="reshape", rows=_reshape_rows, infer=_cast_infer),
)

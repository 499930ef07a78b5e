"""Weights that Keras quantized itself, as the floats that they stand for: INT8 by the channel, INT4 by the channel or in groups.

The integers and their scales are `stored`, the floats `logical`. What is read is what ``keras/src/layers/core/dense.py``,
``einsum_dense.py`` and ``embedding.py`` compute with (``_int8_call``, ``_int4_call``, ``dequantize_with_sz_map``,
``unpack_int4``): by the channel an integer is divided by its scale, in groups it is less its zero point, times its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import InvalidFile, Node, Op, Tensor, ops

STATE = (
    "inputs_scale", "inputs_amax_history", "kernel_amax_history", "outputs_grad_scale", "outputs_grad_amax_history",
)  # fmt: skip
"""What float8's training keeps; its weights are floats."""


def wholes(tensors: Sequence[Tensor], mode: str = "") -> Iterator[Tensor]:
    """``tensors`` with the parts of quantized weights as stored, and behind them what they stand for. A weight whose scales do
    not fit it in one way alone stays as it is. ``mode``: what the configuration says, as in "int4/128"."""
    by_name = {tensor.name: tensor for tensor in tensors}
    made: list[Tensor] = []
    parts: set[str] = set()
    for tensor in tensors:
        base, _, last = tensor.name.rpartition("/")
        if last in ("kernel", "embeddings") and tensor.dtype == "I8":
            names = [f"{base}/{name}".lstrip("/") for name in (f"{last}_scale", f"{last}_zero", "g_idx", "bias")]
            scale, zero, groups, bias = (by_name.get(name) for name in names)
            whole = _whole(tensor, scale, zero, groups, bias, mode.startswith("int4"))
            if whole is not None:
                made.append(whole)
                parts.update((tensor.name, *names[:3]))
        elif last in STATE or (last == "kernel_scale" and f"{base}/kernel_amax_history".lstrip("/") in by_name):
            parts.add(tensor.name)
    for tensor in tensors:
        yield tensor._replace(view="stored") if tensor.name in parts else tensor
    yield from made


def _whole(
    packed: Tensor, scale: Tensor | None, zero: Tensor | None, groups: Tensor | None, bias: Tensor | None, halves: bool
) -> Tensor | None:
    if packed.value is None or scale is None or scale.value is None or scale.dtype != "F32" or not packed.shape:
        return None
    rows = packed.shape[0]
    of_words = packed.name.endswith("embeddings")
    value: Node | None
    if zero is None:
        value = _words(packed, scale, halves) if of_words else _by_channel(packed, scale)
    elif groups is None or not _are_tables(packed, scale, zero, groups):
        return None
    elif of_words:
        columns = prod(groups.shape)
        fits = _fits(packed, columns) and scale.shape[0] == rows
        value = _node(packed, (scale, zero, groups), columns, "rows") if fits else None
    else:
        columns = scale.shape[1]
        fits = _fits(packed, columns) and groups.shape == (rows,)
        value = _node(packed, (scale, zero, groups), columns, "columns") if fits else None
    if value is None:
        return None
    shape = value.shape
    if not of_words and len(shape) == 2 and bias is not None and shape[1] == prod(bias.shape):
        # The sides of what a layer gives follow from its bias. Those of what it takes are packed as one.
        shape = (rows, *bias.shape)
    return Tensor(packed.name, "F32", shape, value if value.shape == shape else ops.reshape(value, "F32", shape), view="logical")


def _are_tables(packed: Tensor, scale: Tensor, zero: Tensor, groups: Tensor) -> bool:
    known = (zero.dtype, groups.dtype) == ("I8", "F32") and zero.value is not None and groups.value is not None
    return known and len(packed.shape) == len(scale.shape) == 2 and scale.shape == zero.shape


def _words(packed: Tensor, scale: Tensor, halves: bool) -> Node | None:
    """Vectors with a scale each. Nothing in them tells whole bytes from halves."""
    if len(packed.shape) != 2 or prod(scale.shape) != packed.shape[0]:
        return None
    return _node(packed, (scale,), packed.shape[1] * (2 if halves else 1), "rows")


def _by_channel(packed: Tensor, scale: Tensor) -> Node | None:
    """INT8; and INT4 in two columns a byte, where a scale for each of twice as many says so."""
    shape, sides = packed.shape, scale.shape
    while len(sides) > 1 and sides[0] == 1:
        sides = sides[1:]
    count = prod(sides)
    if len(shape) == 2 and sides == (count,) and shape[1] != count and _fits(packed, count):
        return _node(packed, (scale,), count, "columns")
    trailing, leading = shape[-len(sides) :] == sides, shape[: len(sides)] == sides
    if not trailing or (leading and len(sides) < len(shape) and scale.shape != sides):
        return None  # an equation's sides that are equal: which of them has the scales cannot be told
    found = _node(packed, (scale,), count, "columns", rows=prod(shape) // max(1, count))
    return ops.reshape(found, "F32", shape)


def _fits(packed: Tensor, columns: int) -> bool:
    return len(packed.shape) == 2 and packed.shape[1] == (columns + 1) // 2


def _node(packed: Tensor, parts: Sequence[Tensor], columns: int, along: str, rows: int | None = None) -> Node:
    assert packed.value is not None
    count = packed.shape[0] if rows is None else rows
    width = prod(packed.shape) // max(1, count)
    inputs = [ops.typed(packed.value, "I8", (count, width))]
    for part in parts:
        assert part.value is not None
        flat = part.shape if len(parts) > 1 and part is not parts[2] else (prod(part.shape),)
        inputs.append(ops.typed(part.value, part.dtype, flat))
    return ops.node("keras.dequantize", *inputs, columns=columns, along=along)


# --- the op -------------------------------------------------------------------------------------------------------


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    kinds, shapes = [kind for kind, _ in inputs], [shape for _, shape in inputs]
    columns, along = args["columns"], args["along"]
    if kinds not in (["I8", "F32"], ["I8", "F32", "I8", "F32"]) or along not in ("rows", "columns") or len(shapes[0]) != 2:
        raise ValueError(f"keras.dequantize: {kinds} along {along}")
    rows, width = shapes[0]
    if type(columns) is not int or width not in (columns, (columns + 1) // 2):
        raise ValueError(f"keras.dequantize: {columns} columns in {list(shapes[0])}")
    if len(inputs) == 2:
        wanted: list[tuple[int, ...]] = [(rows if along == "rows" else columns,)]
    else:
        count = shapes[1][1] if along == "rows" and len(shapes[1]) == 2 else shapes[1][0] if shapes[1] else 0
        table = (rows, count) if along == "rows" else (count, columns)
        wanted = [table, table, (columns if along == "rows" else rows,)]
    if shapes[1:] != wanted:
        raise ValueError(f"keras.dequantize: {shapes[1:]} do not fit {list(shapes[0])}, {wanted} would")
    return "F32", (rows, columns)


def _needs(inputs: Any, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    every = [(0, shape[0]) for _, shape in inputs]
    if args["along"] == "rows":
        every[1:3] = [(start, stop)] * len(every[1:3])
    elif len(inputs) > 2:
        every[3] = (start, stop)
    every[0] = (start, stop)
    return every


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    places = _needs([(source.dtype, source.shape) for source in sources], args, start, stop)
    packed, *parts = (source.read(*place) for source, place in zip(sources, places, strict=True))
    columns = args["columns"]
    if packed.shape[1] != columns:  # the first of two stands in the low bits
        halves = np.stack([packed & 15, packed >> 4 & 15], axis=-1).reshape(len(packed), -1)[:, :columns]
        packed = (halves ^ 8) - 8
    values = packed.astype(np.float32)
    along_rows = args["along"] == "rows"
    if len(parts) == 1:
        return values / (parts[0][:, None] if along_rows else parts[0])
    scale, zero, groups = parts
    index = groups.astype(np.int64)
    limit = scale.shape[1] if along_rows else scale.shape[0]
    if len(index) and not 0 <= index.min() <= index.max() < limit:
        raise InvalidFile(f"a quantized weight of Keras's refers to group {index.max()}, there are {limit}")
    pick = (slice(None), index) if along_rows else index
    return (values - zero[pick].astype(np.float32)) * scale[pick]


OPS = (Op(name="keras.dequantize", rows=_rows, infer=_infer, needs=_needs),)

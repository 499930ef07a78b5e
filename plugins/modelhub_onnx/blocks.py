"""Weights in blocks, as operators of onnxruntime's own take them (``docs/ContribOperators.md``): ``MatMulNBits``, ``MatMulBnb4``,
``GatherBlockQuantized``. Each is one F32 tensor of the shape that it had before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, Tensor, ops

from modelhub_onnx import dequantize
from modelhub_onnx.model import Use

WIDTHS = (2, 4, 8)
FLOATS = ("F32", "F16")
_NAME = re.compile(r"_(Q\d+(G\d+)?|Bnb4)$")
"""What the quantizers append to a weight's name."""
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_SIZES = (0.0, 0.0052083333333, 0.6666666667, 1.0, 0.3333333333, 0.5, 0.1666666667, 0.25)
MEANINGS = {0: (*_FP4_SIZES, *(-size for size in _FP4_SIZES)), 1: _NF4}
"""``quant_type`` -> what each of the sixteen numbers stands for (bitsandbytes ``functional.py``)."""

Made = Iterator[tuple[Tensor, list[str]]]


def wholes(by_name: Mapping[str, Tensor], use: Use) -> Made:
    """(the weight of a node, the names of the tensors that it is made of); nothing where they do not fit."""
    yield from _WAYS[use.operator](by_name, use)


def _found(by_name: Mapping[str, Tensor], use: Use, at: int) -> tuple[Tensor | None, bool]:
    """(the tensor that is input ``at``, whether that is in order: it has bytes, or there is no such input)."""
    name = use.inputs[at] if len(use.inputs) > at else ""
    tensor = by_name.get(name) if name else None
    return tensor, not name or (tensor is not None and tensor.value is not None)


def _matmul(by_name: Mapping[str, Tensor], use: Use) -> Made:
    """(K, N), as the product's right side was before."""
    (weight, sound), (scale, sound_too), (zero, as_well) = (_found(by_name, use, at) for at in (1, 2, 3))
    if weight is None or scale is None or not (sound and sound_too and as_well) or any(use.inputs[4:5]):
        return  # a fifth input regroups the columns
    rows, columns, block = use.numbers.get("N", 0), use.numbers.get("K", 0), use.numbers.get("block_size", 0)
    width = use.numbers.get("bits", 4)
    if width not in WIDTHS or min(rows, columns, block) < 1 or use.numbers.get("weight_prepacked"):
        return
    count = -(-columns // block)
    size = count * block * width // 8
    if (
        weight.dtype != "U8"
        or prod(weight.shape) != rows * size
        or scale.dtype not in FLOATS
        or prod(scale.shape) != rows * count
    ):
        return
    parts = [_typed(weight, (rows, size)), _typed(scale, (rows, count))]
    if zero is not None:
        sides = (rows, -(-count * width // 8) if zero.dtype == "U8" else count)
        if zero.dtype not in ("U8", *FLOATS) or prod(zero.shape) != prod(sides):
            return
        parts.append(_typed(zero, sides))
    made = ops.transpose(ops.dequant("onnx_blocks", *parts, columns=columns, block=block, bits=width))
    yield _whole(weight, (columns, rows), made), _names(weight, scale, zero)


def _bnb4(by_name: Mapping[str, Tensor], use: Use) -> Made:
    """(K, N), or (N, K) where the node does not turn it."""
    (weight, sound), (scale, sound_too) = (_found(by_name, use, at) for at in (1, 2))
    rows, columns, block = use.numbers.get("N", 0), use.numbers.get("K", 0), use.numbers.get("block_size", 0)
    kind = use.numbers.get("quant_type", -1)
    if weight is None or scale is None or not (sound and sound_too) or kind not in MEANINGS or min(rows, columns, block) < 1:
        return
    count = rows * columns
    halves, blocks = -(-count // 2), -(-count // block)
    if (weight.dtype, prod(weight.shape), prod(scale.shape)) != ("U8", halves, blocks) or scale.dtype not in FLOATS:
        return
    parts = (_typed(weight, (halves,)), _typed(scale, (blocks,)))
    made = ops.dequant("onnx_bnb4", *parts, rows=rows, columns=columns, block=block, kind=kind)
    turned = bool(use.numbers.get("transB", 1))
    shape = (columns, rows) if turned else (rows, columns)
    yield _whole(weight, shape, ops.transpose(made) if turned else made), _names(weight, scale)


def _gather(by_name: Mapping[str, Tensor], use: Use) -> Made:
    """A table whose rows are looked up: integers of four bits, or bytes with several numbers in each."""
    (weight, sound), (scale, sound_too), (zero, as_well) = (_found(by_name, use, at) for at in (0, 2, 3))
    if weight is None or scale is None or not (sound and sound_too and as_well) or len(weight.shape) < 2:
        return
    axis, block = use.numbers.get("quantize_axis", 1), use.numbers.get("block_size", 128)
    axis += len(weight.shape) if axis < 0 else 0
    middle, names = 0, _names(weight, scale, zero)
    if weight.dtype == "U8":
        width = use.numbers.get("bits", 4)
        each = 8 // width if width in WIDTHS else 0
        if not each or (zero is not None and (zero.dtype != "U8" or prod(zero.shape) * each != prod(scale.shape))):
            return
        middle = 0 if zero is not None else 1 << (width - 1)
        weight, zero = _spread(weight, width), _spread(zero, width) if zero is not None else None
    made = dequantize.whole(weight, scale, zero, axis, block, middle)
    if made:
        yield _whole(weight, weight.shape, made), names


def _spread(tensor: Tensor, width: int) -> Tensor:
    """Bytes along the last side as the numbers of ``width`` bits in them."""
    if width == 8 or tensor.value is None:
        return tensor
    shape = (*tensor.shape[:-1], tensor.shape[-1] * 8 // width)
    raw = ops.reshape(tensor.value, "U8", (prod(tensor.shape),))
    return tensor._replace(shape=shape, value=ops.node("onnx.unpack", raw, bits=width, signed=False, shape=list(shape)))


_WAYS = {"MatMulNBits": _matmul, "MatMulBnb4": _bnb4, "GatherBlockQuantized": _gather}
OPERATORS = tuple(_WAYS)


def _typed(tensor: Tensor, shape: tuple[int, ...]) -> Any:
    assert tensor.value is not None
    return ops.typed(tensor.value, tensor.dtype, shape)


def _whole(weight: Tensor, shape: tuple[int, ...], value: Any) -> Tensor:
    return Tensor(_NAME.sub("", weight.name), "F32", shape, value, view="logical")


def _names(*parts: Tensor | None) -> list[str]:
    return [part.name for part in parts if part is not None]


# --- the ops -------------------------------------------------------------------------------------------------------


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    (kind, shape), (scale, scales) = inputs[0], inputs[1]
    columns, block, bits = args["columns"], args["block"], args["bits"]
    count = -(-columns // block)
    if kind != "U8" or scale not in FLOATS or bits not in WIDTHS or len(inputs) > 3:
        raise ValueError(f"dequant.onnx_blocks takes U8, F32 or F16 scales and U8 zero points, not {[one[0] for one in inputs]}")
    if shape != (shape[0], count * block * bits // 8) or scales != (shape[0], count):
        raise ValueError(f"dequant.onnx_blocks: {columns} columns in blocks of {block} do not fit {shape} and {scales}")
    if len(inputs) == 3 and inputs[2] not in [("U8", (shape[0], -(-count * bits // 8))), *((one, scales) for one in FLOATS)]:
        raise ValueError(f"dequant.onnx_blocks: zero points of {inputs[2]}")
    return "F32", (shape[0], columns)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """(quantized - zero point) x scale in float32, as onnxruntime's own kernels dequantize."""
    import numpy as np

    columns, block, bits = args["columns"], args["block"], args["bits"]
    count, rows = -(-columns // block), stop - start
    values = _unpacked(sources[0].read(start, stop), bits).reshape(rows, count, block).astype(np.float32)
    scales = sources[1].read(start, stop).astype(np.float32).reshape(rows, count, 1)
    if len(sources) > 2 and sources[2].dtype in FLOATS:
        zeros = sources[2].read(start, stop).astype(np.float32).reshape(rows, count, 1)
    elif len(sources) > 2:
        zeros = _unpacked(sources[2].read(start, stop), bits)[:, :count].astype(np.float32).reshape(rows, count, 1)
    else:
        zeros = np.float32(1 << (bits - 1))
    return np.ascontiguousarray(((values - zeros) * scales).reshape(rows, count * block)[:, :columns])


def _unpacked(data: Any, bits: int) -> Any:
    """Rows of bytes as rows of numbers; of several in a byte those of the low bits come first."""
    import numpy as np

    if bits == 8:
        return data
    parts = [data >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(data.shape[0], -1)


def _bnb4_infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    rows, columns, block = args["rows"], args["columns"], args["block"]
    if any(type(number) is not int or number < 1 for number in (rows, columns, block)) or args["kind"] not in MEANINGS:
        raise ValueError(f"dequant.onnx_bnb4: {dict(args)}")
    count = rows * columns
    wanted = [(-(-count // 2),), (-(-count // block),)]
    if [shape for _, shape in inputs] != wanted or inputs[0][0] != "U8" or inputs[1][0] not in FLOATS:
        raise ValueError(f"dequant.onnx_bnb4: {list(inputs)} for {rows} x {columns} in blocks of {block}")
    return "F32", (rows, columns)


def _bnb4_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """Of two numbers in a byte the high half comes first; blocks run over the ends of rows."""
    import numpy as np

    columns, block = args["columns"], args["block"]
    (low, high), (first, last) = _bnb4_needs((), args, start, stop)
    data = sources[0].read(low, high)
    numbers = np.stack([data >> 4, data & 15], axis=-1).reshape(-1)[start * columns - 2 * low :][: (stop - start) * columns]
    scales = sources[1].read(first, last).astype(np.float32)
    of = np.arange(start * columns, stop * columns) // block - first
    return (np.array(MEANINGS[args["kind"]], np.float32)[numbers] * scales[of]).reshape(-1, columns)


def _bnb4_needs(inputs: Any, args: Mapping[str, Any], start: int, stop: int) -> list[tuple[int, int]]:
    columns, block = args["columns"], args["block"]
    return [(start * columns // 2, -(-stop * columns // 2)), (start * columns // block, -(-stop * columns // block))]


OPS = (
    Op(
        name="dequant.onnx_blocks",
        rows=_rows,
        infer=_infer,
        needs=lambda inputs, args, start, stop: [(start, stop)] * len(inputs),
    ),
    Op(
        name="dequant.onnx_bnb4",
        rows=_bnb4_rows,
        infer=_bnb4_infer,
        needs=_bnb4_needs,
        memory=lambda inputs, args, rows: 24 * rows * args["columns"],
    ),
)

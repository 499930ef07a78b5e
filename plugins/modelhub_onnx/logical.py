"""What quantized weights stand for: the tensors that a model means, by its own scales and zero points.

Four layouts are understood: weights that a ``DequantizeLinear`` decodes (what its newer versions allow is in
`modelhub_onnx.dequantize`), those that onnxruntime's quantizer names ``NAME_quantized`` beside ``NAME_scale`` and
``NAME_zero_point`` (``quantization/quant_utils.py``), the blocks of ``MatMulNBits`` (onnxruntime
``docs/ContribOperators.md``), and floats that are quantized on the way (`modelhub_onnx.trained`). Each becomes one F32 tensor
under the name that it had before; its parts stay in the table of what is stored. Anything else is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Checkpoint, Extent, Inline, Node, Op, Tensor, dtypes, ops, protobuf

from modelhub_onnx import dequantize, trained
from modelhub_onnx.model import Model, Use

_INTEGERS = ("I8", "U8", "I16", "U16", "I32")
_DQ_NAME = re.compile(r"_DQ_Q\d+$")
_BLOCK_NAME = re.compile(r"_Q\d+(G\d+)?$")


def tensors(model: Model, checkpoint: Checkpoint) -> list[Tensor]:
    """All tensors of a model that has quantizing operators: parts of a weight as ``stored``, wholes as ``logical``."""
    every = model.all_tensors()
    by_name = {tensor.name: tensor for tensor in every}
    wholes: dict[str, Tensor] = {}
    parts: set[str] = set()
    for whole, used in _wholes(model, by_name, checkpoint):
        if whole.name not in wholes and (whole.name not in by_name or whole.name in used):
            wholes[whole.name] = whole
            parts.update(used)
    return [*(one._replace(view="stored") if one.name in parts else one for one in every), *wholes.values()]


def _wholes(model: Model, by_name: Mapping[str, Tensor], checkpoint: Checkpoint) -> Iterator[tuple[Tensor, list[str]]]:
    """(the tensor that is meant, the names of the tensors that it is made of)."""
    for use in model.uses:
        if use.operator == "DequantizeLinear" and len(use.inputs) > 1:
            plain = list(
                () if use.numbers.get("block_size") else _affine(by_name, use.inputs, use.numbers.get("axis", 1), checkpoint)
            )
            yield from plain or _linear(by_name, use)
        elif use.operator == "QuantizeLinear" and len(use.inputs) > 1 and not use.numbers.get("block_size"):
            yield from _trained(by_name, use)
        elif use.operator == "MatMulNBits":
            yield from _blocks(by_name, use)
    for name, tensor in by_name.items():
        base = name.removesuffix("_quantized")
        if base != name and f"{base}_scale" in by_name:
            yield from _affine(by_name, (name, f"{base}_scale", f"{base}_zero_point"), len(tensor.shape) - 1, checkpoint)


def _affine(
    by_name: Mapping[str, Tensor], names: Sequence[str], axis: int, checkpoint: Checkpoint
) -> Iterator[tuple[Tensor, list[str]]]:
    """(integers - zero points) x scales, for the whole tensor or along one axis."""
    weight, scale = by_name.get(names[0]), by_name.get(names[1])
    zero = by_name.get(names[2]) if len(names) > 2 and names[2] else None
    if weight is None or scale is None or weight.value is None or scale.value is None or len(weight.shape) < 2:
        return
    if weight.dtype not in _INTEGERS or scale.dtype != "F32":
        return
    if zero is None and len(names) > 2 and names[2]:  # computed, or where it cannot be seen
        return
    if zero is not None and (zero.value is None or zero.dtype not in _INTEGERS or prod(zero.shape) != prod(scale.shape)):
        return
    axis += len(weight.shape) if axis < 0 else 0
    value = ops.typed(weight.value, weight.dtype, weight.shape)
    if prod(scale.shape) == 1:
        factor, offset = _number(scale, checkpoint), _number(zero, checkpoint) if zero else 0
        if factor is None or offset is None:
            return
        made = ops.dequant("affine", value, scale=factor, zero_point=offset)
    elif 0 <= axis < len(weight.shape) and scale.shape == (weight.shape[axis],):
        scales = ops.typed(scale.value, "F32", scale.shape)
        kind = zero.dtype if zero else "I8"
        blank = Inline(bytes(dtypes.get(kind).nbytes(scale.shape)))
        zeros = ops.typed(zero.value if zero and zero.value else blank, kind, scale.shape)
        made = ops.dequant("affine", value, scales, zeros, axis=axis)
    else:
        return
    used = [weight.name, scale.name, *([zero.name] if zero else [])]
    yield Tensor(weight.name.removesuffix("_quantized"), "F32", weight.shape, made, view="logical"), used


def _linear(by_name: Mapping[str, Tensor], use: Use) -> Iterator[tuple[Tensor, list[str]]]:
    """What else a ``DequantizeLinear`` may be: of four bits, in blocks, with scales in half precision."""
    weight, scale = by_name.get(use.inputs[0]), by_name.get(use.inputs[1])
    named = use.inputs[2] if len(use.inputs) > 2 else ""
    zero = by_name.get(named) if named else None
    if weight is None or scale is None or (named and zero is None) or len(weight.shape) < 2:
        return
    axis = use.numbers.get("axis", 1)
    axis += len(weight.shape) if axis < 0 else 0
    made = dequantize.whole(weight, scale, zero, axis, use.numbers.get("block_size", 0))
    if made:
        name = _DQ_NAME.sub("", weight.name.removesuffix("_quantized"))
        yield Tensor(name, "F32", weight.shape, made, view="logical"), [weight.name, scale.name, *([zero.name] if zero else [])]


def _trained(by_name: Mapping[str, Tensor], use: Use) -> Iterator[tuple[Tensor, list[str]]]:
    """A weight that is floats, and quantized on the way: it keeps its name."""
    weight, scale = by_name.get(use.inputs[0]), by_name.get(use.inputs[1])
    named = use.inputs[2] if len(use.inputs) > 2 else ""
    zero = by_name.get(named) if named else None
    if weight is None or scale is None or (named and zero is None):
        return
    axis = use.numbers.get("axis", 1)
    made = trained.whole(weight, scale, zero, axis + len(weight.shape) if axis < 0 else axis)
    if made:
        used = [weight.name, scale.name, *([zero.name] if zero else [])]
        yield Tensor(weight.name, "F32", weight.shape, made, view="logical"), used


def _number(tensor: Tensor, checkpoint: Checkpoint) -> float | int | None:
    """The one element of a scale or a zero point; None where it is not to be had as easily as that."""
    import numpy as np

    value = tensor.value
    if prod(tensor.shape) != 1 or value is None:
        return None
    if isinstance(value, Node):  # typed data: a varint
        inner = value.inputs[0] if value.op == "varints" else None
        if not isinstance(inner, Extent) or inner.nbytes > 10:
            return None
        data = checkpoint.open(inner.file).read(inner.offset, inner.nbytes)
        return protobuf.signed(protobuf.Wire(data, tensor.name).varints(0, len(data), 1)[0])
    data = value.data if isinstance(value, Inline) else checkpoint.open(value.file).read(value.offset, value.nbytes)
    item: float | int = np.frombuffer(data, dtypes.get(tensor.dtype).numpy)[0].item()
    return item


def _blocks(by_name: Mapping[str, Tensor], use: Use) -> Iterator[tuple[Tensor, list[str]]]:
    """The weight of a ``MatMulNBits``: (K, N), as the product's right side was before."""
    if not 3 <= len(use.inputs) <= 4:  # a fifth input regroups the columns
        return
    weight, scale, *zeros = [by_name.get(name) for name in use.inputs[1:]]
    rows, columns, block = use.numbers.get("N", 0), use.numbers.get("K", 0), use.numbers.get("block_size", 0)
    bits = use.numbers.get("bits", 4)
    if weight is None or scale is None or weight.value is None or scale.value is None:
        return
    if bits not in (4, 8) or min(rows, columns, block) < 1:
        return
    zero = zeros[0] if zeros else None
    if zero is None and use.inputs[3:] not in ((), ("",)):  # computed, or where it cannot be seen
        return
    count = -(-columns // block)
    fits = weight.dtype == "U8" and prod(weight.shape) == rows * count * block * bits // 8 and scale.dtype in ("F32", "F16")
    if not fits or prod(scale.shape) != rows * count:
        return
    parts: list[Any] = [
        ops.typed(weight.value, "U8", (rows, count * block * bits // 8)),
        ops.typed(scale.value, scale.dtype, (rows, count)),
    ]
    if zero is not None:
        packed = -(-count * bits // 8)
        if zero.dtype != "U8" or zero.value is None or prod(zero.shape) != rows * packed:
            return
        parts.append(ops.typed(zero.value, "U8", (rows, packed)))
    made = ops.transpose(ops.dequant("onnx_blocks", *parts, columns=columns, block=block, bits=bits))
    used = [weight.name, scale.name, *([zero.name] if zero else [])]
    yield Tensor(_BLOCK_NAME.sub("", weight.name), "F32", (columns, rows), made, view="logical"), used


# --- the op -------------------------------------------------------------------------------------------------------


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    (kind, shape), (scale, scales) = inputs[0], inputs[1]
    columns, block, bits = args["columns"], args["block"], args["bits"]
    count = -(-columns // block)
    if kind != "U8" or scale not in ("F32", "F16") or bits not in (4, 8) or len(inputs) > 3:
        raise ValueError(f"dequant.onnx_blocks takes U8, F32 or F16 scales and U8 zero points, not {[one[0] for one in inputs]}")
    if shape != (shape[0], count * block * bits // 8) or scales != (shape[0], count):
        raise ValueError(f"dequant.onnx_blocks: {columns} columns in blocks of {block} do not fit {shape} and {scales}")
    if len(inputs) == 3 and inputs[2][1] != (shape[0], -(-count * bits // 8)):
        raise ValueError(f"dequant.onnx_blocks: zero points of {inputs[2][1]}")
    return "F32", (shape[0], columns)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """(quantized - zero point) x scale in float32, as onnxruntime's own kernels dequantize."""
    import numpy as np

    columns, block, bits = args["columns"], args["block"], args["bits"]
    count, rows = -(-columns // block), stop - start
    values = _unpacked(sources[0].read(start, stop), bits).reshape(rows, count, block).astype(np.float32)
    scales = sources[1].read(start, stop).astype(np.float32).reshape(rows, count, 1)
    if len(sources) > 2:
        zeros = _unpacked(sources[2].read(start, stop), bits)[:, :count].astype(np.float32).reshape(rows, count, 1)
    else:
        zeros = np.float32(1 << (bits - 1))
    return np.ascontiguousarray(((values - zeros) * scales).reshape(rows, count * block)[:, :columns])


def _unpacked(data: Any, bits: int) -> Any:
    """Rows of bytes as rows of numbers; of two in a byte the low half comes first."""
    import numpy as np

    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(data.shape[0], -1)


OPS = (
    *dequantize.OPS,
    *trained.OPS,
    Op(
        name="dequant.onnx_blocks",
        rows=_rows,
        infer=_infer,
        needs=lambda inputs, args, start, stop: [(start, stop)] * len(inputs),
    ),
)

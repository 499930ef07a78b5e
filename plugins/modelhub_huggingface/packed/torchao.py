"""torchao's tensors, where their numbers are plain: INT8, FP8, and narrow integers of a byte each.

In safetensors a weight ``m.weight`` is ``m._weight_qdata``, ``m._weight_scale`` and maybe ``m._weight_zero_point``, and the free
text ``m.weight`` of the container says the class (torchao ``prototype/safetensors/safetensors_support.py``). In a pickle the
parts are ``m.weight.qdata`` and so on, of a tensor subclass. Scales are one for all, one a row, or one a group of columns:
``(qdata - zero_point) x scale`` (``quantization/quant_primitives.py``, ``dequantize_affine``). NVFP4Tensor and MXTensor have
small floats and a scale for 16 or 32 of them, in rows or in the order of cuBLAS' blocks (``prototype/mx_formats``). Tensors that
are packed for a kernel (Int4Tensor, Int4TilePackedTo4dTensor and others) are told only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from modelhub import Node, Tensor, ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, typed, whole

PLAIN = {"Int8Tensor": ("I8",), "IntxUnpackedToInt8Tensor": ("I8",), "Float8Tensor": ("F8_E4M3", "F8_E5M2")}
SMALL = {"NVFP4Tensor": (16, ("U8",), ("F8_E4M3",)), "MXTensor": (32, ("U8", "F8_E4M3", "F8_E5M2"), ("F8_E8M0", "U8"))}
"""Class -> how many numbers share a scale, what they are, what scales are."""
_SUBCLASS = "tensor subclass "
MAX_TEXT = 1 << 16
_KINDS = (
    ("nvfp4", "NVFP", 4),
    ("mx", "MXFP", 8),
    ("float8", "FP", 8),
    ("int8dynamicactivationint4", "INT", 4),
    ("int8", "INT", 8),
    ("int4", "INT", 4),
)
"""How a configuration's class starts -> letters and bits of its weights."""


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every weight with ``qdata``."""
    for name, tensor in source.tensors.items():
        module, _, last = name.rpartition(".")
        if last == "qdata" and module in source.tensors:  # a pickle's
            wrapper = source.tensors[module]
            kind = wrapper.unsupported.removeprefix(_SUBCLASS).rpartition(".")[2]
            found = _whole(source, module, tensor, f"{module}.", kind, wrapper.dtype)
            yield Kept(module, found) if isinstance(found, str) else found._replace(parts=(module, *found.parts))
        elif last.startswith("_") and last.endswith("_qdata"):
            stem = last[1:].removesuffix("_qdata")
            weight = f"{module}.{stem}" if module else stem
            kind, dtype = _said(source.texts.get(weight, ""))
            found = _whole(source, weight, tensor, name.removesuffix("qdata"), kind, dtype or source.dtype)
            yield Kept(name, found) if isinstance(found, str) else found


def _said(text: str) -> tuple[str, str]:
    """(class, our dtype of the whole) from the text beside the tensors."""
    try:
        said = json.loads(text) if len(text) < MAX_TEXT else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return "", ""
    data = said.get("_data")
    dtype = data.get("dtype", data.get("orig_dtype")) if isinstance(data, dict) else None
    name = dtype.get("_data") if isinstance(dtype, dict) else None
    known = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    return str(said.get("_type"))[:80], known.get(name, "") if isinstance(name, str) else ""


def _whole(source: Stored, weight: str, tensor: Tensor, prefix: str, kind: str, dtype: str) -> Whole | str:
    """The weight that the parts called ``prefix`` + ... make, or why there is none."""
    if kind in SMALL:
        return _small(source, weight, tensor, prefix, kind, dtype)
    if kind not in PLAIN:
        return f"torchao's {kind or 'tensors of no known class'} are not read; {', '.join((*PLAIN, *SMALL))} are"
    if len(tensor.shape) != 2:
        return f"{tensor.name} has the shape {list(tensor.shape)}: a matrix was expected"
    scale = source.tensors.get(f"{prefix}scale")
    why = lack(source.tensors, {tensor.name: PLAIN[kind], f"{prefix}scale": FLOATS})
    if why or scale is None:
        return why
    for part in ("act_pre_scale",):
        if f"{prefix}{part}" in source.tensors:
            return f"{prefix}{part} scales activations before the weight: the weight alone is not the layer"
    parts = [tensor, scale]
    zero = source.tensors.get(f"{prefix}zero_point")
    if zero is not None and zero.value is not None:
        parts.append(zero)
    others = [name for name in (f"{prefix}act_quant_scale", f"{prefix}act_quant_zero_point") if name in source.tensors]
    row_block = group = 0
    if len(scale.shape) == 2 and scale.shape[0] not in (1, tensor.shape[0]) and 0 not in scale.shape:
        row_block, group = (-(-side // count) for side, count in zip(tensor.shape, scale.shape, strict=True))
    args = rows.layout(tensor.shape[1], dtype if dtype in FLOATS else "F32", row_block=row_block or 1, group=group)
    try:
        if zero is not None and prod(zero.shape) == 1 and prod(tensor.shape[:1]) != 1:
            if any(source.read(zero, 8)):
                return f"{zero.name} is one zero point for the whole matrix"
            others.append(parts.pop().name)
        value = ops.dequant("rows", *(typed(part) for part in parts), **args)
    except ValueError as error:
        return str(error)
    return whole(weight, value, (*(part.name for part in parts), *others))


def _small(source: Stored, weight: str, tensor: Tensor, prefix: str, kind: str, dtype: str) -> Whole | str:
    """The weight of small floats that the parts called ``prefix`` + ... make, or why there is none."""
    group, kinds, scale_kinds = SMALL[kind]
    why = lack(source.tensors, {tensor.name: kinds, f"{prefix}scale": scale_kinds})
    if why:
        return why
    scale, one = source.tensors[f"{prefix}scale"], source.tensors.get(f"{prefix}per_tensor_scale")
    factor = struct.unpack("<f", source.read(one, 4) or bytes(4))[0] if one is not None and one.dtype == "F32" else 1.0
    if len(tensor.shape) < 2 or 0 in tensor.shape or not 0 < factor < float("inf"):
        return f"{tensor.name} {list(tensor.shape)} with the scale {factor} is no matrix"
    count, columns = prod(tensor.shape[:-1]), tensor.shape[-1] * (2 if tensor.dtype == "U8" else 1)
    assert tensor.value is not None
    try:
        numbers = ops.typed(tensor.value, tensor.dtype, (count, tensor.shape[-1]))
        scales = _in_rows(scale, tensor.shape[:-1], -(-columns // group))
        args = rows.layout(columns, dtype if dtype in FLOATS else "BF16", group=group, factor=factor)
        value = ops.dequant("rows", numbers, scales, **args)
        named = (f"{prefix}{part}" for part in ("per_tensor_scale", "act_per_tensor_scale"))
        others = [name for name in named if name in source.tensors]
        return whole(weight, ops.typed(value, args["dtype"], (*tensor.shape[:-1], columns)), (tensor.name, scale.name, *others))
    except ValueError as error:
        return str(error)


def _in_rows(scale: Tensor, leading: tuple[int, ...], columns: int) -> Node:
    """Scales as a matrix of ``columns`` for each row. In cuBLAS' order they are padded to tiles of 128 x 4,
    of which each is 32 x 4 x 4."""
    assert scale.value is not None
    count = prod(leading)
    if scale.shape == (*leading, columns):
        return ops.typed(scale.value, scale.dtype, (count, columns))
    high, wide = -(-count // 128), -(-columns // 4)
    if len(leading) != 1 or prod(scale.shape) != high * wide * 512:
        raise ValueError(f"scales {list(scale.shape)} do not fit {list(leading)} rows of {columns} groups")
    tiles = ops.typed(scale.value, scale.dtype, (high, wide, 32, 4, 4))
    padded = ops.typed(ops.transpose(tiles, (0, 3, 2, 1, 4)), scale.dtype, (high * 128, wide * 4))
    return ops.slice_(ops.slice_(padded, 0, count), 0, columns, axis=1)


SCHEME = Scheme(methods=("torchao",), unpack=unpack)


def label(settings: Mapping[str, Any]) -> tuple[str, int, int | None]:
    """(what people call it, bits, group size) from ``quant_type``: a configuration's class and fields, or an older name."""
    found = settings.get("quant_type")
    if isinstance(found, str):
        name, data = found, settings.get("quant_type_kwargs") or {}
    else:
        inner = found.get("default") if isinstance(found, dict) else None
        name = str(inner.get("_type")) if isinstance(inner, dict) else ""
        data = inner.get("_data") if isinstance(inner, dict) else None
    data = data if isinstance(data, dict) else {}
    text = name.lower().replace("_", "")
    kind, bits = "", 0
    for start, letters, count in _KINDS:
        if text.startswith(start):
            kind, bits = letters, count
            break
    weight = data.get("weight_dtype")
    weight = weight.get("_data") if isinstance(weight, dict) else None
    if isinstance(weight, str) and weight.startswith(("int", "uint")) and weight.lstrip("uint").isdigit():
        kind, bits = "INT", min(64, int(weight.lstrip("uint")[:3]))
    if kind == "MXFP" and isinstance(weight, str) and weight.startswith("float4"):
        bits = 4
    group = data.get("group_size")
    for field in ("granularity", "weight_granularity"):
        inner = data.get(field)
        inner = inner.get("_data") if isinstance(inner, dict) else None
        group = inner.get("group_size", group) if isinstance(inner, dict) else group
    return (f"TORCHAO-{kind}{bits}" if kind else "TORCHAO"), bits, group if type(group) is int and 0 < group < 1 << 31 else None

"""Weights beside their scales: compressed-tensors, FP8 of several makers, and NVFP4.

What a module holds says what it is: ``weight_packed`` (INT4 or INT8 in words, or FP4), or a ``weight`` of FP8 or INT8, with
``weight_scale`` (or ``weight_scale_inv``, ``scale``, ``qscale_weight``: all multiply), ``weight_zero_point``, ``weight_g_idx``,
``weight_global_scale`` (divides) or ``weight_scale_2`` (multiplies). INT8 beside powers of two is FP4, two in a byte. Scales of
activations are no part of a weight. (compressed-tensors ``compressors/``, ``quantization/lifecycle/forward.py``; DeepSeek-V3
``inference/fp8_cast_bf16.py``; transformers ``integrations/finegrained_fp8.py``; modelopt ``torch/export``.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from modelhub import Inline, Tensor, ops

from modelhub_huggingface.packed import fused, marlin, rows, sparse
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, typed, whole

METHODS = ("compressed-tensors", "fp8", "finegrained_fp8", "fbgemm_fp8", "mxfp8", "modelopt")
_SCALES = ("weight_scale", "weight_scale_inv", "scale", "qscale_weight")
NUMBERS = ("F8_E4M3", "F8_E5M2", "I8", "U8")
BLOCK = 128
"""Rows and columns of DeepSeek's blocks, where ``weight_block_size`` says nothing else."""


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with packed, FP8, INT8 or sparse weights."""
    yield from _sparse(source)
    yield from fused.unpack(source)
    for name, tensor in source.tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight_packed" and member(module, "scale_packed") in source.tensors:
            found = marlin.module(source, module, marlin.SPARSE[0])
            yield Kept(name, found) if isinstance(found, str) else found
        elif last == "weight_packed" or (last == "weight" and tensor.dtype in NUMBERS):
            found = _module(source, module, tensor)
            yield Kept(name, found) if isinstance(found, str) else found


def _sparse(source: Stored) -> Iterator[Whole | Kept]:
    """Every module whose weight keeps what is not zero."""
    for module, (dense, parts) in sparse.expanded(source).items():
        if isinstance(dense, str):
            yield Kept(parts[0], dense)
        elif dense.dtype in FLOATS:
            yield Whole(dense._replace(view="logical"), parts)
        else:
            found = _module(source, module, dense)
            yield Kept(parts[0], found) if isinstance(found, str) else found._replace(parts=(*parts, *found.parts[1:]))


def _module(source: Stored, module: str, tensor: Tensor) -> Whole | str:
    """The whole of a module, or why there is none."""
    tensors = source.tensors
    scale = next((tensors[member(module, name)] for name in _SCALES if member(module, name) in tensors), None)
    if scale is None:
        return f"there is no {member(module, _SCALES[0])}"
    why = lack({**tensors, tensor.name: tensor}, {tensor.name: ("I32", *NUMBERS), scale.name: rows.SCALES})
    if why:
        return why
    if tensor.dtype == "I8" and scale.dtype in ("F8_E8M0", "U8") and tensor.value is not None:  # FP4, two in a byte
        tensor = tensor._replace(dtype="U8", value=ops.typed(tensor.value, "U8", tensor.shape))
    parts = [tensor, scale]
    if tensor.dtype in ("I32", "I8"):
        for name in ("weight_zero_point", "weight_g_idx"):
            found = tensors.get(member(module, name))
            if found is not None and found.value is not None and 0 not in found.shape:
                parts.append(found)
    factor = 1.0
    others: list[str] = []
    for name, inverse in (("weight_global_scale", True), ("weight_scale_2", False)):
        part = tensors.get(member(module, name))
        if part is not None:
            number = _number(source, part)
            if not number:
                return f"{part.name} is no number"
            factor = 1 / number if inverse else number
            others.append(part.name)
    shape = tensors.get(member(module, "weight_shape"))
    columns, bits = _columns(source, tensor, shape, scale)
    if shape is not None:
        others.append(shape.name)
    if len(tensor.shape) != 2 or not columns:
        return f"{tensor.name} {list(tensor.shape)} is no matrix of the bits that the settings say"
    row_block, group = _block(source, tensor, columns, scale)
    dtype = scale.dtype if scale.dtype in ("F16", "BF16") else source.dtype if source.dtype in FLOATS else "F32"
    args = rows.layout(columns, dtype, bits=bits, row_block=row_block, group=group, factor=factor)
    try:
        value = ops.dequant("rows", *(typed(part) for part in parts), **args)
    except ValueError as error:
        return str(error)
    return whole(member(module, "weight"), value, (*(part.name for part in parts), *others))


def _block(source: Stored, tensor: Tensor, columns: int, scale: Tensor) -> tuple[int, int]:
    """Rows and columns that share a scale; (1, 0) where the scales' shape says it: one for all, or so many a row."""
    if len(scale.shape) != 2 or scale.shape[0] == tensor.shape[0] or prod(scale.shape) <= 1:
        return 1, 0
    rows = tensor.shape[0]
    sides = source.settings.get("weight_block_size") or _block_structure(source.settings)
    high, wide = sides if isinstance(sides, list) and _are_sides(sides) else (BLOCK, BLOCK)
    fits = (-(-rows // high), -(-columns // wide)) == scale.shape
    if tensor.dtype in fused.FLOAT8 and not fits and not (rows % scale.shape[0] or columns % scale.shape[1]):
        return rows // scale.shape[0], columns // scale.shape[1]
    return high, wide


def _block_structure(settings: Mapping[str, Any]) -> Any:
    """Rows and columns of a block where compressed-tensors names them: in the first group of weights that has any."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("block_structure"):
            return weights["block_structure"]
    return None


def _are_sides(sides: list[Any]) -> bool:
    return len(sides) == 2 and all(type(side) is int and 0 < side <= 1 << 20 for side in sides)


def _number(source: Stored, tensor: Tensor) -> float:
    if tensor.dtype != "F32" or prod(tensor.shape) != 1:
        return 0.0
    data = tensor.value.data if isinstance(tensor.value, Inline) else source.read(tensor, 4)
    number = struct.unpack("<f", data)[0] if len(data) == 4 else 0.0
    return float(number) if 0 < number < float("inf") else 0.0


def _columns(source: Stored, tensor: Tensor, shape: Tensor | None, scale: Tensor) -> tuple[int, int]:
    """(columns of the whole, bits of packed numbers); no columns where nothing tells them."""
    units = tensor.shape[-1] if tensor.shape else 0
    if tensor.dtype == "U8":
        groups = scale.shape[-1] if len(scale.shape) > 1 else 1
        if groups > 1 and units * 4 == groups * 32 * 3:  # FP4 has no groups of 48
            return groups * 32, 6
        return (0, 0) if 6 in _said_bits(source.settings) else (units * 2, 0)
    if tensor.dtype != "I32":
        return units, 0
    data = source.read(shape, 16) if shape is not None else b""
    kind = {"I64": "<2q", "I32": "<2i"}.get(shape.dtype if shape is not None else "", "")
    said = struct.unpack(kind, data)[1] if kind and len(data) == struct.calcsize(kind) else 0
    known = _said_bits(source.settings)
    if not said:
        bits = min(known) if len(known) == 1 else 4
        return units * 32 // bits, bits
    for bits in (4, 8, 2, 1, 3, 5, 6, 7):
        if -(-said * bits // 32) == units and (not known or bits in known):
            return said, bits
    return 0, 0


def _said_bits(settings: Mapping[str, Any]) -> set[int]:
    """Bits of the weights in any of compressed-tensors' groups."""
    groups = settings.get("config_groups")
    found = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    bits = [weights.get("num_bits") for weights in found if isinstance(weights, dict)]
    return {count for count in bits if type(count) is int and 1 <= count <= 8}


_SIDES = ("input", "output", "q", "k", "v", "k_cache", "v_cache")
ACTIVATIONS = (
    *(f"{side}_{what}" for side in _SIDES for what in ("scale", "zero_point", "global_scale")),
    *(f"{name}activation_scale" for name in ("", "gate_up_proj_", "up_proj_", "down_proj_")),
    "qscale_act",
)
"""Of what goes into a layer, comes out of it, or is kept of attention (compressed-tensors ``quantization/lifecycle/``)."""
SCHEME = Scheme(methods=METHODS, unpack=unpack, ops=(*rows.OPS, *sparse.OPS, *fused.OPS), beside=ACTIVATIONS)

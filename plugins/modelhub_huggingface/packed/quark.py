"""Quark: FP8, INT8 and FP4 beside their scales, and four bits in words, packed along the output as AWQ packs them.

``weight`` I32 (K, N / 8), ``weight_scale`` (G, N), ``weight_zero_point`` I32 (G, N / 8). ``pack_method`` says whether the eight
of a word stand in AWQ's order ("reorder") or in their own; numbers of ``int4`` have a sign. What else the settings name (2, 3 and
6 bits, four of one scale a channel) is told only. (quark ``torch/utils/pack.py``, ``torch/export``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed import awq, scaled
from modelhub_huggingface.packed.numbers import affine, columns_of, float32_of, kept, stored
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

BESIDE_SCALES = frozenset({"fp8_e4m3", "fp8_e5m2", "int8", "fp4"})
WORDS = frozenset({"int4", "uint4"})
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every ``weight`` with a scale."""
    kinds = said(source.settings)
    strange = ", ".join(sorted(kinds - BESIDE_SCALES - WORDS))
    apart = set()
    for module in modules(source.tensors, "weight"):
        name = member(module, "weight")
        dtype = source.tensors[name].dtype
        if dtype == "I32":
            found = _words(source, module, kinds)
            yield Kept(name, found) if isinstance(found, str) else found
        elif dtype == "U8" and strange:
            apart.add(name)
            yield Kept(name, f"Quark's {strange:.60} is not read")
    yield from scaled.unpack(source._replace(tensors={key: one for key, one in source.tensors.items() if key not in apart}))


def said(settings: Mapping[str, Any]) -> set[str]:
    """What the settings call the weights of any layer."""
    layers = [settings.get("global_quant_config")]
    for key in ("layer_quant_config", "layer_type_quant_config"):
        own = settings.get(key)
        layers += own.values() if isinstance(own, dict) else []
    weights = [layer.get("weight") for layer in layers if isinstance(layer, dict)]
    names = [weight.get("dtype") for weight in weights if isinstance(weight, dict)]
    return {name for name in names if isinstance(name, str)}


def _words(source: Stored, module: str, kinds: set[str]) -> Whole | str:
    signs = kinds & WORDS
    if len(signs) != 1:
        return f"the settings do not say whether four bits have a sign: {', '.join(sorted(kinds)):.80}"
    names = [member(module, part) for part in ("weight", "weight_scale", "weight_zero_point")]
    parts = names if names[2] in source.tensors else names[:2]
    why = lack(source.tensors, dict(zip(parts, (("I32",), FLOATS, ("I32",)), strict=False)))
    if why:
        return why
    export = source.settings.get("export")
    method = export.get("pack_method", "reorder") if isinstance(export, dict) else "reorder"
    try:
        value = ops.dequant(
            "quark", *(typed(source.tensors[part]) for part in parts), signed="int4" in signs, reordered=method == "reorder"
        )
    except ValueError as error:
        return str(error)
    return whole(names[0], value, tuple(parts))


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    shapes = [shape for _, shape in inputs]
    if len(shapes) not in (2, 3) or any(len(shape) != 2 for shape in shapes) or inputs[1][0] not in FLOATS:
        raise ValueError(f"Quark's words take scales of groups, not {[list(shape) for shape in shapes][1:4]}")
    (inner, words), (groups, columns) = shapes[:2]
    if words * 8 != columns or groups < 1 or inner % groups or shapes[2:] not in ([], [(groups, words)]):
        raise ValueError(f"words {list(shapes[0])} and scales {list(shapes[1])} are no groups of 4 bits")
    return inputs[1][0], (columns, inner)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    order = awq.ORDER if args["reordered"] else tuple(range(8))
    packed = [awq.columns(source, start, stop, order) for source in (sources[0], *sources[2:])]
    if args["signed"]:
        packed = [(part ^ np.uint8(8)).astype(np.int8) - np.int8(8) for part in packed]
    scales = float32_of(columns_of(sources[1], start, stop).T, sources[1].dtype)
    zeros = packed[1].astype(np.float32) if len(packed) > 1 else None
    return stored(affine(packed[0], zeros, scales, None, packed[0].shape[1] // scales.shape[1]), sources[1].dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    inner, words = inputs[0][1]
    return int(kept(4 * inner * words) + 16 * rows * inner)


OPS = (Op(name="dequant.quark", rows=_rows, infer=_infer, memory=_memory),)
SCHEME = Scheme(methods=("quark",), unpack=unpack, ops=OPS, beside=scaled.ACTIVATIONS)

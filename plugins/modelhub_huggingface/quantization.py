"""How a checkpoint was quantized, from ``quantization_config`` and its older relatives: what people call it, and its settings.

What the packed words stand for is the business of `modelhub_huggingface.packed`. (transformers ``utils/quantization_config.py``
names the methods and their fields; ``quantize_config.json`` is AutoGPTQ's and ``quant_config.json`` AutoAWQ's file of before,
``quanto_qmap.json`` quanto's.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from modelhub_huggingface.config import is_count, text
from modelhub_huggingface.packed import hqq, quanto, quark, torchao

OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "quanto_qmap.json": "quanto"}


KEYS = ("quantization_config", "compression_config", "quantization")
"""Where ``config.json`` says it."""


_NAMES = {"marlin": "gptq", "gptq_marlin_24": "gptq", "auto-round": "autoround", "intel/auto-round": "autoround"}
"""Methods that are called by another's name: they are its layouts for a kernel."""


class Quantization(NamedTuple):
    """``label``: the precision in words; ``shown``: the settings that are shown; ``method`` and ``said``: what the directory says
    itself. All empty where the weights are plain."""

    label: str = ""
    shown: Mapping[str, Any] = MappingProxyType({})
    method: str = ""
    said: Mapping[str, Any] = MappingProxyType({})


def quantization(config: Mapping[str, Any], older: Mapping[str, Any] | None = None, older_method: str = "") -> Quantization:
    """How a checkpoint was quantized. ``older``: the contents of one of `OLDER_FILES`."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, dict):
        inner = config.get("text_config")
        found = inner.get("quantization_config") if isinstance(inner, dict) else None
    method = ""
    own = config.get("quantization")  # mlx-lm, which writes it under the name of the others as well
    if isinstance(own, dict) and not (isinstance(found, dict) and text(found.get("quant_method"))):
        found, method = own, "mlx"
    if not isinstance(found, dict):
        if older:
            found, method = dict(older), older_method
        else:
            return Quantization()
    method = (text(found.get("quant_method")) or method).lower() or _guess(found)
    settings: dict[str, Any] = {"method": method}
    bits = _bits(found)
    group = next(
        (found[key] for key in ("group_size", "q_group_size") if type(found.get(key)) is int and abs(found[key]) < 1 << 31), None
    )
    if method == "compressed-tensors":
        label, bits, group = _compressed(found)
        if not label and isinstance(found.get("sparsity_config"), dict):
            return Quantization("", settings, method, found)  # sparse, not quantized
    elif method == "bitsandbytes":
        kind = (text(found.get("bnb_4bit_quant_type")) or "fp4").upper() if found.get("load_in_4bit") is True else "INT8"
        bits, label = (4 if found.get("load_in_4bit") is True else 8), f"BNB-{kind}"
    elif method in ("fp8", "fbgemm_fp8", "finegrained_fp8"):
        bits, label = 8, "FP8"
    elif method == "mxfp4":
        bits, label = 4, "MXFP4"
    elif method == "torchao":
        label, bits, group = torchao.label(found)
    elif method == "quark":
        kinds = quark.said(found)
        kind = kinds.pop() if len(kinds) == 1 else ""
        label = f"QUARK-{kind.partition('_')[0].removeprefix('u').upper():.8}" if kind else "QUARK"
        layers = found.get("global_quant_config")
        weights = layers.get("weight") if isinstance(layers, dict) else None
        size = weights.get("group_size") if isinstance(weights, dict) else None
        group = size if type(size) is int and 0 < size < 1 << 31 else None
    elif method == "quanto":
        label = quanto.label(found)
    elif method == "hqq":
        inner, size = hqq.said(found)
        bits, group = inner or bits, size or group
        label = f"HQQ-INT{bits}" if bits else "HQQ"
    elif method == "mlx" and text(found.get("mode")) in ("mxfp4", "nvfp4", "mxfp8"):
        label, group = f"MLX-{text(found.get('mode')).upper()}", None
    elif method == "modelopt":
        label = text(found.get("quant_algo")).upper() or "MODELOPT"
    elif method in ("exl2", "exl3") and type(found.get("bits")) in (int, float) and 0 < found["bits"] <= 16:
        label = f"{method.upper()} {found['bits']:g}bpw"  # a mean over tensors, whose bits differ
        settings["bits"] = found["bits"]
    else:
        name = _NAMES.get(method, method).upper()
        label = f"{name}-INT{bits}" if bits else name
    if bits:
        settings["bits"] = bits
    if group is not None:
        settings["group_size"] = group
    if isinstance(found.get("desc_act"), bool):
        settings["desc_act"] = found["desc_act"]
    label = label or method.upper()
    if is_count(group) and re.search(r"\bINT\d+$", label):
        label = f"{label} g{group}"
    return Quantization(label, settings, method, found)


def _guess(found: Mapping[str, Any]) -> str:
    if any(isinstance(found.get(key), bool) for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"
    return "quantized"


def _bits(found: Mapping[str, Any]) -> int:
    for key in ("bits", "w_bit", "nbits", "num_bits", "weight_bits"):
        value = found.get(key)
        if is_count(value) and 0 < value <= 64:
            return value
    return 0


def _compressed(found: Mapping[str, Any]) -> tuple[str, int, int | None]:
    """(label, bits, group size) of the first group's weights in a compressed-tensors configuration."""
    groups = found.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    if not isinstance(weights, dict):
        return "", 0, None
    bits = _bits(weights)
    group = weights.get("group_size")
    for kind in ("nvfp4", "mxfp4", "mxfp6", "mxfp8"):
        if text(found.get("format")).startswith(kind):
            return kind.upper(), bits, group if is_count(group) else None
    kind = {"float": "FP", "int": "INT"}.get(text(weights.get("type")), "")
    return (f"{kind}{bits}" if kind and bits else ""), bits, group if is_count(group) else None

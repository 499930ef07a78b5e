"""Gemma as it is shipped after quantization-aware training: 2, 4 or 8 bits, and one scale a row, or several.

Linear layers have ``weight`` and ``weight_scale``, embeddings ``embedding_quantized`` and ``embedding_scale``. Narrow numbers are
stored plus half their range, the lowest bits first. How many bits a module has is said by the settings: ``num_bits``, or that of
the first pattern of ``module_quant_configs`` that is found in its name. Scales are rounded to the model's dtype before they are
used, as the model computes. (transformers ``integrations/gemma_quant.py``.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import Node, Tensor, ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

PAIRS = (("weight", "weight_scale"), ("embedding_quantized", "embedding_scale"))
_PATTERN = re.compile(r"(?:[\w-]|\\[.d]|\\d\+|\.[*+]?|[\^$|]|\((?:\?:)?|\)(?![*+?{]))*")
"""What is taken of regular expressions: nothing that repeats what repeats, so that a search ends."""
_LONG = 200


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every pair of numbers and scales."""
    for last, scale_name in PAIRS:
        for module in modules(source.tensors, scale_name):
            numbers, scale = member(module, last), member(module, scale_name)
            why = lack(source.tensors, {numbers: ("U8", "I8"), scale: FLOATS})
            if not why:
                try:
                    value = _value(source, module, source.tensors[numbers], source.tensors[scale])
                except ValueError as error:
                    why = str(error)
                else:
                    yield whole(member(module, "weight"), value, (numbers, scale))
            if why:
                yield Kept(numbers if numbers in source.tensors else scale, why)


def _value(source: Stored, module: str, tensor: Tensor, scale: Tensor) -> Node:
    bits = _bits(source.settings, module)
    if len(tensor.shape) != 2 or (bits == 8) != (tensor.dtype == "I8"):
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)} is no matrix of {bits} bits")
    dtype = source.dtype if source.dtype in FLOATS else "F32"
    count, units = tensor.shape
    columns = units * 8 // bits
    scales = typed(scale)
    if dtype != scale.dtype:
        scales = ops.typed(ops.cast(scales, scale.dtype, scale.shape, dtype), dtype, scale.shape)
    numbers = typed(tensor)
    if bits != 8:
        assert tensor.value is not None
        numbers = ops.typed(tensor.value, "I32", (count, units // 4))
    return ops.dequant("rows", numbers, scales, **rows.layout(columns, dtype, bits=bits % 8))


def _bits(settings: Mapping[str, Any], module: str) -> int:
    """Bits of a module's numbers. ValueError where the settings do not say."""
    found = settings.get("num_bits", 4)
    own = settings.get("module_quant_configs")
    for pattern, options in own.items() if isinstance(own, dict) else ():
        known = len(pattern) <= _LONG and len(module) <= _LONG and _PATTERN.fullmatch(pattern)
        if not known or len(re.findall(r"\.[*+]", pattern)) > 2:
            raise ValueError(f"the pattern {pattern!r:.60} is not understood")
        try:
            matches = re.search(pattern, module)
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r:.60} is none: {error}") from error
        if matches:
            found = options.get("num_bits", found) if isinstance(options, dict) else found
            break
    if found not in (2, 4, 8) or type(found) is not int:
        raise ValueError(f"numbers of {found!r:.20} bits are not read; 2, 4 and 8 are")
    return found


ACTIVATIONS = ("input_activation_scale", "output_activation_scale", "k_cache_scale", "v_cache_scale")
SCHEME = Scheme(methods=("gemma",), unpack=unpack, beside=ACTIVATIONS)

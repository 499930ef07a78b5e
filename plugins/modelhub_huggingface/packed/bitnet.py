"""BitNet: weights of -1, 0 and 1, four in a byte, and one scale.

``weight`` U8 (N / 4, K): the lowest two bits of the bytes are the first quarter of the rows, plus one, the next two the second,
and so on. ``weight_scale`` divides ("bitlinear"), or multiplies ("autobitlinear"). Models
that are quantized as they run ("online") have plain weights. (transformers ``integrations/bitnet.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed.numbers import float32_of, planes, stored, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every packed weight with a scale."""
    divides = source.settings.get("linear_class", "bitlinear") == "bitlinear"
    for module in modules(source.tensors, "weight_scale"):
        weight, scale = member(module, "weight"), member(module, "weight_scale")
        why = lack(source.tensors, {weight: ("U8", "I8"), scale: FLOATS})
        if not why:
            tensor = source.tensors[weight]
            assert tensor.value is not None
            dtype = source.dtype if source.dtype in FLOATS else source.tensors[scale].dtype
            try:
                words = ops.typed(tensor.value, "U8", tensor.shape)
                value = ops.dequant("ternary", words, typed(source.tensors[scale]), dtype=dtype, divides=divides)
            except ValueError as error:
                why = str(error)
            else:
                yield whole(weight, value, (weight, scale))
        if why:
            yield Kept(weight if weight in source.tensors else scale, why)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    if len(inputs) != 2 or inputs[0][0] != "U8" or len(inputs[0][1]) != 2 or 0 in inputs[0][1]:
        raise ValueError(f"BitNet takes a matrix of bytes and a scale, not {list(inputs)[:3]}")
    if inputs[1][0] not in FLOATS or prod(inputs[1][1]) != 1 or args["dtype"] not in FLOATS:
        raise ValueError(f"BitNet takes one scale, not {inputs[1][0]} {list(inputs[1][1])}")
    rows, columns = inputs[0][1]
    return args["dtype"], (rows * 4, columns)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    numbers = planes(sources[0], 2, 4, start, stop, lowest_first=True) - np.float32(1)
    scale = float32_of(whole_of(sources[1]).reshape(1), sources[1].dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        return stored(numbers / scale if args["divides"] else numbers * scale, args["dtype"])


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    return int(12 * rows * inputs[0][1][1])


OPS = (Op(name="dequant.ternary", rows=_rows, infer=_infer, memory=_memory),)
SCHEME = Scheme(methods=("bitnet",), unpack=unpack, ops=OPS)

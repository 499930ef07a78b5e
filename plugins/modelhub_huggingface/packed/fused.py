"""Fused experts of FP8 beside their scales: ``gate_up_proj`` (E, N, K) with ``gate_up_proj_scale_inv`` or ``gate_up_proj_scale``.

Scales are one for each block of rows and columns of an expert, or of any side one for all of it. (transformers
``integrations/finegrained_fp8.py``, ``integrations/fbgemm_fp8.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, Tensor, ops

from modelhub_huggingface.packed.numbers import float32_of, stored, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Stored, Whole, lack, whole

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = (*FLOATS, "F8_E8M0", "U8")
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every FP8 tensor that is no module's ``weight`` with the scales that are called after it, and experts without."""
    for name, tensor in source.tensors.items():
        if tensor.dtype not in FLOAT8 or name.rpartition(".")[2] == "weight":
            continue
        scale = next((found for found in (f"{name}_scale_inv", f"{name}_scale") if found in source.tensors), "")
        if scale:
            found = _whole(source, tensor, source.tensors[scale])
            yield Kept(name, found) if isinstance(found, str) else found
        elif len(tensor.shape) == 3:
            yield Kept(name, f"there is no {name}_scale_inv")


def _whole(source: Stored, tensor: Tensor, scale: Tensor) -> Whole | str:
    why = lack(source.tensors, {tensor.name: FLOAT8, scale.name: SCALES})
    if why:
        return why
    if len(tensor.shape) != 3 or len(scale.shape) != 3 or 0 in tensor.shape or scale.shape[0] != tensor.shape[0]:
        return f"{tensor.name} {list(tensor.shape)} and scales {list(scale.shape)} are no experts"
    experts, rows, columns = tensor.shape
    sides = source.settings.get("weight_block_size")
    block = [1, 1]
    for axis, side in enumerate((rows, columns)):
        count = scale.shape[axis + 1]
        said = sides[axis] if isinstance(sides, list) and len(sides) == 2 and type(sides[axis]) is int else 0
        fits = said > 0 and -(-side // said) == count
        block[axis] = said if fits else -(-side // max(1, count))
    assert tensor.value is not None
    assert scale.value is not None
    numbers = ops.typed(tensor.value, tensor.dtype, (experts * rows, columns))
    scales = ops.typed(scale.value, scale.dtype, (prod(scale.shape[:2]), scale.shape[2]))
    dtype = scale.dtype if scale.dtype in ("F16", "BF16") else source.dtype if source.dtype in FLOATS else "F32"
    try:
        value = ops.dequant("experts", numbers, scales, rows=rows, block=block, dtype=dtype)
        return whole(tensor.name, ops.typed(value, dtype, tensor.shape), (tensor.name, scale.name))
    except ValueError as error:
        return str(error)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    rows, block = args["rows"], args["block"]
    if len(inputs) != 2 or inputs[0][0] not in FLOAT8 or inputs[1][0] not in SCALES or args["dtype"] not in FLOATS:
        raise ValueError(f"FP8 numbers and scales were expected, not {list(inputs)[:3]}")
    if any(len(shape) != 2 or 0 in shape for _, shape in inputs) or len(block) != 2:
        raise ValueError(f"two matrices were expected, not {[list(shape) for _, shape in inputs]}")
    if any(type(side) is not int or side < 1 for side in (rows, *block)) or inputs[0][1][0] % rows:
        raise ValueError(f"{inputs[0][1][0]} rows are no experts of {rows!r:.20} in blocks of {block!r:.40}")
    (count, columns), (scale_rows, scale_columns) = inputs[0][1], inputs[1][1]
    if scale_rows != count // rows * -(-rows // block[0]) or scale_columns != -(-columns // block[1]):
        raise ValueError(f"scales {list(inputs[1][1])} do not fit {list(inputs[0][1])} in blocks of {block}")
    return args["dtype"], inputs[0][1]


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    rows, (high, wide) = args["rows"], args["block"]
    values = float32_of(sources[0].read(start, stop), sources[0].dtype)
    row = np.arange(start, stop)
    places = row // rows * -(-rows // high) + row % rows // high
    kind = "F8_E8M0" if sources[1].dtype == "U8" else sources[1].dtype
    scales = float32_of(whole_of(sources[1])[places], kind)
    spread = scales if scales.shape[1] == 1 else np.repeat(scales, wide, axis=1)[:, : values.shape[1]]
    return stored(values * spread, args["dtype"])


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop), (0, inputs[1][1][0])]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    return int(12 * rows * inputs[0][1][1] + 4 * prod(inputs[1][1]))


OPS = (Op(name="dequant.experts", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)

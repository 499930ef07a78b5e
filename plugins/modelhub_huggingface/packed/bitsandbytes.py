"""bitsandbytes: NF4 and FP4 in blocks, and INT8 with one scale a row.

Four bits: ``weight`` (U8, two numbers a byte, the high half first) runs over the matrix in C order; ``weight.quant_map`` (16
floats) is what the numbers mean, ``weight.absmax`` one scale a block, itself in 8 bits where ``weight.nested_absmax`` and
``nested_quant_map`` are there. ``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``) holds JSON: shape, dtype, blocksize,
nested_blocksize, nested_offset. Parameters of other names (fused experts) are stored in the same way. Eight bits: ``weight`` (I8)
x ``SCB`` / 127. (bitsandbytes ``functional.py``: ``QuantState``, ``dequantize_4bit``, ``int8_vectorwise_dequant``;
``nn/parametrize.py``.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, Tensor, ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.numbers import stored, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

STATE = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
MAX_STATE = 4096
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Tensors with a ``quant_state``, and modules with ``SCB``."""
    for state in source.tensors:
        name = next((state.removesuffix(last) for last in STATE if state.endswith(last)), "")
        if name:
            found = _four_bits(source, name, state)
            yield Kept(name if name in source.tensors else state, found) if isinstance(found, str) else found
    for module in modules(source.tensors, "SCB"):
        weight, scale = member(module, "weight"), member(module, "SCB")
        why = lack(source.tensors, {weight: ("I8",), scale: ("F32",)})
        if not why:
            tensor = source.tensors[weight]
            dtype = source.dtype if source.dtype in FLOATS else "F32"
            try:
                args = rows.layout(tensor.shape[-1] if tensor.shape else 0, dtype, factor=1 / 127)
                value = ops.dequant("rows", typed(tensor), typed(source.tensors[scale]), **args)
            except ValueError as error:
                why = str(error)
            else:
                kept = member(module, "weight_format")
                yield whole(weight, value, (weight, scale, *([kept] if kept in source.tensors else [])))
        if why:
            yield Kept(weight, why)


def _four_bits(source: Stored, weight: str, state: str) -> Whole | str:
    names = [f"{weight}.absmax", f"{weight}.quant_map"]
    nested = f"{weight}.nested_absmax" in source.tensors
    if nested:
        names += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("F32",))
    kinds |= {weight: ("U8",), names[0]: ("U8",) if nested else ("F32",)}
    why = lack(source.tensors, kinds)
    if why:
        return why
    try:
        said = json.loads(source.read(source.tensors[state], MAX_STATE))
        shape, dtype, block = said["shape"], _DTYPES[said["dtype"]], said["blocksize"]
        outer, offset = (said["nested_blocksize"], said["nested_offset"]) if nested else (1, 0.0)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{state} does not say shape, dtype and blocks ({error!r:.80})"
    args = {"shape": shape, "dtype": dtype, "block": block, "outer": outer, "offset": offset}
    try:
        flat = [_flat(source.tensors[name]) for name in (weight, *names)]
        value = ops.dequant("bnb4", *flat, **args)
    except ValueError as error:
        return str(error)
    return whole(weight, value, (weight, *names, state))


def _flat(tensor: Tensor) -> Any:
    assert tensor.value is not None
    return ops.typed(tensor.value, tensor.dtype, (prod(tensor.shape),))


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    shape, block, outer = args["shape"], args["block"], args["outer"]
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or not all(type(side) is int and 0 < side < 1 << 40 for side in shape)
    ):
        raise ValueError(f"the shape of four-bit weights is {shape!r:.80}")
    if not all(type(size) is int and 0 < size <= 1 << 20 for size in (block, outer)) or type(args["offset"]) not in (int, float):
        raise ValueError(f"blocks of {block!r:.20} and {outer!r:.20} with the offset {args['offset']!r:.20} are none")
    count = prod(shape)
    blocks = -(-count // block)
    wanted = [(-(-count // 2),), (blocks,), (16,), *([(-(-blocks // outer),), (256,)] if len(inputs) == 5 else [])]
    if args["dtype"] not in FLOATS or [size for _, size in inputs] != wanted:
        raise ValueError(f"{[list(size) for _, size in inputs]} do not fit the shape {shape} in blocks of {block}")
    return args["dtype"], tuple(shape)


def _scales(sources: Sequence[Any], args: Mapping[str, Any]) -> Any:
    """One float32 a block, for the whole tensor: a sixteenth of its packed bytes or so."""
    import numpy as np

    absmax = whole_of(sources[1])
    if len(sources) == 3:
        return absmax
    found = sources[1].state.get("scales")
    if found is None:
        outer = np.repeat(whole_of(sources[3]), args["outer"])[: len(absmax)]
        found = whole_of(sources[4])[absmax] * outer + np.float32(args["offset"])
        sources[1].state["scales"] = found
    return found


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    inner = args["shape"][1:]
    first, last = start * prod(inner), stop * prod(inner)
    data = sources[0].read(first // 2, -(-last // 2))
    numbers = np.stack([data >> 4, data & 15], axis=-1).reshape(-1)[first % 2 :][: last - first]
    values = whole_of(sources[2])[numbers]
    block = args["block"]
    scales = _scales(sources, args)[first // block : -(-last // block)]
    spread = np.repeat(scales, block)[first % block :][: last - first]
    return stored(values * spread, args["dtype"]).reshape(stop - start, *inner)


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    inner = prod(args["shape"][1:])
    return [(start * inner // 2, -(-stop * inner // 2)), *((0, size[0]) for _, size in inputs[1:])]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], count: int) -> int:
    return 12 * inputs[1][1][0] + 16 * count * int(prod(args["shape"][1:]))


OPS = (Op(name="dequant.bnb4", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)
SCHEME = Scheme(methods=("bitsandbytes",), unpack=unpack, ops=OPS)

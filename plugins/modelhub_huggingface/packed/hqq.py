"""HQQ, as transformers writes it: ``W_q``, ``scale``, ``zero``, and beside them a small tensor for each setting.

A matrix of (N, K) is seen as rows of ``group_size`` numbers (``axis`` 1, one scale a row) or as so many rows (``axis`` 0, one
scale a column). They are packed down these rows, not along them: of 4 bits the first half of the rows are the high halves of the
bytes, the second half the low ones, and so on; of 3 bits ten make a word. A weight is ``(number - zero) x scale``, rounded after
each step to the dtype of its scales. (hqq ``core/quantize.py``: ``Quantizer``, ``HQQLinear.state_dict``; ``core/bitpack.py``.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, dtypes, ops

from modelhub_huggingface.packed.numbers import float32_of, planes, rounded, stored, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

SETTINGS = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero",
    "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
)  # fmt: skip
"""Tensors of a module that are no weights."""
PACKINGS = {
    "8bit_u8": (8, 1, "U8"),
    "4bit_u8": (4, 2, "U8"),
    "3bit_32": (3, 10, "U32"),
    "2bit_u8": (2, 4, "U8"),
    "1bit_u8": (1, 8, "U8"),
}
"""``packing`` -> bits of a number, numbers of a unit, unit."""
MAX_TEXT = 64
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with a ``W_q``."""
    for module in modules(source.tensors, "W_q"):
        try:
            yield _module(source, module)
        except ValueError as error:
            yield Kept(member(module, "W_q"), str(error))


def _module(source: Stored, module: str) -> Whole:
    """The whole of a module. ValueError where there is none."""
    names = [member(module, part) for part in ("W_q", "scale", "zero")]
    why = lack(source.tensors, {names[0]: ("U8", "I32", *FLOATS), names[1]: FLOATS, names[2]: FLOATS})
    if why:
        raise ValueError(why)
    packing = _setting(source, module, "packing", MAX_TEXT).decode("latin-1")
    if packing not in PACKINGS:
        raise ValueError(f"the packing {packing!r:.40} is not read; {', '.join(PACKINGS)} are")
    shape = list(struct.unpack("<2q", _setting(source, module, "shape", 16)))
    group, axis = (struct.unpack("<i", _setting(source, module, name, 4))[0] for name in ("group_size", "axis"))
    words, scale = (source.tensors[name] for name in names[:2])
    args = {"shape": shape, "group": 0 if prod(scale.shape) == 1 else group, "axis": axis, "packing": packing}
    rows, columns, stored_rows = _sizes(args)
    unit = PACKINGS[packing][2]
    if dtypes.get(words.dtype).nbytes(words.shape) != dtypes.get(unit).nbytes((stored_rows, columns)):
        raise ValueError(f"{names[0]} {list(words.shape)} does not hold {rows} rows of {columns} numbers, {packing}")
    assert words.value is not None
    value = ops.dequant(
        "hqq", ops.typed(words.value, unit, (stored_rows, columns)), *(typed(source.tensors[name]) for name in names[1:]), **args
    )
    others = [name for name in (member(module, part) for part in SETTINGS) if name in source.tensors]
    return whole(member(module, "weight"), value, (*names, *others))


def _setting(source: Stored, module: str, name: str, limit: int) -> bytes:
    """The bytes of a module's setting; a number has ``limit`` of them. ValueError where there are none."""
    tensor = source.tensors.get(member(module, name))
    data = source.read(tensor, limit) if tensor is not None else b""
    if not data or (name != "packing" and len(data) != limit):
        raise ValueError(f"{member(module, name)} does not say what it should")
    return data


def _sizes(args: Mapping[str, Any]) -> tuple[int, int, int]:
    """(rows, columns) of the numbers as they are packed, and rows of units. ValueError where they do not fit each other."""
    shape, group, axis = args["shape"], args["group"], args["axis"]
    if len(shape) != 2 or not all(type(side) is int and 0 < side < 1 << 31 for side in shape):
        raise ValueError(f"HQQ packs matrices, not {shape!r:.80}")
    count = prod(shape)
    if axis not in (0, 1) or type(group) is not int or not 0 <= group <= count or (group and count % group):
        raise ValueError(f"{shape} is no groups of {group!r:.20} along axis {axis!r:.20}")
    if group:
        rows, columns = (count // group, group) if axis == 1 else (group, count // group)
    else:
        rows, columns = shape
    bits, units, _ = PACKINGS[args["packing"]]
    if rows % units and bits != 3:
        raise ValueError(f"{rows} rows of {bits} bits do not fill bytes")
    return rows, columns, -(-rows // units)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    if len(inputs) != 3 or args["packing"] not in PACKINGS:
        raise ValueError(f"HQQ takes numbers, scales and zero points, not {list(inputs)[:4]}")
    (kind, shape), (scale_kind, scales), (zero_kind, zeros) = inputs
    rows, columns, stored_rows = _sizes(args)
    if kind != PACKINGS[args["packing"]][2] or shape != (stored_rows, columns):
        raise ValueError(f"{kind} {list(shape)} is not {rows} rows of {columns} numbers, {args['packing']}")
    wanted = (rows if args["axis"] == 1 else columns) if args["group"] else 1
    if prod(scales) != wanted or prod(zeros) not in (1, wanted) or scale_kind not in FLOATS or zero_kind not in FLOATS:
        raise ValueError(
            f"{scale_kind} scales {list(scales)} and {zero_kind} zero points {list(zeros)} do not fit {wanted} groups"
        )
    return scale_kind if scale_kind == zero_kind else "F32", tuple(args["shape"])


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    _, columns, _ = _sizes(args)
    width = args["shape"][1]
    first, last = start * width, stop * width
    low, high = first // columns, -(-last // columns)
    dtype = sources[1].dtype if sources[1].dtype == sources[2].dtype else "F32"
    bits, units, _ = PACKINGS[args["packing"]]
    values = planes(sources[0], bits, units, low, high)
    scale, zero = (float32_of(whole_of(source), source.dtype).reshape(-1) for source in sources[1:])
    if args["axis"] == 1 and args["group"]:
        scale, zero = (part[low:high, None] if len(part) > 1 else part for part in (scale, zero))
    values = rounded(values - zero, dtype) * scale
    return stored(values.reshape(-1)[first - low * columns :][: last - first].reshape(stop - start, width), dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    _, columns, _ = _sizes(args)
    return 16 * (rows * int(args["shape"][1]) + 2 * columns) + 12 * prod(inputs[1][1])


OPS = (Op(name="dequant.hqq", rows=_rows, infer=_infer, memory=_memory),)
SCHEME = Scheme(methods=("hqq",), unpack=unpack, ops=OPS)


def said(settings: Mapping[str, Any]) -> tuple[int, int | None]:
    """(bits, group size) of the weights, or of the first kind of layer that has settings of its own."""
    found = settings.get("quant_config")
    for _ in range(2):
        weights = found.get("weight_quant_params") if isinstance(found, dict) else None
        if isinstance(weights, dict):
            bits, group = weights.get("nbits"), weights.get("group_size")
            width = max(1, round(bits)) if isinstance(bits, int | float) and 0 < bits <= 8 else 0
            return width, group if type(group) is int and 0 < group < 1 << 31 else None
        found = next(iter(found.values()), None) if isinstance(found, dict) else None
    return 0, None

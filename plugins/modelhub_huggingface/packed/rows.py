"""Weights that are stored row by row beside their scales: one op for integers, packed integers, FP8, FP6 and FP4.

``dequant.rows`` takes the numbers (N, ...), their scales, and where there are any zero points and the group of each column. What
the numbers are follows from their dtype: I32 words of ``bits`` bits (stored plus half their range), I8, FP8, or bytes of two FP4
numbers (E2M1, the low half first), or with 6 ``bits`` of FP6 numbers, four in three bytes (E2M3, lowest bits first). Scales
are one for all, one a row, one a group of columns, or one a block of rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op

from modelhub_huggingface.packed.numbers import affine, float32_of, groups_of, stored, unpack_words, whole_of
from modelhub_huggingface.packed.scheme import FLOATS

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1 (OCP Microscaling Formats specification, 5.3.3)."""
FP6 = tuple(
    sign * (mantissa / 8 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 1))
    for sign in (1, -1)
    for exponent in range(4)
    for mantissa in range(8)
)
"""E2M3 (the same, 5.3.2)."""
SCALES = (*FLOATS, "F8_E4M3", "F8_E8M0", "U8")
"""Of U8 a scale is a power of two with the bias 127 (E8M0)."""
_Spec = tuple[str, tuple[int, ...]]


def layout(columns: int, dtype: str, *, bits: int = 0, row_block: int = 1, group: int = 0, factor: float = 1.0) -> dict[str, Any]:
    """Arguments of the op. ``columns``: K; ``dtype``: of the whole; ``bits`` of packed integers; ``row_block``: rows that share a
    row of scales; ``group``: columns that share a scale (0: as many as the scales' shape says); ``factor``: of all scales."""
    return {"columns": columns, "dtype": dtype, "bits": bits, "row_block": row_block, "group": group, "factor": factor}


def _group(columns: int, scales: tuple[int, ...], args: Mapping[str, Any]) -> int:
    count = scales[-1] if len(scales) > 1 else 1
    return args["group"] or (-(-columns // count) if count else columns)


def _stored_columns(kind: str, columns: int, bits: int) -> int:
    """Units of a row of numbers."""
    if kind in ("I32", "U32"):
        return -(-columns * bits // 32)
    return -(-columns * (bits or 4) // 8) if kind == "U8" else columns


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    (kind, shape), (scale_kind, scales) = inputs[0], inputs[1]
    columns, bits, block = args["columns"], args["bits"], args["row_block"]
    if kind not in ("I32", "U32", "I8", "F8_E4M3", "F8_E5M2", "U8") or scale_kind not in SCALES or args["dtype"] not in FLOATS:
        raise ValueError(f"{kind} numbers with {scale_kind} scales are not read")
    if bits not in {"I32": range(1, 9), "U32": range(1, 9), "U8": (0, 6)}.get(kind, (0,)):
        raise ValueError(f"{kind} numbers of {bits} bits are not read")
    if type(columns) is not int or columns < 1 or len(shape) != 2 or shape[1] != _stored_columns(kind, columns, bits):
        raise ValueError(f"{kind} {list(shape)} is not {columns} columns")
    if kind == "U8" and bits == 6 and columns % 16:
        raise ValueError(f"{columns} columns of 6 bits do not fill words")
    rows = shape[0]
    expected = -(-rows // block) if type(block) is int and block > 0 else 0
    if prod(scales) != 1:
        if not scales or scales[0] != expected or len(scales) > 2:
            raise ValueError(f"scales {list(scales)} do not fit {rows} rows")
        group = _group(columns, scales, args)
        if len(scales) == 2 and scales[1] != -(-columns // group):
            raise ValueError(f"scales {list(scales)} do not fit {columns} columns in groups of {group}")
    for kind, shape in inputs[2:]:
        if len(shape) == 1 and kind in ("I32", "I64") and shape == (columns,):
            continue  # the group of each column
        packed = kind == "I32" and bits and len(shape) == 2 and shape == (-(-rows * bits // 32), *scales[1:])
        if not packed and (kind != "I8" or shape != scales):
            raise ValueError(f"zero points {kind} {list(shape)} do not fit scales {list(scales)}")
    return args["dtype"], (rows, columns)


def _numbers(source: Any, args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    rows = source.read(start, stop)
    columns, bits = args["columns"], args["bits"]
    if source.dtype in ("I32", "U32"):
        return unpack_words(rows, bits, columns).astype(np.float32) - np.float32(1 << (bits - 1))
    if source.dtype == "U8" and bits == 6:
        return np.array(FP6, np.float32)[unpack_words(rows.view("<u4"), 6, columns)]
    if source.dtype == "U8":
        halves = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)[:, :columns]
        return np.array(FP4, np.float32)[halves]
    return float32_of(rows, source.dtype)


def _scales(source: Any, args: Mapping[str, Any], start: int, stop: int) -> Any:
    """(rows, groups) float32."""
    import numpy as np

    kind = "F8_E8M0" if source.dtype == "U8" else source.dtype
    if prod(source.shape) == 1:
        one = float32_of(whole_of(source).reshape(1, 1), kind)
        return np.broadcast_to(one * np.float32(args["factor"]), (stop - start, 1))
    block = args["row_block"]
    first = start // block
    found = float32_of(source.read(first, -(-stop // block)), kind)
    found = found.reshape(len(found), -1) * np.float32(args["factor"])
    return found if block == 1 else np.repeat(found, block, axis=0)[start - first * block :][: stop - start]


def _zeros(source: Any, bits: int, start: int, stop: int) -> Any:
    """(rows, groups): stored as they are, or packed down the rows."""
    if source.dtype == "I8":
        return source.read(start, stop).reshape(stop - start, -1).astype("f4")
    words = whole_of(source)
    found = unpack_words(words.T, bits, len(words) * 32 // bits).T[start:stop]
    return found.astype("f4") - (1 << (bits - 1))


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    numbers = _numbers(sources[0], args, start, stop)
    scales = _scales(sources[1], args, start, stop)
    group = _group(args["columns"], sources[1].shape if prod(sources[1].shape) != 1 else (), args)
    zeros = groups = None
    for source in sources[2:]:
        if len(source.shape) == 1:
            groups = groups_of(source, scales.shape[1], group)
        else:
            zeros = _zeros(source, args["bits"], start, stop)
    return stored(affine(numbers, zeros, scales, groups, group), args["dtype"])


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    block, scales = args["row_block"], inputs[1][1]
    whole = (0, scales[0] if scales else 1)
    found = [(start, stop), whole if prod(scales) == 1 else (start // block, -(-stop // block))]
    return found + [(start, stop) if kind == "I8" and len(shape) > 1 else (0, shape[0]) for kind, shape in inputs[2:]]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    fixed = sum(4 * prod(shape) for kind, shape in inputs[2:] if kind != "I8")
    return int(fixed + 12 * rows * args["columns"])


OPS = (Op(name="dequant.rows", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)

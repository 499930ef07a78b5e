"""The arithmetic that packings share: bits out of words, floats as they are stored, and the affine step in between.

Everything works on the rows that are asked for. Computed in float32, where a scale of 16 bits times a small integer is exact;
then rounded once to the dtype that the weights have.
"""

from __future__ import annotations

from typing import Any

from modelhub import InvalidFile

STEP = 8 << 20
"""Bytes that are read at a time where all of a matrix goes by."""


def unpack_words(words: Any, bits: int, count: int) -> Any:
    """Rows of 32-bit words as rows of ``count`` numbers of ``bits`` bits (dtype ``uint8``), lowest bits first. Numbers may
    straddle words: a row is one run of bits."""
    import numpy as np

    rows = np.ascontiguousarray(words).view("<u4")
    if bits == 8:
        return rows.view(np.uint8)[:, :count]
    if bits in (2, 4):
        data = rows.view(np.uint8)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        found = (data[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
        return found.reshape(len(data), -1)[:, :count]
    stream = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return (stream.reshape(len(rows), count, bits) * weights).sum(axis=2, dtype=np.uint8)


PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Bits -> widths of the planes that they are split into, the lowest bits first."""


def unpack_planes(words: Any, bits: int, count: int) -> Any:
    """As `unpack_words`, of numbers whose bits are split into `PLANES`: of 32 neighbours, ``bits`` words, first those of the
    lowest plane."""
    import numpy as np

    blocks = np.ascontiguousarray(words).reshape(-1, bits)
    found = np.zeros((len(blocks), 32), np.uint8)
    below = 0
    for width in PLANES[bits]:
        found |= unpack_words(blocks[:, below : below + width], width, 32) << np.uint8(below)
        below += width
    return found.reshape(len(words), -1)[:, :count]


def planes(source: Any, bits: int, units: int, start: int, stop: int, *, lowest_first: bool = False) -> Any:
    """Rows ``start``..``stop`` of numbers that are packed down the rows, as float32: ``units`` of them in a unit of ``source``,
    whose highest bits (or lowest) are the first of so many runs of rows. Only the rows that are asked for are read."""
    import numpy as np

    found = np.empty((stop - start, source.shape[1]), np.float32)
    count = source.shape[0]
    for plane in range(start // count, -(-stop // count)):
        low, high = max(start, plane * count), min(stop, (plane + 1) * count)
        words = source.read(low - plane * count, high - plane * count)
        shift = words.dtype.type((plane if lowest_first else units - 1 - plane) * bits)
        found[low - start : high - start] = words >> shift & words.dtype.type((1 << bits) - 1)
    return found


def float32_of(rows: Any, dtype: str) -> Any:
    """Stored floats (F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E8M0) as float32."""
    import numpy as np

    if dtype == "BF16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return e4m3()[rows.view(np.uint8)]
    if dtype == "F8_E5M2":  # the upper half of a F16
        return (rows.view(np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        return np.exp2(rows.view(np.uint8).astype(np.float32) - 127).astype(np.float32)
    return rows.astype(np.float32)


def e4m3() -> Any:
    """The 256 values of F8_E4M3 (the "FN" kind: no infinities, NaN at 0x7f and 0xff; OCP 8-bit floating point specification)."""
    import numpy as np

    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


def stored(values: Any, dtype: str) -> Any:
    """float32 as stored units of ``dtype`` (F32, F16, BF16), rounded to nearest, ties to even."""
    import numpy as np

    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    word = values.view(np.uint32)
    rounded = (word + (0x7FFF + (word >> 16 & 1))) >> 16
    return np.where(np.isnan(values), (word >> 16) | 0x40, rounded).astype(np.uint16)


def rounded(values: Any, dtype: str) -> Any:
    """float32 rounded to ``dtype`` (F32, F16, BF16), as float32: what a step of a library that computes in it comes to."""
    return float32_of(stored(values, dtype), dtype)


def affine(numbers: Any, zeros: Any, scales: Any, groups: Any, group: int) -> Any:
    """(numbers - zeros) x scales, in float32. ``numbers``: (rows, columns); ``zeros`` (or None) and ``scales``: (rows, groups);
    ``groups``: the group of each column, or None where each ``group`` neighbours are one."""
    import numpy as np

    rows, columns = numbers.shape
    values = numbers.astype(np.float32, order="C")
    scales = np.ascontiguousarray(scales)  # of a transposed matrix they would be multiplied against the grain
    zeros = None if zeros is None else np.ascontiguousarray(zeros)
    if groups is not None:  # `take` keeps rows together, where an index would give columns
        if zeros is not None:
            values -= np.take(zeros, groups, axis=1)
        values *= np.take(scales, groups, axis=1)
        return values
    count = scales.shape[1]
    if count * group != columns:  # the last group is short
        index = np.arange(columns) // group
        return affine(numbers, zeros, scales, index, group)
    parts = values.reshape(rows, count, group)
    if zeros is not None:
        parts -= zeros[:, :, None]
    parts *= scales[:, :, None]
    return parts.reshape(rows, columns)


def whole_of(source: Any) -> Any:
    """All rows of an input, read once by each thread that computes with it."""
    found = source.state.get("whole")
    if found is None:
        found = source.state["whole"] = source.read(0, source.shape[0] if source.shape else 1)
    return found


WIDEST = 64 << 20
"""Bytes of a matrix that are kept by each thread, where pieces of all of its rows are needed."""


def columns_of(source: Any, start: int, stop: int) -> Any:
    """Columns ``start``..``stop`` of an input. A small one is kept whole, of a larger one as wide a strip as may be; what is
    beyond that strip is read when it is asked for."""
    import numpy as np

    rows, columns = source.shape
    low, high, strip = source.state.get("strip", (0, 0, None))
    if strip is None or not low <= start <= stop <= high:
        first = source.read(0, 1)
        row = max(1, first.nbytes)
        width = max(stop - start, WIDEST * columns // (row * rows))
        low, high = (0, columns) if width >= columns else (start, min(columns, start + width))
        source.state.pop("strip", None)
        strip = np.empty((rows, high - low), first.dtype)
        step = max(1, STEP // row)
        for at in range(0, rows, step):
            strip[at : at + step] = source.read(at, min(rows, at + step))[:, low:high]
        source.state["strip"] = low, high, strip
    return strip[:, start - low : stop - low]


def kept(nbytes: int) -> int:
    """Bytes that `columns_of` keeps of so many."""
    return min(nbytes, WIDEST) + STEP


def groups_of(source: Any, count: int, group: int) -> Any:
    """The group of each column, from ``g_idx``; None where they are neighbours. `InvalidFile` where there is no such group."""
    import numpy as np

    if "groups" not in source.state:
        index = whole_of(source).astype(np.int64)
        strange = index[(index < 0) | (index >= count)]
        if len(strange):
            raise InvalidFile(f"g_idx names group {strange[0]}, there are {count} groups")
        plain = np.array_equal(index, np.arange(len(index)) // group)
        source.state["groups"] = None if plain else index
    return source.state["groups"]

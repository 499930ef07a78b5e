"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 without importance, compiled; what each does is said in `encode`, in NumPy.

The bounds of loops are taken from the arrays, though they are known: LLVM would unroll loops of known length before it looks
for vectors, and then find none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.tiles import halve, put_half, run

ENDLESS = np.float32(np.inf)


@jit.inlined
def finite_inverse(scale: Any) -> Any:
    """1 / scale, and 0 where that is infinite."""
    whole = np.float32(1) / scale
    return whole if abs(whole) < ENDLESS else np.float32(0)


@jit.inlined
def away(value: Any) -> Any:
    """``roundf``: the nearest integer, halves away from zero."""
    return np.int32(value + (np.float32(0.49999997) if value >= np.float32(0) else np.float32(-0.49999997)))


@jit.inlined
def pack_fifths(tile: Any, at: int) -> None:
    """The fifth bits of 32 quants, as 4 bytes at ``at``."""
    out, quants = tile.out, tile.quants
    for b in range(out.shape[0]):
        word = np.uint32(0)
        for j in range(quants.shape[1]):
            word |= np.uint32(quants[b, j] >> 4) << np.uint32(j)
        for j in range(4):
            out[b, at + j] = np.uint8((word >> np.uint32(8 * j)) & np.uint32(255))


@jit.inlined
def _q8_0(tile: Any) -> None:
    x, out, y, scale_rows = tile.values, tile.out, tile.result, tile.scales
    half_rows, overs = tile.halves, tile.over
    n = out.shape[0]
    most = tile.most.view(np.float32)
    scales, halves = scale_rows.reshape(64), half_rows.reshape(64)
    for b in range(n):
        scales[b] = most[b] / np.float32(127)
        overs[b] = finite_inverse(scales[b])
    halve(scale_rows, half_rows)
    for b in range(n):
        put_half(out[b], 0, halves[b])
    for b in range(n):
        over = overs[b]
        scale = scales[b]
        for j in range(x.shape[1]):
            q = away(x[b, j] * over)
            out[b, 2 + j] = np.uint8(q)
            y[b, j] = np.float32(q) * scale


@jit.inlined
def _around_zero(tile: Any, levels: int) -> None:
    """Q4_0 (8 levels on either side) and Q5_0 (16)."""
    bits, x, most_bits, out = tile.bits, tile.values, tile.most, tile.out
    y, scale_rows, half_rows, overs = tile.result, tile.scales, tile.halves, tile.over
    quants = tile.quants
    n = out.shape[0]
    scales, halves, shift = scale_rows.reshape(64), half_rows.reshape(64), tile.extra.reshape(64)
    for b in range(n):
        most = most_bits[b]
        first = np.int32(31)
        for j in range(bits.shape[1]):
            first = min(first, np.int32(j) if bits[b, j] & np.uint32(0x7FFFFFFF) == most else np.int32(31))
        scales[b] = (x[b, first] + np.float32(0)) / np.float32(-levels)
    for b in range(n):
        over = finite_inverse(scales[b])
        overs[b] = over
        shift[b] = np.float32(0) if over == 0 and scales[b] != 0 else np.float32(levels) + np.float32(0.5)
    halve(scale_rows, half_rows)
    at = 2 if levels == 8 else 6
    middle = x.shape[1] // 2
    for b in range(n):
        put_half(out[b], 0, halves[b])
    for b in range(n):
        over = overs[b]
        base = shift[b]
        scale = scales[b]
        for j in range(middle):
            low = min(np.int32(x[b, j] * over + base), np.int32(2 * levels - 1))
            high = min(np.int32(x[b, middle + j] * over + base), np.int32(2 * levels - 1))
            out[b, at + j] = np.uint8((low & 15) | (high & 15) << 4)
            quants[b, j] = np.uint8(low)
            quants[b, middle + j] = np.uint8(high)
            y[b, j] = np.float32(low - levels) * scale
            y[b, middle + j] = np.float32(high - levels) * scale
    if levels == 16:
        pack_fifths(tile, 2)


@jit.inlined
def _ends(tile: Any, least: Any, greatest: Any) -> None:
    """The least and greatest element of every block, by their bits. The largest of them as signed numbers is the greatest, the
    largest as unsigned numbers the least; unless all have one sign, which is seldom: then the smallest is needed. Among zeros the
    first counts, as it does where floats are compared."""
    bits, x = tile.bits, tile.values
    low_bits, high_bits = least.view(np.uint32), greatest.view(np.uint32)
    signed = bits.view(np.int32)
    for b in range(bits.shape[0]):
        most = np.int32(-0x80000000)
        largest = np.uint32(0)
        for j in range(signed.shape[1]):
            most = max(most, signed[b, j])
            largest = max(largest, bits[b, j])
        low_bits[b] = largest
        high_bits[b] = np.uint32(most)
    for b in range(bits.shape[0]):
        positive, negative = high_bits[b] < np.uint32(0x80000000), low_bits[b] >= np.uint32(0x80000000)
        if not (positive and negative):
            smallest = bits[b, 0]
            for j in range(1, bits.shape[1]):
                smallest = min(smallest, bits[b, j])
            if positive:
                low_bits[b] = smallest
            else:
                high_bits[b] = smallest
        if least[b] == np.float32(0):
            for j in range(bits.shape[1] - 1, -1, -1):
                if x[b, j] == np.float32(0):
                    least[b] = x[b, j]
            if greatest[b] == np.float32(0):
                greatest[b] = least[b]


@jit.inlined
def _step(value: Any, least: Any, over: Any, levels: int) -> Any:
    """An infinite distance times 0 is no number; ggml makes 0 of it."""
    step = (value - least) * over
    return min(np.int32((step if step < np.float32(64) else np.float32(0)) + np.float32(0.5)), np.int32(levels))


@jit.inlined
def _above_least(tile: Any, levels: int) -> None:
    """Q4_1 (15 levels above the least) and Q5_1 (31)."""
    x, out, y, scale_rows = tile.values, tile.out, tile.result, tile.scales
    half_rows, overs, extra_rows, quants = tile.halves, tile.over, tile.extra, tile.quants
    n = out.shape[0]
    scales, halves, shown = scale_rows.reshape(64), half_rows.reshape(64), extra_rows.reshape(64)
    least = tile.most.view(np.float32)
    _ends(tile, least, scales)
    for b in range(n):
        scales[b] = (scales[b] - least[b]) / np.float32(levels)
        overs[b] = finite_inverse(scales[b])
        shown[b] = least[b]
    halve(scale_rows, half_rows)
    for b in range(n):
        put_half(out[b], 0, halves[b])
    halve(extra_rows, half_rows)
    for b in range(n):
        put_half(out[b], 2, halves[b])
    at = 4 if levels == 15 else 8
    middle = x.shape[1] // 2
    for b in range(n):
        over = overs[b]
        base = least[b]
        scale = scales[b]
        seen = shown[b]
        for j in range(middle):
            low = _step(x[b, j], base, over, levels)
            high = _step(x[b, middle + j], base, over, levels)
            out[b, at + j] = np.uint8((low & 15) | (high & 15) << 4)
            y[b, j] = np.float32(low) * scale + seen
            y[b, middle + j] = np.float32(high) * scale + seen
            if levels == 31:
                quants[b, j] = np.uint8(low)
                quants[b, middle + j] = np.uint8(high)
    if levels == 31:
        pack_fifths(tile, 4)


@jit.inlined
def _q4_0(tile: Any) -> None:
    _around_zero(tile, 8)


@jit.inlined
def _q5_0(tile: Any) -> None:
    _around_zero(tile, 16)


@jit.inlined
def _q4_1(tile: Any) -> None:
    _above_least(tile, 15)


@jit.inlined
def _q5_1(tile: Any) -> None:
    _above_least(tile, 31)


@jit.kernel
def q8_0(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_q8_0, 32, data, kind, out, measured, sums)


@jit.kernel
def q4_0(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_q4_0, 32, data, kind, out, measured, sums)


@jit.kernel
def q4_1(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_q4_1, 32, data, kind, out, measured, sums)


@jit.kernel
def q5_0(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_q5_0, 32, data, kind, out, measured, sums)


@jit.kernel
def q5_1(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_q5_1, 32, data, kind, out, measured, sums)

"""TQ1_0, TQ2_0 and MXFP4, compiled; what each does is said in `encode`, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.tile_legacy import away, finite_inverse
from modelhub_gguf.codecs.tiles import halve, put_half, run


@jit.inlined
def _trits(tile: Any, at: int) -> None:
    """The scale, put at byte ``at``; quants 0, 1, 2; results."""
    x, out, y, scale_rows = tile.values, tile.out, tile.result, tile.scales
    half_rows, overs, quants = tile.halves, tile.over, tile.quants
    n = out.shape[0]
    most = tile.most.view(np.float32)
    scales, halves = scale_rows.reshape(64), half_rows.reshape(64)
    for b in range(n):
        scales[b] = most[b]
        overs[b] = finite_inverse(most[b])
    halve(scale_rows, half_rows)
    for b in range(n):
        put_half(out[b], at, halves[b])
        over = overs[b]
        scale = scales[b]
        for j in range(x.shape[1]):
            q = away(x[b, j] * over)
            quants[b, j] = np.uint8(q + 1)
            y[b, j] = np.float32(q) * scale


@jit.inlined
def _tq2_0(tile: Any) -> None:
    out, quants = tile.out, tile.quants
    _trits(tile, 64)
    for b in range(out.shape[0]):
        for group in range(2):
            for j in range(32):
                word = np.uint8(0)
                for layer in range(4):
                    word |= quants[b, group * 128 + layer * 32 + j] << (2 * layer)
                out[b, group * 32 + j] = word


@jit.inlined
def _fraction(number: Any) -> Any:
    """number / 243 in 256ths, rounded up."""
    return np.uint8((np.uint16(number) * np.uint16(256) + np.uint16(242)) // np.uint16(243))


@jit.inlined
def _tq1_0(tile: Any) -> None:
    out, quants = tile.out, tile.quants
    _trits(tile, 52)
    for b in range(out.shape[0]):
        q = quants[b]
        for j in range(32):
            out[b, j] = _fraction((((q[j] * 3 + q[32 + j]) * 3 + q[64 + j]) * 3 + q[96 + j]) * 3 + q[128 + j])
        for j in range(160, 176):
            out[b, j - 128] = _fraction((((q[j] * 3 + q[16 + j]) * 3 + q[32 + j]) * 3 + q[48 + j]) * 3 + q[64 + j])
        for j in range(240, 244):
            out[b, j - 192] = _fraction((((q[j] * 3 + q[4 + j]) * 3 + q[8 + j]) * 3 + q[12 + j]) * 3)


def _carries() -> Any:
    """For every power of two from -149 on: from which mantissa on the logarithm, rounded to float32, is the next whole number."""
    below = np.arange(127, 0, -1)  # units of the last place that are missing to the next power of two
    mantissas = np.uint32(1 << 23) - below.astype(np.uint32)
    logarithms = np.log2(1 - below.astype(np.float64) / (1 << 24))
    powers = np.arange(-149, 128)[:, None]
    carried = (powers + 1 + logarithms).astype(np.float32) == powers + 1
    return np.where(carried.any(axis=1), mantissas[carried.argmax(axis=1)], np.uint32(1 << 23)).astype(np.uint32)


CARRIES = _carries()


@jit.inlined
def _exponent(most: Any) -> Any:
    """`encode.shared_exponents` of one magnitude, given as bits."""
    if most == np.uint32(0):
        return np.int32(0)
    if most >= np.uint32(0x00800000):
        power = np.int32(most >> np.uint32(23)) - np.int32(127)
        mantissa = most & np.uint32(0x7FFFFF)
    else:
        power = np.int32(-127)
        mantissa = most << np.uint32(1)
        while mantissa < np.uint32(0x800000):
            mantissa <<= np.uint32(1)
            power -= np.int32(1)
        mantissa &= np.uint32(0x7FFFFF)
    if mantissa >= CARRIES[power + 149]:
        power += np.int32(1)
    return (power + np.int32(125)) & np.int32(255)


@jit.inlined
def _mxfp4(tile: Any) -> None:
    x, most_bits, out, y = tile.values, tile.most, tile.out, tile.result
    quants = tile.quants
    n = out.shape[0]
    scales = tile.scales.reshape(64)
    patterns = scales.view(np.uint32)
    middle = x.shape[1] // 2
    for b in range(n):
        exponent = _exponent(most_bits[b])
        out[b, 0] = np.uint8(exponent)
        patterns[b] = np.uint32(exponent - 1) << np.uint32(23) if exponent > 1 else np.uint32(0x200000) << np.uint32(exponent)
    for b in range(n):
        scale = scales[b]
        m1, m2, m3, m4 = np.float32(0.5) * scale, np.float32(1.5) * scale, np.float32(2.5) * scale, np.float32(3.5) * scale
        m5, m7 = np.float32(5) * scale, np.float32(10) * scale
        m6 = np.float32(8) * scale - scale  # infinite where 8 times the scale is: that is as far from anything as ggml says
        for j in range(2 * middle):
            value = x[b, j]
            size = abs(value)
            code = np.int32(size > m1) + np.int32(size > m2) + np.int32(size > m3) + np.int32(size > m4)
            upper = np.int32(size > m5) + np.int32(size > m6)
            top = np.int32(size > m7)
            shown = np.float32(code + 2 * upper + 4 * top) * scale
            code = code + upper + top
            quants[b, j] = np.uint8(code | (np.int32(8) if value < 0 and code > 0 else np.int32(0)))
            y[b, j] = -shown if value < 0 else shown
        for j in range(middle):
            out[b, 1 + j] = quants[b, j] | quants[b, middle + j] << 4


@jit.kernel
def tq1_0(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_tq1_0, 256, data, kind, out, measured, sums)


@jit.kernel
def tq2_0(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_tq2_0, 256, data, kind, out, measured, sums)


@jit.kernel
def mxfp4(data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    return run(_mxfp4, 32, data, kind, out, measured, sums)

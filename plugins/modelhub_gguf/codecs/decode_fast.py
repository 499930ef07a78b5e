"""The commoner block types decoded by compiled kernels, bit for bit as `decode_blocks` does it in NumPy, which says what is done.

A kernel takes ``blocks`` (n, bytes), the half-precision numbers of each block as float32 (``scales``, and ``lows`` where there
are two), and fills ``out`` (n, elements). ``width`` is the length of its innermost loops: given as an argument, though it is
known, because LLVM would unroll loops of known length before it looks for vectors, and then find none. Integers are cut to 32
bits where they become floats, since numba makes 64 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.decode_blocks import E2M1, IQ4, Bytes, Floats, half, powers
from modelhub_gguf.codecs.signatures import compiled


@jit.inlined
def _whole(value: Any) -> Any:
    return np.float32(np.int32(value))


@jit.kernel
def q4_0(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        for j in range(width):
            q = blocks[b, 2 + j]
            out[b, j] = _whole(np.int32(q & 15) - 8) * d
            out[b, width + j] = _whole(np.int32(q >> 4) - 8) * d


@jit.kernel
def q4_1(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        m = lows[b]
        for j in range(width):
            q = blocks[b, 4 + j]
            out[b, j] = _whole(q & 15) * d + m
            out[b, width + j] = _whole(q >> 4) * d + m


@jit.inlined
def _word(row: Any, at: int) -> Any:
    return np.uint32(row[at]) | np.uint32(row[at + 1]) << 8 | np.uint32(row[at + 2]) << 16 | np.uint32(row[at + 3]) << 24


@jit.kernel
def q5_0(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        high = np.uint32(_word(blocks[b], 2))
        for j in range(width):
            q = blocks[b, 6 + j]
            out[b, j] = _whole((q & 15 | np.uint32(high >> np.uint32(j)) << 4 & 16) - 16) * d
            out[b, width + j] = _whole((q >> 4 | np.uint32(high >> np.uint32(j + 12)) & 16) - 16) * d


@jit.kernel
def q5_1(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        m = lows[b]
        high = np.uint32(_word(blocks[b], 4))
        for j in range(width):
            q = blocks[b, 8 + j]
            out[b, j] = _whole(q & 15 | np.uint32(high >> np.uint32(j)) << 4 & 16) * d + m
            out[b, width + j] = _whole(q >> 4 | np.uint32(high >> np.uint32(j + 12)) & 16) * d + m


@jit.kernel
def q8_0(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    quants = blocks.view(np.int8)
    for b in range(out.shape[0]):
        d = scales[b]
        for j in range(width):
            out[b, j] = _whole(quants[b, 2 + j]) * d


@jit.kernel
def iq4_nl(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        for j in range(width):
            q = blocks[b, 2 + j]
            out[b, j] = d * IQ4[np.uint32(q & 15)]
            out[b, width + j] = d * IQ4[np.uint32(q >> 4)]


@jit.kernel
def mxfp4(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        for j in range(width):
            q = blocks[b, 1 + j]
            out[b, j] = E2M1[np.uint32(q & 15)] * d
            out[b, width + j] = E2M1[np.uint32(q >> 4)] * d


@jit.inlined
def _six_bit_pair(row: Any, group: int, d: Any, m: Any) -> Any:
    """Scale and minimum of a group of Q4_K or Q5_K."""
    if group < 4:
        return d * _whole(row[4 + group] & 63), m * _whole(row[8 + group] & 63)
    low, high = row[8 + group], row[group]
    return d * _whole(low & 15 | high >> 6 << 4), m * _whole(low >> 4 | row[4 + group] >> 6 << 4)


@jit.kernel
def q4_k(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        for pair in range(4):
            d1, m1 = _six_bit_pair(row, 2 * pair, scales[b], lows[b])
            d2, m2 = _six_bit_pair(row, 2 * pair + 1, scales[b], lows[b])
            quants = row[16 + 32 * pair : 48 + 32 * pair]
            first, second = out[b, 64 * pair : 64 * pair + 32], out[b, 64 * pair + 32 : 64 * pair + 64]
            for j in range(width):
                q = quants[j]
                first[j] = d1 * _whole(q & 15) - m1
                second[j] = d2 * _whole(q >> 4) - m2


@jit.kernel
def q5_k(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        above = row[16:48]
        for pair in range(4):
            d1, m1 = _six_bit_pair(row, 2 * pair, scales[b], lows[b])
            d2, m2 = _six_bit_pair(row, 2 * pair + 1, scales[b], lows[b])
            quants = row[48 + 32 * pair : 80 + 32 * pair]
            first, second = out[b, 64 * pair : 64 * pair + 32], out[b, 64 * pair + 32 : 64 * pair + 64]
            for j in range(width):
                q = quants[j]
                fifths = above[j] >> (2 * pair)
                first[j] = d1 * _whole(q & 15 | (fifths & 1) << 4) - m1
                second[j] = d2 * _whole(q >> 4 | (fifths & 2) << 3) - m2


@jit.kernel
def q6_k(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        factors = row[192:208].view(np.int8)
        for part in range(4):
            half, side = part >> 1, part & 1
            low = row[64 * half + 16 * side : 64 * half + 16 * side + 48]
            high = row[128 + 32 * half + 16 * side : 144 + 32 * half + 16 * side]
            first = 8 * half + side
            d1, d2 = scales[b] * _whole(factors[first]), scales[b] * _whole(factors[first + 2])
            d3, d4 = scales[b] * _whole(factors[first + 4]), scales[b] * _whole(factors[first + 6])
            values = out[b, 128 * half + 16 * side : 128 * half + 16 * side + 112]
            for j in range(width):
                near, far, top = np.int32(low[j]), np.int32(low[32 + j]), np.int32(high[j])
                values[j] = d1 * _whole((near & 15 | (top & 3) << 4) - 32)
                values[32 + j] = d2 * _whole((far & 15 | (top & 12) << 2) - 32)
                values[64 + j] = d3 * _whole((near >> 4 | (top & 48)) - 32)
                values[96 + j] = d4 * _whole((far >> 4 | (top & 192) >> 2) - 32)


@jit.kernel
def q2_k(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        for group in range(16):
            half, layer, side = group >> 3, (group >> 1) & 3, group & 1
            d = scales[b] * _whole(row[group] & 15)
            m = lows[b] * _whole(row[group] >> 4)
            quants = row[16 + 32 * half + 16 * side : 32 + 32 * half + 16 * side]
            values = out[b, 16 * group : 16 * group + 16]
            for j in range(width):
                values[j] = d * _whole(np.int32(quants[j]) >> (2 * layer) & 3) - m


@jit.kernel
def q3_k(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        for group in range(16):
            half, layer, side = group >> 3, (group >> 1) & 3, group & 1
            low = row[96 + (group & 7)] >> (4 * half)
            high = row[104 + (group & 3)] >> (2 * (group >> 2))
            d = scales[b] * _whole(np.int32(low & 15 | (high & 3) << 4) - 32)
            quants = row[32 + 32 * half + 16 * side : 48 + 32 * half + 16 * side]
            above = row[16 * side : 16 * side + 16]
            values = out[b, 16 * group : 16 * group + 16]
            for j in range(width):
                q = np.int32(quants[j]) >> (2 * layer) & 3
                values[j] = d * _whole(q + (np.int32(above[j]) >> (4 * half + layer) & 1) * 4 - 4)


@jit.kernel
def iq4_xs(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        row = blocks[b]
        tops = np.int32(row[2]) | np.int32(row[3]) << 8
        for group in range(8):
            low = np.int32(row[4 + (group >> 1)]) >> (4 * (group & 1)) & 15
            d = scales[b] * _whole((low | (tops >> (2 * group) & 3) << 4) - 32)
            quants = row[8 + 16 * group : 24 + 16 * group]
            values = out[b, 32 * group : 32 * group + 32]
            for j in range(width):
                q = quants[j]
                values[j] = d * IQ4[np.uint32(q & 15)]
                values[16 + j] = d * IQ4[np.uint32(q >> 4)]


@jit.kernel
def tq2_0(blocks: Any, scales: Any, lows: Any, out: Any, width: int) -> None:
    for b in range(out.shape[0]):
        d = scales[b]
        for group in range(8):
            quants = blocks[b, 32 * (group >> 2) : 32 * (group >> 2) + 32]
            values = out[b, 32 * group : 32 * group + 32]
            for j in range(width):
                values[j] = _whole((np.int32(quants[j]) >> (2 * (group & 3)) & 3) - 1) * d


_KERNELS: dict[str, tuple[Any, int, int, int]] = {
    "Q4_0": (q4_0, 0, -1, 16),
    "Q4_1": (q4_1, 0, 2, 16),
    "Q5_0": (q5_0, 0, -1, 16),
    "Q5_1": (q5_1, 0, 2, 16),
    "Q8_0": (q8_0, 0, -1, 32),
    "IQ4_NL": (iq4_nl, 0, -1, 16),
    "MXFP4": (mxfp4, -1, -1, 16),
    "Q2_K": (q2_k, 80, 82, 16),
    "Q3_K": (q3_k, 108, -1, 16),
    "Q4_K": (q4_k, 0, 2, 32),
    "Q5_K": (q5_k, 0, 2, 32),
    "Q6_K": (q6_k, 208, -1, 16),
    "IQ4_XS": (iq4_xs, 0, -1, 16),
    "TQ2_0": (tq2_0, 64, -1, 32),
}
"""The kernel, where a block's half-precision numbers stand (-1: there is none), and the length of innermost loops."""

DTYPES = tuple(_KERNELS)


def decode(dtype: str, blocks: Bytes, out: Floats) -> None:
    """``blocks`` (n, bytes) to ``out`` (n, elements)."""
    _, scale_at, low_at, width = _KERNELS[dtype]
    scales = half(blocks, scale_at).reshape(-1) if scale_at >= 0 else powers(blocks).reshape(-1)
    lows = half(blocks, low_at).reshape(-1) if low_at >= 0 else scales
    prepare(dtype)(blocks, scales, lows, out, width)


def prepare(dtype: str) -> Any:
    """The kernel of ``dtype``, compiled or taken from the cache."""
    return compiled(_KERNELS[dtype][0], "uint8:2 float32:1 float32:1 float32:2! int")

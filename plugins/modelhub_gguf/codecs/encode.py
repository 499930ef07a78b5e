"""Encoders of ggml's simple block types, in NumPy: what runs where numba is not installed. Faster kernels are in `encode_fast`.

Each ``*_blocks`` function takes float32 of shape (blocks, elements of a block) and gives their bytes, (blocks, bytes of a block),
doing the float operations of ``quantize_row_*_ref`` in ``ggml/src/ggml-quants.c`` in their order: the results are equal
bit for bit. Values too small for their block's scale to have an inverse (it overflows) are undefined in C; they become what
ggml's builds for x86 make of them. The searches that weigh columns by their importance are in `encode_weighted`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modelhub_gguf.codecs.decode_blocks import E2M1, e4m3_unsigned
from modelhub_gguf.codecs.rows import Bytes, Floats

CHUNK = 1 << 16
"""Elements that are encoded at a time, so that what a step makes of them stays in the processor's second-level cache."""


def encode(values: Floats, blocks: Callable[[Floats], Bytes]) -> Bytes:
    """All of ``values`` (blocks, elements) by ``blocks``, one of the functions below: flat bytes."""
    step = CHUNK // values.shape[1]
    with np.errstate(all="ignore"):
        done = [blocks(values[start : start + step]) for start in range(0, len(values), step)]
    return np.concatenate(done).reshape(-1) if done else np.empty(0, np.uint8)


def halves(values: Floats) -> Bytes:
    """(blocks,) as the bytes of half-precision numbers, (blocks, 2); beyond its range they are infinite."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where that is not a finite number."""
    whole = np.float32(1) / scale
    return np.where(np.isfinite(whole), whole, np.float32(0))


def pack_nibbles(quants: Bytes) -> Bytes:
    """The first half of a block in the low nibbles, the second in the high ones."""
    middle = quants.shape[1] // 2
    return quants[:, :middle] & np.uint8(15) | quants[:, middle:] << np.uint8(4)


def pack_fifths(quants: Bytes) -> Bytes:
    return np.packbits(quants >> np.uint8(4), axis=1, bitorder="little")


def _rounded(values: Floats) -> NDArray[np.int8]:
    """Nearest integer, halves away from zero (C's ``roundf``)."""
    almost = np.copysign(np.float32(0.49999997), values)
    return (values + almost).astype(np.int8)


def extreme(values: Floats) -> Floats:
    """The element of the largest magnitude of every block, with its sign; the first of equals; plain zero for zeros."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0] + np.float32(0)


def _first(values: Floats, wanted: Floats) -> Floats:
    """The first element of every block that equals ``wanted``: zero comes with the sign that it has there."""
    return np.take_along_axis(values, (values == wanted[:, None]).argmax(axis=1)[:, None], axis=1)[:, 0]


def _around_zero(values: Floats, levels: int) -> tuple[Floats, Bytes]:
    """(scales, quants) of Q4_0 and Q5_0: the extreme becomes the lowest of ``2 * levels`` steps."""
    scale = extreme(values) / np.float32(-levels)
    over = inverse(scale)
    shift = np.where((over == 0) & (scale != 0), np.float32(0), np.float32(levels + 0.5))
    quants = np.minimum((values * over[:, None] + shift[:, None]).astype(np.uint8), np.uint8(2 * levels - 1))
    return scale, quants


def _above_least(values: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    """(scales, minima, quants) of Q4_1 and Q5_1: ``levels`` steps from the least to the greatest."""
    least, greatest = _first(values, values.min(axis=1)), _first(values, values.max(axis=1))
    scale = (greatest - least) / np.float32(levels)
    steps = (values - least[:, None]) * inverse(scale)[:, None]
    quants = np.where(np.isfinite(steps), steps + np.float32(0.5), np.float32(0)).astype(np.uint8)
    return scale, least, np.minimum(quants, np.uint8(levels))


# --- blocks of 32 -------------------------------------------------------------------------------------------------


def q4_0(values: Floats) -> Bytes:
    scale, quants = _around_zero(values, 8)
    return np.hstack((halves(scale), pack_nibbles(quants)))


def q4_1(values: Floats) -> Bytes:
    scale, least, quants = _above_least(values, 15)
    return np.hstack((halves(scale), halves(least), pack_nibbles(quants)))


def q5_0(values: Floats) -> Bytes:
    scale, quants = _around_zero(values, 16)
    return np.hstack((halves(scale), pack_fifths(quants), pack_nibbles(quants)))


def q5_1(values: Floats) -> Bytes:
    scale, least, quants = _above_least(values, 31)
    return np.hstack((halves(scale), halves(least), pack_fifths(quants), pack_nibbles(quants)))


def q8_0(values: Floats) -> Bytes:
    scale = np.abs(values).max(axis=1) / np.float32(127)
    return np.hstack((halves(scale), _rounded(values * inverse(scale)[:, None]).view(np.uint8)))


def nearest_e2m1(values: Floats, scale: Floats) -> Bytes:
    """Codes of the nearest of ``decode.E2M1 * scale`` (blocks, 1); the first of equally near ones."""
    code = np.zeros(values.shape, np.uint8)
    least = np.abs(values)
    for number in range(1, 16):
        error = np.abs(E2M1[number] * scale - values)
        nearer = error < least
        code[nearer] = number
        least = np.minimum(error, least)
    return code


def shared_exponents(greatest: Floats) -> Bytes:
    """MXFP4's exponent for the greatest magnitude of a block: floor(log2) + 125, and 0 for zeros.

    The logarithm is the float32 one, which rounds up to a whole number just below large and small powers of two. For magnitudes
    below 2^-125 the exponent wraps around, as ggml's does."""
    logarithm = np.log2(greatest.astype(np.float64)).astype(np.float32)
    whole = np.floor(np.where(greatest > 0, logarithm, np.float32(-125)))
    return ((whole.astype(np.int32) + 125) & 255).astype(np.uint8)


def mxfp4(values: Floats) -> Bytes:
    exponents = shared_exponents(np.abs(values).max(axis=1))[:, None]
    scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)
    return np.hstack((exponents, pack_nibbles(nearest_e2m1(values, scale))))


# --- blocks of 64 and 128 -----------------------------------------------------------------------------------------


def _e4m3_codes(values: Floats) -> Bytes:
    """The nearest codes of `decode_blocks.e4m3_unsigned`, as ``ggml_fp32_to_ue4m3`` finds them: halves up; what would have
    the highest exponent is 0x7E."""
    bits = np.minimum(values, np.float32(448)).view(np.int32)
    exponent = (bits >> 23) - 120
    whole = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
    whole = np.where(whole >= 15 << 3, 0x7E, whole)
    tiny = np.minimum((values * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    return np.where(values > 0, np.where(exponent <= 0, tiny, whole), 0).astype(np.uint8)


def nvfp4(values: Floats) -> Bytes:
    groups = values.reshape(-1, 16)
    codes = _e4m3_codes(np.abs(groups).max(axis=1) / np.float32(6))
    quants = pack_nibbles(nearest_e2m1(groups, e4m3_unsigned(codes)[:, None]))
    return np.hstack((codes.reshape(-1, 4), quants.reshape(-1, 32)))


def q1_0(values: Floats) -> Bytes:
    """One sign each; the scale is the mean magnitude, summed one by one."""
    total: Floats = np.add.accumulate(np.abs(values), axis=1)[:, -1]
    scale: Floats = np.divide(total, np.float32(128))
    return np.hstack((halves(scale), np.packbits(values >= 0, axis=1, bitorder="little")))


def q2_0(values: Floats) -> Bytes:
    scale = np.abs(values).max(axis=1)
    over = inverse(scale)
    lost = (over == 0) & (scale > 0)
    quants = np.where(lost[:, None], 0, _rounded(values * over[:, None]) + np.int8(1)).astype(np.uint8)
    layers = quants.reshape(len(values), -1, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    return np.hstack((halves(scale), np.bitwise_or.reduce(layers, axis=2)))


# --- blocks of 256 ------------------------------------------------------------------------------------------------


def _trits(values: Floats) -> tuple[Floats, Bytes]:
    scale = np.abs(values).max(axis=1)
    return scale, (_rounded(values * inverse(scale)[:, None]) + np.int8(1)).astype(np.uint8)


def tq1_0(values: Floats) -> Bytes:
    """Five ternary digits in a byte, as the fraction digits / 243 in 256ths, rounded up."""
    scale, trits = _trits(values)
    places = np.array([81, 27, 9, 3, 1], np.uint16)[:, None]
    packed = []
    for start, stop, count in ((0, 160, 5), (160, 240, 5), (240, 256, 4)):
        digits = trits[:, start:stop].reshape(len(trits), count, -1)
        number = (digits * places[:count]).sum(axis=1, dtype=np.uint16)
        packed.append(((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
    return np.hstack((*packed, halves(scale)))


def tq2_0(values: Floats) -> Bytes:
    scale, trits = _trits(values)
    layers = trits.reshape(len(trits), 2, 4, 32) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.hstack((np.bitwise_or.reduce(layers, axis=2).reshape(-1, 64), halves(scale)))

"""The IQ types that choose points of a grid, decoded to float32, in NumPy, bit for bit as ``dequantize_row_iq*`` do.

As in `decode_blocks`: from ``uint8`` (blocks, bytes of a block) to float32 (blocks, 256).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelhub_gguf.codecs.decode_blocks import Bytes, Floats, field, half
from modelhub_gguf.codecs.grids import grid, signs

_SEVENS = np.arange(0, 28, 7, dtype=np.uint32)


def _signs_of_bits(packed: Bytes) -> Floats:
    """(blocks, bytes) to signs (blocks, bytes, 8): a set bit is a minus."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    return np.where(bits, np.float32(-1), np.float32(1)).reshape(len(packed), -1, 8)


def _scaled(scale: Floats, points: Floats, sign: Floats) -> Floats:
    """``scale`` (blocks, groups) over equal runs of ``points`` (blocks, n, m); ``sign`` of as many elements as the points."""
    spread = scale.repeat(points.shape[1] // scale.shape[1], axis=1)
    return (spread[:, :, None] * points).reshape(-1, 256) * sign.reshape(-1, 256)


def _nibble_scales(packed: Bytes) -> Floats:
    """Two four-bit numbers a byte, low first."""
    both = packed[:, :, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    return both.reshape(len(packed), -1).astype(np.float32)


def iq2_xxs(blocks: Bytes) -> Floats:
    words = field(blocks, 2, "<u4", 16).reshape(-1, 8, 2)
    points = grid("IQ2_XXS")[np.ascontiguousarray(words[:, :, :1]).view(np.uint8)].reshape(-1, 32, 8)
    scale = half(blocks, 0) * (np.float32(0.5) + (words[:, :, 1] >> 28).astype(np.float32)) * np.float32(0.25)
    return _scaled(scale, points, signs()[words[:, :, 1:] >> _SEVENS & 127])


def iq2_xs(blocks: Bytes) -> Floats:
    words: NDArray[np.uint16] = field(blocks, 2, "<u2", 32)
    scale = half(blocks, 0) * (np.float32(0.5) + _nibble_scales(blocks[:, 66:])) * np.float32(0.25)
    return _scaled(scale, grid("IQ2_XS")[words & 511], signs()[words >> 9])


def iq2_s(blocks: Bytes) -> Floats:
    high = blocks[:, 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    places = blocks[:, 2:34] | high.reshape(-1, 32).astype(np.uint16) << 8
    scale = half(blocks, 0) * (np.float32(0.5) + _nibble_scales(blocks[:, 74:])) * np.float32(0.25)
    return _scaled(scale, grid("IQ2_S")[places], _signs_of_bits(blocks[:, 34:66]))


def iq3_xxs(blocks: Bytes) -> Floats:
    words = field(blocks, 66, "<u4", 8)
    scale = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    return _scaled(scale, grid("IQ3_XXS")[blocks[:, 2:66]], signs()[words[:, :, None] >> _SEVENS & 127])


def iq3_s(blocks: Bytes) -> Floats:
    high = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    scale = half(blocks, 0) * (1 + 2 * _nibble_scales(blocks[:, 106:]))
    return _scaled(scale, grid("IQ3_S")[blocks[:, 2:66] | high << 8], _signs_of_bits(blocks[:, 74:106]))


def _delta(minus: NDArray[np.bool_]) -> Floats:
    """IQ1's points are moved by an eighth, up or down (``IQ1S_DELTA``)."""
    return np.where(minus, np.float32(-0.125), np.float32(0.125))


def iq1_s(blocks: Bytes) -> Floats:
    words: NDArray[np.uint16] = field(blocks, 34, "<u2", 8)
    high = words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    points = grid("IQ1_S")[blocks[:, 2:34] | high.reshape(-1, 32) << 8].reshape(-1, 8, 32)
    scale: Floats = half(blocks, 0) * (2 * (words >> 12 & 7).astype(np.float32) + 1)
    values: Floats = scale[:, :, None] * (points + _delta(words >= 0x8000)[:, :, None])
    return values.reshape(-1, 256)


def iq1_m(blocks: Bytes) -> Floats:
    """The block's half-precision scale is spread over the top four bits of the four words of scales."""
    words: NDArray[np.uint16] = field(blocks, 48, "<u2", 4)
    top = words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    whole = np.bitwise_or.reduce(top, axis=1, keepdims=True).view("<f2").astype(np.float32)
    steps = words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    scale: Floats = whole * (2 * steps.reshape(-1, 16).astype(np.float32) + 1)
    high = blocks[:, 32:48, None] >> np.array([0, 4], np.uint8)
    places = blocks[:, :32] | (high.reshape(-1, 32).astype(np.uint16) & 7) << 8
    moved = grid("IQ1_S")[places] + _delta((high & 8 != 0).reshape(-1, 32))[:, :, None]
    values: Floats = scale[:, :, None] * moved.reshape(-1, 16, 16)
    return values.reshape(-1, 256)

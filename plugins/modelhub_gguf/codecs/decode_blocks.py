"""Every ggml block type decoded to float32, in NumPy: the definition that runs anywhere. Faster kernels are in `decode_fast`.

Each function here takes ``blocks``, ``uint8`` of shape (blocks, bytes of a block), and gives float32 of shape (blocks,
elements of a block), doing the float operations of ``dequantize_row_*`` in ``ggml/src/ggml-quants.c`` in their order, so that
the results are equal bit for bit. The IQ types with a grid are in `decode_grids`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of the four-bit float E2M1 (``kvalues_mxfp4``); its negative zero is plain zero here."""

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The levels of IQ4_NL and IQ4_XS (``kvalues_iq4nl``)."""


def field(blocks: Bytes, at: int, kind: str, count: int = 1) -> Any:
    """``count`` little-endian numbers that stand at byte ``at`` of every block, (blocks, count)."""
    return np.ascontiguousarray(blocks[:, at : at + count * np.dtype(kind).itemsize]).view(kind)


def half(blocks: Bytes, at: int) -> Floats:
    """The half-precision scale at byte ``at``, (blocks, 1)."""
    wide: Floats = field(blocks, at, "<f2").astype(np.float32)
    return wide


def parts(data: Bytes, groups: int, bits: int) -> Bytes:
    """The ``8 / bits`` layers of packed bytes, lowest bits first, group by group: (blocks, groups, layers, bytes of a group)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    layers: Bytes = data.reshape(len(data), groups, 1, -1) >> shifts & np.uint8((1 << bits) - 1)
    return layers


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    return parts(blocks[:, at : at + 16], 1, 4).reshape(-1, 32)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    fifth: Bytes = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)
    return fifth


# --- blocks of 32 -------------------------------------------------------------------------------------------------


def q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks, 2).astype(np.int8) - np.int8(8)).astype(np.float32) * half(blocks, 0)


def q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks, 4).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def q5_0(blocks: Bytes) -> Floats:
    quants = (_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)
    return quants.astype(np.float32) * half(blocks, 0)


def q5_1(blocks: Bytes) -> Floats:
    return (_nibbles(blocks, 8) | _fifth_bits(blocks, 4)).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half(blocks, 0)


def q8_1(blocks: Bytes) -> Floats:
    """The second half-precision number is the sum of the block, which only dot products need."""
    return blocks[:, 4:].view(np.int8).astype(np.float32) * half(blocks, 0)


def iq4_nl(blocks: Bytes) -> Floats:
    return half(blocks, 0) * IQ4[_nibbles(blocks, 2)]


def powers(blocks: Bytes) -> Floats:
    """The first byte e as a power of two, 2^(e - 127), halved, since `E2M1` holds doubles; (blocks, 1)."""
    return np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)


def mxfp4(blocks: Bytes) -> Floats:
    return E2M1[_nibbles(blocks, 1)] * powers(blocks)


# --- blocks of 64 and 128 -----------------------------------------------------------------------------------------


def e4m3_unsigned(codes: Bytes) -> Floats:
    """NVFP4's scales, halved: the eight-bit float E4M3 without its sign (``ggml_ue4m3_to_fp32``); 0x7F is zero."""
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(1 + mantissa / 8, exponent - 8))
    return np.where((codes == 0) | (codes == 0x7F), np.float32(0), value).astype(np.float32)


def nvfp4(blocks: Bytes) -> Floats:
    quants = parts(blocks[:, 4:], 4, 4).reshape(-1, 4, 16)
    return (E2M1[quants] * e4m3_unsigned(blocks[:, :4])[:, :, None]).reshape(-1, 64)


def q1_0(blocks: Bytes) -> Floats:
    scale = half(blocks, 0)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), scale, -scale)


def q2_0(blocks: Bytes) -> Floats:
    quants = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    return (quants.reshape(-1, 64).astype(np.float32) - 1) * half(blocks, 0)


# --- blocks of 256 ------------------------------------------------------------------------------------------------


def six_bit_pairs(packed: Bytes) -> tuple[Floats, Floats]:
    """The eight scales and eight minima of Q4_K and Q5_K out of their 12 bytes, each (blocks, 8)."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack((low & 63, high & 15 | low >> 6 << 4))
    minima = np.hstack((middle & 63, high >> 4 | middle >> 6 << 4))
    return scales.astype(np.float32), minima.astype(np.float32)


def q2_k(blocks: Bytes) -> Floats:
    quants = parts(blocks[:, 16:80], 2, 2).reshape(-1, 16, 16).astype(np.float32)
    scales, minima = (blocks[:, :16] & 15).astype(np.float32), (blocks[:, :16] >> 4).astype(np.float32)
    scale, least = half(blocks, 80) * scales, half(blocks, 82) * minima
    return (scale[:, :, None] * quants - least[:, :, None]).reshape(-1, 256)


def q3_k(blocks: Bytes) -> Floats:
    high = parts(blocks[:, :32], 1, 1).reshape(-1, 16, 16)
    quants = (parts(blocks[:, 32:96], 2, 2).reshape(-1, 16, 16) | high << np.uint8(2)).astype(np.int8) - np.int8(4)
    low = parts(blocks[:, 96:104], 1, 4).reshape(-1, 16)
    scales = (low | parts(blocks[:, 104:108], 1, 2).reshape(-1, 16) << np.uint8(4)).astype(np.int8) - np.int8(32)
    scale = half(blocks, 108) * scales.astype(np.float32)
    return (scale[:, :, None] * quants.astype(np.float32)).reshape(-1, 256)


def q4_k(blocks: Bytes) -> Floats:
    scales, minima = six_bit_pairs(blocks[:, 4:16])
    scale, least = half(blocks, 0) * scales, half(blocks, 2) * minima
    quants = parts(blocks[:, 16:], 4, 4).reshape(-1, 8, 32).astype(np.float32)
    return (scale[:, :, None] * quants - least[:, :, None]).reshape(-1, 256)


def q5_k(blocks: Bytes) -> Floats:
    scales, minima = six_bit_pairs(blocks[:, 4:16])
    scale, least = half(blocks, 0) * scales, half(blocks, 2) * minima
    high = parts(blocks[:, 16:48], 1, 1).reshape(-1, 8, 32)
    quants = (parts(blocks[:, 48:], 4, 4).reshape(-1, 8, 32) | high << np.uint8(4)).astype(np.float32)
    return (scale[:, :, None] * quants - least[:, :, None]).reshape(-1, 256)


def q6_k(blocks: Bytes) -> Floats:
    low, high = parts(blocks[:, :128], 2, 4).reshape(-1, 16, 16), parts(blocks[:, 128:192], 2, 2).reshape(-1, 16, 16)
    quants = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
    scale = half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale[:, :, None] * quants.astype(np.float32)).reshape(-1, 256)


def q8_k(blocks: Bytes) -> Floats:
    """After the 256 bytes stand sums of 16 each, which only dot products need."""
    scale: Floats = field(blocks, 0, "<f4")
    return scale * blocks[:, 4:260].view(np.int8).astype(np.float32)


def iq4_xs(blocks: Bytes) -> Floats:
    low = blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    high = field(blocks, 2, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low.reshape(-1, 8) | high.astype(np.uint8) << np.uint8(4)).astype(np.int8) - np.int8(32)
    scale: Floats = half(blocks, 0) * scales.astype(np.float32)
    return (scale[:, :, None] * IQ4[parts(blocks[:, 8:], 8, 4).reshape(-1, 8, 32)]).reshape(-1, 256)


def tq1_0(blocks: Bytes) -> Floats:
    """Five ternary digits in a byte, as a fixed-point fraction: multiply by three, and the digit falls out at the top."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    digits = [
        ((part[:, None] * powers[:count]).astype(np.uint16) * np.uint16(3) >> 8).reshape(len(blocks), -1)
        for part, count in ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    ]
    return (np.hstack(digits).astype(np.float32) - 1) * half(blocks, 52)


def tq2_0(blocks: Bytes) -> Floats:
    return (parts(blocks[:, :64], 2, 2).reshape(-1, 256).astype(np.float32) - 1) * half(blocks, 64)

"""Many blocks at once: a lane is one block, and every operation here is done to all lanes.

An encoder is written once, as its reference is written for one block, with values that are vectors of lanes (float32, int32, or
masks of comparisons) and with `select` in the place of branches. Compiled, a vector has `LANES` lanes and stays in registers
(`lanes_compiled` says how); without a compiler it is a numpy array of any length. Either way each lane does the reference's
single-precision operations in the reference's order, and none is fused with another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit

LANES = 16
"""Lanes of a compiled vector: one register of AVX-512, two of AVX2, four of SSE or Neon."""

EPSILON = 1e-15
"""ggml's ``GROUP_MAX_EPS``: numbers none of which is larger are all zeros."""

Vector = Any
"""Lanes of float32 or int32."""
Mask = Any
"""Lanes of truth values."""
Array = Any


def splat(value: Any) -> Vector:
    """``value`` as float32 in every lane."""
    return np.float32(value)


def whole(value: Any) -> Vector:
    """``value`` as int32 in every lane."""
    return np.int32(value)


def load(array: Array, row: int) -> Vector:
    """Row ``row`` of a C-contiguous (rows, lanes) array of float32 or int32."""
    return array[row]


def store(array: Array, row: int, value: Vector) -> None:
    """Put ``value`` in row ``row``."""
    array[row] = value


def gather(data: Array, offsets: Array, shift: int, array: Array, row: int) -> None:
    """Compiled only: from each ``offsets[lane] + shift`` on, `LANES` 4-byte words of ``data`` (uint8), as lanes of that many rows
    of ``array`` (int32) from ``row`` on."""
    raise NotImplementedError


def select(mask: Mask, yes: Vector, no: Vector) -> Vector:
    """``yes`` where ``mask``, else ``no``."""
    return np.where(mask, yes, no)


def anywhere(mask: Mask) -> bool:
    """Whether any lane is set."""
    return bool(np.any(mask))


def square_root(value: Vector) -> Vector:
    """Correctly rounded."""
    return np.sqrt(value)


def magnitude(value: Vector) -> Vector:
    """Absolute value of float32 lanes."""
    return np.abs(value)


def near(value: Vector) -> Vector:
    """Rounded to an integer, ties to even, as float32."""
    return np.rint(value)


def bits(value: Vector) -> Vector:
    """The bit patterns of float32 lanes."""
    return np.asarray(value, np.float32).view(np.int32)


def floats(value: Vector) -> Vector:
    """The float32 of these bit patterns."""
    return np.asarray(value, np.int32).view(np.float32)


def to_float(value: Vector) -> Vector:
    """int32 lanes as float32, rounded."""
    return np.asarray(value).astype(np.float32)


def to_int(value: Vector) -> Vector:
    """float32 lanes that are small integers, as int32."""
    return np.asarray(value).astype(np.int32)


def shift_right(value: Vector, count: int) -> Vector:
    """Bits moved down by ``count``, zeros moved in."""
    return (np.asarray(value, np.int32).view(np.uint32) >> np.uint32(count)).view(np.int32)


if jit.available():
    from modelhub_gguf.codecs import lanes_compiled

    lanes_compiled.install(globals(), LANES)


# --- made of these ------------------------------------------------------------------------------------------------


@jit.inlined
def lower(a: Vector, b: Vector) -> Vector:
    """``a < b ? a : b``"""
    return select(a < b, a, b)


@jit.inlined
def higher(a: Vector, b: Vector) -> Vector:
    """``a > b ? a : b``"""
    return select(a > b, a, b)


@jit.inlined
def nearest_int(value: Vector) -> Vector:
    """ggml's ``nearest_int``, for any float: the low 23 bits of ``value`` plus 1.5 times 2 to the 23rd, which wrap around from
    4194304 on, and give 0 for NaN and -4194304 for the infinities."""
    return (bits(value + 12582912.0) & 0x7FFFFF) - 0x400000


@jit.inlined
def to_half(value: Vector) -> Vector:
    """The bits of float32 lanes as float16, ties to even, by ggml's arithmetic (``ggml_compute_fp32_to_fp16``)."""
    pattern = bits(value)
    twice = pattern + pattern
    sign = pattern & -0x80000000
    base = (magnitude(value) * 5.192296858534828e33) * 7.70371977754894e-34  # 2^112, which overflows to infinity; 2^-110
    # the exponent, at least that of the smallest normal half, compared as unsigned numbers
    bias = higher(shift_right(twice, 24), whole(0x71)) << 23
    base = floats(bias + 0x07800000) + base
    rounded = bits(base)
    half = (shift_right(rounded, 13) & 0x7C00) + (rounded & 0x0FFF)
    return shift_right(sign, 16) | select(value != value, whole(0x7E00), half)


@jit.inlined
def from_half(value: Vector) -> Vector:
    """The float32 of float16 bits (in int32 lanes)."""
    body = value & 0x7FFF
    scaled = floats(body << 13) * 5.192296858534828e33  # 2^112, which makes normal numbers of subnormal halves
    pattern = select(body >= 0x7C00, (body << 13) | 0x7F800000, bits(scaled))
    return floats(pattern | ((value & 0x8000) << 16))


@jit.inlined
def extreme_of(array: Array, first: int, count: int) -> Vector:
    """Of ``count`` rows of float32 from ``first`` on, the first of those that are largest in magnitude."""
    largest = splat(0.0)
    extreme = splat(0.0)
    for i in range(count):
        x = load(array, first + i)
        more = magnitude(x) > largest
        largest = select(more, magnitude(x), largest)
        extreme = select(more, x, extreme)
    return extreme


@jit.inlined
def sum_of_squares(array: Array, count: int) -> Vector:
    """Of the first ``count`` rows, added up one by one."""
    total = splat(0.0)
    for i in range(count):
        x = load(array, i)
        total = total + x * x
    return total

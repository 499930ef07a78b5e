"""Q4_0, Q4_1, Q5_0 and Q5_1 with importance: scales that are searched for, many blocks at once.

They follow ``quantize_row_q4_0_impl`` and its like in ggml's ``ggml-quants.c`` operation by operation. Where other encoders here
get importance, these get the weights that follow from it, which depend on the whole row: see `weights_of`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit, k_affine
from modelhub_gguf.codecs.k_affine import FINE_4, FINE_5
from modelhub_gguf.codecs.k_affine import search as search_affine
from modelhub_gguf.codecs.k_symmetric import steps
from modelhub_gguf.codecs.lanes import (
    EPSILON,
    Array,
    Vector,
    extreme_of,
    from_half,
    higher,
    load,
    lower,
    magnitude,
    near,
    nearest_int,
    select,
    splat,
    store,
    to_half,
    to_int,
    whole,
)
from modelhub_gguf.codecs.lanes_run import F32, compare, run
from modelhub_gguf.codecs.rows import Bytes, Floats
from modelhub_gguf.codecs.signatures import compiled
from modelhub_gguf.types import BY_NAME

WX = 0
"""Rows of scratch: weights times values."""


def weights_of(values: Floats, importance: Floats) -> Floats:
    """What every element of rows weighs: importance times the root of its square plus the row's mean square, which is summed one
    by one. Weights may overflow to infinity, as ggml's do."""
    weights: Floats = np.empty_like(values)
    if jit.available():
        _weigher()(values, importance, weights)
        return weights
    with np.errstate(all="ignore"):
        squares = values * values
        mean = np.add.accumulate(squares, axis=1)[:, -1:] / np.float32(values.shape[1])
        np.multiply(importance, np.sqrt(mean + squares), out=weights)
    return weights


def _weigher() -> Any:
    return compiled(_weigh, "float32:2 float32:1 float32:2!")


@jit.kernel
def _weigh(values: Array, importance: Array, weights: Array) -> None:
    for row in range(values.shape[0]):
        total = np.float32(0)
        for i in range(values.shape[1]):
            total += values[row, i] * values[row, i]
        mean = total / np.float32(values.shape[1])
        for i in range(values.shape[1]):
            weights[row, i] = importance[i] * np.sqrt(mean + values[row, i] * values[row, i])


STEPS_8 = steps(8)
STEPS_16 = steps(16)


@jit.inlined
def _around_zero(
    values: Array,
    weights: Array,
    scratch: Array,
    integers: Array,
    words: Array,
    errors: Array,
    measure: bool,
    top: int,
    tried: Array,
) -> None:
    """``make_qx_quants`` of 32 values: Q4_0 (``top`` 8) and Q5_0 (16)."""
    extreme = extreme_of(values, 0, 32)
    for i in range(32):
        store(scratch, WX + i, load(weights, i) * load(values, i))
    scale = splat(0.0)
    best = splat(0.0)
    best_inverse = splat(0.0)
    for step in range(tried.size):
        inverse = tried[step] / extreme
        sum_lx = splat(0.0)
        sum_l2 = splat(0.0)
        for i in range(32):
            q = lower(higher(near(inverse * load(values, i)), splat(-top)), splat(top - 1))
            sum_lx = sum_lx + load(scratch, WX + i) * q
            sum_l2 = sum_l2 + load(weights, i) * q * q
        this_scale = sum_lx / sum_l2
        if step == 0:
            scale = select(sum_l2 == 0.0, splat(0.0), this_scale)
            best = scale * sum_lx
            best_inverse = inverse
        else:
            better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
            scale = select(better, this_scale, scale)
            best = select(better, this_scale * sum_lx, best)
            best_inverse = select(better, inverse, best_inverse)
    nothing = magnitude(extreme) < EPSILON
    half = to_half(select(nothing, splat(0.0), scale))
    for i in range(32):
        q = to_int(lower(higher(near(best_inverse * load(values, i)), splat(-top)), splat(top - 1)))
        store(integers, i, select(nothing, whole(0), q + top))
    if top == 8:
        _pack(integers, words, 0)
        store(words, 4, half)
    else:
        _pack(integers, words, 1)
        _pack_fifths(integers, words, 0)
        store(words, 5, half)
    if measure:
        compare(values, 0, 32, from_half(half), splat(0.0), integers, 0, top, errors)


@jit.inlined
def _above_least(
    values: Array,
    weights: Array,
    scratch: Array,
    integers: Array,
    words: Array,
    errors: Array,
    measure: bool,
    top: int,
    steps: Array,
) -> None:
    """``make_qkx3_quants`` of 32 values: Q4_1 (``top`` 15) and Q5_1 (31)."""
    for i in range(32):
        store(scratch, k_affine.W + i, load(weights, i))
    search_affine(values, 0, 32, top, steps, False, scratch, 0)
    scale = to_half(load(scratch, k_affine.SCALE))
    least = to_half(-load(scratch, k_affine.LOW))
    inverse = load(scratch, k_affine.BEST)
    floor = load(scratch, k_affine.FLOOR)
    for i in range(32):
        q = nearest_int(inverse * (load(values, i) - floor))
        store(integers, i, lower(higher(q, whole(0)), whole(top)))
    store(words, 0, scale | (least << 16))
    if top == 15:
        _pack(integers, words, 1)
    else:
        _pack_fifths(integers, words, 1)
        _pack(integers, words, 2)
    if measure:
        compare(values, 0, 32, from_half(scale), -from_half(least), integers, 0, 0, errors)


@jit.inlined
def _pack(integers: Array, words: Array, row: int) -> None:
    """The low four bits of 32 integers to 4 words from ``row`` on."""
    for k in range(4):
        word = whole(0)
        for i in range(4):
            word = word | (((load(integers, 4 * k + i) & 15) | ((load(integers, 16 + 4 * k + i) & 15) << 4)) << (8 * i))
        store(words, row + k, word)


@jit.inlined
def _pack_fifths(integers: Array, words: Array, row: int) -> None:
    word: Vector = whole(0)
    for i in range(32):
        word = word | ((load(integers, i) >> 4) << i)
    store(words, row, word)


@jit.inlined
def encode_q4_0(
    values: Array, weights: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _around_zero(values, weights, scratch, integers, words, errors, measure, 8, STEPS_8)


@jit.inlined
def encode_q5_0(
    values: Array, weights: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _around_zero(values, weights, scratch, integers, words, errors, measure, 16, STEPS_16)


@jit.inlined
def encode_q4_1(
    values: Array, weights: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _above_least(values, weights, scratch, integers, words, errors, measure, 15, FINE_4)


@jit.inlined
def encode_q5_1(
    values: Array, weights: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _above_least(values, weights, scratch, integers, words, errors, measure, 31, FINE_5)


@jit.kernel
def q4_0(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q4_0, 32, 18, 4, 0, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q4_1(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q4_1, 32, 20, 5, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q5_0(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q5_0, 32, 22, 5, 0, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q5_1(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q5_1, 32, 24, 6, -1, data, mode, per_row, weights, out, measure, sums)


def encode(dtype: str, values: Floats, weights: Floats, sums: Any) -> Bytes:
    """Blocks of ``values`` (rows, columns), each of which weighs what ``weights`` says; adds to ``sums`` where there are any."""
    count = values.size // 32
    out = np.empty(count * BY_NAME[dtype].nbytes, np.uint8)
    data, weighing = (part.reshape(-1).view(np.uint8) for part in (values, weights))
    _kernel(dtype)(data, F32, count, weighing, out.view(np.uint16), sums.size > 0, sums)
    return out


def _kernel(dtype: str) -> Any:
    kernel: Any = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1}[dtype]
    return compiled(kernel, "uint8:1 int int uint8:1 uint16:1! bool float64:1!") if jit.available() else kernel


def prepare(dtype: str) -> None:
    """Compiles what `weights_of` and `encode` need, or gets it from the cache."""
    if jit.available():
        _weigher()
        _kernel(dtype)

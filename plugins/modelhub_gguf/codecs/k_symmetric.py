"""The encoder of Q6_K, and what Q3_K (in `k_three`) has in common with it: scales, and no minima.

Each follows its function in ggml's ``ggml-quants.c`` operation by operation: ``quantize_row_q*_K_ref`` without importance
weights, ``quantize_row_q*_K_impl`` with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.lanes import (
    EPSILON,
    Array,
    Vector,
    anywhere,
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
    to_float,
    to_half,
    to_int,
    whole,
)
from modelhub_gguf.codecs.lanes_run import compare, run

W, WX, Q = 0, 16, 32
"""Rows of scratch: weights, weights times values, integers of the candidate in hand."""
SCALE, BEST, TOTAL = 48, 64, 80
"""Rows of scratch, one for each part of a block: scale, inverse scale of the integers that won (NaN: all are zeros, and not
moved up by ``nmax``), sum of weights."""


def steps(top: int) -> Any:
    """The inverse scales that are tried, times the largest value: ``-(nmax + 0.1 * is)`` in single precision, 0 first."""
    one = np.float32
    return np.array([-(one(top) + one(0.1) * one(i)) for i in (0, *range(-9, 0), *range(1, 10))], np.float32)


STEPS_32 = steps(32)


@jit.inlined
def _count(scaled: Vector, top: int, wild: bool) -> Vector:
    """``scaled`` as an integer from ``-top`` to ``top - 1``; ``wild`` where it may be infinite or NaN."""
    if wild:
        return to_float(lower(higher(nearest_int(scaled), whole(-top)), whole(top - 1)))
    return lower(higher(near(scaled), splat(-top)), splat(top - 1))


@jit.inlined
def search(values: Array, base: int, top: int, steps: Array, scratch: Array, part: int, wild: bool) -> None:
    """``make_qx_quants`` of 16 values (finite ones, unless ``wild``) from row ``base`` on, with the weights that stand in
    ``scratch``."""
    extreme = extreme_of(values, base, 16)
    for i in range(16):
        store(scratch, WX + i, load(scratch, W + i) * load(values, base + i))
    scale = splat(0.0)
    best = splat(0.0)
    best_inverse = splat(0.0)
    for step in range(steps.size):
        inverse = steps[step] / extreme
        sum_lx = splat(0.0)
        sum_l2 = splat(0.0)
        for i in range(16):
            q = _count(inverse * load(values, base + i), top, wild)
            sum_lx = sum_lx + load(scratch, WX + i) * q
            sum_l2 = sum_l2 + load(scratch, W + i) * q * q
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
    store(scratch, SCALE + part, select(nothing, splat(0.0), scale))
    store(scratch, BEST + part, select(nothing, splat(np.nan), best_inverse))


@jit.inlined
def integer(inverse: Vector, x: Vector, top: int) -> Vector:
    """A search's integer, from 0 to ``2 * top - 1``."""
    return select(inverse != inverse, whole(0), to_int(_count(inverse * x, top, True)) + top)


@jit.inlined
def quantize(values: Array, base: int, top: int, d: Vector, integers: Array, row: int) -> None:
    """16 integers to rows from ``row`` on, which hold the search's: these stay where the scale came out as 0."""
    none = d == 0.0
    for i in range(16):
        q = nearest_int(load(values, base + i) / d)
        q = lower(higher(q, whole(-top)), whole(top - 1)) + top
        store(integers, row + i, select(none, load(integers, row + i), q))


@jit.inlined
def byte(value: Vector) -> Vector:
    """As C's ``int8_t``."""
    return (value << 24) >> 24


@jit.inlined
def _encode_6(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, weighted: bool
) -> None:
    for part in range(16):
        for i in range(16):
            x = load(values, 16 * part + i)
            store(scratch, W + i, load(importance, 16 * part + i) if weighted else x * x)
        search(values, 16 * part, 32, STEPS_32, scratch, part, False)
    extreme = extreme_of(scratch, SCALE, 16)
    dead = magnitude(extreme) < EPSILON
    inverse = -128.0 / extreme
    d = select(dead, whole(0), to_half(1.0 / inverse))
    scale = from_half(d)
    store(words, 52, d)
    for four in range(4):
        word = whole(0)
        for k in range(4):
            part = 4 * four + k
            q = byte(lower(nearest_int(inverse * load(scratch, SCALE + part)), whole(127)))
            word = word | ((q & 0xFF) << (8 * k))
            store(scratch, SCALE + part, scale * to_float(q))
        store(words, 48 + four, word)
    for half in range(2):
        for group in range(8):
            part = 8 * half + group
            best = load(scratch, BEST + part)
            factor = load(scratch, SCALE + part)
            if anywhere(factor == 0.0):
                for i in range(16):
                    store(integers, 16 * group + i, integer(best, load(values, 16 * part + i), 32))
            quantize(values, 16 * part, 32, factor, integers, 16 * group)
            if measure:
                compare(values, 16 * part, 16, factor, splat(0.0), integers, 16 * group, 32, errors)
        for k in range(8):
            first = whole(0)
            second = whole(0)
            above = whole(0)
            for i in range(4):
                a = load(integers, 4 * k + i)
                b = load(integers, 4 * k + i + 32)
                c = load(integers, 4 * k + i + 64)
                e = load(integers, 4 * k + i + 96)
                first = first | (((a & 15) | ((c & 15) << 4)) << (8 * i))
                second = second | (((b & 15) | ((e & 15) << 4)) << (8 * i))
                above = above | (((a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)) << (8 * i))
            store(words, 16 * half + k, first)
            store(words, 16 * half + 8 + k, second)
            store(words, 32 + 8 * half + k, above)
    if anywhere(dead):
        for row in range(53):
            store(words, row, select(dead, whole(0), load(words, row)))


@jit.inlined
def encode_q6_k(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_6(values, importance, scratch, integers, words, errors, measure, False)


@jit.inlined
def encode_q6_k_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_6(values, importance, scratch, integers, words, errors, measure, True)


@jit.kernel
def q6_k(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q6_k, 256, 210, 52, 104, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q6_k_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q6_k_weighted, 256, 210, 52, 104, data, mode, per_row, weights, out, measure, sums)

"""The encoder of Q3_K, which follows ``quantize_row_q3_K_ref`` and, with importance, ``quantize_row_q3_K_impl`` of ggml's
``ggml-quants.c`` operation by operation.
"""

from __future__ import annotations

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.k_symmetric import (
    BEST,
    SCALE,
    STEPS_32,
    TOTAL,
    Q,
    W,
    byte,
    integer,
    quantize,
    search,
    steps,
)
from modelhub_gguf.codecs.lanes import (
    EPSILON,
    LANES,
    Array,
    Mask,
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
    square_root,
    store,
    sum_of_squares,
    to_float,
    to_half,
    to_int,
    whole,
)
from modelhub_gguf.codecs.lanes_run import compare, run

STEPS_4 = steps(4)

SUM_LX, SUM_L2, ACTIVE, EXTREME = 96, 112, 128, 144
"""Rows of scratch, one for each part of a block: the two sums of its search, whether its last round changed something (1 or 0),
and its value largest in magnitude."""
X, Y = 160, 192
"""Rows of scratch: values and integers of the parts in hand, two vectors of them."""


@jit.inlined
def _start(values: Array, part: int, scratch: Array, integers: Array) -> tuple[Vector, Vector]:
    """The integers that ``make_q3_quants`` starts from, and its two sums."""
    extreme = extreme_of(values, 16 * part, 16)
    store(scratch, EXTREME + part, extreme)
    inverse = -4.0 / extreme
    sum_lx = splat(0.0)
    sum_l2 = splat(0.0)
    for i in range(16):
        x = load(values, 16 * part + i)
        q = lower(higher(near(inverse * x), splat(-4.0)), splat(3.0))
        store(integers, 16 * part + i, to_int(q))
        w = x * x
        sum_lx = sum_lx + w * x * q
        sum_l2 = sum_l2 + w * q * q
    return sum_lx, sum_l2


@jit.inlined
def _improve(x: Vector, q: Vector, sum_lx: Vector, sum_l2: Vector) -> tuple[Mask, Vector, Vector, Vector]:
    """Another integer for one element, wherever that makes the error smaller: where it does, the integer, the sums."""
    w = x * x
    wx = w * x
    slx = sum_lx - wx * q
    sl2 = sum_l2 - w * q * q
    other = to_float(lower(higher(nearest_int(x * sl2 / slx), whole(-4)), whole(3)))
    better = (slx > 0.0) & (other != q)
    slx = slx + wx * other
    sl2 = sl2 + w * other * other
    better = better & (sl2 > 0.0) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
    return better, select(better, other, q), select(better, slx, sum_lx), select(better, sl2, sum_l2)


@jit.inlined
def _keep(scratch: Array, part: int, better: Mask, sum_lx: Vector, sum_l2: Vector) -> None:
    some = better & ~(magnitude(load(scratch, EXTREME + part)) < EPSILON)
    store(scratch, ACTIVE + part, select(some, splat(1.0), splat(0.0)))
    store(scratch, SUM_LX + part, sum_lx)
    store(scratch, SUM_L2 + part, sum_l2)


@jit.inlined
def _first_round(values: Array, part: int, scratch: Array, integers: Array) -> None:
    """The first of the five rounds of ``make_q3_quants``, of four parts from ``part`` on: each step of one needs the result of
    the step before, and a processor has time for four."""
    a_lx, a_l2 = _start(values, part, scratch, integers)
    b_lx, b_l2 = _start(values, part + 1, scratch, integers)
    c_lx, c_l2 = _start(values, part + 2, scratch, integers)
    d_lx, d_l2 = _start(values, part + 3, scratch, integers)
    never = a_lx != a_lx
    never = never & ~never
    a_some, b_some, c_some, d_some = never, never, never, never
    for i in range(16):
        row = 16 * part + i
        a, q, a_lx, a_l2 = _improve(load(values, row), to_float(load(integers, row)), a_lx, a_l2)
        store(integers, row, to_int(q))
        b, q, b_lx, b_l2 = _improve(load(values, row + 16), to_float(load(integers, row + 16)), b_lx, b_l2)
        store(integers, row + 16, to_int(q))
        c, q, c_lx, c_l2 = _improve(load(values, row + 32), to_float(load(integers, row + 32)), c_lx, c_l2)
        store(integers, row + 32, to_int(q))
        d, q, d_lx, d_l2 = _improve(load(values, row + 48), to_float(load(integers, row + 48)), d_lx, d_l2)
        store(integers, row + 48, to_int(q))
        a_some, b_some, c_some, d_some = a_some | a, b_some | b, c_some | c, d_some | d
    _keep(scratch, part, a_some, a_lx, a_l2)
    _keep(scratch, part + 1, b_some, b_lx, b_l2)
    _keep(scratch, part + 2, c_some, c_lx, c_l2)
    _keep(scratch, part + 3, d_some, d_lx, d_l2)


@jit.inlined
def _more_rounds(values: Array, scratch: Array, integers: Array) -> None:
    """The other rounds, of those parts that the first has changed: as they are few, they are put together in vectors of their
    own. One that a round leaves as it is comes out of all others the same."""
    chosen = np.empty((16 * LANES, 2), np.int64)
    count = 0
    for part in range(16):
        for lane in range(LANES):
            if scratch[ACTIVE + part, lane] > 0:
                chosen[count, 0], chosen[count, 1] = part, lane
                count += 1
    for first in range(0, count, 2 * LANES):
        here = min(2 * LANES, count - first)
        for k in range(2 * LANES):
            vector, to = k // LANES, k % LANES
            part, lane = chosen[first + min(k, here - 1)]
            for i in range(16):
                scratch[X + 16 * vector + i, to] = values[16 * part + i, lane]
                scratch[Y + 16 * vector + i, to] = integers[16 * part + i, lane]
            scratch[vector, to] = scratch[SUM_LX + part, lane]
            scratch[2 + vector, to] = scratch[SUM_L2 + part, lane]
        a_lx, b_lx, a_l2, b_l2 = load(scratch, 0), load(scratch, 1), load(scratch, 2), load(scratch, 3)
        for _ in range(4):
            some = a_lx != a_lx
            some = some & ~some
            for i in range(16):
                a, q, a_lx, a_l2 = _improve(load(scratch, X + i), load(scratch, Y + i), a_lx, a_l2)
                store(scratch, Y + i, q)
                b, q, b_lx, b_l2 = _improve(load(scratch, X + 16 + i), load(scratch, Y + 16 + i), b_lx, b_l2)
                store(scratch, Y + 16 + i, q)
                some = some | a | b
            if not anywhere(some):
                break
        store(scratch, 0, a_lx)
        store(scratch, 1, b_lx)
        store(scratch, 2, a_l2)
        store(scratch, 3, b_l2)
        for k in range(here):
            vector, to = k // LANES, k % LANES
            part, lane = chosen[first + k]
            for i in range(16):
                integers[16 * part + i, lane] = int(scratch[Y + 16 * vector + i, to])
            scratch[SUM_LX + part, lane] = scratch[vector, to]
            scratch[SUM_L2 + part, lane] = scratch[2 + vector, to]


def _more_rounds_numpy(values: Array, scratch: Array, integers: Array) -> None:
    """The same, of all parts."""
    for part in range(16):
        sum_lx, sum_l2 = load(scratch, SUM_LX + part), load(scratch, SUM_L2 + part)
        for _ in range(4):
            for row in range(16 * part, 16 * part + 16):
                _, q, sum_lx, sum_l2 = _improve(load(values, row), to_float(load(integers, row)), sum_lx, sum_l2)
                store(integers, row, to_int(q))
        store(scratch, SUM_LX + part, sum_lx)
        store(scratch, SUM_L2 + part, sum_l2)


if not jit.available():
    _more_rounds = _more_rounds_numpy


@jit.inlined
def _finish(values: Array, d: Vector, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool) -> None:
    """Packs Q3_K: the scales' integers (0 to 63) stand in scratch from ``Q`` on, the search's integers in ``integers``."""
    store(words, 27, d)
    for k in range(3):
        store(words, 24 + k, whole(0))
    scale = from_half(d)
    for part in range(16):
        q = to_int(load(scratch, Q + part))
        low = (q & 15) << (8 * (part & 3) + 4 * (part >> 3))
        row = 24 + ((part >> 2) & 1)
        store(words, row, load(words, row) | low)
        store(words, 26, load(words, 26) | ((q >> 4) << (8 * (part & 3) + 2 * (part >> 2))))
        factor = scale * to_float(q - 32)
        quantize(values, 16 * part, 4, factor, integers, 16 * part)
        if measure:
            compare(values, 16 * part, 16, factor, splat(0.0), integers, 16 * part, 4, errors)
    for k in range(8):
        mask = whole(0)
        for half in range(2):
            word = whole(0)
            for i in range(4):
                for quarter in range(4):
                    q = load(integers, 128 * half + 32 * quarter + 4 * k + i)
                    word = word | ((q & 3) << (8 * i + 2 * quarter))
                    mask = mask | ((q >> 2) << (8 * i + 4 * half + quarter))
            store(words, 8 + 8 * half + k, word)
        store(words, k, mask)


@jit.inlined
def encode_q3_k(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    for part in range(0, 16, 4):
        _first_round(values, part, scratch, integers)
    _more_rounds(values, scratch, integers)
    for part in range(16):
        nothing = magnitude(load(scratch, EXTREME + part)) < EPSILON
        for i in range(16):
            store(integers, 16 * part + i, select(nothing, whole(0), load(integers, 16 * part + i) + 4))
        sum_l2 = load(scratch, SUM_L2 + part)
        scale = select((sum_l2 > 0.0) & ~nothing, load(scratch, SUM_LX + part) / sum_l2, splat(0.0))
        store(scratch, SCALE + part, scale)
    extreme = extreme_of(scratch, SCALE, 16)
    dead = extreme == 0.0
    inverse = -32.0 / extreme
    for part in range(16):
        q = byte(nearest_int(inverse * load(scratch, SCALE + part)))
        q = lower(higher(q, whole(-32)), whole(31)) + 32
        store(scratch, Q + part, to_float(select(dead, whole(0), q)))
    d = select(dead, whole(0), to_half(1.0 / inverse))
    _finish(values, d, scratch, integers, words, errors, measure)


@jit.inlined
def encode_q3_k_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    sigma2 = sum_of_squares(values, 256) * 2.0 / 256.0
    for part in range(16):
        weight = splat(0.0)
        for i in range(16):
            x = load(values, 16 * part + i)
            w = load(importance, 16 * part + i) * square_root(sigma2 + x * x)
            store(scratch, W + i, w)
            weight = weight + w
        store(scratch, TOTAL + part, weight)
        search(values, 16 * part, 4, STEPS_4, scratch, part, False)
        best = load(scratch, BEST + part)
        for i in range(16):
            store(integers, 16 * part + i, integer(best, load(values, 16 * part + i), 4))
    for i in range(16):
        store(scratch, W + i, load(scratch, TOTAL + i))
        store(scratch, Q + i, load(scratch, SCALE + i))
    search(scratch, Q, 32, STEPS_32, scratch, 0, True)
    d = to_half(load(scratch, SCALE))
    best = load(scratch, BEST)
    for i in range(16):
        store(scratch, Q + i, to_float(integer(best, load(scratch, Q + i), 32)))
    _finish(values, d, scratch, integers, words, errors, measure)


@jit.kernel
def q3_k(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q3_k, 256, 110, 27, 54, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q3_k_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q3_k_weighted, 256, 110, 27, 54, data, mode, per_row, weights, out, measure, sums)

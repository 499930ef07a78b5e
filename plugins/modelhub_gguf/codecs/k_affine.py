"""Encoders of the block types with a scale and a minimum: Q4_K, Q5_K, and what Q2_K (in `k_two`) has in common with them.

Each follows its function in ggml's ``ggml-quants.c`` operation by operation: ``quantize_row_q*_K_ref`` without importance
weights, ``quantize_row_q*_K_impl`` with them. What differs is the order in which blocks are visited, and that a candidate's
integers are not kept: they follow from its scale, for the few blocks that need them.
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
    whole,
)
from modelhub_gguf.codecs.lanes_run import compare, run

CALM = 4e6
"""Below it `nearest_int` is plain rounding."""

W, A = 32, 64
"""Rows of scratch: weights, integers of the candidate in hand."""
SCALE, LOW, BEST, FLOOR, TOTAL = 96, 112, 128, 144, 160
"""Rows of scratch, one for each part of a block: scale, minimum as found (positive), of the integers that won the search the
inverse scale and the minimum that they were counted with, and the sum of weights."""


def steps(start: float, step: float, count: int, top: int) -> Any:
    """The inverse scales that are tried, times the range of the values: ``rmin + rdelta * is + nmax`` in single precision."""
    one = np.float32
    return np.array([(one(start) + one(step) * one(i)) + one(top) for i in range(count + 1)], np.float32)


STEPS_4 = steps(-1.0, 0.1, 20, 15)
STEPS_5 = steps(-0.5, 0.1, 15, 31)
FINE_4 = steps(-0.9, 0.05, 36, 15)
FINE_5 = steps(-0.9, 0.05, 36, 31)


@jit.inlined
def _count(values: Array, base: int, n: int, top: int, inverse: Vector, low: Vector, wild: bool, scratch: Array) -> None:
    """Candidate integers ``inverse * (x - low)``, rounded, from 0 to ``top``; ``wild`` where some may be beyond 2 to the 22nd,
    and `nearest_int` wraps around."""
    if wild:
        for i in range(n):
            q = nearest_int(inverse * (load(values, base + i) - low))
            store(scratch, A + i, to_float(lower(higher(q, whole(0)), whole(top))))
    else:
        for i in range(n):
            q = near(inverse * (load(values, base + i) - low))
            store(scratch, A + i, lower(higher(q, splat(0.0)), splat(top)))


@jit.inlined
def search(values: Array, base: int, n: int, top: int, inverses: Array, mad: bool, scratch: Array, part: int) -> None:
    """``make_qkx2_quants`` and ``make_qkx3_quants``: scale and minimum of ``n`` elements from row ``base`` on, whose weights
    stand in ``scratch``; the errors are absolute (``mad``) or squared."""
    x = load(values, base)
    w = load(scratch, W)
    low = x
    high = x
    sum_w = w
    sum_x = w * x
    for i in range(1, n):
        x = load(values, base + i)
        w = load(scratch, W + i)
        low = lower(x, low)
        high = higher(x, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
    low = select(low > 0.0, splat(0.0), low)
    floor = low
    flat = high == low
    inverse = top / (high - low)
    scale = 1.0 / inverse
    best = splat(0.0)
    best_inverse = inverse
    best_low = low
    for step in range(-1, inverses.size):
        if step >= 0:
            inverse = inverses[step] / (high - low)
        calm = (magnitude(inverse * (high - low)) < CALM) & (magnitude(inverse * (floor - low)) < CALM)
        _count(values, base, n, top, inverse, low, anywhere(~(calm | flat)), scratch)
        this_scale = scale
        this_low = low
        candidate = flat
        if step >= 0:
            sum_l = splat(0.0)
            sum_l2 = splat(0.0)
            sum_xl = splat(0.0)
            for i in range(n):
                q = load(scratch, A + i)
                wq = load(scratch, W + i) * q
                sum_l = sum_l + wq
                sum_l2 = sum_l2 + wq * q
                sum_xl = sum_xl + wq * load(values, base + i)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            candidate = determinant > 0.0
            this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            positive = this_low > 0.0
            this_scale = select(positive, sum_xl / sum_l2, this_scale)
            this_low = select(positive, splat(0.0), this_low)
        error = splat(0.0)
        for i in range(n):
            difference = this_scale * load(scratch, A + i) + this_low - load(values, base + i)
            difference = magnitude(difference) if mad else difference * difference
            error = error + load(scratch, W + i) * difference
        if step < 0:
            best = error
        else:
            better = candidate & (error < best)
            best = select(better, error, best)
            best_inverse = select(better, inverse, best_inverse)
            best_low = select(better, low, best_low)
            scale = select(better, this_scale, scale)
            low = select(better, this_low, low)
    store(scratch, SCALE + part, select(flat, splat(0.0), scale))
    store(scratch, LOW + part, -select(flat, floor, low))
    store(scratch, BEST + part, select(flat, splat(0.0), best_inverse))
    store(scratch, FLOOR + part, best_low)


@jit.inlined
def quantize(
    values: Array, base: int, n: int, top: int, d: Vector, m: Vector, scratch: Array, part: int, integers: Array, row: int,
    errors: Array, measure: bool,
) -> None:  # fmt: skip
    """The integers of one part to ``integers`` from ``row`` on; where the scale came out as 0 those of the search stay."""
    for i in range(n):
        q = nearest_int((load(values, base + i) + m) / d)
        store(integers, row + i, lower(higher(q, whole(0)), whole(top)))
    none = d == 0.0
    if anywhere(none):
        floor = load(scratch, FLOOR + part)
        inverse = load(scratch, BEST + part)
        for i in range(n):
            q = nearest_int(inverse * (load(values, base + i) - floor))
            store(integers, row + i, select(none, lower(higher(q, whole(0)), whole(top)), load(integers, row + i)))
    if measure:
        compare(values, base, n, d, m, integers, row, 0, errors)


@jit.inlined
def _weigh_plain(values: Array, base: int, scratch: Array) -> None:
    """``av_x + |x|`` over 32 elements, the weights of Q4_K and Q5_K."""
    total = splat(0.0)
    for i in range(32):
        x = load(values, base + i)
        total = total + x * x
    average = square_root(total / 32.0)
    for i in range(32):
        store(scratch, W + i, average + magnitude(load(values, base + i)))


@jit.inlined
def weigh(values: Array, importance: Array, base: int, n: int, sigma2: Vector, scratch: Array, part: int) -> None:
    """Importance times ``sqrt(sigma2 + x * x)``, the weights wherever there is an importance, and their sum."""
    weight = splat(0.0)
    for i in range(n):
        x = load(values, base + i)
        w = load(importance, base + i) * square_root(sigma2 + x * x)
        store(scratch, W + i, w)
        weight = weight + w
    store(scratch, TOTAL + part, weight)


@jit.inlined
def levels(scratch: Array, source: int, n: int, top: int, integers: Array, row: int) -> Vector:
    """``make_qp_quants``: a scale for the ``n`` scales (or minima) from row ``source`` of scratch on, whose weights are sums of
    weights; the integers (as bytes) to ``integers`` from ``row`` on."""
    highest = splat(0.0)
    for i in range(n):
        x = load(scratch, source + i)
        highest = select(highest > x, highest, x)
    inverse = top / highest
    scale = 1.0 / inverse
    best = splat(0.0)
    for i in range(n):
        x = load(scratch, source + i)
        difference = x - scale * to_float(nearest_int(inverse * x) & 0xFF)
        best = best + load(scratch, TOTAL + i) * difference * difference
    for step in range(-4, 5):
        if step != 0:
            this_inverse = (splat(0.1) * splat(step) + splat(top)) / highest
            scale = 1.0 / this_inverse
            error = splat(0.0)
            for i in range(n):
                x = load(scratch, source + i)
                difference = x - scale * to_float(lower(nearest_int(this_inverse * x), whole(top)))
                error = error + load(scratch, TOTAL + i) * difference * difference
            better = error < best
            best = select(better, error, best)
            inverse = select(better, this_inverse, inverse)
    sum_lx = splat(0.0)
    sum_l2 = splat(0.0)
    for i in range(n):
        x = load(scratch, source + i)
        w = load(scratch, TOTAL + i)
        q = lower(nearest_int(inverse * x), whole(top))
        store(integers, row + i, q & 0xFF)
        sum_lx = sum_lx + w * x * to_float(q)
        sum_l2 = sum_l2 + w * to_float(q) * to_float(q)
    nothing = highest < EPSILON
    for _ in range(5):
        changed = nothing & ~nothing
        for i in range(n):
            x = load(scratch, source + i)
            w = load(scratch, TOTAL + i)
            q = to_float(load(integers, row + i))
            slx = sum_lx - w * x * q
            sl2 = sum_l2 - w * q * q
            new = lower(nearest_int(x * sl2 / slx), whole(top))
            other = to_float(new)
            better = (slx > 0.0) & (sl2 > 0.0) & (other != q)
            slx = slx + w * x * other
            sl2 = sl2 + w * other * other
            better = better & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
            store(integers, row + i, select(better, new & 0xFF, load(integers, row + i)))
            sum_lx = select(better, slx, sum_lx)
            sum_l2 = select(better, sl2, sum_l2)
            changed = changed | better
        if not anywhere(changed & ~nothing):
            break
    for i in range(n):
        store(integers, row + i, select(nothing, whole(0), load(integers, row + i)))
    return select((sum_l2 > 0.0) & ~nothing, sum_lx / sum_l2, splat(0.0))


# --- Q4_K and Q5_K ------------------------------------------------------------------------------------------------


@jit.inlined
def _encode_45(
    values: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, top: int, steps: Array
) -> None:
    for part in range(8):
        _weigh_plain(values, 32 * part, scratch)
        search(values, 32 * part, 32, top, steps, False, scratch, part)
    greatest = splat(0.0)
    deepest = splat(0.0)
    for part in range(8):
        greatest = higher(load(scratch, SCALE + part), greatest)
        deepest = higher(load(scratch, LOW + part), deepest)
    inverse = select(greatest > 0.0, 63.0 / greatest, splat(0.0))
    inverse_low = select(deepest > 0.0, 63.0 / deepest, splat(0.0))
    for part in range(8):
        store(integers, part, lower(nearest_int(inverse * load(scratch, SCALE + part)) & 0xFF, whole(63)))
        store(integers, 8 + part, lower(nearest_int(inverse_low * load(scratch, LOW + part)) & 0xFF, whole(63)))
    _finish_45(values, to_half(greatest / 63.0), to_half(deepest / 63.0), scratch, integers, words, errors, measure, top)


@jit.inlined
def _encode_45_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, top: int,
    steps: Array,
) -> None:  # fmt: skip
    sigma2 = sum_of_squares(values, 256) * 2.0 / 256.0
    for part in range(8):
        weigh(values, importance, 32 * part, 32, sigma2, scratch, part)
        search(values, 32 * part, 32, top, steps, False, scratch, part)
    scale = levels(scratch, SCALE, 8, 63, integers, 0)
    low = levels(scratch, LOW, 8, 63, integers, 8)
    if top == 31:
        for row in range(16):
            store(integers, row, lower(load(integers, row), whole(63)))
    _finish_45(values, to_half(scale), to_half(low), scratch, integers, words, errors, measure, top)


@jit.inlined
def _finish_45(
    values: Array, d: Vector, m: Vector, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, top: int
) -> None:
    """Packs Q4_K (``top`` 15) or Q5_K (31): integers of scales stand in ``integers`` from row 0 on, of minima from row 8 on."""
    store(words, 0, d | (m << 16))
    word1 = whole(0)
    word2 = whole(0)
    word3 = whole(0)
    for part in range(4):
        s, t = load(integers, part), load(integers, 4 + part)
        p, q = load(integers, 8 + part), load(integers, 12 + part)
        word1 = word1 | (((s | ((t >> 4) << 6)) & 0xFF) << (8 * part))
        word2 = word2 | (((p | ((q >> 4) << 6)) & 0xFF) << (8 * part))
        word3 = word3 | (((t & 15) | ((q & 15) << 4)) << (8 * part))
    store(words, 1, word1)
    store(words, 2, word2)
    store(words, 3, word3)
    scale, low = from_half(d), from_half(m)
    for part in range(4):
        s, p, t = word1 >> (8 * part), word2 >> (8 * part), word3 >> (8 * part)
        store(scratch, SCALE + part, scale * to_float(s & 63))
        store(scratch, LOW + part, low * to_float(p & 63))
        store(scratch, SCALE + 4 + part, scale * to_float((t & 15) | (((s >> 6) & 3) << 4)))
        store(scratch, LOW + 4 + part, low * to_float(((t >> 4) & 15) | (((p >> 6) & 3) << 4)))
    for pair in range(4):
        for half in range(2):
            part = 2 * pair + half
            quantize(
                values, 32 * part, 32, top, load(scratch, SCALE + part), load(scratch, LOW + part), scratch, part, integers,
                32 * half, errors, measure,
            )  # fmt: skip
        for k in range(8):
            word = whole(0)
            above = whole(0)
            for i in range(4):
                q = load(integers, 4 * k + i)
                r = load(integers, 4 * k + i + 32)
                word = word | (((q & 15) | ((r & 15) << 4)) << (8 * i))
                above = above | (((q >> 4) | ((r >> 4) << 1)) << (8 * i))
            if top == 15:
                store(words, 4 + 8 * pair + k, word)
            else:
                store(words, 12 + 8 * pair + k, word)
                above = above << (2 * pair)
                store(words, 4 + k, above if pair == 0 else load(words, 4 + k) | above)


@jit.inlined
def encode_q4_k(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_45(values, scratch, integers, words, errors, measure, 15, STEPS_4)


@jit.inlined
def encode_q5_k(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_45(values, scratch, integers, words, errors, measure, 31, STEPS_5)


@jit.inlined
def encode_q4_k_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_45_weighted(values, importance, scratch, integers, words, errors, measure, 15, FINE_4)


@jit.inlined
def encode_q5_k_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_45_weighted(values, importance, scratch, integers, words, errors, measure, 31, FINE_5)


@jit.kernel
def q4_k(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q4_k, 256, 144, 36, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q4_k_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q4_k_weighted, 256, 144, 36, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q5_k(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q5_k, 256, 176, 44, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q5_k_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q5_k_weighted, 256, 176, 44, -1, data, mode, per_row, weights, out, measure, sums)

"""Encoders of the block types whose 4-bit integers point into a table of 16 values: IQ4_NL, IQ4_XS.

They follow ``quantize_row_iq4_nl_impl`` of ggml's ``ggml-quants.c`` operation by operation. What differs is how the nearest table
value is found: by comparison with the midpoints, which are floats, so that the answer is the same; and the 15 scales that are
tried differ so little that no value passes more than one midpoint between the first and the last, so that each is looked up once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.lanes import (
    EPSILON,
    Array,
    Mask,
    Vector,
    extreme_of,
    from_half,
    higher,
    load,
    lower,
    magnitude,
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

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""``kvalues_iq4nl``"""
MIDDLE = (VALUES[1:] + VALUES[:-1]) / np.float32(2)
_INFINITE = np.float32(np.inf)
BORDER = np.array([-_INFINITE, *MIDDLE[:7], *MIDDLE[8:], _INFINITE], np.float32)
"""For each table value, the midpoint that is next to it on the side away from zero; there is none beyond the outermost."""
BELOW = np.array([VALUES[0], *VALUES[:7], *VALUES[8:]], np.float32)
ABOVE = np.array([*VALUES[:8], *VALUES[9:], VALUES[15]], np.float32)
"""The table values on either side of that midpoint."""

W, Q, LOW, HIGH, EDGE, SCALE = 0, 32, 64, 96, 128, 160
"""Rows of scratch: weights, table values, table values below and above the midpoint, the midpoint; one scale for each part."""


@jit.inlined
def _index(x: Vector) -> tuple[Mask, Mask, Mask, Mask]:
    """Which table value is nearest (``best_index_int8``): the four bits of its index, highest first. NaN goes to the last."""
    eight = ~(x < MIDDLE[7])
    four = ~(x < select(eight, splat(MIDDLE[11]), splat(MIDDLE[3])))
    two = ~(
        x < select(eight, select(four, splat(MIDDLE[13]), splat(MIDDLE[9])), select(four, splat(MIDDLE[5]), splat(MIDDLE[1])))
    )
    high = select(four, select(two, splat(MIDDLE[14]), splat(MIDDLE[12])), select(two, splat(MIDDLE[10]), splat(MIDDLE[8])))
    low = select(four, select(two, splat(MIDDLE[6]), splat(MIDDLE[4])), select(two, splat(MIDDLE[2]), splat(MIDDLE[0])))
    one = ~(x < select(eight, high, low))
    return eight, four, two, one


@jit.inlined
def _pick(table: Any, start: int, four: Mask, two: Mask, one: Mask) -> Vector:
    low = select(
        two,
        select(one, splat(table[start + 3]), splat(table[start + 2])),
        select(one, splat(table[start + 1]), splat(table[start])),
    )
    high = select(
        two,
        select(one, splat(table[start + 7]), splat(table[start + 6])),
        select(one, splat(table[start + 5]), splat(table[start + 4])),
    )
    return select(four, high, low)


@jit.inlined
def _entry(table: Any, eight: Mask, four: Mask, two: Mask, one: Mask) -> Vector:
    """The entry of ``table`` at an index that is given by its bits."""
    return select(eight, _pick(table, 8, four, two, one), _pick(table, 0, four, two, one))


@jit.inlined
def _search(values: Array, base: int, scratch: Array, part: int) -> None:
    """The scale of 32 elements from row ``base`` on, whose weights stand in ``scratch``."""
    extreme = extreme_of(values, base, 32)
    inverse = 1.0 / (-extreme / VALUES[0])
    nearest = (VALUES[0] + splat(7)) / extreme  # of all that are tried the one that leaves values closest to zero
    sum_qx = splat(0.0)
    sum_q2 = splat(0.0)
    for i in range(32):
        x = load(values, base + i)
        eight, four, two, one = _index(inverse * x)
        q = _entry(VALUES, eight, four, two, one)
        wq = load(scratch, W + i) * q
        sum_qx = sum_qx + wq * x
        sum_q2 = sum_q2 + wq * q
        y = nearest * x
        eight, four, two, one = _index(y)
        # the eighth value, 1, reaches below zero: the midpoint away from zero is then the one below
        across = (y < 0.0) & ~(y < MIDDLE[7])
        store(scratch, EDGE + i, select(across, splat(MIDDLE[7]), _entry(BORDER, eight, four, two, one)))
        store(scratch, LOW + i, select(across, splat(VALUES[7]), _entry(BELOW, eight, four, two, one)))
        store(scratch, HIGH + i, select(across, splat(VALUES[8]), _entry(ABOVE, eight, four, two, one)))
    scale = select(sum_q2 > 0.0, sum_qx / sum_q2, splat(0.0))
    best = scale * sum_qx
    for step in range(-7, 8):
        inverse = (splat(step) + VALUES[0]) / extreme
        sum_qx = splat(0.0)
        sum_q2 = splat(0.0)
        for i in range(32):
            x = load(values, base + i)
            q = select(inverse * x < load(scratch, EDGE + i), load(scratch, LOW + i), load(scratch, HIGH + i))
            wq = load(scratch, W + i) * q
            sum_qx = sum_qx + wq * x
            sum_q2 = sum_q2 + wq * q
        better = (sum_q2 > 0.0) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    store(scratch, SCALE + part, select(magnitude(extreme) < EPSILON, splat(0.0), scale))


@jit.inlined
def _finish(
    values: Array, base: int, inverse: Vector, d: Vector, integers: Array, words: Array, row: int, errors: Array, measure: bool
) -> None:
    """Looks up 32 elements and packs them into 4 words from ``row`` on."""
    for i in range(32):
        eight, four, two, one = _index(inverse * load(values, base + i))
        q = select(eight, whole(8), whole(0)) | select(four, whole(4), whole(0))
        store(integers, i, q | select(two, whole(2), whole(0)) | select(one, whole(1), whole(0)))
        if measure:
            store(integers, 32 + i, to_int(_entry(VALUES, eight, four, two, one)))
    for k in range(4):
        word = whole(0)
        for i in range(4):
            word = word | ((load(integers, 4 * k + i) | (load(integers, 16 + 4 * k + i) << 4)) << (8 * i))
        store(words, row + k, word)
    if measure:
        compare(values, base, 32, d, splat(0.0), integers, 32, 0, errors)


@jit.inlined
def _weigh(values: Array, importance: Array, base: int, sigma2: Vector, scratch: Array, weighted: bool) -> None:
    for i in range(32):
        x = load(values, base + i)
        store(scratch, W + i, load(importance, base + i) * square_root(sigma2 + x * x) if weighted else x * x)


@jit.inlined
def _inverse(value: Vector) -> Vector:
    return select(value == 0.0, splat(0.0), 1.0 / value)


@jit.inlined
def _encode_nl(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, weighted: bool
) -> None:
    _weigh(values, importance, 0, sum_of_squares(values, 32) * (2.0 / 32), scratch, weighted)
    _search(values, 0, scratch, 0)
    scale = load(scratch, SCALE)
    d = to_half(scale)
    store(words, 4, d)
    _finish(values, 0, _inverse(scale), from_half(d), integers, words, 0, errors, measure)


@jit.inlined
def _encode_xs(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool, weighted: bool
) -> None:
    sigma2 = sum_of_squares(values, 256) * (2.0 / 256)
    for part in range(8):
        _weigh(values, importance, 32 * part, sigma2, scratch, weighted)
        _search(values, 32 * part, scratch, part)
    exact = -extreme_of(scratch, SCALE, 8) / 32.0
    half = to_half(exact)
    d = from_half(half)
    inverse = _inverse(exact)
    low = whole(0)
    high = whole(0)
    for part in range(8):
        q = lower(higher(nearest_int(inverse * load(scratch, SCALE + part)), whole(-32)), whole(31))
        _finish(
            values, 32 * part, _inverse(exact * to_float(q)), d * to_float(q), integers, words, 2 + 4 * part, errors, measure
        )  # fmt: skip
        low = low | (((q + 32) & 15) << (4 * part))
        high = high | (((q + 32) >> 4) << (2 * part))
    store(words, 0, half | (high << 16))
    store(words, 1, low)


@jit.inlined
def encode_iq4_nl(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_nl(values, importance, scratch, integers, words, errors, measure, False)


@jit.inlined
def encode_iq4_nl_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_nl(values, importance, scratch, integers, words, errors, measure, True)


@jit.inlined
def encode_iq4_xs(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_xs(values, importance, scratch, integers, words, errors, measure, False)


@jit.inlined
def encode_iq4_xs_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    _encode_xs(values, importance, scratch, integers, words, errors, measure, True)


@jit.kernel
def iq4_nl(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_iq4_nl, 32, 18, 4, 0, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def iq4_nl_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_iq4_nl_weighted, 32, 18, 4, 0, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def iq4_xs(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_iq4_xs, 256, 136, 34, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def iq4_xs_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_iq4_xs_weighted, 256, 136, 34, -1, data, mode, per_row, weights, out, measure, sums)

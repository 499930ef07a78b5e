"""The encoder of Q2_K, which follows ``quantize_row_q2_K_ref`` and, with importance, ``quantize_row_q2_K_impl`` of ggml's
``ggml-quants.c`` operation by operation.
"""

from __future__ import annotations

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.k_affine import LOW, SCALE, W, levels, quantize, search, steps, weigh
from modelhub_gguf.codecs.lanes import (
    Array,
    Vector,
    from_half,
    higher,
    load,
    magnitude,
    nearest_int,
    select,
    splat,
    store,
    sum_of_squares,
    to_float,
    to_half,
    whole,
)
from modelhub_gguf.codecs.lanes_run import run

STEPS_2 = steps(-0.5, 0.1, 15, 3)
FINE_2 = steps(-0.9, 0.05, 36, 3)


@jit.inlined
def _finish_2(
    values: Array, d: Vector, m: Vector, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    """Packs Q2_K: integers of scales stand in ``integers`` from row 0 on, of minima from row 16 on, as bytes."""
    store(words, 20, d | (m << 16))
    scale, low = from_half(d), from_half(m)
    for four in range(4):
        word = whole(0)
        for k in range(4):
            part = 4 * four + k
            byte = (load(integers, part) | (load(integers, 16 + part) << 4)) & 0xFF
            word = word | (byte << (8 * k))
            store(scratch, SCALE + part, scale * to_float(byte & 15))
            store(scratch, LOW + part, low * to_float(byte >> 4))
        store(words, four, word)
    for half in range(2):
        for group in range(8):
            part = 8 * half + group
            quantize(
                values, 16 * part, 16, 3, load(scratch, SCALE + part), load(scratch, LOW + part), scratch, part, integers,
                16 * group, errors, measure,
            )  # fmt: skip
        for k in range(8):
            word = whole(0)
            for i in range(4):
                for quarter in range(4):
                    word = word | (load(integers, 32 * quarter + 4 * k + i) << (8 * i + 2 * quarter))
            store(words, 4 + 8 * half + k, word)


@jit.inlined
def encode_q2_k(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    greatest = splat(0.0)
    deepest = splat(0.0)
    for part in range(16):
        for i in range(16):
            store(scratch, W + i, magnitude(load(values, 16 * part + i)))
        search(values, 16 * part, 16, 3, STEPS_2, True, scratch, part)
        greatest = higher(load(scratch, SCALE + part), greatest)
        deepest = higher(load(scratch, LOW + part), deepest)
    inverse = 15.0 / greatest
    inverse_low = 15.0 / deepest
    some, sunk = greatest > 0.0, deepest > 0.0
    for part in range(16):
        q = nearest_int(inverse * load(scratch, SCALE + part))
        r = nearest_int(inverse_low * load(scratch, LOW + part))
        store(integers, part, select(some, q & 0xFF, whole(0)))
        store(integers, 16 + part, select(sunk, r & 0xFF, whole(0)))
    d = select(some, to_half(greatest / 15.0), whole(0))
    m = select(sunk, to_half(deepest / 15.0), whole(0))
    _finish_2(values, d, m, scratch, integers, words, errors, measure)


@jit.inlined
def encode_q2_k_weighted(
    values: Array, importance: Array, scratch: Array, integers: Array, words: Array, errors: Array, measure: bool
) -> None:
    sigma2 = sum_of_squares(values, 256) / 256.0
    for part in range(16):
        weigh(values, importance, 16 * part, 16, sigma2, scratch, part)
        search(values, 16 * part, 16, 3, FINE_2, False, scratch, part)
    scale = levels(scratch, SCALE, 16, 15, integers, 0)
    low = levels(scratch, LOW, 16, 15, integers, 16)
    _finish_2(values, to_half(scale), to_half(low), scratch, integers, words, errors, measure)


@jit.kernel
def q2_k(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q2_k, 256, 84, 21, -1, data, mode, per_row, weights, out, measure, sums)


@jit.kernel
def q2_k_weighted(data: Array, mode: int, per_row: int, weights: Array, out: Array, measure: bool, sums: Array) -> int:
    return run(encode_q2_k_weighted, 256, 84, 21, -1, data, mode, per_row, weights, out, measure, sums)

"""How blocks get into lanes and out again, around an encoder that knows lanes alone.

`run` is compiled into every kernel, `run_numpy` is what stands in for it without a compiler. Both take the bytes of whole rows of
F32, F16 or BF16 and give blocks, the six error sums, and the largest bit pattern that was met, by which a NaN or an infinity is
known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.lanes import (
    LANES,
    Array,
    Vector,
    bits,
    floats,
    from_half,
    gather,
    higher,
    load,
    magnitude,
    store,
    to_float,
    whole,
)

F32, F16, BF16 = 0, 1, 2
MODES = {"F32": F32, "F16": F16, "BF16": BF16}
FINITE = 0x7F7FFFFF
"""The largest bit pattern of a finite float32 without its sign."""
CHUNK = 4096
"""Lanes of numpy arrays: a few rows of them fit a processor's cache."""
SCRATCH = 288
"""Rows of float32 lanes that an encoder may use as it likes; of int32 lanes it has 256."""


@jit.inlined
def compare(
    values: Array, base: int, n: int, scale: Vector, low: Vector, integers: Array, row: int, middle: int, errors: Array
) -> None:
    """Add ``n`` elements from row ``base`` on to the error sums, against ``scale * (integer - middle) - low``."""
    squares = load(errors, 0)
    wrong = load(errors, 1)
    product = load(errors, 2)
    others = load(errors, 3)
    worst = load(errors, 4)
    for i in range(n):
        x = load(values, base + i)
        y = scale * to_float(load(integers, row + i) - middle) - low
        difference = y - x
        squares = squares + x * x
        wrong = wrong + difference * difference
        product = product + x * y
        others = others + y * y
        worst = higher(magnitude(difference), worst)
    store(errors, 0, squares)
    store(errors, 1, wrong)
    store(errors, 2, product)
    store(errors, 3, others)
    store(errors, 4, worst)


@jit.inlined
def _spread(data: Array, mode: int, size: int, offsets: Array, stage: Array, values: Array) -> Vector:
    """Element ``i`` of each lane's block (which starts at ``offsets[lane]``) to row ``i`` of ``values``; the largest bit patterns
    met."""
    peak = whole(0)
    for first in range(0, size if mode == F32 else size // 2, LANES):
        gather(data, offsets, first * 4, stage, 0)
        if mode == F32:
            for i in range(LANES):
                word = load(stage, i)
                peak = higher(peak, word & 0x7FFFFFFF)
                store(values, first + i, floats(word))
        elif mode == BF16:
            for i in range(LANES):
                word = load(stage, i)
                low, high = word << 16, word & -0x10000
                peak = higher(peak, higher(low & 0x7FFFFFFF, high & 0x7FFFFFFF))
                store(values, (first + i) * 2, floats(low))
                store(values, (first + i) * 2 + 1, floats(high))
        else:
            for i in range(LANES):
                word = load(stage, i)
                even, odd = from_half(word & 0xFFFF), from_half((word >> 16) & 0xFFFF)
                peak = higher(peak, higher(bits(even) & 0x7FFFFFFF, bits(odd) & 0x7FFFFFFF))
                store(values, (first + i) * 2, even)
                store(values, (first + i) * 2 + 1, odd)
    return peak


@jit.inlined
def _write(words: Array, rows: int, half_at: int, nbytes: int, first: int, count: int, out: Array) -> None:
    """The words of ``count`` lanes to their blocks in ``out`` (uint16); with ``half_at`` >= 0, row ``rows`` holds 2 bytes that go
    there (counted in halves), before or after the words."""
    halves = nbytes // 2
    lead = 1 if half_at == 0 else 0
    for lane in range(count):
        at = (first + lane) * halves
        for row in range(rows):
            word = words[row, lane]
            out[at + lead + 2 * row] = word & 0xFFFF
            out[at + lead + 2 * row + 1] = (word >> 16) & 0xFFFF
        if half_at >= 0:
            out[at + half_at] = words[rows, lane] & 0xFFFF


def run_numpy(
    encode: Any, size: int, nbytes: int, rows: int, half_at: int, data: Array, mode: int, per_row: int, weights: Array,
    out: Array, measure: bool, sums: Array,
) -> int:  # fmt: skip
    """`run` without a compiler: arrays in the place of vectors, `CHUNK` lanes at a time."""
    kind = (np.uint32, np.uint16, np.uint16)[mode]
    source = data.view(kind).reshape(-1, size)
    blocks = out.view(np.uint8).reshape(-1, nbytes)
    importance = weights.view(np.float32).reshape(-1, size)
    lead = 2 if half_at == 0 else 0
    peak = 0
    for first in range(0, len(source), CHUNK):
        patterns = np.ascontiguousarray(source[first : first + CHUNK].T)
        if mode == F16:
            values = patterns.view(np.float16).astype(np.float32)
        else:
            values = (patterns.astype(np.uint32) << np.uint32(16 if mode == BF16 else 0)).view(np.float32)
        lanes = values.shape[1]
        peak = max(peak, int((bits(values) & 0x7FFFFFFF).max()))
        if len(importance):
            here = np.ascontiguousarray(importance[np.arange(first, first + lanes) % per_row].T)
        else:
            here = np.empty((size, 0), np.float32)
        scratch = np.empty((SCRATCH, lanes), np.float32)
        integers = np.empty((256, lanes), np.int32)
        words = np.zeros((rows + 1, lanes), np.int32)
        errors = np.zeros((5, lanes), np.float32)
        with np.errstate(all="ignore"):
            encode(values, here, scratch, integers, words, errors, measure)
        packed = blocks[first : first + CHUNK]
        packed[:, lead : lead + 4 * rows] = np.ascontiguousarray(words[:rows].T).view(np.uint8)
        if half_at >= 0:
            packed[:, 2 * half_at : 2 * half_at + 2] = words[rows].astype(np.uint16)[:, None].view(np.uint8)
        if measure:
            sums[1:5] += errors[:4].sum(axis=1, dtype=np.float64)
            sums[5] = max(sums[5], float(errors[4].max()))
    if measure:
        sums[0] += source.size
    return peak


@jit.inlined
def run(
    encode: Any, size: int, nbytes: int, rows: int, half_at: int, data: Array, mode: int, per_row: int, weights: Array,
    out: Array, measure: bool, sums: Array,
) -> int:  # fmt: skip
    """Blocks of ``size`` elements, ``nbytes`` bytes each, from ``data`` (uint8, of kind ``mode``) to ``out`` (uint16); the
    largest bit pattern met.

    ``encode(values, weights, scratch, integers, words, errors, measure)`` does it lane by lane: ``values`` and ``weights`` hold
    element ``i`` of every lane's block in row ``i``; it fills ``rows`` rows of 4-byte ``words`` (see `_write` for ``half_at``)
    and, where it is to measure, adds to ``errors``. ``weights`` here: bytes of the float32 importance of one row (of ``per_row``
    blocks), or none. ``sums``: count, sum of squares, of squared errors, of products and of squares of the result, largest error.
    """
    width = size * (4 if mode == F32 else 2)
    blocks = data.size // width
    offsets = np.empty(LANES, np.int64)
    stage = np.empty((LANES, LANES), np.int32)
    values = np.empty((size, LANES), np.float32)
    importance = np.empty((size, LANES), np.float32)
    scratch = np.empty((SCRATCH, LANES), np.float32)
    integers = np.empty((256, LANES), np.int32)
    words = np.zeros((rows + 1, LANES), np.int32)
    errors = np.zeros((5, LANES), np.float32)
    peak = 0
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for lane in range(LANES):
            offsets[lane] = min(first + lane, blocks - 1) * width
        store(stage, 0, _spread(data, mode, size, offsets, stage, values))
        for lane in range(LANES):
            peak = max(peak, stage[0, lane])
        if weights.size:
            for lane in range(LANES):
                offsets[lane] = min(first + lane, blocks - 1) % per_row * (size * 4)
            _spread(weights, F32, size, offsets, stage, importance)
        if measure:
            errors[:] = 0
        encode(values, importance, scratch, integers, words, errors, measure)
        _write(words, rows, half_at, nbytes, first, count, out)
        if measure:
            for lane in range(count):
                for row in range(4):
                    sums[row + 1] += errors[row, lane]
                sums[5] = max(sums[5], errors[4, lane])
    if measure:
        sums[0] += blocks * size
    return peak


if not jit.available():
    run = run_numpy

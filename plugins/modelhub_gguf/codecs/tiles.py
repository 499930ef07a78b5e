"""What the compiled encoders of the simple block types share: a tile of blocks that stays in the first-level cache is widened to
float32, encoded, and measured against what was stored, in one pass over memory.

Here lanes are elements of a block, not blocks: these types take so few steps that getting blocks into lanes would cost more.
Loops are plain, over contiguous rows of fixed length, so that LLVM vectorises them; maxima are taken of bit patterns, since
those of floats may not be reordered. Only where numba is installed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.lanes import from_half, higher, load, magnitude, splat, store, to_half

TILE = 2048
"""Elements of a tile."""

F32, F16, BF16 = 0, 1, 2
"""Kinds of source."""

INFINITE = np.uint32(0x7F800000)
"""Magnitudes from these bits on are no numbers."""


class Tile(NamedTuple):
    """What an encoder works on: ``bits`` and ``values`` are the same n blocks as uint32 and float32 (n, elements), ``most`` the
    bits of the largest magnitude of each. It fills ``out``, uint8 (n, bytes of a block), and ``result``, what a reader will see.
    The rest is scratch for a number a block (``scales`` and ``halves`` have 16 a row, for `halve`), and a byte an element."""

    bits: Any
    values: Any
    most: Any
    out: Any
    result: Any
    scales: Any
    halves: Any
    over: Any
    extra: Any
    quants: Any


@jit.inlined
def widen(data: Any, kind: int, start: int, x: Any) -> None:
    """Elements from ``start`` on of ``data``, bytes of ``kind``, as float32 bits in ``x``, flat. NaN and infinity stay what they
    are."""
    stop = start + x.size
    if kind == F16:
        halves = data.view(np.uint16)[start:stop]
        values = x.view(np.float32)
        for i in range(x.size):
            x[i] = np.uint32(halves[i] & 0x7FFF) << np.uint32(13)
        for i in range(x.size):
            values[i] = values[i] * np.float32(5.192296858534828e33)  # 2^112: the difference of the exponents' biases
        for i in range(x.size):
            h = np.uint32(halves[i])
            special = np.uint32(0x7F800000) if h & np.uint32(0x7C00) == np.uint32(0x7C00) else np.uint32(0)
            x[i] = x[i] | special | (h & np.uint32(0x8000)) << np.uint32(16)
    elif kind == BF16:
        words = data.view(np.uint16)[start:stop]
        for i in range(x.size):
            x[i] = np.uint32(words[i]) << np.uint32(16)
    else:
        whole = data.view(np.uint32)[start:stop]
        for i in range(x.size):
            x[i] = whole[i]


@jit.inlined
def magnitudes(x: Any, out: Any) -> Any:
    """The bits of the largest magnitude of every block of ``x`` (blocks, elements; bits), and of all."""
    all_of_them = np.uint32(0)
    for b in range(x.shape[0]):
        most = np.uint32(0)
        for j in range(x.shape[1]):
            most = max(most, x[b, j] & np.uint32(0x7FFFFFFF))
        out[b] = most
        all_of_them = max(all_of_them, most)
    return all_of_them


@jit.inlined
def halve(scales: Any, halves: Any) -> None:
    """float32 ``scales`` (rows, 16) to the bits of halves, int32, and in place to what the halves say."""
    for row in range(scales.shape[0]):
        half = to_half(load(scales, row))
        store(halves, row, half)
        store(scales, row, from_half(half))


@jit.inlined
def put_half(out: Any, at: int, half: Any) -> None:
    out[at] = np.uint8(half & 255)
    out[at + 1] = np.uint8(half >> 8)


@jit.inlined
def measure_wide(x: Any, y: Any, sums: Any) -> None:
    """What `measure` does, in double precision, for what is too large or too small; results that are no numbers do not count."""
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            a = np.float64(x[row, i])
            b = np.float64(y[row, i])
            if abs(b) < 1e300:
                sums[0] += 1
                sums[1] += a * a
                sums[2] += (b - a) * (b - a)
                sums[3] += a * b
                sums[4] += b * b
                sums[5] = max(sums[5], abs(b - a))


@jit.inlined
def measure(x: Any, y: Any, most: Any, lanes: Any, sums: Any) -> None:
    """Adds a tile to ``sums`` (float64: count, squares of x, of y - x, products, squares of y, and the largest error's
    magnitude). ``x`` and ``y``: (rows, 16); ``most``: bits of the largest of x; ``lanes``: scratch of (4, 16)."""
    errors = splat(np.float32(0))
    sources = errors
    results = errors
    worst = errors
    for row in range(x.shape[0]):
        a = load(x, row)
        b = load(y, row)
        e = b - a
        errors = errors + e * e
        sources = sources + a * a
        results = results + b * b
        worst = higher(magnitude(e), worst)
    store(lanes, 0, errors)
    store(lanes, 1, sources)
    store(lanes, 2, results)
    store(lanes, 3, worst)
    e2 = 0.0
    a2 = 0.0
    b2 = 0.0
    for i in range(16):
        e2 += lanes[0, i]
        a2 += lanes[1, i]
        b2 += lanes[2, i]
    if e2 + a2 + b2 < 1e38 and (a2 > 1e-30 or most == 0):
        sums[0] += x.size
        sums[1] += a2
        sums[2] += e2
        sums[3] += (a2 + b2 - e2) / 2  # since (y - x)^2 = y^2 + x^2 - 2xy
        sums[4] += b2
        for i in range(16):
            sums[5] = max(sums[5], lanes[3, i])
    else:
        measure_wide(x, y, sums)


@jit.inlined
def run(encode: Any, block: int, data: Any, kind: int, out: Any, measured: bool, sums: Any) -> int:
    """Encodes ``data``, bytes of ``kind``, to ``out`` (blocks, bytes), and where ``measured`` adds to ``sums`` (see `measure`).
    Gives the number of a block near the first NaN or infinity, or -1."""
    size = TILE // block
    flat = np.empty(TILE, np.uint32)
    bits = flat.reshape(size, block)
    values = flat.view(np.float32).reshape(size, block)
    result = np.empty((size, block), np.float32)
    quants = np.empty((size, block), np.uint8)
    most = np.empty(64, np.uint32)
    scales = np.empty((4, 16), np.float32)
    halves = np.empty((4, 16), np.int32)
    over = np.empty(64, np.float32)
    extra = np.empty((4, 16), np.float32)
    lanes = np.empty((4, 16), np.float32)
    for start in range(0, out.shape[0], size):
        n = min(size, out.shape[0] - start)
        widen(data, kind, start * block, flat[: n * block])
        largest = magnitudes(bits[:n], most)
        if largest >= INFINITE:
            return start
        encode(Tile(bits[:n], values[:n], most, out[start : start + n], result, scales, halves, over, extra, quants))
        if measured:
            measure(values[:n].reshape(n * block // 16, 16), result[:n].reshape(n * block // 16, 16), largest, lanes, sums)
    return -1

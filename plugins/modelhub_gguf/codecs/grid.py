"""Weights that lie on a Q4_0 grid already, as quantization-aware training leaves them: found by measuring, and kept.

Such models ship in BF16 ("qat-q4_0-unquantized"): every 32 neighbours are ``d x {-8..7}``, rounded. The reference encoder of Q4_0
takes a block's extreme for -8. Where the extreme is another number of the grid, it rounds to a grid of its own, and where it is
-8, it takes the scale from a rounded product: what was trained is lost. Here the scale is what all 32 products agree on. Only
blocks that lie on a grid are encoded so; all others are the reference's, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelhub_gguf.codecs.encode import pack_nibbles
from modelhub_gguf.codecs.rows import Bytes, Floats

BLOCK = 32
BF16, F16, F32 = range(3)
MAGNITUDES = 9
"""Different magnitudes that 32 numbers of a grid can have: 0 to 8."""
TELLING = 4
"""As many of them in one block are no coincidence."""
STEP = 1 << 11
"""Blocks that are looked at together, so that what a step makes of them stays in the processor's cache."""
_EXTREMES = (8, 7, 6, 5, 4, 3, 2, 1)


def candidates(data: Bytes, width: int, columns: int) -> NDArray[np.bool_]:
    """Which rows may lie on a grid, by one block of each: numbers of ``width`` bytes (F32, F16, BF16) with few magnitudes."""
    numbers = data.view(f"<u{width}").reshape(-1, columns)
    middle = columns // BLOCK // 2 * BLOCK
    some = numbers[:, middle : middle + BLOCK] & numbers.dtype.type((1 << (8 * width - 1)) - 1)
    some.sort(axis=1)
    found: NDArray[np.bool_] = np.count_nonzero(some[:, 1:] != some[:, :-1], axis=1) < MAGNITUDES
    return found


def keep(values: Floats, blocks: Bytes, columns: int) -> NDArray[np.bool_]:
    """Overwrites those of ``blocks`` (n, 18; the reference's) whose ``values`` (n, 32; float32, finite) lie on a grid, and that
    are not on it yet; not in rows where none of them has enough magnitudes to tell a grid from a few numbers. Returns which."""
    kept, telling = np.zeros(len(values), np.bool_), np.zeros(len(values), np.bool_)
    fresh, each = blocks.copy(), columns // BLOCK
    with np.errstate(all="ignore"):
        kinds = np.repeat(_rounding(values.reshape(-1, columns)), each)
        for kind in np.unique(kinds):
            of_kind = np.flatnonzero(kinds == kind)
            for start in range(0, len(of_kind), STEP):
                part = of_kind[start : start + STEP]
                made = fresh[part]
                kept[part], telling[part] = _keep(values[part], made, int(kind))
                fresh[part] = made
    kept &= np.repeat(telling.reshape(-1, each).any(axis=1), each)
    blocks[kept] = fresh[kept]
    return kept


def _rounding(rows: Floats) -> Any:
    """What the products of each row were rounded to: the narrowest dtype that holds them all."""
    coarse = ~(rows.view(np.uint32) & 0xFFFF).any(axis=1)
    halved = (rows.astype(np.float16).astype(np.float32) == rows).all(axis=1)
    return np.where(coarse, BF16, np.where(halved, F16, F32))


def _keep(values: Floats, blocks: Bytes, rounded: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(which blocks were overwritten, which of the blocks on a grid have many magnitudes)."""
    powers = (values.view(np.uint32) & 0x7F800000).view(np.float32)
    # Half a unit in the last place, and a little for what is computed with it. Where scales were F32, the products are F32 too,
    # but those of the nearest half are off by as much as this.
    slack = powers * np.float32(1.001 * (2.0**-8 if rounded == BF16 else 2.0**-11))
    telling = np.zeros(len(values), np.bool_)
    extremes = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]
    quants = np.hstack((blocks[:, 2:] & 15, blocks[:, 2:] >> 4))
    own = np.ascontiguousarray(blocks[:, :2]).view(np.float16)[:, 0]
    exact = _matches(values, quants.astype(np.float32) - np.float32(8), own, rounded) == BLOCK
    telling[exact] = _tells(quants[exact])
    left = np.flatnonzero(~exact & (extremes != 0))
    best = np.full(len(values), -1)
    for extreme in _EXTREMES:
        if not len(left):
            break
        matches, scale, quants = _fit(values[left], slack[left], extremes[left], extreme, rounded)
        better = matches > best[left]
        done = left[better]
        best[done] = matches[better]
        blocks[done] = np.hstack((scale[better].view(np.uint8).reshape(-1, 2), pack_nibbles(quants[better])))
        telling[done] = _tells(quants[better])
        left = left[matches < BLOCK]
    return best >= 0, telling


def _tells(quants: Bytes) -> Any:
    """Whether blocks of quants + 8 have enough different magnitudes."""
    seen = np.bitwise_or.reduce(np.uint16(1) << np.abs(quants.astype(np.int8) - 8).astype(np.uint16), axis=1)
    return np.bitwise_count(seen) >= TELLING


def _fit(values: Floats, slack: Floats, extremes: Floats, extreme: int, rounded: int) -> tuple[Any, Any, Any]:
    """(how many values of each block are those of the grid of which its largest magnitude is number ``extreme``, -1 where it does
    not lie on that; scales; quants + 8)."""
    guess = extremes / np.float32(-extreme if extreme == 8 else extreme)
    steps = np.rint(values / guess[:, None])
    near = (steps.min(axis=1) >= -8) & (steps.max(axis=1) <= 7) & ((steps != 0) | (values == 0)).all(axis=1)
    matches, scale, quants = np.full(len(values), -1), np.zeros(len(values), np.float16), np.zeros(values.shape, np.uint8)
    some = np.flatnonzero(near)
    if not len(some):
        return matches, scale, quants
    values, steps = values[some], steps[some]
    none = steps == 0
    over = np.float32(1) / np.where(none, np.float32(1), steps)
    middle, reach = values * over, np.abs(slack[some] * over)
    reach[none] = np.inf
    low, high = (middle - reach).max(axis=1), (middle + reach).min(axis=1)
    fits = (low <= high) & (np.abs(low + high) >= 2.0**-13) & (np.abs(low + high) < 2 * 65504)
    scale[some], found = _scales(values, steps, low, high, rounded)
    matches[some] = np.where(fits, found, -1)
    quants[some] = steps + 8
    return matches, scale, quants


def _scales(values: Any, steps: Any, low: Any, high: Any, rounded: int) -> tuple[Any, Any]:
    """The half between ``low`` and ``high`` whose products, rounded, are most of the ``values``; the middle one if it can be;
    and how many."""
    middle = ((low + high) * np.float32(0.5)).astype(np.float16)
    best, most = middle, _matches(values, steps, middle, rounded)
    unsure = np.flatnonzero(most < BLOCK)  # ties of rounding, at the ends
    for other in (np.nextafter(middle, np.float16(np.inf)), np.nextafter(middle, np.float16(-np.inf)), low, high):
        if not len(unsure):
            break
        trial = other[unsure].astype(np.float16)
        matches = _matches(values[unsure], steps[unsure], trial, rounded)
        better = matches > most[unsure]
        best[unsure[better]], most[unsure[better]] = trial[better], matches[better]
        unsure = unsure[most[unsure] < BLOCK]
    return best, most


def _matches(values: Any, steps: Any, scales: Any, rounded: int) -> Any:
    """How many of each block's values the products are."""
    product = scales.astype(np.float32)[:, None] * steps
    if rounded == F16:
        product = product.astype(np.float16)
    elif rounded == BF16:
        word = product.view(np.uint32)
        product = ((word + (0x7FFF + (word >> 16 & 1))) & np.uint32(0xFFFF0000)).view(np.float32)
    return (product == values).sum(axis=1)

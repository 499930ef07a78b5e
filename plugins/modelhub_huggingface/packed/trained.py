"""Weights that were trained for Q4_0 and are shipped in 16 bits (Gemma's "qat-q4_0-unquantized"): told by looking at a few.

Every 32 neighbours of a row are a scale times whole numbers from -8 to 7, rounded. Weights are not read to index a drive: only
where a directory's name says "qat" are some blocks looked at, a few kilobytes in all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from math import prod

from modelhub import Extent, Tensor

BLOCK = 32
_KINDS = {"BF16": (2, "H", 1 / 128), "F16": (2, "e", 1 / 1024), "F32": (4, "f", 1 / 128)}
"""dtype -> bytes, `struct` letter, relative error that two roundings make."""
SAMPLES, BLOCKS = 4, 16
"""Matrices that are looked at, and blocks of each."""
TELLING = 4
"""So many magnitudes in a block are no coincidence."""


def named(text: str) -> bool:
    """Whether a name says that it was trained so."""
    return re.search(r"(?i)(^|[^a-z])qat([^a-z]|$)", text) is not None


def on_grid(tensors: Iterable[Tensor], read: Callable[[Extent], bytes]) -> bool:
    """Whether the blocks of some of the projections lie on a grid of Q4_0: nearly all that have enough magnitudes to tell."""
    found = [
        tensor for tensor in tensors if tensor.name.endswith("_proj.weight") and tensor.dtype in _KINDS and len(tensor.shape) == 2
    ]
    right = wrong = 0
    for tensor in found[:: max(1, len(found) // SAMPLES)][:SAMPLES]:
        place = tensor.value
        if type(place) is not Extent or tensor.shape[1] % BLOCK:
            continue
        width = BLOCK * _KINDS[tensor.dtype][0]
        count = min(BLOCKS, prod(tensor.shape) // BLOCK)
        start = prod(tensor.shape) // BLOCK // 2 - count // 2
        data = read(Extent(place.file, place.offset + start * width, count * width))
        for at in range(0, len(data) - width + 1, width):
            told = _block(tensor.dtype, data[at : at + width])
            right, wrong = right + (told is True), wrong + (told is False)
    return right >= 8 and wrong * 20 <= right


def _block(dtype: str, data: bytes) -> bool | None:
    """Whether 32 numbers lie on a grid; None where they are too few kinds to tell."""
    _, letter, slack = _KINDS[dtype]
    values = struct.unpack(f"<{BLOCK}{letter}", data)
    if dtype == "BF16":
        values = struct.unpack(f"<{BLOCK}f", b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2)))
    sizes = {abs(value) for value in values}
    if not max(sizes) < float("inf"):
        return False
    if len(sizes) < TELLING:
        return None
    if len(sizes) > 9:
        return False
    for extreme in range(8, 0, -1):
        step = max(sizes) / extreme
        numbers = [(size / step, round(size / step)) for size in sizes]
        if all(abs(exact - near) <= near * slack for exact, near in numbers):
            return True
    return False

"""Decoding any ggml block type to float32, by compiled kernels where that is worth it."""

from __future__ import annotations

import sys

import numpy as np

from modelhub_gguf.codecs import decode_blocks, decode_grids
from modelhub_gguf.codecs.decode_blocks import Bytes, Floats
from modelhub_gguf.types import BY_NAME

CHUNK = 1 << 16
"""Elements that NumPy decodes at a time: what a step makes of them stays in the processor's second-level cache."""

WORTHWHILE = 1 << 20
"""From so many elements on the compiler is loaded, where it is not loaded yet."""


def decode(dtype: str, data: Bytes, elements: int) -> Floats:
    """``data``, ``uint8`` of whole blocks, as ``elements`` float32 numbers."""
    shape = BY_NAME[dtype]
    if data.size * shape.block != elements * shape.nbytes:
        raise ValueError(f"{data.size} bytes are not {elements} elements of {dtype}, {shape.nbytes} bytes each {shape.block}")
    blocks = np.ascontiguousarray(data).reshape(-1, shape.nbytes)
    out = np.empty((len(blocks), shape.block), np.float32)
    if (elements >= WORTHWHILE or "numba" in sys.modules) and _compiled(dtype, blocks, out):
        return out.reshape(-1)
    function = getattr(decode_grids, dtype.lower(), None) or getattr(decode_blocks, dtype.lower())
    step = CHUNK // shape.block
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            out[start : start + step] = function(blocks[start : start + step])
    return out.reshape(-1)


def _compiled(dtype: str, blocks: Bytes, out: Floats) -> bool:
    """Whether a compiled kernel did it."""
    if not _has_kernel(dtype):
        return False
    from modelhub_gguf.codecs import decode_fast

    decode_fast.decode(dtype, blocks, out)
    return True


def prepare(dtype: str) -> None:
    """Compiles what `decode` needs for many elements, or gets it from the cache."""
    if _has_kernel(dtype):
        from modelhub_gguf.codecs import decode_fast

        decode_fast.prepare(dtype)


def _has_kernel(dtype: str) -> bool:
    from modelhub_gguf.codecs import jit

    if not jit.available():
        return False
    from modelhub_gguf.codecs import decode_fast

    return dtype in decode_fast.DTYPES

"""Encoding the simple block types: which kernel does it, compiled or in NumPy, with importance or without.

With numba, `transcode` does it in one pass over the bytes of F32, F16 or BF16, measuring the error as it goes; without, the NumPy
functions of `encode` give the same bytes, slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from modelhub_gguf.codecs import grid, jit
from modelhub_gguf.codecs.decode import decode
from modelhub_gguf.codecs.encode import encode as encode_plainly
from modelhub_gguf.codecs.rows import Bytes, Floats, check_shape, refuse_infinite, rows_of, weights_of
from modelhub_gguf.codecs.signatures import compiled
from modelhub_gguf.types import BY_NAME

WEIGHTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types whose scales are searched for where there are importance weights; the others do not heed them."""

_KERNELS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), "tile_legacy"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "MXFP4"), "tile_ternary"),
}
_KINDS = {"F32": (0, 4), "F16": (1, 2), "BF16": (2, 2)}
"""What the kernels call them, and the bytes of an element."""


def _kernel(dtype: str) -> Any:
    """The compiled kernel, or None where there is none."""
    if dtype not in _KERNELS or not jit.available():
        return None
    kernel = getattr(import_module(f"modelhub_gguf.codecs.{_KERNELS[dtype]}"), dtype.lower())
    return compiled(kernel, "uint8:1 int uint8:2! bool float64:1!")


def _run(dtype: str, data: Bytes, source: str, columns: int, sums: Any) -> Bytes:
    """All of ``data`` through the compiled kernel; measured where ``sums`` is not empty."""
    shape = BY_NAME[dtype]
    kind, width = _KINDS[source]
    out = np.empty((data.size // (shape.block * width), shape.nbytes), np.uint8)
    if _kernel(dtype)(data, kind, out, sums.size > 0, sums) >= 0:
        refuse_infinite(widened(data, source).reshape(-1, columns))
    return out.reshape(-1)


def widened(data: Bytes, dtype: str) -> Floats:
    """Bytes of F32, F16 or BF16 as float32."""
    if dtype == "BF16":
        wide: Floats = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    return data.view("<f4" if dtype == "F32" else "<f2").astype(np.float32, copy=False)


def encode(dtype: str, values: Floats, importance: Floats | None = None) -> Bytes:
    """``values``, float32 (rows, columns), as blocks; ``importance``: weights of the columns. ValueError for NaN and infinity,
    and for rows that are not whole blocks."""
    values = rows_of(dtype, BY_NAME[dtype].block, values)
    blocks = _encode(dtype, values, importance)
    if dtype == "Q4_0":
        _keep_grids(values.reshape(-1).view(np.uint8), "F32", values.shape[1], blocks)
    return blocks


def _encode(dtype: str, values: Floats, importance: Floats | None) -> Bytes:
    block = BY_NAME[dtype].block
    if importance is not None and dtype in WEIGHTED:
        return _encode_weighted(dtype, values, importance, np.empty(0))
    if _kernel(dtype) is not None:
        return _run(dtype, values.reshape(-1).view(np.uint8), "F32", values.shape[1], np.empty(0))
    refuse_infinite(values)
    return encode_plainly(values.reshape(-1, block), getattr(import_module("modelhub_gguf.codecs.encode"), dtype.lower()))


def transcode(
    dtype: str, data: Bytes, source: str, columns: int, importance: Floats | None
) -> tuple[Bytes, Sequence[float]] | None:
    """See `modelhub.Codec`: the bytes of rows of ``source`` to blocks and sums of errors. None where it takes several steps."""
    if source not in _KINDS or _kernel(dtype) is None:
        return None
    check_shape(dtype, BY_NAME[dtype].block, columns)
    if data.dtype != np.uint8 or data.ndim != 1 or data.size % (columns * _KINDS[source][1]):
        raise ValueError(f"{data.nbytes} bytes of {source} are not whole rows of {columns} elements")
    data, sums = np.ascontiguousarray(data), np.zeros(6)
    if importance is not None and dtype in WEIGHTED:
        blocks = _encode_weighted(dtype, widened(data, source).reshape(-1, columns), importance, sums)
    else:
        blocks = _run(dtype, data, source, columns, sums)
    if dtype == "Q4_0" and _keep_grids(data, source, columns, blocks):
        sums[:] = exact_sums(widened(data, source), decode(dtype, blocks, blocks.size // 18 * 32))
    return blocks, [float(figure) for figure in sums]


def _keep_grids(data: Bytes, source: str, columns: int, blocks: Bytes) -> bool:
    """Puts the blocks of weights that lie on a grid of Q4_0 already on that grid; whether there are any."""
    rows = grid.candidates(data, _KINDS[source][1], columns)
    if not rows.any():
        return False
    width = columns * _KINDS[source][1]
    values = widened(np.ascontiguousarray(data.reshape(-1, width)[rows]).reshape(-1), source).reshape(-1, grid.BLOCK)
    chosen = blocks.reshape(len(rows), -1)[rows].reshape(len(values), -1)
    kept = grid.keep(np.ascontiguousarray(values, np.float32), chosen, columns)
    blocks.reshape(len(rows), -1)[rows] = chosen.reshape(int(rows.sum()), -1)
    return bool(kept.any())


def _encode_weighted(dtype: str, values: Floats, importance: Floats, sums: Any) -> Bytes:
    from modelhub_gguf.codecs import lanes_weighted

    refuse_infinite(values)
    weights = lanes_weighted.weights_of(values, weights_of(importance, values.shape[1]))
    blocks = lanes_weighted.encode(dtype, values, weights, sums)
    # Squares may be too large or too small for single precision, a scale too large for half precision.
    if sums.size and (not np.isfinite(sums).all() or (sums[1] < 1e-30 and values.any())):
        sums[:] = exact_sums(values.reshape(-1), decode(dtype, blocks, values.size))
    return blocks


def exact_sums(values: Floats, results: Floats) -> Sequence[float]:
    """The sums of `transcode` in double precision; what is infinite or NaN does not count."""
    fine = np.isfinite(results)
    a, b = values[fine].astype(np.float64), results[fine].astype(np.float64)
    error = b - a
    return [a.size, float(a @ a), float(error @ error), float(a @ b), float(b @ b), float(np.abs(error).max(initial=0))]


def prepare(dtype: str, use: str) -> None:
    """Compiles what `encode` and `transcode` need, or gets it from the cache."""
    if _kernel(dtype) is not None and use == "weigh" and dtype in WEIGHTED:
        import_module("modelhub_gguf.codecs.lanes_weighted").prepare(dtype)

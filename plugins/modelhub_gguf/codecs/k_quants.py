"""Encoding Q2_K to Q6_K, IQ4_NL and IQ4_XS: from rows to blocks, byte for byte as ggml does it, with importance or without.

What is done to a block stands in `k_two`, `k_three`, `k_affine`, `k_symmetric` and `iq4`, compiled where there is a compiler
(`jit`). Here rows are checked, and kernels are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from modelhub_gguf.codecs import jit
from modelhub_gguf.codecs.decode import decode
from modelhub_gguf.codecs.lanes_run import FINITE, MODES
from modelhub_gguf.codecs.rows import Bytes, Floats, refuse_infinite
from modelhub_gguf.codecs.signatures import compiled
from modelhub_gguf.codecs.simple import exact_sums, widened
from modelhub_gguf.types import BY_NAME

KERNELS = {
    "Q2_K": "k_two",
    "Q3_K": "k_three",
    "Q4_K": "k_affine",
    "Q5_K": "k_affine",
    "Q6_K": "k_symmetric",
    "IQ4_NL": "iq4",
    "IQ4_XS": "iq4",
}
"""The dtypes that are encoded here, and the module of each one's kernels: two of them, named for the dtype, and with
``_weighted``."""


def encode(dtype: str, values: Floats, importance: Floats | None = None) -> Bytes:
    """``values``, float32 (rows, columns), as blocks; ``importance``: weights of the columns. ValueError for NaN and infinity,
    and for rows that are not whole blocks."""
    values = np.ascontiguousarray(values, np.float32)
    if values.ndim != 2:
        raise ValueError(f"{dtype} is encoded by rows: an array of {values.ndim} dimensions has none")
    return _blocks(dtype, values.reshape(-1).view(np.uint8), "F32", values.shape[1], importance, np.empty(0))


def transcode(
    dtype: str, data: Bytes, source: str, columns: int, importance: Floats | None
) -> tuple[Bytes, Sequence[float]] | None:
    """See `modelhub.Codec`: the bytes of rows of ``source`` to blocks and sums of errors, in one pass; None unless ``source`` is
    F32, F16 or BF16."""
    if source not in MODES:
        return None
    sums = np.zeros(6)
    blocks = _blocks(dtype, data, source, columns, importance, sums)
    if not np.isfinite(sums).all():  # squares that single precision does not hold, or a scale that half precision does not
        values = widened(data, source)
        return blocks, exact_sums(values, decode(dtype, blocks, values.size))
    return blocks, sums.tolist()


def prepare(dtype: str, use: str) -> None:
    """Compiles what `encode` and `transcode` need (or gets it from the cache), to "encode" or to "weigh"."""
    _kernel(dtype, weighted=use == "weigh")


def _kernel(dtype: str, *, weighted: bool) -> Any:
    name = dtype.lower() + ("_weighted" if weighted else "")
    kernel = getattr(import_module(f"modelhub_gguf.codecs.{KERNELS[dtype]}"), name)
    return compiled(kernel, "uint8:1 int int uint8:1 uint16:1! bool float64:1!") if jit.available() else kernel


def _blocks(dtype: str, data: Bytes, source: str, columns: int, importance: Floats | None, sums: Any) -> Bytes:
    """``data``, rows of ``source``, as blocks; measured where ``sums`` is not empty."""
    kind = BY_NAME[dtype]
    width = 4 if source == "F32" else 2
    if columns % kind.block or not columns:
        raise ValueError(f"rows of {columns} elements are not whole blocks of {kind.block}, as {dtype} has them")
    if data.dtype != np.uint8 or data.ndim != 1 or data.size % (columns * width):
        raise ValueError(f"{data.size * data.itemsize} bytes of {source} are not whole rows of {columns} elements")
    if not data.flags.c_contiguous:
        data = data.copy()
    weights = np.empty(0, np.float32)
    if importance is not None:
        weights = np.ascontiguousarray(importance, np.float32)
        if weights.shape != (columns,):
            raise ValueError(f"importance weights of shape {weights.shape} for rows of {columns} elements")
        finite = np.isfinite(weights)
        if not finite.all():
            raise ValueError(f"the importance weight of column {int(finite.argmin())} is not a finite number")
    out = np.empty(data.size // width // kind.block * kind.nbytes, np.uint8)
    if not data.size:
        return out
    kernel = _kernel(dtype, weighted=importance is not None)
    peak = kernel(
        data, MODES[source], columns // kind.block, weights.view(np.uint8), out.view(np.uint16), bool(sums.size), sums
    )  # fmt: skip
    if peak > FINITE:
        refuse_infinite(widened(data, source).reshape(-1, columns))
    return out

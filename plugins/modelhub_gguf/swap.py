"""Big-endian blocks as little-endian ones: an op that turns round the numbers of several bytes inside each block.

Blocks are bytes and 16-bit floats, and only those floats depend on the order (``gguf_convert_endian.py`` of gguf-py does the same
for some of these types). Types with integers of several bytes inside are not in the list: how those are stored is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelhub import Extent, Node, Op, dtypes, ops

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q1_0": (0,), "Q2_0": (0,), "IQ4_NL": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (),
}  # fmt: skip
"""Where the 16-bit floats stand in a block (the structures of ``ggml/src/ggml-common.h``)."""


def swapped(value: Extent, dtype: str, shape: Sequence[int]) -> Node:
    """The blocks of a big-endian tensor of two or more dimensions, little-endian. ValueError where they do not fit ``shape``."""
    return ops.node(OP.name, value, dtype=dtype, shape=list(shape))


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Any) -> tuple[str, tuple[int, ...]]:
    dtype, shape = args["dtype"], tuple(args["shape"])
    if dtype not in HALVES or len(shape) < 2 or len(inputs) != 1 or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"blocks of {dtype} {list(shape)[:8]} cannot be turned round")
    want = dtypes.get(dtype).nbytes(shape)
    if inputs[0] != ("U8", (want,)):
        raise ValueError(f"{dtype} {list(shape)} takes {want} bytes, the run is {inputs[0]}")
    return dtype, shape


def _rows(sources: Sequence[Any], args: Any, start: int, stop: int) -> Any:
    dtype = dtypes.get(args["dtype"])
    row = dtype.nbytes(args["shape"][1:])
    data = sources[0].read(start * row, stop * row).copy()
    blocks = data.reshape(-1, dtype.block_bytes)
    for at in HALVES[dtype.name]:
        blocks[:, [at, at + 1]] = blocks[:, [at + 1, at]]
    return data.reshape(stop - start, row)


def _needs(inputs: Any, args: Any, start: int, stop: int) -> list[tuple[int, int]]:
    row = dtypes.get(args["dtype"]).nbytes(args["shape"][1:])
    return [(start * row, stop * row)]


OP = Op(name="gguf.swap", rows=_rows, infer=_infer, needs=_needs)

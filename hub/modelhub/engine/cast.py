"""Encoding a tensor to another dtype, chunk by chunk, and measuring the error as it goes.

``ops.cast`` is the node that a recipe puts on top of a tensor's value. It is an op like any other (so that expressions show it
and a cluster can run it), and the writer recognises it on top, to measure and to split it among threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.codecs import codec_of
from modelhub.engine.errors import ErrorSums
from modelhub.engine.values import CHUNK, Handles, tensor_chunks
from modelhub.errors import ConversionError
from modelhub.types import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOSSLESS = {
    ("F16", "F32"), ("F16", "F64"), ("BF16", "F32"), ("BF16", "F64"), ("F32", "F64"),
    ("C64", "C128"), ("C32", "C64"), ("C32", "C128"),
    *((f"F8_{kind}", wide) for kind in ("E4M3", "E5M2", "E4M3FNUZ", "E5M2FNUZ") for wide in ("BF16", "F32", "F64")),
    *((f"F8_{kind}", "F16") for kind in ("E4M3", "E5M2", "E4M3FNUZ")),
    *((kind, wide) for kind in ("F4", "F6_E2M3", "F6_E3M2") for wide in ("F16", "BF16", "F32", "F64")),
}  # fmt: skip
"""Pairs whose every value survives: no error to measure."""


def encoded_chunks(source: Tensor, dtype: str, handles: Handles, sums: ErrorSums | None = None) -> Iterator[NDArray[np.uint8]]:
    """The bytes of ``source`` encoded as ``dtype``, about `CHUNK` source bytes at a time."""
    import numpy as np

    have, want = dtypes.get(source.dtype), dtypes.get(dtype)
    decoder, encoder = codec_of(source.dtype, "decode"), codec_of(dtype, "encode")
    assert encoder.encode is not None
    granule = lcm(have.block, want.block)
    unit = granule // have.block * have.block_bytes
    measure = sums is not None and (source.dtype, dtype) not in LOSSLESS
    pending = np.empty(0, np.uint8)
    for chunk in tensor_chunks(source, handles, max(CHUNK // unit * unit, unit)):
        data = np.concatenate((pending, chunk)) if len(pending) else chunk
        whole = len(data) // unit * unit
        data, pending = data[:whole], data[whole:]
        if not whole:
            continue
        elements = whole // have.block_bytes * have.block
        values = decoder.decode(data, elements)
        encoded = encoder.encode(values)
        if measure and sums is not None:
            sums.take(values, codec_of(dtype, "decode").decode(encoded, elements), encoder.maximum)
        yield encoded
    if len(pending):
        raise ConversionError(f"tensor {source.name}: its last {len(pending)} bytes do not fill a block of {dtype}")


def piece_of(source: Tensor, start: int, stop: int) -> Tensor:
    """Elements ``start``..``stop`` of a tensor that is one extent, as a flat tensor; both must be whole blocks."""
    dtype = dtypes.get(source.dtype)
    extent: Any = source.value
    first, last = start // dtype.block * dtype.block_bytes, stop // dtype.block * dtype.block_bytes
    return source._replace(shape=(stop - start,), value=extent._replace(offset=extent.offset + first, nbytes=last - first))

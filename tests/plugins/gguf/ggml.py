"""The outside truth of block encodings: libggml itself, as the xllamacpp wheel carries it, called through ctypes.

Its encoders are built without fused multiply-add, so that they do float for float what their source says.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from modelhub_gguf.types import BY_NAME
from numpy.typing import NDArray

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    )


@cache
def library() -> ctypes.CDLL:
    """The shared library in the xllamacpp wheel."""
    spec = find_spec("xllamacpp")
    assert spec is not None, "the test group installs xllamacpp"
    (path,) = Path(spec.origin or "").parent.glob("xllamacpp*.so")
    loaded = ctypes.CDLL(str(path))
    loaded.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    loaded.ggml_get_type_traits.argtypes = [ctypes.c_int]
    loaded.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    loaded.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    loaded.ggml_quantize_init.argtypes = [ctypes.c_int]
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return loaded


def traits(dtype: str) -> _Traits:
    """What ggml knows of a type: its name, block and bytes."""
    found: _Traits = library().ggml_get_type_traits(BY_NAME[dtype].number).contents
    return found


def quantize(dtype: str, values: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """``values`` (rows, columns) encoded by ``ggml_quantize_chunk``: the blocks' bytes, flat."""
    kind = BY_NAME[dtype]
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    assert columns % kind.block == 0
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (columns,)
    blocks = np.zeros(rows * columns // kind.block * kind.nbytes, np.uint8)
    written = library().ggml_quantize_chunk(
        kind.number,
        values.ctypes.data,
        blocks.ctypes.data,
        0,
        rows,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    assert written == blocks.size
    return blocks


def dequantize(dtype: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Whole blocks decoded by ggml's own ``to_float``, flat."""
    kind = BY_NAME[dtype]
    blocks = np.ascontiguousarray(blocks).reshape(-1)
    assert blocks.size % kind.nbytes == 0
    values = np.empty(blocks.size // kind.nbytes * kind.block, np.float32)
    to_float = traits(dtype).to_float
    assert to_float, f"ggml does not decode {dtype}"
    _TO_FLOAT(to_float)(blocks.ctypes.data, values.ctypes.data, values.size)
    return values

"""Every block type decoded, against libggml itself and against gguf-py, bit for bit."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
from modelhub_gguf.codecs import CODECS, decode, decode_blocks, decode_fast, decode_grids
from modelhub_gguf.types import BY_NAME
from numpy.typing import NDArray

from tests.plugins.gguf import ggml

BLOCKS = 1500
"""So many random ones name every point of the largest grid, and every scale."""

DECODED_BY_GGML = tuple(dtype for dtype, kind in BY_NAME.items() if kind.block > 1 and dtype not in ("Q8_1", "Q8_K"))


def random_blocks(dtype: str, seed: int = 0) -> NDArray[np.uint8]:
    """Any bytes are blocks; their scales are NaN or infinite now and then."""
    return np.random.default_rng(seed).integers(0, 256, (BLOCKS, BY_NAME[dtype].nbytes), dtype=np.uint8)


def assert_same(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    """The same bits, but for what a NaN carries."""
    nan = np.isnan(theirs)
    assert ours.dtype == np.float32
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


def test_every_type_has_the_size_that_ggml_gives_it() -> None:
    for dtype, kind in BY_NAME.items():
        traits = ggml.traits(dtype)
        assert (traits.name.decode().upper(), traits.block, traits.nbytes) == (dtype.upper(), kind.block, kind.nbytes)
    assert {codec.dtype for codec in CODECS} == {dtype for dtype, kind in BY_NAME.items() if kind.block > 1}


@pytest.mark.parametrize("dtype", DECODED_BY_GGML)
def test_as_ggml_does(dtype: str) -> None:
    blocks = random_blocks(dtype)
    (codec,) = (codec for codec in CODECS if codec.dtype == dtype)
    assert_same(codec.decode(blocks.reshape(-1), BLOCKS * BY_NAME[dtype].block), ggml.dequantize(dtype, blocks))


@pytest.mark.parametrize("dtype", decode_fast.DTYPES)
def test_numpy_and_kernels_agree(dtype: str) -> None:
    blocks = random_blocks(dtype, seed=1)
    compiled = np.empty((BLOCKS, BY_NAME[dtype].block), np.float32)
    decode_fast.decode(dtype, blocks, compiled)
    with np.errstate(all="ignore"):
        assert_same(compiled, getattr(decode_blocks, dtype.lower())(blocks))


@pytest.mark.parametrize("dtype", [dtype for dtype in DECODED_BY_GGML if dtype not in ("Q1_0", "Q2_0")])
def test_as_gguf_py_does(dtype: str) -> None:
    blocks = random_blocks(dtype, seed=2)
    module = decode_grids if hasattr(decode_grids, dtype.lower()) else decode_blocks
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[dtype])
        assert_same(getattr(module, dtype.lower())(blocks), theirs)


@pytest.mark.parametrize("dtype", ["Q8_1", "Q8_K"])
def test_the_types_that_ggml_only_computes_with(dtype: str) -> None:
    """It encodes them, and never decodes: what comes back must be within half a step of what went in, and
    a little more where the step is in half precision."""
    values = np.random.default_rng(3).standard_normal(1024, np.float32)
    blocks = np.zeros(values.size // BY_NAME[dtype].block * BY_NAME[dtype].nbytes, np.uint8)
    encode = getattr(ggml.library(), f"quantize_row_{dtype[:3].lower()}{dtype[3:]}_ref")
    encode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    encode(values.ctypes.data, blocks.ctypes.data, values.size)
    back = decode.decode(dtype, blocks, values.size).reshape(-1, BY_NAME[dtype].block)
    values = values.reshape(back.shape)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - values) <= 0.6 * step).all()


def test_bytes_that_are_not_whole_blocks() -> None:
    with pytest.raises(ValueError, match="143 bytes are not 256 elements of Q4_K"):
        decode.decode("Q4_K", np.zeros(143, np.uint8), 256)
    assert decode.decode("Q4_K", np.zeros(0, np.uint8), 0).size == 0


def test_bytes_that_may_only_be_read() -> None:
    blocks = random_blocks("Q6_K", seed=4)
    data = np.frombuffer(blocks.tobytes(), np.uint8)
    assert_same(decode.decode("Q6_K", data, BLOCKS * 256), ggml.dequantize("Q6_K", blocks))

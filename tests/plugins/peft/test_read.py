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


def test_other_methods_have_their_own_words(tmp_path: Path, modelhub: Modelhub) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "DEFT", "r": "many", "alpha": None}))
    save_file({"base_model.model.q_proj.deft_P": np.zeros((4, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    shown = modelhub("show", tmp_path, "--json").json
    assert (shown["state"], shown["metadata"]["method"]) == ("ready", "deft")


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


def zeros(names: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float16) for name, shape in names.items()}


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
FAMILIES = {
    "stable-diffusion-1": ({f"{UNET}.lora_down.weight": (4, 768), f"{UNET}.lora_up.weight": (640, 4)}, "lora"),
    "stable-diffusion-2": ({f"{UNET}.hada_w1_a": (640, 4), f"{UNET}.hada_w1_b": (4, 1024)}, "loha"),
    "stable-diffusion-xl": ({f"{UNET}.lora_down.weight": (4, 2048), f"{UNET}.dora_scale": (640, 1)}, "dora"),
    "flux": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": (4, 4), "lora_unet_single_blocks_0_linear1.lokr_w2": (4, 4)},
        "lokr",
    ),
    "stable-diffusion-3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 64)}, "lora"),
    "wan": ({"diffusion_model.blocks.0.cross_attn.k.lora_A.weight": (4, 64)}, "lora"),
    "qwen-image": ({"transformer_blocks.0.img_mlp.net.2.lora_A.weight": (4, 64)}, "lora"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_that_a_lora_changes_is_told_by_its_blocks(name: str, tmp_path: Path, modelhub: Modelhub) -> None:
    names, method = FAMILIES[name]
    save_file(zeros(names), tmp_path / "style.safetensors")
    shown = modelhub("show", tmp_path / "style.safetensors", "--json").json
    assert (shown["format"], shown["architecture"], shown["metadata"]["method"]) == ("lora", name, method)


def test_what_the_trainer_noted_tells_the_family_where_names_do_not(tmp_path: Path, modelhub: Modelhub) -> None:
    save_file(KOHYA, tmp_path / "style.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    assert modelhub("show", tmp_path / "style.safetensors", "--json").json["architecture"] == "stable-diffusion-xl"
    save_file(KOHYA, tmp_path / "other.safetensors")
    assert not modelhub("show", tmp_path / "other.safetensors", "--json").json["architecture"]


def test_a_model_is_not_taken_for_an_adapter(tmp_path: Path, modelhub: Modelhub) -> None:
    names = ("encoder.lora_like", "snake.alpha", "q.base_layer.weight", "q.lora_A.weight")
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, tmp_path / "plain.safetensors")
    assert modelhub("show", tmp_path / "plain.safetensors", "--json").json["format"] == "safetensors"
    llama(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert modelhub("show", tmp_path / "model", "--json").json["format"] == "huggingface"

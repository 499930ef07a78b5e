"""Newer versions of transformers call modules otherwise in memory than files do, and put the matrices of all experts into one
tensor: adapters trained on such models fit the files all the same, and merge to what peft saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import LLAMA, state, trained, worst

IMAGES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MIXTRAL = transformers.MixtralConfig(**{**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2})
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
MODELS: dict[str, tuple[type, transformers.PreTrainedConfig, peft.LoraConfig, str]] = {
    "mixtral": (
        transformers.MixtralForCausalLM,
        MIXTRAL,
        peft.LoraConfig(r=2, target_modules="all-linear", rank_pattern={"experts.down_proj": 3}, alpha_pattern={"down_proj": 5}),
        "model.layers.1.block_sparse_moe.experts.2.w3.weight",
    ),
    "router": (
        transformers.MixtralForCausalLM,
        MIXTRAL,
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"]),
        "model.layers.0.block_sparse_moe.gate.weight",
    ),
    "qwen3": (
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(**LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=16),
        peft.LoraConfig(r=2, target_modules=["k_proj"], target_parameters=EXPERTS, use_rslora=True),
        "model.layers.1.mlp.experts.3.up_proj.weight",
    ),
    "granite": (
        transformers.GraniteMoeForCausalLM,
        transformers.GraniteMoeConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=2),
        peft.LoraConfig(r=2, target_modules=[], target_parameters=[*EXPERTS, "router.weight"]),
        "model.layers.0.block_sparse_moe.input_linear.weight",
    ),
    "gpt-oss": (  # as wide as its experts: no shape tells which side is which
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig(**{**LLAMA, "intermediate_size": 64}, num_local_experts=3, num_experts_per_tok=2, head_dim=16),
        peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERTS),
        "model.layers.0.mlp.experts.down_proj",
    ),
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**IMAGES),
        peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"]),
        "vit.encoder.layer.0.attention.attention.query.weight",
    ),
    "swin": (
        transformers.SwinModel,
        transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        peft.LoraConfig(r=2, target_modules="all-linear"),
        "encoder.layers.0.blocks.0.attention.self.key.weight",
    ),
}


def merged_by_peft(model: Callable[[], Any], adapter: Path, directory: Path) -> dict[str, torch.Tensor]:
    """What is in the files of the merged model."""
    peft.PeftModel.from_pretrained(model(), adapter).merge_and_unload().save_pretrained(directory)
    return state(directory)


def same_as_saved(model: Callable[[], Any], config: peft.PeftConfig, path: Path, modelhub: Modelhub) -> dict[str, torch.Tensor]:
    """The base's tensors, after the merged ones were found to be those of peft."""
    model().save_pretrained(path / "base")
    adapter = trained(model(), config, path / "adapter")
    modelhub("merge", path / "base", "--adapter", adapter, "-o", path / "out")
    ours, theirs = state(path / "out"), merged_by_peft(model, adapter, path / "theirs")
    assert set(ours) == set(theirs)
    name, far = worst(ours, theirs)
    assert far < 3e-6, name
    return state(path / "base")


@pytest.mark.parametrize("kind", MODELS)
def test_merged_as_peft_saves_it(kind: str, tmp_path: Path, modelhub: Modelhub) -> None:
    model_class, config, lora, changed = MODELS[kind]

    def model() -> Any:
        torch.manual_seed(5)
        return model_class(config)

    before = same_as_saved(model, lora, tmp_path, modelhub)
    assert not torch.equal(state(tmp_path / "out")[changed], before[changed])


def as_older_peft_took_them() -> Any:
    torch.manual_seed(5)
    model = transformers.MixtralForCausalLM(MIXTRAL)
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = True
    return model


def test_experts_taken_for_transposed_ones(tmp_path: Path, modelhub: Modelhub) -> None:
    """As versions of peft before 0.19.1 took all."""
    same_as_saved(as_older_peft_took_them, peft.LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS), tmp_path, modelhub)


def test_square_experts_of_a_version_that_took_them_either_way_are_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    model_class, model_config, lora, _ = MODELS["gpt-oss"]
    model_class(model_config).save_pretrained(tmp_path / "base")
    adapter = trained(model_class(model_config), lora, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_version": "0.19.0"}))
    refused = modelhub("merge", tmp_path / "base", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert "could be for more than one of its parameters {'down_proj': [3, 64, 64]}" in refused.stderr


def test_a_saved_module_that_no_layer_of_the_base_has_is_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"])
    adapter = trained(transformers.MixtralForCausalLM(MIXTRAL), lora, tmp_path / "adapter")
    refused = modelhub("merge", tmp_path / "base", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert "the base has no tensor model.layers.0.mlp.gate.weight" in refused.stderr

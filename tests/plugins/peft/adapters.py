"""Tiny random models and adapters, made and merged by transformers and peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}


def llama(dtype: torch.dtype = torch.float32, **more: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **more})).to(dtype)


def gpt2() -> transformers.PreTrainedModel:
    torch.manual_seed(2)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=48, n_layer=2, n_head=4))


def trained(
    model: transformers.PreTrainedModel, config: peft.PeftConfig, directory: Path, seed: int = 3, size: float = 0.2
) -> Path:
    """An adapter of ``model`` with random weights where a training would have left others, saved by peft. ``model`` is left as it
    was found."""
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value += torch.randn_like(value) * (0.05 if "magnitude" in name or "ia3" in name else size)
    adapted.save_pretrained(directory)
    return directory


def merged_by_peft(
    base: Path, *adapters: Path, kind: Any = transformers.AutoModelForCausalLM, **more: Any
) -> dict[str, torch.Tensor]:
    """The state of ``base`` with ``adapters`` merged, by name; as peft's own ``merge_and_unload`` leaves it."""
    return dict(merged_model(kind.from_pretrained(base, **more), *adapters).state_dict())


def merged_model(model: transformers.PreTrainedModel, *adapters: Path) -> Any:
    """``model`` with ``adapters`` merged into it by peft."""
    adapted = peft.PeftModel.from_pretrained(model, adapters[0], adapter_name="first")
    names = ["first"]
    for number, adapter in enumerate(adapters[1:]):
        names.append(f"other{number}")
        adapted.load_adapter(adapter, adapter_name=names[-1])
    return adapted.merge_and_unload(adapter_names=names)


def state(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


def worst(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> tuple[str, float]:
    """The tensor of ``ours`` that is farthest from theirs, relative to its largest value, both as float32."""
    far = {
        name: float((value.float() - theirs[name].float()).abs().max() / theirs[name].float().abs().max().clamp(min=1e-9))
        for name, value in ours.items()
    }
    name = max(far, key=lambda name: far[name])
    return name, far[name]

"""A small Llama and its directory with packed weights, for the tests of every packing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.plugins.gguf.logits import quiet, save_bpe

Pack = Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]
"""From a module's name and its weight (N, K) to the tensors that stand for it."""


def llama(directory: Path, dtype: torch.dtype = torch.float16) -> Any:
    """A random Llama of two layers, saved with a tokenizer."""
    import transformers

    quiet()
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, dtype=dtype,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(directory)
    save_bpe(directory)
    return model


def pack(directory: Path, model: Any, how: Pack, said: Mapping[str, Any], key: str = "quantization_config") -> dict[str, str]:
    """Replace every projection's weight in ``directory`` by what ``how`` makes of it; returns name of whole -> module."""
    tensors: dict[str, torch.Tensor] = {}
    packed = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            packed[name] = module
            tensors.update({f"{module}.{part}": value.contiguous() for part, value in how(module, tensor).items()})
        else:
            tensors[name] = tensor.contiguous()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, key: said}))
    return packed


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What safetensors' own library reads, as float32 arrays."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118

"""Qwen 2 and 2.5. Facts: llama.cpp ``conversion/qwen.py``."""

from __future__ import annotations

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import BASE, POOLING
from modelhub_gguf.architectures.names import LLAMA
from modelhub_gguf.architectures.records import Architecture


def complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


ROWS = (
    Architecture(
        name="qwen2",
        hf=("Qwen2ForCausalLM", "Qwen2Model"),
        model_type="qwen2",
        defaults={
            "": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        },
        config=complete,
        keys=(*BASE, *POOLING),
        names=LLAMA,
    ),
)

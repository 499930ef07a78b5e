"""StableLM 3B and 2. Facts: llama.cpp ``conversion/stablelm.py``."""

from __future__ import annotations

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import ODD_ROPE_BASE, computed, count, real
from modelhub_gguf.architectures.names import LLAMA, under
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.fields import BOOL, U32

HEAD_NORMS = {
    "self_attn.q_layernorm.norms.{e}": "attn_q_norm",
    "self_attn.k_layernorm.norms.{e}": "attn_k_norm",
}
"""A norm for each head, where there are any; GGUF stacks them."""


def complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


ROWS = (
    Architecture(
        name="stablelm",
        hf=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        model_type="stablelm",
        defaults={
            "": {"max_position_embeddings": 4096, "use_parallel_residual": True},
            "stablelm": {"layer_norm_eps": 1e-5, "use_parallel_residual": False, "num_key_value_heads": 32},
        },
        config=complete,
        keys=(
            count("context_length", "max_position_embeddings"),
            count("embedding_length", "hidden_size"),
            computed("block_count", U32, lambda config: config.blocks),
            count("feed_forward_length", "intermediate_size"),
            computed("rope.dimension_count", U32, lambda config: int(config.rotary_factor(0.25) * config.head_dim)),
            ODD_ROPE_BASE,
            count("attention.head_count", "num_attention_heads"),
            count("attention.head_count_kv", "num_key_value_heads"),
            computed("use_parallel_residual", BOOL, lambda config: config.flag("use_parallel_residual")),
            real("attention.layer_norm_epsilon", "layer_norm_eps", "norm_eps"),
        ),
        names={**LLAMA, **under("model.layers.{b}.", "blk.{b}.", HEAD_NORMS)},
        stacked={
            "blk.{b}.attn_q_norm": lambda config: config.heads,
            "blk.{b}.attn_k_norm": lambda config: config.kv_heads,
        },
    ),
)

"""GLM-4 of April 2025 and later. Facts: llama.cpp ``conversion/glm.py`` (``Glm4Model``)."""

from __future__ import annotations

from modelhub_gguf.architectures.keys import BASE, computed
from modelhub_gguf.architectures.names import ATTENTION, decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.fields import U32

BLOCK = {
    "input_layernorm": "attn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

ROWS = (
    Architecture(
        name="glm4",
        hf=("Glm4ForCausalLM",),
        model_type="glm4",
        defaults={
            "": {
                "max_position_embeddings": 131072, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-7,
                "rope_theta": 10000.0,
            },
        },
        keys=(
            *BASE,
            computed("rope.dimension_count", U32, lambda config: int(config.head_dim * config.rotary_factor(0.5))),
        ),
        names=decoder(ATTENTION, BLOCK),
    ),
)  # fmt: skip

"""GPT-2. Its matrices are stored transposed. Facts: llama.cpp ``conversion/gpt2.py``."""

from __future__ import annotations

from typing import Any

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.given import Given
from modelhub_gguf.architectures.keys import computed, count, real
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.records import Architecture, Back
from modelhub_gguf.architectures.transforms import TRANSPOSE
from modelhub_gguf.fields import U32

ENDS = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _forward(config: Config) -> int:
    """The reference always writes four times the width; a configuration with another ``n_inner`` says so."""
    inner = config.find("n_inner")
    return 4 * config.width if inner is None else config.whole(inner, "n_inner")


def returned(given: Given, config: dict[str, Any]) -> None:
    if config.get("n_inner") == 4 * config["n_embd"]:
        config["n_inner"] = None  # as GPT-2's own configurations say it


ROWS = (
    Architecture(
        name="gpt2",
        hf=("GPT2LMHeadModel", "GPT2Model"),
        model_type="gpt2",
        defaults={"": {"n_positions": 1024, "layer_norm_epsilon": 1e-5}},
        keys=(
            computed("block_count", U32, lambda config: config.blocks, back="n_layer"),
            count("context_length", "n_ctx", "n_positions", back="n_positions"),
            count("embedding_length", "n_embd"),
            computed("feed_forward_length", U32, _forward, back="n_inner"),
            count("attention.head_count", "n_head"),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ),
        names=decoder(BLOCK, ends=ENDS, layer="h.{b}."),
        prefixes=("transformer.",),
        ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
        transforms={
            "blk.{b}.attn_qkv": TRANSPOSE,
            "blk.{b}.attn_output": TRANSPOSE,
            "blk.{b}.ffn_up": TRANSPOSE,
            "blk.{b}.ffn_down": TRANSPOSE,
        },
        back=Back(returned, prefix="transformer."),
    ),
)

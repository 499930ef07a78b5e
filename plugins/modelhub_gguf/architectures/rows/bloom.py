"""BLOOM. Facts: llama.cpp ``conversion/bloom.py``."""

from __future__ import annotations

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import computed, real
from modelhub_gguf.architectures.names import decoder, under
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows.gptneox import APART
from modelhub_gguf.fields import U32

ENDS = {
    "word_embeddings": "token_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "ln_f": "output_norm",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
BODY = decoder(BLOCK, ends=ENDS, layer="h.{b}.")
NAMES = {"lm_head": "output", **under("transformer.", "", BODY), **BODY}
"""Some checkpoints are of the body alone."""


def _width(config: Config) -> int:
    return config.count("hidden_size", "n_embed")  # its first configurations have the second


def _complete(config: Config) -> None:
    if config.flag("apply_residual_connection_post_layernorm"):
        raise UnsupportedFile(
            "config.json: apply_residual_connection_post_layernorm is true, and GGUF's bloom adds what was not normed"
        )


def _context(config: Config) -> int:
    """Any length is as good for its attention biases; the reference says the width where nothing is said."""
    said = config.find("seq_length")
    return _width(config) if said is None else config.whole(said, "seq_length")


ROWS = (
    Architecture(
        name="bloom",
        hf=("BloomForCausalLM", "BloomModel"),
        model_type="bloom",
        defaults={"": {"layer_norm_epsilon": 1e-5}},
        config=_complete,
        keys=(
            computed("context_length", U32, _context),
            computed("embedding_length", U32, _width),
            computed("feed_forward_length", U32, lambda config: 4 * _width(config)),
            computed("block_count", U32, lambda config: config.blocks),
            computed("attention.head_count", U32, lambda config: config.heads),
            computed("attention.head_count_kv", U32, lambda config: config.heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ),
        names=NAMES,
        transforms={"blk.{b}.attn_qkv": APART},
    ),
)

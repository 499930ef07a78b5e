"""GPT-NeoX, and what is built like it (Pythia). Facts: llama.cpp ``conversion/gptneox.py``."""

from __future__ import annotations

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import ODD_ROPE_BASE, computed, count, real
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.transforms import reorder_rows
from modelhub_gguf.fields import BOOL, U32

ENDS = {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def _parts(config: Config, rows: int) -> tuple[int, int, int]:
    """A head's query, key and value stand together in a checkpoint; in GGUF all queries, all keys and all values do."""
    heads = config.heads
    if not heads or rows % (3 * heads):
        raise ValueError(f"{rows} rows are not the queries, keys and values of {heads} heads")
    return heads, 3, rows // heads // 3


APART = reorder_rows(_parts, (1, 0, 2))

ROWS = (
    Architecture(
        name="gptneox",
        hf=("GPTNeoXForCausalLM",),
        model_type="gpt_neox",
        defaults={"": {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5}},
        keys=(
            count("context_length", "max_position_embeddings"),
            count("embedding_length", "hidden_size"),
            computed("block_count", U32, lambda config: config.blocks),
            count("feed_forward_length", "intermediate_size"),
            computed("rope.dimension_count", U32, lambda config: int(config.rotary_factor(0.25) * config.head_dim)),
            ODD_ROPE_BASE,
            count("attention.head_count", "num_attention_heads"),
            computed("use_parallel_residual", BOOL, lambda config: config.flag("use_parallel_residual", default=True)),
            real("attention.layer_norm_epsilon", "layer_norm_eps"),
        ),
        names=decoder(BLOCK, ends=ENDS, layer="gpt_neox.layers.{b}."),
        transforms={"blk.{b}.attn_qkv": APART},
    ),
)

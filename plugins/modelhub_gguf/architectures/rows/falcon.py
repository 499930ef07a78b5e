"""Falcon 7B, 40B, 180B and 2 11B. Facts: llama.cpp ``conversion/falcon.py``; transformers ``configuration_falcon.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import ODD_ROPE_BASE, computed, count, real
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.transforms import grouped_rows
from modelhub_gguf.fields import STRING, U32

ENDS = {"transformer.word_embeddings": "token_embd", "transformer.ln_f": "output_norm", "lm_head": "output"}
BLOCK = {  # the larger models have a norm for attention and one for the MLP, the others one for both
    "input_layernorm": "attn_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
TWO_NORMS = {hf: gguf for hf, gguf in BLOCK.items() if hf != "input_layernorm"}
ONE_NORM = {hf: gguf for hf, gguf in BLOCK.items() if not hf.startswith("ln_")}


def complete(config: Config) -> None:
    """How many keys there are, and what llama.cpp would compute otherwise."""
    if config.flag("alibi"):
        raise UnsupportedFile("config.json: alibi is true, and GGUF's falcon has rotary embeddings")
    grouped = _grouped(config.values)
    if not grouped and not config.flag("parallel_attn", default=True):
        raise UnsupportedFile(
            "config.json: parallel_attn is false, and in GGUF's falcon attention and MLP are computed side by side"
        )
    if config.flag("bias"):
        raise UnsupportedFile("config.json: bias is true, and GGUF's falcon has no biases")
    said = config.find("n_head_kv", "num_kv_heads")
    if not grouped:  # transformers looks at num_kv_heads in the newer kind alone
        said = 1 if config.flag("multi_query", default=True) else config.heads
    config.values["num_kv_heads"] = config.heads if said is None else said


def _grouped(raw: Mapping[str, Any]) -> bool:
    """Whether it is of the newer kind, in which some queries share a key; 40B's first configuration says so by ``n_head_kv``."""
    return raw.get("new_decoder_architecture") is True or raw.get("n_head_kv") is not None


def _two_norms(raw: Mapping[str, Any]) -> bool:
    return _grouped(raw) and raw.get("num_ln_in_parallel_attn") in (None, 2)


def _forward(config: Config) -> int:
    """Four times the width is all that the reference knows; a configuration with another size says so."""
    said = config.find("ffn_hidden_size")
    return 4 * config.width if said is None else config.whole(said, "ffn_hidden_size")


KEYS = (
    count("context_length", "max_position_embeddings"),
    computed("tensor_data_layout", STRING, lambda config: "jploski"),
    count("embedding_length", "hidden_size"),
    computed("feed_forward_length", U32, _forward),
    computed("block_count", U32, lambda config: config.blocks),
    computed("attention.head_count", U32, lambda config: config.heads),
    count("attention.head_count_kv", "num_kv_heads"),
    real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ODD_ROPE_BASE,
)
DEFAULTS = {"": {"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5}}
APART = {"blk.{b}.attn_qkv": grouped_rows(lambda config: config.heads, lambda config: config.count("num_kv_heads"))}
CLASSES = ("FalconForCausalLM", "RWForCausalLM")

ROWS = (
    Architecture(
        name="falcon",
        hf=CLASSES,
        model_type="falcon",
        defaults=DEFAULTS,
        config=complete,
        keys=KEYS,
        names=decoder(TWO_NORMS, ends=ENDS, layer="transformer.h.{b}."),
        transforms=APART,
        applies=_two_norms,
    ),
    Architecture(
        name="falcon",
        hf=CLASSES,
        model_type="falcon",
        defaults=DEFAULTS,
        config=complete,
        keys=KEYS,
        names=decoder(ONE_NORM, ends=ENDS, layer="transformer.h.{b}."),
        transforms=APART,
    ),
)

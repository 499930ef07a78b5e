"""MPT. Facts: llama.cpp ``conversion/mpt.py``; transformers ``configuration_mpt.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import computed, count, real
from modelhub_gguf.architectures.names import decoder, under
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.documents import mapping
from modelhub_gguf.fields import F32, U32

ENDS = {"wte": "token_embd", "wpe": "position_embd", "norm_f": "output_norm"}
BLOCK = {
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.q_ln": "attn_q_norm",
    "attn.k_ln": "attn_k_norm",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
BODY = decoder(BLOCK, ends=ENDS, layer="blocks.{b}.")
NAMES = {"lm_head": "output", **under("transformer.", "", BODY), **BODY}
"""Some checkpoints are of the body alone."""
_ATTENTION = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None, "prefix_lm": False, "softmax_scale": None}


def _attention(config: Config) -> Mapping[str, Any]:
    return {**_ATTENTION, **mapping(config.find("attn_config"))}


def _complete(config: Config) -> None:
    """What llama.cpp would compute otherwise."""
    if config.find("logit_scale") is not None:
        raise UnsupportedFile("config.json: logit_scale is set, and GGUF's mpt has none")
    for name in ("prefix_lm", "softmax_scale"):
        if value := _attention(config)[name]:
            raise UnsupportedFile(f"config.json: {name} of attn_config is {value!r:.40}, and GGUF's mpt has none")


def _bias(config: Config) -> Any:
    """How steep attention's biases may be; 0: there are none, but embeddings of positions."""
    attention = _attention(config)
    return attention["alibi_bias_max"] if attention["alibi"] is True else 0.0


ROWS = (
    Architecture(
        name="mpt",
        hf=("MPTForCausalLM", "MptForCausalLM"),
        model_type="mpt",
        defaults={"": {"max_seq_len": 2048, "layer_norm_epsilon": 1e-5, "expansion_ratio": 4}},
        config=_complete,
        keys=(
            count("context_length", "max_seq_len"),
            count("embedding_length", "d_model"),
            computed("block_count", U32, lambda config: config.blocks),
            computed("feed_forward_length", U32, lambda config: config.count("expansion_ratio") * config.count("d_model")),
            count("attention.head_count", "n_heads"),
            computed("attention.head_count_kv", U32, lambda config: _attention(config).get("kv_n_heads")),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            computed("attention.clamp_kqv", F32, lambda config: _attention(config)["clip_qkv"]),
            computed("attention.max_alibi_bias", F32, _bias),
        ),
        names=NAMES,
    ),
)

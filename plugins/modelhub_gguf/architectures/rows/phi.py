"""Phi 1, 1.5 and 2; Phi 3, 3.5 and 4. Facts: llama.cpp ``conversion/phi.py`` (``Phi2Model``, ``Phi3MiniModel``)."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from modelhub import Inline, Tensor, UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import ODD_ROPE_BASE, computed, count, real
from modelhub_gguf.architectures.names import NORMS, decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.documents import items
from modelhub_gguf.fields import F32, U32

PHI2_ENDS = {"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output"}
PHI2 = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
PHI3 = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ORIGINAL = "original_max_position_embeddings"
_LONG = ("longrope", "su", "yarn")
"""What Phi's configurations have called the same kind of scaling (transformers ``configuration_phi3.py``)."""


def rotated(default: float, config: Config) -> int:
    """Elements of a head that are rotated."""
    return int(config.rotary_factor(default) * config.width) // max(config.heads, 1)


def _complete_3(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


def _complete_2(config: Config) -> None:
    if config.flag("qk_layernorm"):
        raise UnsupportedFile("config.json: qk_layernorm is true, and GGUF's phi2 has no norms of queries and keys")


def _original(config: Config) -> Any:
    return config.global_rope.get(_ORIGINAL)


def _attention_factor(config: Config) -> float | None:
    """By how much attention grows sharper in a longer context (transformers ``modeling_rope_utils.py``,
    ``_compute_longrope_parameters``)."""
    if not items(config.global_rope.get("long_factor")):
        return None
    kind = config.global_rope.get("rope_type")
    if kind not in _LONG:
        raise UnsupportedFile(f"config.json: rotary embeddings with long factors are scaled by {kind!r:.40}, not longrope")
    original = config.whole(_original(config), _ORIGINAL)
    if original < 2:
        raise UnsupportedFile(f"config.json: {_ORIGINAL} is {original}")
    scale = config.count("n_positions", "max_position_embeddings") / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _factors(config: Config) -> Iterator[Tensor]:
    """``rope_factors_long.weight`` and ``_short``: by how much each frequency is slowed down, beyond the original context and
    within it."""
    rope, wanted = config.global_rope, rotated(1.0, config) // 2
    if not items(rope.get("long_factor")):
        return
    for kind in ("long", "short"):
        values = items(rope.get(f"{kind}_factor"))
        if len(values) != wanted or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"config.json: {kind}_factor of the rotary embeddings is not a list of {wanted} numbers")
        yield Tensor(f"rope_factors_{kind}.weight", "F32", (wanted,), Inline(struct.pack(f"<{wanted}f", *values)))


ROWS = (
    Architecture(
        name="phi2",
        hf=("PhiForCausalLM",),
        model_type="phi",
        defaults={"": {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5}},
        config=_complete_2,
        keys=(
            count("context_length", "n_positions", "max_position_embeddings"),
            count("embedding_length", "hidden_size", "n_embd"),
            computed("feed_forward_length", U32, lambda config: 4 * config.width),
            computed("block_count", U32, lambda config: config.blocks),
            computed("attention.head_count", U32, lambda config: config.heads),
            computed("attention.head_count_kv", U32, lambda config: config.heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon", "layer_norm_eps"),
            computed("rope.dimension_count", U32, lambda config: rotated(0.5, config)),
            ODD_ROPE_BASE,
        ),
        names=decoder(PHI2, ends=PHI2_ENDS),
    ),
    Architecture(
        name="phi3",
        hf=("Phi3ForCausalLM",),
        model_type="phi3",
        defaults={
            "": {"max_position_embeddings": 4096, _ORIGINAL: 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
        },
        config=_complete_3,
        keys=(
            count("context_length", "n_positions", "max_position_embeddings"),
            computed("rope.scaling.original_context_length", U32, _original),
            count("embedding_length", "hidden_size", "n_embd"),
            count("feed_forward_length", "intermediate_size"),
            computed("block_count", U32, lambda config: config.blocks),
            computed("attention.head_count", U32, lambda config: config.heads),
            count("attention.head_count_kv", "num_key_value_heads", "n_head_kv"),
            real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            computed("rope.dimension_count", U32, lambda config: rotated(1.0, config)),
            computed("rope.freq_base", F32, lambda config: config.global_rope.get("rope_theta")),
            # Zero where there is no window: llama.cpp tells Phi 4 by it.
            computed("attention.sliding_window", U32, lambda config: config.find("sliding_window") or 0),
            computed("rope.scaling.attn_factor", F32, _attention_factor),
        ),
        names=decoder(NORMS, PHI3),
        generated=_factors,
    ),
)  # fmt: skip

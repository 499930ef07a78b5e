"""Granite 3: a Llama whose streams are scaled by four numbers, and its mixtures of experts. Facts: llama.cpp
``conversion/granite.py`` (``GraniteModel``, ``GraniteMoeModel``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import computed
from modelhub_gguf.architectures.names import ATTENTION, LLAMA, NORMS, decoder
from modelhub_gguf.architectures.records import Architecture, Rule
from modelhub_gguf.architectures.rows.llama import INTERLEAVED, LLAMA_KEYS, rope_factors
from modelhub_gguf.architectures.transforms import split
from modelhub_gguf.fields import F32, U32


def complete(config: Config) -> None:
    """GGUF's granite has no width of heads of its own."""
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads
    said = config.values.pop("head_dim", None)
    if said is not None and said != config.head_dim:
        raise UnsupportedFile(f"config.json: head_dim is {said!r:.40}; in GGUF's granite a head has {config.head_dim} elements")


def _complete_moe(config: Config) -> None:
    complete(config)
    if not config.experts:
        raise UnsupportedFile("config.json: num_local_experts is 0, and GGUF's granitemoe has no layers without experts")


def _if_any(name: str) -> Callable[[Config], Any]:
    return lambda config: config.find(name) or None


KEYS = (
    *LLAMA_KEYS,
    computed("attention.scale", F32, _if_any("attention_multiplier")),
    computed("embedding_scale", F32, _if_any("embedding_multiplier")),
    computed("residual_scale", F32, _if_any("residual_multiplier")),
    computed("logit_scale", F32, _if_any("logits_scaling")),
)
DEFAULTS = {
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 32000,
    "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
}  # fmt: skip
MOE = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.output_linear": "ffn_down_shexp",
}


def _halves(hf: str, gate: str, up: str, axis: int) -> Rule:
    layer = "model.layers.{b}."
    return Rule(hf=(f"{layer}{hf}",), gguf=(f"blk.{{b}}.{gate}", f"blk.{{b}}.{up}"), regroup=split(2, axis=axis))


ROWS = (
    Architecture(
        name="granite",
        hf=("GraniteForCausalLM",),
        model_type="granite",
        defaults={"": DEFAULTS},
        config=complete,
        keys=KEYS,
        names=LLAMA,
        transforms=INTERLEAVED,
        generated=rope_factors,
    ),
    Architecture(
        name="granitemoe",
        hf=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        model_type="granitemoe",
        defaults={"": {**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}},
        config=_complete_moe,
        keys=(*KEYS, computed("expert_shared_feed_forward_length", U32, _if_any("shared_intermediate_size"))),
        names=decoder(NORMS, ATTENTION, MOE),
        rules=(
            _halves("block_sparse_moe.input_linear", "ffn_gate_exps", "ffn_up_exps", axis=1),
            _halves("shared_mlp.input_linear", "ffn_gate_shexp", "ffn_up_shexp", axis=0),
        ),
        transforms=INTERLEAVED,
        generated=rope_factors,
    ),
)

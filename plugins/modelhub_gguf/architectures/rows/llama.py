"""Llama 1, 2 and 3, Mistral and Mixtral: one architecture to GGUF.

Facts: llama.cpp ``conversion/llama.py`` (``LlamaModel``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from modelhub import Inline, Tensor, UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.given import Given, rope, whole_heads
from modelhub_gguf.architectures.keys import BASE, computed, count
from modelhub_gguf.architectures.names import LLAMA, under
from modelhub_gguf.architectures.records import Architecture, Back
from modelhub_gguf.architectures.transforms import KEY_HEADS, QUERY_HEADS
from modelhub_gguf.documents import Documents
from modelhub_gguf.fields import U32

MIXTRAL = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.{e}.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.{e}.w2": "ffn_down_exps",
    "block_sparse_moe.experts.{e}.w3": "ffn_up_exps",
}
INTERLEAVED = {"blk.{b}.attn_q": QUERY_HEADS, "blk.{b}.attn_k": KEY_HEADS}


def rope_factors(config: Config) -> Iterator[Tensor]:
    """``rope_freqs.weight``: by how much each frequency is slowed down, where the configuration has Llama 3's kind of scaling
    (transformers ``modeling_rope_utils.py``, ``_compute_llama3_parameters``). In float32, step by step as the reference does."""
    rope = config.global_rope
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return

    def setting(name: str, default: float) -> float:
        value = rope.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"config.json: {name} of the rotary embeddings is {value!r:.40}, a positive number was expected")
        return float(value)

    base, factor = setting("rope_theta", 10000.0), setting("factor", 8.0)
    low, high = setting("low_freq_factor", 1.0), setting("high_freq_factor", 4.0)
    context = setting("original_max_position_embeddings", 8192)
    if not high > low:
        raise ValueError(f"config.json: high_freq_factor {high} of the rotary embeddings is not above low_freq_factor {low}")
    dim = config.head_dim
    factors = []
    for place in range(0, dim, 2):
        frequency = _f32(1.0 / _f32(base ** _f32(place / dim)))
        wavelength = _f32(_f32(1.0 / frequency) * _f32(2 * math.pi))  # torch divides a number by multiplying its inverse
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = _f32(_f32(_f32(_f32(1.0 / wavelength) * _f32(context)) - _f32(low)) / _f32(high - low))
            factors.append(_f32(1.0 / _f32(_f32(_f32(1.0 - smooth) / _f32(factor)) + smooth)))
    yield Tensor("rope_freqs.weight", "F32", (len(factors),), Inline(struct.pack(f"<{len(factors)}f", *factors)))


def _f32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


LLAMA_KEYS = (
    *BASE,
    count("vocab_size", "vocab_size"),
    computed("rope.dimension_count", U32, lambda config: config.head_dim),
)


def complete(config: Config) -> None:
    """What transformers computes where the configuration is silent: as many key heads as heads, the width of a head."""
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads
    if config.find("head_dim") is None and config.find("model_type") != "mixtral":
        config.values["head_dim"] = config.head_dim


# --- the way back -------------------------------------------------------------------------------------------------

_MAX_BASE = 1e30
"""Beyond it single precision ends."""


def _kind(given: Given) -> tuple[str, str]:
    """Which of the classes that are one architecture to GGUF. Mistral computes what Llama computes: the name alone tells."""
    if given.key("expert_count"):
        return "MixtralForCausalLM", "mixtral"
    names = given.text("general.basename"), given.text("general.name")
    if any("mistral" in name.lower() for name in names) and "rope_freqs.weight" not in given.tensors:
        return "MistralForCausalLM", "mistral"
    return "LlamaForCausalLM", "llama"


def returned(given: Given, config: dict[str, Any]) -> None:
    """``config.json`` of the three classes, beyond what the keys say."""
    rope(given, config)
    whole_heads(given, config)
    if factors := given.floats("rope_freqs.weight"):
        config["rope_scaling"] = scaling_of(factors, config)
    biases = (
        given.together("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
        given.together("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    )
    if config["model_type"] == "llama":
        config.update(attention_bias=biases[0], mlp_bias=biases[1])
        return
    if any(biases):
        raise UnsupportedFile(f"there are biases, which transformers' {config['architectures'][0]} has not")
    config["sliding_window"] = None


def scaling_of(factors: Sequence[float], config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's settings that give these factors, to the bit (of the context and the two frequencies only the ratios count, so
    that one is taken as 1, as all of Llama 3 have it). `UnsupportedFile` where none do."""
    whole = 2 * len(factors) == Config(config, Documents(()), {}).head_dim and all(0 < factor < math.inf for factor in factors)
    contexts = (1 << power for power in range(3, 21)) if whole and 0 < config["rope_theta"] < _MAX_BASE else ()
    for context in sorted(contexts, key=lambda context: abs(context - 8192)):
        for high in (4.0, 2.0, 8.0, 16.0, 32.0):
            found = {
                "rope_type": "llama3", "factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }  # fmt: skip
            settings = Config({**config, "rope_scaling": found}, Documents(()), {})
            made = next(rope_factors(settings)).value
            if isinstance(made, Inline) and made.data == struct.pack(f"<{len(factors)}f", *factors):
                return found
    raise UnsupportedFile(
        f"rope_freqs.weight slows the frequencies by up to {max(factors):g}; none of Llama 3's settings gives just these factors"
    )


ROWS = (
    Architecture(
        name="llama",
        hf=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "LlamaModel"),
        model_type="llama",
        defaults={
            "": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 32000},
            "llama": {"max_position_embeddings": 2048},
            "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
            "mixtral": {
                "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
                "num_local_experts": 8, "num_experts_per_tok": 2,
            },
        },
        config=complete,
        keys=LLAMA_KEYS,
        names={**LLAMA, **under("model.layers.{b}.", "blk.{b}.", MIXTRAL)},
        transforms=INTERLEAVED,
        generated=rope_factors,
        back=Back(returned, kind=_kind, spare=("rope_freqs.weight",)),
    ),
)  # fmt: skip

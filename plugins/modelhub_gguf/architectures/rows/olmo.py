"""OLMo 1, 2 and 3. Facts: llama.cpp ``conversion/olmo.py`` (``OlmoModel``, ``Olmo2Model``)."""

from __future__ import annotations

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import BASE, computed, count, real
from modelhub_gguf.architectures.names import ATTENTION, LLAMA, MLP, QK_NORMS, decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows.llama import INTERLEAVED
from modelhub_gguf.documents import items
from modelhub_gguf.fields import BOOL, F32

AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
"""OLMo 2 has its norms behind attention and MLP."""
_FULL_EVERY = 4
"""Of OLMo 3's layers every fourth sees the whole context where nothing else is said."""
_SHARED = {"max_position_embeddings": 2048, "rope_theta": 10000.0}


def complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


def _complete_2(config: Config) -> None:
    complete(config)
    if config.flag("attention_bias"):
        raise UnsupportedFile("config.json: attention_bias is true, and GGUF's olmo2 has no biases")
    if config.flag("tie_word_embeddings"):
        raise UnsupportedFile("config.json: tie_word_embeddings is true, and GGUF's olmo2 has an output of its own")


def _complete_1(config: Config) -> None:
    complete(config)
    if config.flag("attention_bias"):
        raise UnsupportedFile("config.json: attention_bias is true, and GGUF's olmo has no biases")


def _windowed(config: Config) -> list[bool] | None:
    """Whether each layer sees the sliding window only."""
    if config.find("sliding_window") is None:
        return None
    kinds = items(config.find("layer_types"))
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    return [number % _FULL_EVERY != _FULL_EVERY - 1 for number in range(config.blocks)]


ROWS = (
    Architecture(
        name="olmo2",
        hf=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
        model_type="olmo2",
        defaults={
            "": {**_SHARED, "rms_norm_eps": 1e-5},
            "olmo3": {"sliding_window": 4096},
        },
        config=_complete_2,
        keys=(
            *BASE,
            count("attention.sliding_window", "sliding_window"),
            computed("attention.sliding_window_pattern", BOOL, _windowed),
        ),
        names=decoder(ATTENTION, MLP, QK_NORMS, AFTER),
    ),
    Architecture(
        name="olmo",
        hf=("OlmoForCausalLM",),
        model_type="olmo",
        defaults={"": _SHARED},
        config=_complete_1,
        keys=(
            *BASE,
            computed("attention.layer_norm_epsilon", F32, lambda config: 1e-5),
            real("attention.clamp_kqv", "clip_qkv"),
        ),
        names=LLAMA,
        transforms=INTERLEAVED,
    ),
)

"""Gemma 1, 2 and 3; of a Gemma 3 that sees, the language model. Facts: llama.cpp ``conversion/gemma.py`` (``GemmaModel``,
``Gemma2Model``, ``Gemma3Model``).

Their norms multiply with 1 + weight, and GGUF holds what is multiplied with. The output is always the token embedding.
"""

from __future__ import annotations

from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.given import Given, rope
from modelhub_gguf.architectures.keys import BASE, ODD_ROPE_BASE, computed, count, real
from modelhub_gguf.architectures.names import ATTENTION, LLAMA, MLP, QK_NORMS, decoder
from modelhub_gguf.architectures.records import Architecture, Back
from modelhub_gguf.architectures.transforms import ADD_ONE
from modelhub_gguf.fields import F32, U32

FOUR_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
SHIFTED = {"*_norm": ADD_ONE}
NO_OUTPUT = r"lm_head\.weight"
VISION = (r"vision_tower\..*", r"model\.vision_tower\..*", r"multi_modal_projector\..*", r"model\.multi_modal_projector\..*")
_FULL_EVERY = 6
"""Of Gemma 3's layers every sixth sees the whole context; llama.cpp has this number too, and no key for it."""

GEMMA_KEYS = (
    count("context_length", "max_position_embeddings"),
    count("embedding_length", "hidden_size"),
    computed("block_count", U32, lambda config: config.blocks, back="num_hidden_layers"),
    count("feed_forward_length", "intermediate_size"),
    count("attention.head_count", "num_attention_heads"),
    computed("attention.head_count_kv", U32, lambda config: config.kv_heads, back="num_key_value_heads"),
    ODD_ROPE_BASE,
    real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    count("attention.key_length", "head_dim"),
    count("attention.value_length", "head_dim"),
)
_SHARED = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 256}


def _window(config: Config) -> Any:
    return None if config.find("sliding_window_pattern") == 1 else config.find("sliding_window")


def _final_cap(config: Config) -> Any:
    return config.find("final_logit_softcapping") or None


def _complete_3(config: Config) -> None:
    """What GGUF has no key for must be as llama.cpp takes it."""
    if config.find("attn_logit_softcapping") is not None:
        raise UnsupportedFile("config.json: attn_logit_softcapping is set, and GGUF's gemma3 has none")
    said, kinds = config.find("sliding_window_pattern", "_sliding_window_pattern"), config.find("layer_types")
    every = _FULL_EVERY if said is None else said
    usual = [("sliding_attention", "full_attention")[number % _FULL_EVERY == _FULL_EVERY - 1] for number in range(config.blocks)]
    if every not in (1, _FULL_EVERY) or (every != 1 and kinds is not None and kinds != usual):
        raise UnsupportedFile(
            f"config.json: in GGUF's gemma3 every {_FULL_EVERY}th layer sees the whole context; here it is others",
            "llama.cpp would compute something else; convert to safetensors instead",
        )


_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which scale queries by the width of a share and not of a head: llama.cpp tells them so
(``src/models/gemma2.cpp``, ``gemma3.cpp``), for there is no key."""


def returned(given: Given, config: dict[str, Any]) -> None:
    """``config.json`` beyond what the keys say."""
    rope(given, config)
    name = given.row.name
    if "output.weight" in given.tensors:
        raise UnsupportedFile("there is an output.weight: Gemma's output is its token embedding")
    config.setdefault("head_dim", 256)
    config["attention_bias"] = given.together("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
    if name in _LARGEST:
        shared = config["num_hidden_layers"] == _LARGEST[name]
        size = config["hidden_size"] // max(config["num_attention_heads"], 1) if shared else config["head_dim"]
        config["query_pre_attn_scalar"] = size
    if name == "gemma2":
        config.setdefault("sliding_window", 4096)
    if name == "gemma3":
        config.setdefault("final_logit_softcapping", None)
        local = given.key("rope.freq_base_swa")
        config["rope_local_base_freq"] = 10000.0 if local is None else local
        every = _FULL_EVERY if config.get("sliding_window") else 1
        config.setdefault("sliding_window", 4096)
        config["layer_types"] = [
            "full_attention" if number % every == every - 1 else "sliding_attention"
            for number in range(config["num_hidden_layers"])
        ]


BACK = Back(returned)

ROWS = (
    Architecture(
        name="gemma",
        hf=("GemmaForCausalLM",),
        model_type="gemma",
        defaults={"": {**_SHARED, "num_key_value_heads": 16}},
        keys=GEMMA_KEYS,
        names=LLAMA,
        transforms=SHIFTED,
        ignored=(NO_OUTPUT,),
        back=BACK,
    ),
    Architecture(
        name="gemma2",
        hf=("Gemma2ForCausalLM",),
        model_type="gemma2",
        defaults={
            "": {
                **_SHARED, "num_key_value_heads": 4, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
        },
        keys=(
            *GEMMA_KEYS,
            real("attn_logit_softcapping", "attn_logit_softcapping"),
            real("final_logit_softcapping", "final_logit_softcapping"),
            count("attention.sliding_window", "sliding_window"),
        ),
        names=decoder(FOUR_NORMS, ATTENTION, MLP),
        transforms=SHIFTED,
        ignored=(NO_OUTPUT,),
        back=BACK,
    ),
    Architecture(
        name="gemma3",
        hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        model_type="gemma3_text",
        defaults={
            "": {
                "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
                "sliding_window": 4096, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
            },
        },
        config=_complete_3,
        keys=(
            *BASE,
            computed("final_logit_softcapping", F32, _final_cap, back="final_logit_softcapping"),
            computed("attention.sliding_window", U32, _window, back="sliding_window"),
        ),
        names=decoder(FOUR_NORMS, ATTENTION, MLP, QK_NORMS),
        transforms=SHIFTED,
        prefixes=("language_model.", "model.language_model."),
        ignored=(NO_OUTPUT, *VISION),
        back=BACK,
    ),
)  # fmt: skip

"""Command-R, Command-R+ and Aya 23; Command R7B and Aya Expanse. Facts: llama.cpp ``conversion/command_r.py``
(``CommandR2Model``, ``Cohere2Model``), ``src/models/command-r.cpp`` and ``cohere2.cpp``."""

from __future__ import annotations

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import BASE, computed, count, real
from modelhub_gguf.architectures.names import ATTENTION, MLP, QK_NORMS, decoder
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.fields import STRING, U32

NORM = {"input_layernorm": "attn_norm"}
"""One for attention and MLP, which are computed side by side."""
_NORMED_FROM = 64
"""llama.cpp has norms of queries and keys in models of as many layers, and no key for it."""
_FULL_EVERY = 4
"""Of Cohere 2's layers every fourth sees the whole context; llama.cpp has this number too, and no key for it."""
_SHARED = {"max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
UNSCALED = computed("rope.scaling.type", STRING, lambda config: "none")


def _complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads
    if config.flag("attention_bias"):
        raise UnsupportedFile("config.json: attention_bias is true, and there are no biases in GGUF's command-r and cohere2")
    if not config.flag("tie_word_embeddings", default=True):
        raise UnsupportedFile(
            "config.json: tie_word_embeddings is false; in GGUF's command-r and cohere2 the output is the token embedding"
        )


def _complete_1(config: Config) -> None:
    _complete(config)
    trained = config.find("model_max_length")  # max_position_embeddings of Command-R is less than it was trained on
    if trained is not None:
        config.values["max_position_embeddings"] = trained
    if config.flag("use_qk_norm") != (config.blocks >= _NORMED_FROM):
        raise UnsupportedFile(
            f"config.json: use_qk_norm is {str(config.flag('use_qk_norm')).lower()} and there are {config.blocks} layers; in "
            f"GGUF's command-r those have norms of queries and keys that have {_NORMED_FROM} layers or more"
        )


def _complete_2(config: Config) -> None:
    _complete(config)
    said, kinds = config.find("sliding_window_pattern", "_sliding_window_pattern"), config.find("layer_types")
    usual = [("sliding_attention", "full_attention")[number % _FULL_EVERY == _FULL_EVERY - 1] for number in range(config.blocks)]
    if said not in (None, _FULL_EVERY) or kinds not in (None, usual):
        raise UnsupportedFile(
            f"config.json: in GGUF's cohere2 every {_FULL_EVERY}th layer sees the whole context; here it is others",
            "llama.cpp would compute something else; convert to safetensors instead",
        )


ROWS = (
    Architecture(
        name="command-r",
        hf=("CohereForCausalLM",),
        model_type="cohere",
        defaults={"": {**_SHARED, "rope_theta": 500000.0}},
        config=_complete_1,
        keys=(*BASE, real("logit_scale", "logit_scale"), UNSCALED),
        names=decoder(NORM, ATTENTION, MLP, QK_NORMS),
        ignored=(r"lm_head\.weight",),
    ),
    Architecture(
        name="cohere2",
        hf=("Cohere2ForCausalLM",),
        model_type="cohere2",
        defaults={"": {**_SHARED, "rope_theta": 10000.0, "sliding_window": 4096}},
        config=_complete_2,
        keys=(
            *BASE,
            real("logit_scale", "logit_scale"),
            count("attention.sliding_window", "sliding_window"),
            count("vocab_size", "vocab_size"),
            computed("rope.dimension_count", U32, lambda config: int(config.rotary_factor(1.0) * config.head_dim)),
            UNSCALED,
        ),
        names=decoder(NORM, ATTENTION, MLP),
        ignored=(r"lm_head\.weight",),
    ),
)

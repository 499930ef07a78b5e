"""SmolLM 3: a Llama of which some layers know no positions. Facts: llama.cpp ``conversion/llama.py`` (``SmolLM3Model``)."""

from __future__ import annotations

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.names import LLAMA
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows.llama import INTERLEAVED, LLAMA_KEYS, rope_factors

_PLAIN_EVERY = 4
"""Every fourth layer is without rotary embeddings; llama.cpp has this number too, and no key for it."""


def complete(config: Config) -> None:
    """Fill in the heads, and refuse what llama.cpp would compute otherwise."""
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads
    rotary = config.find("no_rope_layers")  # despite the name 1 stands for a layer that has them
    usual = [int(number % _PLAIN_EVERY != _PLAIN_EVERY - 1) for number in range(config.blocks)]
    interval = config.find("no_rope_layer_interval")
    if (rotary is not None and rotary != usual) or (rotary is None and interval not in (None, _PLAIN_EVERY)):
        raise UnsupportedFile(
            f"config.json: in GGUF's smollm3 every {_PLAIN_EVERY}th layer is without rotary embeddings; here it is others"
        )


ROWS = (
    Architecture(
        name="smollm3",
        hf=("SmolLM3ForCausalLM",),
        model_type="smollm3",
        defaults={
            "": {
                "max_position_embeddings": 32768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 2000000.0,
                "vocab_size": 128256,
            },
        },
        config=complete,
        keys=LLAMA_KEYS,
        names=LLAMA,
        transforms=INTERLEAVED,
        generated=rope_factors,
    ),
)  # fmt: skip

"""StarCoder 2. Facts: llama.cpp ``conversion/starcoder.py`` (``StarCoder2Model``)."""

from __future__ import annotations

from modelhub_gguf.architectures.keys import BASE
from modelhub_gguf.architectures.names import ATTENTION, NORMS, decoder
from modelhub_gguf.architectures.records import Architecture

ROWS = (
    Architecture(
        name="starcoder2",
        hf=("Starcoder2ForCausalLM",),
        model_type="starcoder2",
        defaults={
            "": {"max_position_embeddings": 4096, "num_key_value_heads": 2, "norm_epsilon": 1e-5, "rope_theta": 10000.0},
        },
        keys=BASE,
        names=decoder(NORMS, ATTENTION, {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}),
    ),
)

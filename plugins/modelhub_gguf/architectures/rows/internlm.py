"""InternLM 2 and 2.5: a Llama with queries, keys and values in one matrix. Facts: llama.cpp ``conversion/internlm.py``
(``InternLM2Model``)."""

from __future__ import annotations

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import BASE
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.records import Architecture, Rule
from modelhub_gguf.architectures.rows.llama import INTERLEAVED
from modelhub_gguf.architectures.transforms import grouped

ENDS = {"model.tok_embeddings": "token_embd", "model.norm": "output_norm", "output": "output"}
BLOCK = {
    "attention_norm": "attn_norm",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def _complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


ROWS = (
    Architecture(
        name="internlm2",
        hf=("InternLM2ForCausalLM",),
        model_type="internlm2",
        defaults={"": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}},
        config=_complete,
        keys=BASE,
        names=decoder(BLOCK, ends=ENDS),
        rules=(
            Rule(
                hf=("model.layers.{b}.attention.wqkv",),
                gguf=("blk.{b}.attn_q", "blk.{b}.attn_k", "blk.{b}.attn_v"),
                regroup=grouped(lambda config: config.heads, lambda config: config.kv_heads),
            ),
        ),
        transforms=INTERLEAVED,
    ),
)

"""Qwen 2, 2.5 and 3, and their mixtures of experts. Facts: llama.cpp ``conversion/qwen.py`` (``Qwen2Model``, ``Qwen2MoeModel``,
``Qwen3Model``, ``Qwen3MoeModel``)."""

from __future__ import annotations

from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.given import Given, rope, whole_heads
from modelhub_gguf.architectures.keys import BASE, POOLING, count
from modelhub_gguf.architectures.names import ATTENTION, EXPERTS, LLAMA, MLP, NORMS, QK_NORMS, decoder
from modelhub_gguf.architectures.records import Architecture, Back, Rule
from modelhub_gguf.architectures.transforms import split

SHARED = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
STACKED = {"mlp.experts.down_proj": "ffn_down_exps"}
"""Experts that are one tensor already, as transformers 5 holds them in memory and some tools save them."""
FUSED = Rule(
    hf=("model.layers.{b}.mlp.experts.gate_up_proj",),
    gguf=("blk.{b}.ffn_gate_exps", "blk.{b}.ffn_up_exps"),
    regroup=split(2, axis=1),
    returns=False,
)
MOE_KEYS = (
    *BASE,
    count("expert_feed_forward_length", "moe_intermediate_size"),
    count("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)


def complete(config: Config) -> None:
    if config.find("num_key_value_heads") is None:
        config.values["num_key_value_heads"] = config.heads


def experts(count: int, sums_to_one: bool, config: Config) -> None:
    """How many experts transformers takes where nothing is said: under which of two names it is, a default cannot tell.
    ``sums_to_one``: whether llama.cpp has the weights of the chosen experts sum to one, for which there is no key.
    `UnsupportedFile` where the model was trained otherwise."""
    complete(config)
    if config.flag("norm_topk_prob") is not sums_to_one:
        raise UnsupportedFile(
            f"config.json: norm_topk_prob is {str(not sums_to_one).lower()}, and what runs GGUF computes as if it were "
            f"{str(sums_to_one).lower()}: other experts' weights, and other words"
        )
    if not config.experts:
        config.values["num_experts"] = count


def returned(given: Given, config: dict[str, Any]) -> None:
    """``config.json`` beyond what the keys say, of models that are dense or all mixtures."""
    rope(given, config)
    whole_heads(given, config)
    if given.row.name in ("qwen3", "qwen3moe"):
        config["attention_bias"] = given.together("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
        config["norm_topk_prob"] = given.row.name == "qwen3moe"  # what llama.cpp computes; there is no key for it
        shape = given.shape("blk.0.ffn_gate_exps.weight")
        if len(shape) == 3:
            config.setdefault("moe_intermediate_size", shape[1])
            config.setdefault("intermediate_size", shape[1])


BACK = Back(returned)

ROWS = (
    Architecture(
        name="qwen2",
        hf=("Qwen2ForCausalLM", "Qwen2Model"),
        model_type="qwen2",
        defaults={
            "": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        },
        config=complete,
        keys=(*BASE, *POOLING),
        names=LLAMA,
        back=BACK,
    ),
    Architecture(
        name="qwen2moe",
        hf=("Qwen2MoeForCausalLM",),
        model_type="qwen2_moe",
        defaults={
            "": {
                "max_position_embeddings": 32768, "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
            },
        },
        config=lambda config: experts(60, False, config),
        keys=MOE_KEYS,
        names=decoder(NORMS, ATTENTION, MLP, EXPERTS, STACKED, SHARED),
        rules=(FUSED,),
        back=BACK,
    ),
    Architecture(
        name="qwen3",
        hf=("Qwen3ForCausalLM", "Qwen3Model"),
        model_type="qwen3",
        defaults={
            "": {
                "max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "head_dim": 128,
            },
        },
        config=complete,
        keys=(*BASE, *POOLING),
        names=decoder(NORMS, ATTENTION, MLP, QK_NORMS),
        back=BACK,
    ),
    Architecture(
        name="qwen3moe",
        hf=("Qwen3MoeForCausalLM",),
        model_type="qwen3_moe",
        defaults={
            "": {
                "max_position_embeddings": 32768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            },
        },
        config=lambda config: experts(128, True, config),
        keys=MOE_KEYS,
        names=decoder(NORMS, ATTENTION, MLP, QK_NORMS, EXPERTS, STACKED),
        rules=(FUSED,),
        back=BACK,
    ),
)  # fmt: skip

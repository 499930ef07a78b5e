"""DeepSeek-V2 and V2-Lite. Facts: llama.cpp ``conversion/deepseek.py`` (``DeepseekV2Model``), ``src/models/deepseek2.cpp``.

Keys and values share one small vector (multi-head latent attention). A checkpoint has one matrix that makes keys and values of
it; llama.cpp never makes the keys, but brings queries to where the vector is: it wants the keys' part by itself, transposed.

Where experts are chosen in groups (``n_group`` above 1: the 236B model), llama.cpp ranks a group by its two best experts and
transformers by its best: now and then they choose others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelhub import InvalidFile, Tensor, UnsupportedFile, ops

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import BASE, computed, count, real
from modelhub_gguf.architectures.names import EXPERTS, MLP, NORMS, decoder
from modelhub_gguf.architectures.records import Architecture, Regroup, Rule
from modelhub_gguf.architectures.rows.qwen import FUSED, STACKED
from modelhub_gguf.architectures.transforms import as_dtype, as_floats, node_of, with_node
from modelhub_gguf.fields import BOOL, F32, U32

LATENT = {
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
}
SHARED = {
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_LITE = (26, 27)
"""Layers of the models that llama.cpp takes to make queries in one step, for which it has no key."""


def _sides(config: Config) -> tuple[int, int, int]:
    """(heads, rows of a head's keys, rows of its values) of the matrix that both are made with."""
    return config.heads, config.count("qk_nope_head_dim"), config.count("v_head_dim")


def _apart(tensors: Sequence[Tensor], config: Config) -> Sequence[Tensor]:
    (whole,) = tensors
    heads, key, value = _sides(config)
    if len(whole.shape) != 2 or whole.shape[0] != heads * (key + value):
        raise ValueError(f"not {heads} heads with {key} rows for a key and {value} for a value")
    stacked = ops.reshape(node_of(whole), whole.dtype, (heads, key + value, whole.shape[1]))
    keys = as_floats(with_node(whole, ops.slice_(stacked, 0, key, 1)))
    return with_node(keys, ops.transpose(node_of(keys), (0, 2, 1))), with_node(whole, ops.slice_(stacked, key, key + value, 1))


def _together(tensors: Sequence[Tensor], config: Config) -> Sequence[Tensor]:
    keys, values = as_floats(tensors[0]), tensors[1]
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[::2] != (values.shape[0], keys.shape[2]):
        raise ValueError(f"{list(keys.shape)} and {list(values.shape)} are not keys and values of as many heads")
    keys = with_node(keys, ops.transpose(node_of(keys), (0, 2, 1)))
    if keys.dtype != values.dtype:
        keys, values = as_dtype(keys, "F32"), as_dtype(values, "F32")
    both = ops.concat([node_of(keys), node_of(values)], 1)
    heads, rows, rank = both.shape
    return (with_node(keys, ops.reshape(both, keys.dtype, (heads * rows, rank))),)


KEYS_AND_VALUES = Rule(
    hf=("model.layers.{b}.self_attn.kv_b_proj",),
    gguf=("blk.{b}.attn_k_b", "blk.{b}.attn_v_b"),
    regroup=Regroup("keys and values apart", _apart, _together),
)


def _complete(config: Config) -> None:
    """To llama.cpp all heads share one key. What it would compute otherwise is refused."""
    config.values["num_key_value_heads"] = 1
    lite, low = config.blocks in _LITE, config.find("q_lora_rank")
    if (low is None) != lite:
        raise UnsupportedFile(
            f"config.json: q_lora_rank is {low!r:.20} and there are {config.blocks} layers; llama.cpp takes it that models of "
            f"{' and '.join(map(str, _LITE))} layers have none, and that all others have one"
        )
    if config.flag("attention_bias"):
        raise UnsupportedFile("config.json: attention_bias is true, and GGUF's deepseek2 has no biases")
    rope = config.global_rope
    if rope.get("mscale_all_dim") and rope.get("mscale") != rope["mscale_all_dim"]:
        raise UnsupportedFile(
            f"config.json: mscale is {rope.get('mscale')!r:.20} and mscale_all_dim {rope['mscale_all_dim']!r:.20}; llama.cpp "
            "takes them to be the same"
        )


def _leading(config: Config) -> Any:
    """How many layers come before those that have experts."""
    said = config.find("first_k_dense_replace")
    return (0 if config.experts else config.blocks) if said is None else said


def _yarn(config: Config) -> float | None:
    scale = config.global_rope.get("mscale_all_dim")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InvalidFile(f"config.json: mscale_all_dim is {scale!r:.40}, a number was expected")
    return 0.1 * scale


KEYS = (
    *BASE,
    computed("leading_dense_block_count", U32, _leading),
    count("vocab_size", "vocab_size"),
    count("attention.q_lora_rank", "q_lora_rank"),
    count("attention.kv_lora_rank", "kv_lora_rank"),
    computed("attention.key_length", U32, lambda config: config.count("kv_lora_rank") + config.count("qk_rope_head_dim")),
    count("attention.value_length", "kv_lora_rank"),
    computed("attention.key_length_mla", U32, lambda config: config.count("qk_nope_head_dim") + config.count("qk_rope_head_dim")),
    count("attention.value_length_mla", "v_head_dim"),
    count("expert_feed_forward_length", "moe_intermediate_size", "intermediate_size"),
    count("expert_shared_count", "n_shared_experts"),
    real("expert_weights_scale", "routed_scaling_factor"),
    computed("expert_weights_norm", BOOL, lambda config: config.flag("norm_topk_prob") or None),
    count("rope.dimension_count", "qk_rope_head_dim"),
    computed("rope.scaling.yarn_log_multiplier", F32, _yarn),
)

ROWS = (
    Architecture(
        name="deepseek2",
        hf=("DeepseekV2ForCausalLM",),
        model_type="deepseek_v2",
        defaults={
            "": {
                "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "n_routed_experts": 64,
                "first_k_dense_replace": 0, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 1407, "n_shared_experts": 2,
                "routed_scaling_factor": 1.0,
            },
        },
        config=_complete,
        keys=KEYS,
        names=decoder(NORMS, LATENT, MLP, EXPERTS, STACKED, SHARED),
        rules=(KEYS_AND_VALUES, FUSED),
    ),
)  # fmt: skip

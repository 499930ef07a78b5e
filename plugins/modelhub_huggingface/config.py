"""What ``config.json`` says of a model, under the names that the catalog searches. Nothing in it is trusted to have its type.

A thousand configurations call the same thing by a dozen names (transformers ``attribute_map`` of each ``configuration_*.py``);
the lists below are in order of preference. Multimodal ones keep the language model's in a nested configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

MAX_TEXT = 200
_MAX_INT = 1 << 63
_MAX_ITEMS = 50

_NUMBERS: dict[str, tuple[str, ...]] = {
    "context_length": (
        "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length", "max_seq_length",
        "model_max_length", "max_target_positions", "max_context_length", "text_max_length",
    ),
    "embedding_length": (
        "hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim", "embed_dim", "hidden_dim", "word_embed_proj_dim",
    ),
    "block_count": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
    "feed_forward_length": (
        "intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "ffn_hidden_dim",
    ),
    "head_count": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    "head_count_kv": ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "d_kv"),
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k"),
    "sliding_window": ("sliding_window",),
}  # fmt: skip
_INNER = ("text_config", "llm_config", "language_config", "text_model_config", "thinker_config", "decoder")


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain, bounded values; what is missing or of the wrong type is left out."""
    levels = [config]
    for _ in range(2):  # a nested configuration may itself hold one
        inner = next((levels[-1][key] for key in _INNER if isinstance(levels[-1].get(key), dict)), None)
        if inner is None:
            break
        levels.append(inner)
    values: dict[str, Any] = {}
    architectures = texts(config.get("architectures"))
    kind = text(config.get("model_type")) or text(config.get("architecture")) or (architectures[0] if architectures else "")
    if kind:
        values["architecture"] = kind.lower() if text(config.get("model_type")) else kind
    if architectures:
        values["architectures"] = architectures
    for name, keys in _NUMBERS.items():
        found = next((level[key] for level in levels for key in keys if is_count(level.get(key))), None)
        if found is not None:
            values[name] = found
    for level in levels:
        if level.get("multi_query") is True and "head_count_kv" not in values:
            values["head_count_kv"] = 1
        dtype = text(level.get("dtype")) or text(level.get("torch_dtype"))
        if dtype and "torch_dtype" not in values:
            values["torch_dtype"] = dtype.removeprefix("torch.")
        if type(level.get("tie_word_embeddings")) is bool:
            values.setdefault("tie_word_embeddings", level["tie_word_embeddings"])
        rope = level.get("rope_parameters") or level.get("rope_scaling")
        theta = rope.get("rope_theta") if isinstance(rope, dict) else None
        for number in (level.get("rope_theta"), theta):
            if isinstance(number, int | float) and 0 < number < 1e15:
                values.setdefault("rope_theta", number)
        if isinstance(rope, dict) and (scaling := text(rope.get("rope_type")) or text(rope.get("type"))) not in ("", "default"):
            values.setdefault("rope_scaling", scaling)
    return values


DTYPES_OF_TORCH = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""The dtypes that a model's weights may have as a whole, by torch's names."""


def is_count(value: Any) -> TypeGuard[int]:
    """A whole number that something can be counted with (a boolean is none)."""
    return type(value) is int and 0 <= value < _MAX_INT


def text(value: Any) -> str:
    """``value`` where it is a short text, else ""."""
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def texts(value: Any) -> list[str]:
    """The short texts of a list; one text is a list of one."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items[:_MAX_ITEMS] if text(item)]

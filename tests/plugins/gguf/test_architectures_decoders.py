"""Qwen, Gemma, Phi and other families from Hugging Face to GGUF: llama.cpp computes what transformers computes, from files that
modelhub wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plugins.gguf.logits import PROMPTS, convert, same_logits, tiny

DECODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = 6
"""Some of the prompts are longer."""
GEMMA = {**DECODER, "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
HALF = 8
"""Frequencies of a head of 16."""
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1 + 0.05 * n for n in range(HALF)],
    "long_factor": [1 + 0.9 * n for n in range(HALF)],
}  # fmt: skip
GRANITE = {
    **DECODER, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3,
}  # fmt: skip

DECODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen2 moe", "Qwen2MoeForCausalLM", {**DECODER, **FEW_EXPERTS, "shared_expert_intermediate_size": 64}),
    ("qwen3", "Qwen3ForCausalLM", {**DECODER, "head_dim": 32}),
    ("qwen3 moe", "Qwen3MoeForCausalLM", {**DECODER, **FEW_EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    ("gemma", "GemmaForCausalLM", {**DECODER, "head_dim": 24}),
    ("gemma2", "Gemma2ForCausalLM", {**GEMMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0}),
    ("gemma3", "Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7}),
    ("phi2", "PhiForCausalLM", {**DECODER, "intermediate_size": 256, "num_key_value_heads": 4}),
    ("phi3", "Phi3ForCausalLM", {**DECODER, "pad_token_id": 0}),
    (
        "phi3, partly rotated, long",
        "Phi3ForCausalLM",
        {
            **DECODER, "pad_token_id": 0, "hidden_size": 128, "max_position_embeddings": 512,
            "original_max_position_embeddings": 256, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
        },
    ),
    ("gptneox", "GPTNeoXForCausalLM", {**DECODER, "rotary_pct": 0.25}),
    ("gptneox, one after the other", "GPTNeoXForCausalLM", {**DECODER, "use_parallel_residual": False, "rope_theta": 500.0}),
    ("stablelm", "StableLmForCausalLM", {**DECODER, "use_qkv_bias": True}),
    ("stablelm 2 12B", "StableLmForCausalLM", {**DECODER, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", "Starcoder2ForCausalLM", {**DECODER, "sliding_window": None}),
    ("smollm3", "SmolLM3ForCausalLM", {**DECODER, "num_hidden_layers": 5, "pad_token_id": 0}),
    ("granite", "GraniteForCausalLM", GRANITE),
    ("granite moe", "GraniteMoeForCausalLM", {**GRANITE, "num_local_experts": 3}),
    ("granite moe, shared", "GraniteMoeSharedForCausalLM", {**GRANITE, "num_local_experts": 4, "shared_intermediate_size": 32}),
    ("glm4", "Glm4ForCausalLM", {**DECODER, "head_dim": 16, "pad_token_id": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))


def test_phi3_beyond_its_first_context(tmp_path: Path) -> None:
    """llama.cpp takes the long factors for a context that is longer than the first; transformers for such a prompt."""
    config = {**DECODER, "pad_token_id": 0, "original_max_position_embeddings": 8, "rope_parameters": LONGROPE}
    model = tiny(tmp_path / "model", "Phi3ForCausalLM", config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"), [max(PROMPTS, key=len)])

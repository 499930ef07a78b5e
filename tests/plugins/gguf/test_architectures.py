"""Families from Hugging Face to GGUF: llama.cpp computes what transformers computes, from files that modelhub wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plugins.gguf.logits import convert, same_embeddings, same_logits, tiny

DECODER = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
ENCODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

DECODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", DECODER),
    ("llama without grouped heads", "LlamaForCausalLM", {**DECODER, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama with biases", "LlamaForCausalLM", {**DECODER, "attention_bias": True, "mlp_bias": True}),
    ("llama, linear", "LlamaForCausalLM", {**DECODER, "rope_parameters": LINEAR_ROPE}),
    ("llama 3", "LlamaForCausalLM", {**DECODER, "head_dim": 32, "rope_parameters": LLAMA3_ROPE}),
    ("llama, yarn", "LlamaForCausalLM", {**DECODER, "rope_parameters": YARN_ROPE}),
    ("mistral", "MistralForCausalLM", {**DECODER, "head_dim": 24, "sliding_window": None}),
    ("mixtral", "MixtralForCausalLM", {**DECODER, "num_local_experts": 4}),
    ("qwen2", "Qwen2ForCausalLM", DECODER),
    ("gpt2", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))


def test_an_encoder_gives_the_embeddings_of_transformers(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", "BertModel", ENCODER, tokenizer="wordpiece")
    same_embeddings(model, convert(tmp_path / "model", tmp_path / "model.gguf"))

"""Falcon, OLMo, Command-R, DeepSeek-V2 and other families from Hugging Face to GGUF: llama.cpp computes what transformers
computes, from files that modelhub wrote; and the way back gives the checkpoint's own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelhub import FileProblem

from tests.plugins.gguf.logits import convert, same_logits, tiny
from tests.plugins.gguf.test_architectures_decoders import DECODER, ROPE, WINDOW, settled, undone

FALCON = {key: DECODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
COHERE = {**DECODER, "logit_scale": 0.5, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}

DECODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("falcon 7B", "FalconForCausalLM", {**FALCON, "rope_parameters": ROPE}),
    ("falcon 40B", "FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    (
        "falcon 2 11B",
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96},
    ),
    ("olmo2", "Olmo2ForCausalLM", {**DECODER, "rope_parameters": ROPE}),
    ("olmo3", "Olmo3ForCausalLM", {**DECODER, "num_hidden_layers": 5, "sliding_window": WINDOW, "rope_parameters": ROPE}),
    ("olmo", "OlmoForCausalLM", {**DECODER, "clip_qkv": 0.5, "rope_parameters": ROPE}),
    ("command-r", "CohereForCausalLM", {**COHERE, "rope_parameters": ROPE}),
    (
        "command-r7b",
        "Cohere2ForCausalLM",
        {**COHERE, "num_hidden_layers": 5, "head_dim": 16, "sliding_window": WINDOW, "rope_parameters": ROPE},
    ),
]


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))
    undone(tmp_path / "model")


def test_command_r_plus_has_norms_of_queries_and_keys(tmp_path: Path) -> None:
    """llama.cpp knows it by its 64 layers. Those but the first two add nothing here: through so many random ones the last bit of a
    float would grow to be the whole difference."""
    import torch

    config = {**COHERE, "num_hidden_layers": 64, "intermediate_size": 32, "use_qk_norm": True}
    model = tiny(tmp_path / "model", "CohereForCausalLM", config)
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("FalconForCausalLM", {"alibi": True}, "alibi is true"),
    ("FalconForCausalLM", {"bias": True}, "bias is true"),
    ("RWForCausalLM", {"parallel_attn": False}, "parallel_attn is false"),
    ("OlmoForCausalLM", {"attention_bias": True}, "attention_bias is true"),
    ("Olmo2ForCausalLM", {"attention_bias": True}, "attention_bias is true"),
    ("Olmo2ForCausalLM", {"tie_word_embeddings": True}, "olmo2 has an output of its own"),
    ("CohereForCausalLM", {"use_qk_norm": True}, "use_qk_norm is true and there are 4 layers"),
    ("CohereForCausalLM", {"tie_word_embeddings": False}, "the output is the token embedding"),
    ("Cohere2ForCausalLM", {"attention_bias": True}, "attention_bias is true"),
    ("Cohere2ForCausalLM", {"layer_types": ["full_attention"] * 4}, "every 4th layer sees the whole context"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 6}
    with pytest.raises(FileProblem, match=message):
        settled({**small, "architectures": [kind], **changes})

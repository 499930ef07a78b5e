"""Falcon, OLMo, Command-R, DeepSeek-V2 and other families from Hugging Face to GGUF: llama.cpp computes what transformers
computes, from files that modelhub wrote; and the way back gives the checkpoint's own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelhub import FileProblem

from tests.plugins.gguf.logits import convert, same_logits, tiny
from tests.plugins.gguf.test_architectures_decoders import DECODER, ROPE, settled, undone

FALCON = {key: DECODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}

DECODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("falcon 7B", "FalconForCausalLM", {**FALCON, "rope_parameters": ROPE}),
    ("falcon 40B", "FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    (
        "falcon 2 11B",
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96},
    ),
]


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))
    undone(tmp_path / "model")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("FalconForCausalLM", {"alibi": True}, "alibi is true"),
    ("FalconForCausalLM", {"bias": True}, "bias is true"),
    ("RWForCausalLM", {"parallel_attn": False}, "parallel_attn is false"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 6}
    with pytest.raises(FileProblem, match=message):
        settled({**small, "architectures": [kind], **changes})

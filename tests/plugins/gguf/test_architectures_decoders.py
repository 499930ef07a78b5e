"""Qwen, Gemma, Phi and other families from Hugging Face to GGUF: llama.cpp computes what transformers computes, from files that
modelhub wrote; and the way back gives the checkpoint's own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import FileProblem, Inline, Tensor
from modelhub.engine import read_tensor
from modelhub_gguf.architectures.carry import Carrier
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.documents import Documents
from modelhub_gguf.from_huggingface import row_of
from modelhub_gguf.tokenizers import fields

from tests.plugins.gguf.logits import PROMPTS, VOCABULARY, convert, same_logits, save_bpe, tiny

DECODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
"""A base that nobody takes unless it is told to."""
HALF_ROPE = {**ROPE, "partial_rotary_factor": 0.5}
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
    **DECODER, "rope_parameters": ROPE,
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3,
}  # fmt: skip

DECODERS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "qwen2 moe",
        "Qwen2MoeForCausalLM",
        {**DECODER, **FEW_EXPERTS, "rope_parameters": ROPE, "shared_expert_intermediate_size": 64},
    ),
    ("qwen3", "Qwen3ForCausalLM", {**DECODER, "head_dim": 32, "rope_parameters": ROPE}),
    ("qwen3 moe", "Qwen3MoeForCausalLM", {**DECODER, **FEW_EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    ("gemma", "GemmaForCausalLM", {**DECODER, "head_dim": 24, "rope_parameters": ROPE}),
    ("gemma2", "Gemma2ForCausalLM", {**GEMMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0}),
    ("gemma3", "Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7}),
    ("phi2", "PhiForCausalLM", {**DECODER, "intermediate_size": 256, "num_key_value_heads": 4, "rope_parameters": HALF_ROPE}),
    ("phi3", "Phi3ForCausalLM", {**DECODER, "pad_token_id": 0, "rope_parameters": ROPE}),
    (
        "phi3, partly rotated, long",
        "Phi3ForCausalLM",
        {
            **DECODER, "pad_token_id": 0, "hidden_size": 128, "max_position_embeddings": 512,
            "original_max_position_embeddings": 256, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
        },
    ),
    ("gptneox", "GPTNeoXForCausalLM", {**DECODER, "rope_parameters": HALF_ROPE}),
    ("gptneox, one after the other", "GPTNeoXForCausalLM", {**DECODER, "use_parallel_residual": False}),
    ("stablelm", "StableLmForCausalLM", {**DECODER, "use_qkv_bias": True, "rope_parameters": HALF_ROPE}),
    ("stablelm 2 12B", "StableLmForCausalLM", {**DECODER, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", "Starcoder2ForCausalLM", {**DECODER, "sliding_window": None, "rope_parameters": ROPE}),
    ("smollm3", "SmolLM3ForCausalLM", {**DECODER, "num_hidden_layers": 5, "pad_token_id": 0, "rope_parameters": ROPE}),
    ("granite", "GraniteForCausalLM", GRANITE),
    ("granite moe", "GraniteMoeForCausalLM", {**GRANITE, "num_local_experts": 3}),
    ("granite moe, shared", "GraniteMoeSharedForCausalLM", {**GRANITE, "num_local_experts": 4, "shared_intermediate_size": 32}),
    ("glm4", "Glm4ForCausalLM", {**DECODER, "head_dim": 24, "pad_token_id": 0, "rope_parameters": HALF_ROPE}),
]  # fmt: skip


SEEING: dict[str, Any] = {
    "text_config": {
        **GEMMA, "num_hidden_layers": 6, "vocab_size": VOCABULARY,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": ROPE,
        },
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4, "image_token_index": 380, "boi_token_index": 381, "eoi_token_index": 382,
}  # fmt: skip
LLAMA = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 6}


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))
    undone(tmp_path / "model")


def test_of_a_model_that_sees_the_language_part_is_taken(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", "Gemma3ForConditionalGeneration", SEEING)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))


def test_phi3_beyond_its_first_context(tmp_path: Path) -> None:
    """llama.cpp takes the long factors for a context that is longer than the first; transformers for such a prompt."""
    config = {**DECODER, "pad_token_id": 0, "original_max_position_embeddings": 8, "rope_parameters": LONGROPE}
    model = tiny(tmp_path / "model", "Phi3ForCausalLM", config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"), [max(PROMPTS, key=len)])


def settled(raw: dict[str, Any]) -> tuple[Architecture, Config]:
    row = row_of(raw)
    config = Config(raw, Documents(()), row.defaults)
    if row.config:
        row.config(config)
    return row, config


def held(name: str, values: Any) -> Tensor:
    return Tensor(name, "F32", tuple(values.shape), Inline(np.ascontiguousarray(values, "<f4").tobytes()))


def undone(directory: Path) -> None:
    """There and back, a checkpoint has its names and values again."""
    from safetensors.numpy import load_file

    row, config = settled(json.loads((directory / "config.json").read_text()))
    wanted = {name: values for name, values in load_file(directory / "model.safetensors").items() if name != "lm_head.weight"}
    there = Carrier(row, config).carry([held(name, values) for name, values in wanted.items()])
    back = {tensor.name: tensor for tensor in Carrier(row, config, back=True).carry(there)}
    assert set(back) == set(wanted)
    for name, values in wanted.items():
        found = np.frombuffer(read_tensor(back[name]), "<f4").reshape(back[name].shape)
        np.testing.assert_allclose(found, values, atol=1e-6, err_msg=name)


def test_experts_that_are_one_tensor_already_are_cut_as_those_of_many() -> None:
    row, config = settled({**LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3, "norm_topk_prob": True})
    gates, ups, downs = (np.arange(96, dtype="<f4").reshape(3, 4, 8) + offset for offset in (0, 100, 200))
    layer = "model.layers.0.mlp.experts"
    fused = [held(f"{layer}.gate_up_proj", np.concatenate([gates, ups], 1)), held(f"{layer}.down_proj", downs.reshape(3, 8, 4))]
    single = [
        held(f"{layer}.{number}.{name}_proj.weight", values[number])
        for name, values in (("gate", gates), ("up", ups), ("down", downs.reshape(3, 8, 4)))
        for number in range(3)
    ]
    found, wanted = (
        {tensor.name: bytes(read_tensor(tensor)) for tensor in Carrier(row, config).carry(tensors)} for tensors in (fused, single)
    )
    assert found == wanted
    assert set(found) == {f"blk.0.ffn_{name}_exps.weight" for name in ("gate", "up", "down")}


def test_a_model_without_its_head_has_the_same_names() -> None:
    row, config = settled({**LLAMA, "architectures": ["Qwen3Model"]})
    tensors = [held(name, np.zeros(8)) for name in ("embed_tokens.weight", "layers.0.self_attn.q_norm.weight", "norm.weight")]
    names = [tensor.name for tensor in Carrier(row, config).carry(tensors)]
    assert names == ["token_embd.weight", "blk.0.attn_q_norm.weight", "output_norm.weight"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0]}, "every 4th layer is without rotary embeddings"),
        ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}, "every 4th layer is without rotary embeddings"),
        ("Gemma3ForCausalLM", {"layer_types": ["full_attention"] * 4}, "every 6th layer sees the whole context"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 3.0}, "attn_logit_softcapping is set"),
        ("PhiForCausalLM", {"qk_layernorm": True}, "qk_layernorm is true"),
        ("GraniteForCausalLM", {"head_dim": 16}, "head_dim is 16; in GGUF's granite a head has 4"),
        ("GraniteMoeForCausalLM", {"num_local_experts": 0}, "num_local_experts is 0"),
        ("Qwen3MoeForCausalLM", {}, "norm_topk_prob is false, and what runs GGUF computes as if it were true"),
        ("Qwen2MoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob is true"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        settled({**LLAMA, "architectures": [kind], **changes})


def test_factors_of_another_length_are_refused() -> None:
    row, config = settled({**LLAMA, "architectures": ["Phi3ForCausalLM"], "rope_scaling": {**LONGROPE, "rope_type": "su"}})
    assert row.generated
    with pytest.raises(ValueError, match="long_factor of the rotary embeddings is not a list of 2 numbers"):
        list(row.generated(config))


def test_phi2_and_what_has_starcoders_vocabulary_start_with_no_token(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_prefix_space": False, "add_bos_token": True}))
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    added, space = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"
    phi, granite, small = (
        fields(Documents(files), {}, architecture=name, vocab_size=size)
        for name, size in (("phi2", 384), ("granite", 384), ("granite", 49152))
    )
    assert (phi[added].value, granite[added].value, small[added].value) == (True, True, False)
    assert (space in phi, granite[space].value) == (False, False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": None}))
    assert fields(Documents(files), {}, architecture="phi2", vocab_size=384)[added].value is False

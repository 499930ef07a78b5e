"""Falcon, OLMo, Command-R, DeepSeek-V2 and other families from Hugging Face to GGUF: llama.cpp computes what transformers
computes, from files that modelhub wrote; and the way back gives the checkpoint's own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from modelhub import FileProblem
from modelhub_gguf.architectures.keys import fields_of
from modelhub_gguf.reader import read_headers

from tests.plugins.gguf.logits import VOCABULARY, convert, same_embeddings, same_logits, tiny
from tests.plugins.gguf.test_architectures import ENCODER
from tests.plugins.gguf.test_architectures_decoders import DECODER, ROPE, WINDOW, settled, undone
from tests.plugins.gguf.vocabularies import LLAMA, train_pieces

FALCON = {key: DECODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
COHERE = {**DECODER, "logit_scale": 0.5, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}
DEEPSEEK = {
    **DECODER, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_shared_experts": 2, "routed_scaling_factor": 1.5, "kv_lora_rank": 24, "q_lora_rank": 40, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 20,
}  # fmt: skip
DEEPSEEK_ROPE = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32,
    "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
INTERNLM2 = {
    "embed_tokens": "tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip
NOMIC = {
    "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "activation_function": "swiglu", "causal": False,
    "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "n_embd": 64,
    "n_head": 4, "n_inner": 96, "n_layer": 2, "n_positions": 8192, "prenorm": False, "qkv_proj_bias": False,
    "rotary_emb_base": ROPE["rope_theta"], "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "type_vocab_size": 2, "use_rms_norm": False, "vocab_size": VOCABULARY,
}  # fmt: skip
MPT = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}

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
    (
        "olmo3, others",
        "Olmo3ForCausalLM",
        {**DECODER, "sliding_window": WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    ("olmo", "OlmoForCausalLM", {**DECODER, "clip_qkv": 0.5, "rope_parameters": ROPE}),
    ("command-r", "CohereForCausalLM", {**COHERE, "rope_parameters": ROPE}),
    (
        "command-r7b",
        "Cohere2ForCausalLM",
        {**COHERE, "num_hidden_layers": 5, "head_dim": 16, "sliding_window": WINDOW, "rope_parameters": ROPE},
    ),
    ("deepseek2", "DeepseekV2ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 1, "rope_parameters": ROPE}),
    ("deepseek2, long", "DeepseekV2ForCausalLM", {**DEEPSEEK, "rope_parameters": DEEPSEEK_ROPE}),
    ("bloom", "BloomForCausalLM", {"hidden_size": 96, "n_layer": 2, "n_head": 6}),
    ("mpt", "MptForCausalLM", MPT),
    ("mpt, clamped", "MptForCausalLM", {**MPT, "attn_config": {"clip_qkv": 0.4}}),
]


@pytest.mark.parametrize(("name", "kind", "config"), DECODERS, ids=[name for name, _, _ in DECODERS])
def test_a_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    model = tiny(tmp_path / "model", kind, config)
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))
    undone(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "keys", "norms"),
    [
        ({"n_head_kv": 2}, 2, {"ln_attn", "ln_mlp"}),
        ({"multi_query": True}, 1, {"input_layernorm"}),
        ({"multi_query": False}, 8, {"input_layernorm"}),
    ],
)
def test_falcons_first_configurations(changes: dict[str, Any], keys: int, norms: set[str]) -> None:
    small = {"architectures": ["RWForCausalLM"], "hidden_size": 64, "n_head": 8, "n_layer": 2, "parallel_attn": True}
    row, config = settled({**small, **changes})
    assert fields_of(row, config)["falcon.attention.head_count_kv"].value == keys
    assert {name.split(".")[-1] for name in row.names if "ln_" in name.split(".")[-1] or "norm" in name} - {"ln_f"} == norms


def only_two_layers_count(model: Any, directory: Path) -> None:
    """The others add nothing: through many random ones the last bit of a float grows to be the whole difference."""
    import torch

    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            for name, weight in layer.mlp.named_parameters():
                if "down_proj" in name:
                    weight.zero_()
    model.save_pretrained(directory)


def test_command_r_plus_has_norms_of_queries_and_keys(tmp_path: Path) -> None:
    """llama.cpp knows it by its 64 layers."""
    config = {**COHERE, "num_hidden_layers": 64, "intermediate_size": 32, "use_qk_norm": True}
    model = tiny(tmp_path / "model", "CohereForCausalLM", config)
    only_two_layers_count(model, tmp_path / "model")
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))


def test_deepseek_v2_lite_makes_queries_in_one_step(tmp_path: Path) -> None:
    """llama.cpp knows it by its 26 or 27 layers."""
    config = {**DEEPSEEK, "num_hidden_layers": 26, "q_lora_rank": None, "first_k_dense_replace": 1, "rope_parameters": ROPE}
    model = tiny(tmp_path / "model", "DeepseekV2ForCausalLM", config)
    only_two_layers_count(model, tmp_path / "model")
    same_logits(model, convert(tmp_path / "model", tmp_path / "model.gguf"))
    undone(tmp_path / "model")


@pytest.mark.parametrize("kind", ["RobertaModel", "CamembertModel"])
def test_roberta_counts_positions_from_behind_the_padding(tmp_path: Path, kind: str) -> None:
    model = tiny(tmp_path / "model", kind, {**ENCODER, "max_position_embeddings": 40})
    output = convert(tmp_path / "model", tmp_path / "model.gguf")
    same_embeddings(model, output)
    keys = read_headers([str(output)])[0]
    assert keys["bert.context_length"].value == 38


def save_xlm_roberta(directory: Path) -> None:
    """The documents of a small XLM-R's tokenizer, of 902 tokens."""
    pieces = train_pieces("unigram", normalization_rule_name="nmt_nfkc", unk_id=0, bos_id=1, eos_id=2)
    (directory / "sentencepiece.bpe.model").write_bytes(pieces)
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    settings = {"tokenizer_class": "XLMRobertaTokenizer", **{f"{name}_token": token for name, token in names.items()}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def test_xlm_roberta_with_its_unigram_tokenizer(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", "XLMRobertaModel", {**ENCODER, "vocab_size": 902, "type_vocab_size": 1}, tokenizer="")
    save_xlm_roberta(tmp_path / "model")
    output = convert(tmp_path / "model", tmp_path / "model.gguf")
    same_embeddings(model, output)
    assert read_headers([str(output)])[0]["tokenizer.ggml.model"].value == "t5"


def test_internlm2_is_a_llama_with_its_keys_between_the_queries(tmp_path: Path) -> None:
    """transformers has no code for it: a Llama is given the names and the layout that its authors' code reads (``wqkv`` as groups
    of queries, each before its key and its value), and computes what must come out."""
    from safetensors.numpy import load_file, save_file

    model = tiny(tmp_path / "model", "LlamaForCausalLM", {**DECODER, "vocab_size": 600, "rope_parameters": ROPE}, tokenizer="")
    weights, found = load_file(tmp_path / "model" / "model.safetensors"), {}
    for number in range(DECODER["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        parts = [weights.pop(f"{layer}self_attn.{name}_proj.weight") for name in "qkv"]
        groups = [part.reshape(DECODER["num_key_value_heads"], -1, 16, DECODER["hidden_size"]) for part in parts]
        found[f"{layer}attention.wqkv.weight"] = np.concatenate(groups, 1).reshape(-1, DECODER["hidden_size"])
    for name, values in weights.items():
        for there, here in INTERNLM2.items():
            name = name.replace(there, here)
        found[name] = values
    save_file(found, tmp_path / "model" / "model.safetensors")
    config = {
        **DECODER, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "rope_theta": ROPE["rope_theta"],
        "rms_norm_eps": 1e-6, "vocab_size": 600, "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "tokenizer.model").write_bytes(train_pieces("bpe", size=600, **LLAMA))
    output = convert(tmp_path / "model", tmp_path / "model.gguf")
    assert read_headers([str(output)])[0]["general.architecture"].value == "internlm2"
    same_logits(model, output)
    undone(tmp_path / "model")


def test_nomic_bert_under_either_of_its_configurations(tmp_path: Path) -> None:
    """transformers' own, and that which its authors publish."""
    config = {**ENCODER, "head_dim": 16, "max_position_embeddings": 2048, "rope_parameters": ROPE}
    model = tiny(tmp_path / "model", "NomicBertModel", config, tokenizer="wordpiece")
    output = convert(tmp_path / "model", tmp_path / "model.gguf")
    same_embeddings(model, output)
    (tmp_path / "model" / "config.json").write_text(json.dumps(NOMIC))
    keys, published = (read_headers([str(path)])[0] for path in (output, convert(tmp_path / "model", tmp_path / "other.gguf")))
    same = ("context_length", "embedding_length", "feed_forward_length", "attention.head_count", "rope.freq_base", "block_count")
    assert {key: keys[f"nomic-bert.{key}"] for key in same} == {key: published[f"nomic-bert.{key}"] for key in same}
    undone(tmp_path / "model")


NOMIC_MOE = {
    **NOMIC, "activation_function": "gelu", "mlp_fc1_bias": True, "mlp_fc2_bias": True, "qkv_proj_bias": True, "pad_token_id": 1,
    "moe_every_n_layers": 2, "moe_top_k": 2, "num_experts": 4, "n_positions": 2048, "type_vocab_size": 1, "vocab_size": 902,
}  # fmt: skip


def nomic_experts(directory: Path) -> Any:
    """A random Nomic-BERT whose second layer has experts, saved as its authors' code names it; and what that code computes
    (transformers has none of it): after each of attention and MLP the sum with what went in is normed, heads are rotated by
    halves, and the two best of four experts count as much as the router says."""
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.manual_seed(0)
    width, inner, heads, top = 64, 96, 4, 2
    shapes = {"embeddings.word_embeddings.weight": (902, width), "embeddings.token_type_embeddings.weight": (1, width)}
    norms = ["emb_ln"]
    for number in range(2):
        layer = f"encoder.layers.{number}"
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
        matrices = {"attn.Wqkv": (3 * width, width), "attn.out_proj": (width, width)}
        if number == 0:
            matrices |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    shapes |= {f"{layer}.mlp.experts.mlp.w{number}": (4 * inner, width) for number in (1, 2)}
    shapes[f"{layer}.mlp.router.layer.weight"] = (4, width)
    weights = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    for name in norms:
        weights |= {f"{name}.weight": 1 + torch.randn(width) * 0.2, f"{name}.bias": torch.randn(width) * 0.2}
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(NOMIC_MOE))

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def rotate(x: Any) -> Any:
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[-2]), ROPE["rope_theta"] ** (-torch.arange(half) / half))
        left, right = x[..., :half], x[..., half:]
        return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), -1)

    def experts(x: Any, name: str) -> Any:
        likely = functional.linear(x, weights[f"{name}.router.layer.weight"]).softmax(-1)
        chosen = torch.zeros_like(likely).scatter(-1, likely.topk(top).indices, 1) * likely
        first, second = (weights[f"{name}.experts.mlp.w{number}"].view(4, inner, width) for number in (1, 2))
        hidden = functional.gelu(torch.einsum("td,eid->tei", x, first))
        return torch.einsum("te,tei,eid->td", chosen, hidden, second)

    def forward(tokens: Any) -> Any:
        words, kinds = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
        x = norm(words[tokens[0]] + kinds[0], "emb_ln")
        for number in range(2):
            layer = f"encoder.layers.{number}"
            query, key, value = linear(x, f"{layer}.attn.Wqkv").view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
            mixed = functional.scaled_dot_product_attention(rotate(query), rotate(key), value)
            x = norm(x + linear(mixed.transpose(0, 1).reshape(len(x), width), f"{layer}.attn.out_proj"), f"{layer}.norm1")
            if number:
                y = experts(x, f"{layer}.mlp")
            else:
                y = linear(functional.gelu(linear(x, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
            x = norm(x + y, f"{layer}.norm2")
        return SimpleNamespace(last_hidden_state=x[None])

    return forward


def test_nomic_bert_with_experts(tmp_path: Path) -> None:
    forward = nomic_experts(tmp_path / "model")
    save_xlm_roberta(tmp_path / "model")
    output = convert(tmp_path / "model", tmp_path / "model.gguf")
    same_embeddings(forward, output)
    keys = read_headers([str(output)])[0]
    assert (keys["nomic-bert-moe.expert_count"].value, keys["nomic-bert-moe.expert_used_count"].value) == (4, 2)


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
    ("DeepseekV2ForCausalLM", {"q_lora_rank": None}, "q_lora_rank is None and there are 4 layers"),
    ("DeepseekV2ForCausalLM", {"num_hidden_layers": 27}, "q_lora_rank is 1536 and there are 27 layers"),
    ("DeepseekV2ForCausalLM", {"attention_bias": True}, "attention_bias is true"),
    ("DeepseekV2ForCausalLM", {"rope_scaling": {**DEEPSEEK_ROPE, "mscale": 1.0}}, "mscale is 1.0 and mscale_all_dim 0.707"),
    ("XLMRobertaModel", {"lora_adaptations": ["retrieval"]}, "lora_adaptations are set"),
    ("RobertaModel", {"max_position_embeddings": 2}, "of which 2 are not for tokens"),
    ("BloomModel", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is true"),
    ("MPTForCausalLM", {"attn_config": {"prefix_lm": True}}, "prefix_lm of attn_config is True"),
    ("MPTForCausalLM", {"logit_scale": 0.5}, "logit_scale is set"),
    ("NomicBertModel", {"prenorm": True}, "prenorm is True; in GGUF's nomic-bert it is False"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 6}
    with pytest.raises(FileProblem, match=message):
        settled({**small, "architectures": [kind], **changes})

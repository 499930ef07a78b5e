"""Merged models are what ``merge_and_unload`` of peft makes of the same base and adapters.

peft adds in the base's dtype, one adapter after another; modelhub in float32, rounded once. So float32 models are compared to a
few parts in a million, and bfloat16 ones to a unit in the last place of their 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import gpt2, llama, merged_by_peft, state, trained, worst

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=4, lora_alpha=8, target_modules=[*ATTENTION, "gate_proj", "embed_tokens", "lm_head"]),
    "rslora": peft.LoraConfig(
        r=4,
        lora_alpha=3,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.mlp.down_proj": 2},
        alpha_pattern={r"^model.layers.\d+.self_attn.q_proj": 5},
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=[*ATTENTION, "down_proj", "embed_tokens"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "saved": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "input_layernorm"]),
}
GPT2: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True),
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "bias": peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True, bias="none"),
    "output": peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "lm_head"]),  # of another kind than the others
    "biases": peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, bias="all"),
    "ia3": peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llama``, ``bf16`` (the same in bfloat16), ``tied`` and ``gpt2``."""
    root = tmp_path_factory.mktemp("bases")
    llama().save_pretrained(root / "llama")
    llama(torch.bfloat16).save_pretrained(root / "bf16")
    llama(tie_word_embeddings=True).save_pretrained(root / "tied")
    gpt2().save_pretrained(root / "gpt2")
    return root


def merged(modelhub: Modelhub, base: Path, output: Path, *words: Any) -> dict[str, torch.Tensor]:
    modelhub("merge", base, *words, "-o", output)
    return state(output)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_a_llama_are_merged_as_peft_does(kind: str, bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(llama(), KINDS[kind], tmp_path / "adapter")
    ours = merged(modelhub, bases / "llama", tmp_path / "out", "--adapter", adapter)
    theirs = merged_by_peft(bases / "llama", adapter)
    assert set(ours) == set(theirs)
    name, far = worst(ours, theirs)
    assert far < 3e-6, name
    assert worst(ours, state(bases / "llama"))[1] > 0.05
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert worst(dict(opened.state_dict()), theirs)[1] < 3e-6


@pytest.mark.parametrize("kind", GPT2)
def test_matrices_that_are_kept_transposed(kind: str, bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(gpt2(), GPT2[kind], tmp_path / "adapter")
    ours = merged(modelhub, bases / "gpt2", tmp_path / "out", "--adapter", adapter)
    theirs = merged_by_peft(bases / "gpt2", adapter)
    name, far = worst(ours, theirs)
    assert far < 3e-6, name
    assert worst(ours, state(bases / "gpt2"))[1] > 0.05


def test_a_base_in_bfloat16_stays_in_it_and_is_rounded_once(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(llama(torch.bfloat16), KINDS["lora"], tmp_path / "adapter")
    ours = merged(modelhub, bases / "bf16", tmp_path / "out", "--adapter", adapter)
    theirs, start = merged_by_peft(bases / "bf16", adapter), state(bases / "bf16")
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    for name, value in ours.items():
        then, now = start[name].float(), theirs[name].float()
        # Where the change nearly cancels what was there, peft's steps are those of the larger terms.
        terms = torch.maximum(now.abs(), torch.maximum(then.abs(), (now - then).abs()))
        assert bool(((value.float() - now).abs() <= terms * 2**-7).all()), name


def test_several_adapters_follow_each_other_each_with_its_scale(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    one = trained(llama(), KINDS["lora"], tmp_path / "one", seed=5)
    two = trained(llama(), KINDS["dora"], tmp_path / "two", seed=6)
    ours = merged(modelhub, bases / "llama", tmp_path / "out", "--adapter", one, "--adapter", two)
    name, far = worst(ours, merged_by_peft(bases / "llama", one, two))
    assert far < 3e-6, name

    half = merged(modelhub, bases / "llama", tmp_path / "half", "--adapter", one, "--scale", "0.5")
    whole = merged(modelhub, bases / "llama", tmp_path / "whole", "--adapter", one)
    start = state(bases / "llama")
    assert worst(half, {name: (whole[name] + start[name]) / 2 for name in whole})[1] < 3e-6


def test_a_tied_output_changes_with_its_embedding(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    adapter = trained(llama(tie_word_embeddings=True), config, tmp_path / "adapter")
    ours = merged(modelhub, bases / "tied", tmp_path / "out", "--adapter", adapter)
    theirs = merged_by_peft(bases / "tied", adapter)
    assert "lm_head.weight" not in ours
    assert worst(ours, theirs)[1] < 3e-6


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_tied_matrix_that_was_trained_alone_is_tied_no_longer(
    module: str, bases: Path, tmp_path: Path, modelhub: Modelhub
) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[module])
    adapter = trained(llama(tie_word_embeddings=True), config, tmp_path / "adapter")
    merged(modelhub, bases / "tied", tmp_path / "out", "--adapter", adapter)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = merged_by_peft(bases / "tied", adapter)
    assert worst(dict(model.state_dict()), theirs)[1] < 3e-6
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_head_that_the_base_has_not_is_added(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    torch.manual_seed(4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bases / "llama", num_labels=3)
    adapter = trained(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"), tmp_path / "adapter")
    ours = merged(modelhub, bases / "llama", tmp_path / "out", "--adapter", adapter)
    theirs = merged_by_peft(bases / "llama", adapter, kind=transformers.AutoModelForSequenceClassification, num_labels=3)
    assert worst({name: ours[name] for name in theirs}, theirs)[1] < 3e-6
    assert tuple(ours["score.weight"].shape) == (3, 64)


def test_convolutions(tmp_path: Path, modelhub: Modelhub) -> None:
    torch.manual_seed(7)
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    model = transformers.AutoModel.from_pretrained(tmp_path / "vit")
    adapter = trained(model, peft.LoraConfig(r=3, target_modules=["projection"]), tmp_path / "adapter")
    ours = merged(modelhub, tmp_path / "vit", tmp_path / "out", "--adapter", adapter)
    theirs = merged_by_peft(tmp_path / "vit", adapter, kind=transformers.AutoModel)
    convolution = "embeddings.patch_embeddings.projection.weight"
    assert worst({convolution: ours[convolution]}, theirs)[1] < 3e-6
    assert worst({convolution: ours[convolution]}, state(tmp_path / "vit"))[1] > 0.05


def test_quantized_in_the_same_pass(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(llama(), KINDS["lora"], tmp_path / "adapter")
    modelhub("merge", bases / "llama", "--adapter", adapter, "-o", tmp_path / "out")
    plan = modelhub(
        "merge",
        bases / "llama",
        "--adapter",
        adapter,
        "--to",
        "safetensors:bf16",
        "--dry-run",
        "--json",
        "-o",
        tmp_path / "x.safetensors",
    ).json
    assert plan["combined"] == [["adapter", str(adapter), 1.0]]
    assert not (tmp_path / "x.safetensors").exists()
    modelhub("merge", bases / "llama", "--adapter", adapter, "--to", "safetensors:bf16", "-o", tmp_path / "x.safetensors")
    modelhub("convert", tmp_path / "out", "--to", "safetensors:bf16", "-o", tmp_path / "y.safetensors")
    assert modelhub("diff", tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--json").json["equal"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "XLORA"}, "it is of the kind XLORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base too"),
        ({"alpha_pattern": {"(?=a)q_proj": 1}}, "no pattern that is known here: a group that is more than one"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(
    change: dict[str, Any], says: str, bases: Path, tmp_path: Path, modelhub: Modelhub
) -> None:
    adapter = trained(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    refused = modelhub("merge", bases / "llama", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert says in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_does_not_fit(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(llama(hidden_size=32), peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "adapter")
    refused = modelhub("merge", bases / "llama", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert "it changes a matrix [32, 32], the base's model.layers.0.self_attn.q_proj.weight is [64, 64]" in refused.stderr
    refused = modelhub("merge", bases / "llama", "--adapter", bases / "tied", status=2)
    assert "is no adapter that can be merged" in refused.stderr
    refused = modelhub("merge", adapter, "--adapter", adapter, status=2)
    assert "adapter is an adapter itself; BASE is the model that it changes" in refused.stderr
    refused = modelhub("convert", adapter, "--to", "huggingface", "-o", tmp_path / "out", status=3)
    assert "config.json" in refused.stderr
    assert "GGUF" not in refused.stderr

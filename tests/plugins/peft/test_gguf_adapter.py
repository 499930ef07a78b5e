"""LoRA adapters as GGUF: llama.cpp applies them to the base as it runs, and computes what peft's merged model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import transformers
import xllamacpp

from tests.conftest import Modelhub
from tests.plugins.gguf.logits import quiet, same_logits, save_bpe, tiny
from tests.plugins.peft.adapters import merged_model, trained

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
CASES: dict[str, tuple[str, dict[str, Any], peft.LoraConfig]] = {
    "llama": (
        "LlamaForCausalLM",
        LLAMA,
        peft.LoraConfig(
            r=4,
            lora_alpha=2,
            use_rslora=True,
            target_modules=["q_proj", "k_proj", "o_proj", "up_proj", "embed_tokens", "lm_head"],
            rank_pattern={"up_proj": 2},
            alpha_pattern={r".*\.up_proj": 3, r"^model\.layers\.0\.\w+\.q_proj": 1},
        ),
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2, peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """(base, adapter, the model that peft merges of them)."""
    quiet()
    root = tmp_path_factory.mktemp(request.param)
    kind, config, lora = CASES[request.param]
    tiny(root / "base", kind, config)
    save_bpe(root / "base")

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(root / "base").eval()

    adapter = trained(base(), lora, root / "adapter", size=0.1)
    return root / "base", adapter, merged_model(base(), adapter).eval()


def test_llama_cpp_applies_the_adapter(case: tuple[Path, Path, Any], tmp_path: Path, modelhub: Modelhub) -> None:
    base, adapter, model = case
    modelhub("convert", base, "--to", "gguf:f32", "-o", tmp_path / "base.gguf")
    modelhub("convert", adapter, "--to", "gguf", "--base", base, "-o", tmp_path / "adapter.gguf")
    fields = gguf.GGUFReader(tmp_path / "adapter.gguf").fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.type"].contents() == "lora"
    same_logits(
        model, tmp_path / "base.gguf", lora_adapters=[xllamacpp.CommonAdapterLoraInfo(str(tmp_path / "adapter.gguf"), 1.0)]
    )
    with pytest.raises(AssertionError, match="log-probabilities are off"):
        same_logits(model, tmp_path / "base.gguf")


def test_merged_and_made_gguf_in_one_pass(case: tuple[Path, Path, Any], tmp_path: Path, modelhub: Modelhub) -> None:
    base, adapter, model = case
    modelhub("merge", base, "--adapter", adapter, "--to", "gguf:f32", "-o", tmp_path / "merged.gguf")
    same_logits(model, tmp_path / "merged.gguf")
    modelhub("merge", base, "--adapter", adapter, "--to", "gguf:q4_k_m", "-o", tmp_path / "one.gguf")
    modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "merged")
    modelhub("convert", tmp_path / "merged", "--to", "gguf:q4_k_m", "-o", tmp_path / "two.gguf")
    assert modelhub("diff", tmp_path / "one.gguf", tmp_path / "two.gguf", "--json").json["equal"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "merged.gguf", "one.gguf", "two.gguf"]


def test_a_base_that_is_gguf_already(case: tuple[Path, Path, Any], tmp_path: Path, modelhub: Modelhub) -> None:
    base, adapter, model = case
    modelhub("convert", base, "--to", "gguf:f32", "-o", tmp_path / "base.gguf")
    planned = modelhub(
        "merge", tmp_path / "base.gguf", "--adapter", adapter, "-o", tmp_path / "x.gguf", "--dry-run", "--json"
    ).json
    assert planned["route"] == ["gguf", "huggingface", "gguf"]
    modelhub("merge", tmp_path / "base.gguf", "--adapter", adapter, "-o", tmp_path / "merged.gguf")
    same_logits(model, tmp_path / "merged.gguf")
    modelhub("merge", tmp_path / "base.gguf", "--adapter", adapter, "--to", "safetensors", "-o", tmp_path / "merged.safetensors")
    modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "merged")
    apart = modelhub("diff", tmp_path / "merged", tmp_path / "merged.safetensors", "--json", status=None).json
    assert all(tensor["same"] or tensor["max_error"] < 1e-6 for tensor in apart["tensors"])


def test_the_base_is_found_in_the_catalog(case: tuple[Path, Path, Any], tmp_path: Path, modelhub: Modelhub) -> None:
    base, adapter, _ = case
    away = shutil.copytree(adapter, tmp_path / "away")
    config = json.loads((away / "adapter_config.json").read_text())
    (away / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "somebody/model"}))
    refused = modelhub("convert", away, "--to", "gguf", "-o", tmp_path / "a.gguf", status=3)
    assert "the base is called somebody/model" in refused.stderr
    assert "--base MODEL" in refused.stderr
    modelhub("scan", base.parent)
    (found,) = modelhub("show", away, "--json").json["bases"]
    assert found["path"] == str(base)
    assert str(base) in modelhub("show", away).stdout
    modelhub("convert", away, "--to", "gguf", "-o", tmp_path / "a.gguf")
    assert modelhub("show", tmp_path / "a.gguf", "--json").json["metadata"]["type"] == "adapter"


def test_what_llama_cpp_cannot_apply_is_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    quiet()
    model = tiny(tmp_path / "base", "LlamaForCausalLM", LLAMA)
    adapter = trained(model, peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), tmp_path / "adapter")
    refused = modelhub("convert", adapter, "--to", "gguf", "--base", tmp_path / "base", "-o", tmp_path / "a.gguf", status=3)
    assert "this is dora" in refused.stderr
    assert "modelhub merge BASE" in refused.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"])
    residual = trained(model, config, tmp_path / "residual")
    refused = modelhub("convert", residual, "--to", "gguf", "--base", tmp_path / "base", "-o", tmp_path / "a.gguf", status=3)
    assert "pissa, which changes the base too" in refused.stderr


def test_factors_of_an_output_that_is_an_embedding_are_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    """llama.cpp takes them for a matrix's, and ends itself."""
    quiet()
    model = tiny(tmp_path / "base", "LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True})
    adapter = trained(model, peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]), tmp_path / "adapter")
    refused = modelhub("convert", adapter, "--to", "gguf", "--base", tmp_path / "base", "-o", tmp_path / "a.gguf", status=3)
    assert "model.embed_tokens is the model's output too" in refused.stderr

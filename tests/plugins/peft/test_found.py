"""Adapters as they lie on drives: of older versions, under other names, with what trainers leave beside them."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import llama, merged_by_peft, state, trained, worst

LORA = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "tiny-llama"
    llama().save_pretrained(path)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return trained(llama(), LORA, tmp_path / "adapter")


def renamed(adapter: Path, *changes: tuple[str, str]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    for old, new in changes:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_one_of_the_first_year(base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    theirs = merged_by_peft(base, adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    config = {
        "base_model_name_or_path": "somebody/tiny-llama",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    modelhub("scan", base.parent)
    assert [found["path"] for found in modelhub("show", adapter, "--json").json["bases"]] == [str(base)]
    modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "out")
    assert worst(state(tmp_path / "out"), theirs)[1] < 3e-6


@pytest.mark.parametrize(
    "changes",
    [
        [(".weight", ".default.weight")],
        [("base_model.model.", "")],
        [("base_model.model.model.", "base_model.model.")],
        [("base_model.model.model.", "base_model.model.model.language_model.")],
        [("base_model.model.model.", "base_model.model.language_model.model.")],
    ],
    ids=[
        "with the adapter's name",
        "no prefix",
        "of a model without its head",
        "within a larger model",
        "the same, saved before",
    ],
)
def test_names_of_other_models_around(
    changes: list[tuple[str, str]], base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub
) -> None:
    theirs = merged_by_peft(base, adapter)
    renamed(adapter, *changes)
    modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "out")
    assert worst(state(tmp_path / "out"), theirs)[1] < 3e-6


def test_a_run_with_its_checkpoints(base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    step = trained(llama(), LORA, adapter / "checkpoint-500", seed=8)
    torch.save({"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}, step / "optimizer.pt")
    (step / "trainer_state.json").write_text("{}")
    modelhub("scan", adapter)
    found = {model["path"]: model["format"] for model in modelhub("ls", "--json").json}
    assert {path for path, kind in found.items() if kind == "peft"} == {".", "checkpoint-500"} or len(found) == 3
    modelhub("merge", base, "--adapter", step, "-o", tmp_path / "out")
    assert worst(state(tmp_path / "out"), merged_by_peft(base, step))[1] < 3e-6


def test_the_tokenizer_of_an_adapter_goes_with_its_embeddings(base: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    (base / "tokenizer.json").write_text('{"of": "the base"}')
    (base / "tokenizer_config.json").write_text("{}")
    model = llama()
    model.resize_token_embeddings(163, mean_resizing=False)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    larger = trained(model, config, tmp_path / "larger")
    (larger / "tokenizer.json").write_text('{"of": "the adapter"}')
    same = trained(llama(), LORA, tmp_path / "same")
    (same / "tokenizer.json").write_text('{"of": "the adapter"}')
    modelhub("merge", base, "--adapter", larger, "-o", tmp_path / "out")
    assert "adapter" in (tmp_path / "out" / "tokenizer.json").read_text()
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 163
    modelhub("merge", base, "--adapter", same, "-o", tmp_path / "same-out")
    assert "base" in (tmp_path / "same-out" / "tokenizer.json").read_text()


def test_a_base_and_its_adapter_in_one_directory(base: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    together = tmp_path / "together"
    llama().save_pretrained(together)
    trained(llama(), LORA, together)
    modelhub("scan", tmp_path)
    assert {model["path"]: model["format"] for model in modelhub("ls", "--json").json} == {
        "together": "huggingface",
        "together/adapter_model.safetensors": "peft",
    }
    weights = together / "adapter_model.safetensors"
    assert modelhub("show", weights, "--json").json["metadata"]["rank"] == 4
    modelhub("merge", together, "--adapter", weights, "-o", tmp_path / "out")
    ours = state(tmp_path / "out")
    (adapter := tmp_path / "alone").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (together / name).rename(adapter / name)
    assert worst(ours, merged_by_peft(base, adapter))[1] < 3e-6


def test_shards_in_half_precision(adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    llama(torch.float16).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    modelhub("merge", tmp_path / "shards", "--adapter", adapter, "-o", tmp_path / "out")
    ours = state(tmp_path / "out")
    assert {value.dtype for value in ours.values()} == {torch.float16}
    assert worst(ours, merged_by_peft(tmp_path / "shards", adapter))[1] < 2e-3


def test_what_a_careless_training_saved_is_said(base: Path, adapter: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value.new_zeros(0) for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    refused = modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert "ZeRO-3" in refused.stderr

"""``modelhub merge`` with deltas, and what it leaves in the catalog."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import Modelhub

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}


def directory(path: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """``base``, and ``tuned``: the same with other values and two tokens more, in float16."""
    random = np.random.default_rng(0)

    def tensors(rows: int) -> dict[str, np.ndarray]:
        return {
            "model.embed_tokens.weight": random.standard_normal((rows, 8)).astype(np.float16),
            "model.layers.0.mlp.up_proj.weight": random.standard_normal((8, 8)).astype(np.float16),
            "model.norm.weight": random.standard_normal(8).astype(np.float16),
        }

    directory(tmp_path / "base", tensors(16), vocab_size=16)
    directory(tmp_path / "tuned", tensors(18), vocab_size=18)
    return tmp_path


def test_a_delta_is_taken_and_put_back(models: Path, modelhub: Modelhub) -> None:
    base, tuned = (load_file(models / name / "model.safetensors") for name in ("base", "tuned"))
    modelhub("merge", models / "tuned", "--minus", models / "base", "-o", models / "delta")
    delta = load_file(models / "delta" / "model.safetensors")
    for name, value in tuned.items():
        under = np.zeros_like(value)
        under[: len(base[name])] = base[name]
        assert np.array_equal(delta[name], (value.astype(np.float32) - under.astype(np.float32)).astype(np.float16)), name
    told = modelhub("merge", models / "base", "--delta", models / "delta", "-o", models / "again")
    assert str(models / "delta") in told.stdout
    again = load_file(models / "again" / "model.safetensors")
    for name, value in tuned.items():
        assert again[name].dtype == np.float16
        assert again[name].shape == value.shape
        assert np.allclose(again[name], value, atol=4e-3), name
    assert json.loads((models / "again" / "config.json").read_text())["vocab_size"] == 18  # it is the target's, not the base's


def test_a_delta_in_float32_gives_back_every_bit(models: Path, modelhub: Modelhub) -> None:
    tensors = load_file(models / "tuned" / "model.safetensors")
    ids, mask = np.arange(5), np.array([True, False])
    tuned = directory(models / "more", {**tensors, "ids": ids, "mask": mask, "step": np.array(3)}, vocab_size=18)
    before = load_file(models / "base" / "model.safetensors")
    base = directory(models / "less", {**before, "ids": ids[:3], "old.buffer": np.zeros(4, np.float16)}, vocab_size=16)
    told = modelhub("merge", tuned, "--minus", base, "--to", "huggingface:f32", "-o", models / "whole").stdout
    assert "old.buffer has no counterpart, and is left out" in told
    assert "(and 1 more) is in one of them alone" in told
    assert "--to FORMAT:f16 gives it back to the bit" in told
    modelhub("merge", base, "--delta", models / "whole", "--to", "huggingface:f16", "-o", models / "again")
    assert modelhub("diff", tuned, models / "again", "--json").json["equal"]


def test_models_that_do_not_fit_are_refused(models: Path, modelhub: Modelhub) -> None:
    tensors = load_file(models / "tuned" / "model.safetensors")
    other = directory(models / "other", {**tensors, "model.norm.weight": np.zeros(9, np.float16)})
    refused = modelhub("merge", models / "base", "--delta", other, "-o", models / "x", status=3)
    assert "model.norm.weight has the shape [9] in one, and [8] in the other" in refused.stderr
    del tensors["model.layers.0.mlp.up_proj.weight"]
    partly = directory(models / "partly", tensors)
    refused = modelhub("merge", models / "base", "--delta", partly, "-o", models / "x", status=3)
    assert "model.layers.0.mlp.up_proj.weight [8, 8] is in one of them alone" in refused.stderr
    refused = modelhub("merge", models / "base", "--delta", models / "tuned", "-o", models / "tuned", "--force", status=3)
    assert "is the source itself" in refused.stderr
    smaller = modelhub("merge", models / "tuned", "--delta", models / "base", "-o", models / "x", status=3)
    assert "model.embed_tokens.weight has the shape [16, 8] in one, and [18, 8] in the other" in smaller.stderr
    assert not (models / "x").exists()


def test_one_thing_is_merged(models: Path, modelhub: Modelhub) -> None:
    for words in ((), ("--delta", models / "tuned", "--minus", models / "tuned")):
        assert "merge takes one of" in modelhub("merge", models / "base", *words, status=2).stderr
    wrong = modelhub("merge", models / "base", "--delta", models / "tuned", "--scale", "2", status=2)
    assert "--scale is for adapters" in wrong.stderr


def test_both_sources_are_recorded(models: Path, modelhub: Modelhub) -> None:
    modelhub("scan", models)
    told = modelhub("merge", "base", "--delta", "tuned", "--json").json
    assert told["output"] == str(models / "base-merged")
    ids = {model["name"]: model["id"] for model in modelhub("ls", "--json").json}
    lineage = modelhub("show", "base-merged", "--json").json["lineage"]
    assert [step["parent"] for step in lineage] == [ids["base"], ids["tuned"]]
    assert lineage[0]["options"]["combine"] == [["delta", str(models / "tuned"), 1.0]]


def test_in_the_background(models: Path, modelhub: Modelhub) -> None:
    modelhub("scan", models)
    job = modelhub("merge", "base", "--delta", "tuned", "-o", models / "sum", "--background", "--json").json["job"]
    for _ in range(200):
        state = modelhub("jobs", "show", job, "--json").json["state"]
        if state not in ("queued", "running"):
            break
        time.sleep(0.1)
    assert state == "done"
    assert len(modelhub("show", models / "sum", "--json").json["lineage"]) == 2

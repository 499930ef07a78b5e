"""Methods whose packing is not read: they are called by their names, and whoever converts them is told that they stay packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from modelhub import plugins
from modelhub.detect import inspect_path
from safetensors.torch import save_file

from tests.conftest import Modelhub

MODULE = "model.layers.0.self_attn.q_proj."
EXL2 = {f"{MODULE}q_weight": torch.ones(8, 64, dtype=torch.int32), f"{MODULE}q_scale_max": torch.ones(2).half()}
AQLM = {f"{MODULE}codes": torch.ones(32, 8, 1, dtype=torch.int16), f"{MODULE}codebooks": torch.ones(1, 16, 1, 8).half()}


def checkpoint(path: Path, settings: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(10, 64).half()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("settings", "tensors", "label"),
    [
        ({"quant_method": "exl2", "bits": 4.25}, EXL2, "EXL2 4.25bpw"),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16}, AQLM, "AQLM"),
    ],
)
def test_it_is_told_what_stays_packed(
    modelhub: Modelhub, tmp_path: Path, settings: dict[str, object], tensors: dict[str, torch.Tensor], label: str
) -> None:
    path = checkpoint(tmp_path / "packed", settings, tensors)
    assert modelhub("show", path, "--json").json["precision"] == label
    report = modelhub("convert", path, "--to", "safetensors:f32", "--json").json
    assert f"weights that {settings['quant_method']} quantized are not put together here" in " ".join(report["losses"])


def test_settings_without_packed_weights_are_no_news(modelhub: Modelhub, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "plain", {"quant_method": "aqlm"}, {})
    assert modelhub("convert", path, "--to", "safetensors:f32", "--json").json["losses"] == []


WORDS = {f"{MODULE}qweight": (8, 64), f"{MODULE}qzeros": (2, 8)}
GPTQ = {
    **{name: torch.ones(shape, dtype=torch.int32) for name, shape in WORDS.items()},
    f"{MODULE}scales": torch.ones(2, 64).half(),
}


@pytest.mark.parametrize("wrong", [None, True, -1, 0, 10**30, float("nan"), "x", "", [], [0], {}, {"": []}, [[["x"]]]], ids=repr)
def test_settings_of_the_wrong_kind_are_no_failure_of_the_plugin(tmp_path: Path, wrong: object) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", "desc_act": False, "sym": True}
    path = checkpoint(tmp_path / "packed", {}, GPTQ)
    for changed in (*({**settings, key: wrong} for key in (*settings, "dynamic", "meta", "dtype")), wrong):
        (path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": changed}))
        found = inspect_path(str(path), plugins.get().formats)
        assert not [finding for finding in found.findings if finding.check == "plugin"], changed

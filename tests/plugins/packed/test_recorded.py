"""Modules that libraries packed which are no test dependencies (`record` says how): read bit for bit as they dequantize them."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import plugins
from modelhub.convert import convert
from modelhub.detect import inspect_path
from modelhub.engine.values import Handles, chunks, open_value
from modelhub.model import Model, from_found
from modelhub.plan import ConvertOptions
from modelhub_huggingface.packed import numbers
from safetensors import safe_open

from tests.plugins.packed.record import MODULE

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.safetensors"))


def opened(directory: Path, recorded: Path, **changed: Any) -> tuple[Model, dict[str, str]]:
    """The directory of a recorded module, and what was said of it."""
    directory.mkdir()
    shutil.copyfile(recorded, directory / "model.safetensors")
    with safe_open(recorded, "np") as file:
        said = file.metadata()
    settings = {**json.loads(said["quantization_config"]), **changed}
    config = {"model_type": "llama", "torch_dtype": said["dtype"].removeprefix("torch.")}
    if settings["quant_method"] == "quanto":  # says it in a file of its own
        (directory / "quanto_qmap.json").write_text(json.dumps({MODULE: settings[MODULE]}))
    else:
        config["quantization_config"] = settings
    (directory / "config.json").write_text(json.dumps(config))
    return from_found(inspect_path(str(directory), plugins.get().formats)), said


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_as_the_library_computes_it(recorded: Path, tmp_path: Path) -> None:
    model, said = opened(tmp_path / "m", recorded)
    shape = tuple(json.loads(said["shape"]))
    assert (model.precision, [finding for finding in model.findings if finding.check == "packed"]) == (said["label"], [])
    logical = {tensor.name: tensor for tensor in model.table().logical}
    name = f"{MODULE}.{said['whole']}"
    assert set(logical) - {f"{MODULE}.bias"} == {name}
    weight = logical[name]
    assert (weight.shape, model.parameters) == (shape, sum(prod(tensor.shape) for tensor in logical.values()))
    with Handles() as handles:
        whole = np.concatenate(list(chunks(open_value(weight.value, handles))))
        assert hashlib.sha256(whole.tobytes()).hexdigest() == said["sha256"]
        for start, stop in ((0, 1), (shape[0] - 1, shape[0]), (5, 9), (3, shape[0] - 2)) if shape[0] > 9 else ((1, 2),):
            np.testing.assert_array_equal(open_value(weight.value, handles).read(start, stop), whole[start:stop])


@pytest.mark.parametrize(
    "name", ["gptq_p-6", "autoround-4-auto_gptq", "awq-gemv_fast-64", "marlin-128", "marlin-24-4", "quark-int4-reorder"]
)
def test_strips_of_what_is_too_large_to_keep(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that lie across the rows that are asked for: where little may be kept of them, the same rows come out."""
    model, said = opened(tmp_path / "m", Path(__file__).parent / f"recorded/{name}.safetensors")
    (weight,) = (tensor for tensor in model.table().logical if tensor.name.endswith(".weight"))
    monkeypatch.setattr(numbers, "WIDEST", 512)
    monkeypatch.setattr(numbers, "STEP", 256)
    edges = [*range(0, weight.shape[0], 5), weight.shape[0]]
    with Handles() as handles:
        source = open_value(weight.value, handles)
        found = {start: source.read(start, stop) for start, stop in reversed(list(pairwise(edges)))}
    whole = np.concatenate([found[start] for start in edges[:-1]])
    assert hashlib.sha256(whole.tobytes()).hexdigest() == said["sha256"]


@pytest.mark.parametrize("name", ["gptq_p-5", "awq-gemv-64", "hqq-4-64-axis1", "marlin-24-4", "sparse-24-fp8", "quanto-qint8"])
def test_plain_directories(name: str, tmp_path: Path) -> None:
    """A plain container gets the weights; nothing in the configuration says any more that they are packed."""
    model, said = opened(tmp_path / "m", Path(__file__).parent / f"recorded/{name}.safetensors")
    output = tmp_path / "plain"
    convert(model, to="huggingface", output=str(output), options=ConvertOptions(), plugins=plugins.get())
    assert not (output / "quanto_qmap.json").exists()
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    with safe_open(output / "model.safetensors", "pt") as file:
        assert str(file.get_tensor(f"{MODULE}.weight").dtype) == said["dtype"]

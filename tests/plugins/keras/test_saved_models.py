"""Code in what Keras 2 stored beside a SavedModel, and in the configuration of a model's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from tests.conftest import Modelhub
from tests.corpus.tensorflow_bad import SAFE, message, number


def lambda_layer(name: str) -> dict[str, Any]:
    code = {"class_name": "__tuple__", "items": ["4wEAAAAAAAAAAAAA", None, None]}
    return {"class_name": "Lambda", "config": {"name": name, "function": code, "function_type": "lambda"}}


def objects(*layers: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """(identifier, metadata) of a model and of each of its layers, as Keras has them."""
    model = {"class_name": "Sequential", "name": "m", "config": {"name": "m", "layers": list(layers)}}
    found = [(b"_tf_keras_sequential", model), *((b"_tf_keras_layer", layer) for layer in layers)]
    return [(identifier, json.dumps(metadata).encode()) for identifier, metadata in found]


def saved_model(directory: Path, stored: list[tuple[bytes, bytes]], beside: bool) -> Path:
    directory.mkdir()
    model = SAFE["SaveV2"]
    if beside:
        nodes = [number(2, 1) + message(4, identifier) + message(5, text) for identifier, text in stored]
        (directory / "keras_metadata.pb").write_bytes(b"".join(message(1, node) for node in nodes))
    else:
        users = [message(4, message(1, identifier) + message(3, text)) for identifier, text in stored]
        model += message(2, message(7, b"".join(message(1, user) for user in users)))
    (directory / "saved_model.pb").write_bytes(model)
    return directory


@pytest.mark.parametrize("beside", [True, False])
def test_a_lambda_in_a_saved_model_is_unsafe(tmp_path: Path, modelhub: Modelhub, beside: bool) -> None:
    place = saved_model(tmp_path / "m", objects(lambda_layer("one"), lambda_layer("two")), beside)
    (report,) = modelhub("verify", place, "--json", status=1).json
    unsafe = [item["message"] for item in report["findings"] if item["severity"] == "unsafe"]
    assert len(unsafe) == 2, unsafe
    assert "'m/one' holds a Lambda layer" in unsafe[0]
    assert "'m/two' holds a Lambda layer" in unsafe[1]


@pytest.mark.parametrize("beside", [True, False])
def test_honest_layers_and_the_objects_of_others_are_no_alarm(tmp_path: Path, modelhub: Modelhub, beside: bool) -> None:
    dense = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    others = [(b"_generic_user_object", b"{not JSON"), (b"_tf_keras_metric", b"")]
    place = saved_model(tmp_path / "m", objects(dense) + others, beside)
    assert modelhub("verify", place).stdout.startswith("ok")


def test_metadata_that_is_broken_is_told_in_words(tmp_path: Path, modelhub: Modelhub) -> None:
    place = saved_model(tmp_path / "m", [(b"_tf_keras_layer", b"{")], beside=True)
    checked = modelhub("verify", place, status=1)
    assert "keras_metadata.pb: a layer's configuration is not JSON" in checked.stdout


def test_code_in_a_loss(tmp_path: Path, modelhub: Modelhub) -> None:
    loss = {"module": "builtins", "class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAAAAAA"}}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": []}})
        file.attrs["training_config"] = json.dumps({"loss": loss, "optimizer_config": {"class_name": "Adam", "config": {}}})
        file.create_dataset("model_weights/d/kernel", data=[1.0])
    checked = modelhub("verify", tmp_path / "m.h5", status=1)
    assert "marshalled bytecode" in checked.stdout
    assert checked.stdout.count("unsafe") == 1

"""TensorFlow's files, as TensorFlow itself reads them: names, values, and what is said of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import dtypes, plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from modelhub.found import Found
from safetensors.numpy import load_file

from tests.conftest import Modelhub


def look(path: Path) -> Found:
    found = inspect_path(str(path), plugins.get().formats)
    assert found.state == "ready", found.reason
    return found


def values(found: Found, view: str = "") -> dict[str, Any]:
    """Every tensor that has a value, as an array."""
    tensors = [tensor for tensor in found.load_table().tensors if tensor.value is not None and view in ("", tensor.view)]
    return {one.name: read_tensor(one).view(np.uint8).view(dtypes.get(one.dtype).numpy).reshape(one.shape) for one in tensors}


def equal(found: dict[str, Any], wanted: Any) -> None:
    for name in wanted:
        assert found[name].shape == wanted[name].shape, name
        assert found[name].tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        ("names/model.ckpt-7.index", "tensorflow", "names/model.ckpt-7.npz"),
        ("shards/model.index", "tensorflow", "shards/model.npz"),
        ("first/model.ckpt", "tensorflow-v1", "first/model.ckpt.npz"),
        ("frozen/frozen.pb", "graphdef", None),
    ],
)
def test_every_number_is_what_tensorflow_says(made: Path, path: str, format: str, expected: str | None) -> None:
    found = look(made / path)
    assert found.format == format
    mine = values(found)
    if expected is None:
        known = np.load(made / "frozen" / "frozen.npz")
        wanted = {name: known[name] for name in mine}
        assert {"part/part_0", "zeros", "tail", "ints", "halves"} <= set(mine)
    else:
        known = np.load(made / expected)
        wanted = {name: known[name] for name in known}
    equal(mine, wanted)
    if format == "tensorflow-v1":
        assert {"complex", "bytes", "part", "wide"} <= set(mine)


def test_halves_in_the_first_version(made: Path) -> None:
    assert values(look(made / "first" / "half.ckpt"))["half"].tolist() == [0, 1, 2, 3, 4, 5]


def test_integers_of_four_bits_are_read_as_bytes(made: Path) -> None:
    mine, known = values(look(made / "narrow" / "model.index")), np.load(made / "narrow" / "model.npz")
    assert set(mine) == set(known)
    assert {array.dtype.name for name, array in mine.items() if name != "unsigned"} == {"int8"}
    assert mine["unsigned"].dtype == np.uint8
    for name in known:
        assert np.array_equal(mine[name], known[name]), name


def test_partitioned_variables_are_whole(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    refused = modelhub("convert", made / "names" / "model.ckpt-7.index", "--to", "safetensors", "-o", target, status=None)
    assert refused.returncode
    assert "words" in refused.stderr
    assert "string" in refused.stderr
    modelhub("convert", made / "names" / "model.ckpt-7.index", "--to", "safetensors", "-o", target, "--skip-unsupported")
    got, known = load_file(target), np.load(made / "names" / "model.ckpt-7.npz")
    weights = {name: known[name] for name in known if "Adam" not in name and "power" not in name}
    assert set(got) == set(weights)
    assert got["part"].shape == (10, 6)
    assert got["wide"].shape == (3, 300)
    equal(got, weights)


def test_optimizer_state_is_listed_and_not_the_models(made: Path) -> None:
    views = {tensor.name: tensor.view for tensor in look(made / "names" / "model.ckpt-7.index").load_table().tensors}
    assert views["large/Adam"] == views["scalar/Adam_1"] == views["beta1_power"] == "stored"
    assert views["global_step"] == views["large"] == "both"


def test_objects_have_their_variables_names(made: Path) -> None:
    found = look(made / "objects" / "ckpt-1.index")
    mine, known = values(found), np.load(made / "objects" / "ckpt-1.npz")
    equal({"a": mine["dense/kernel"]}, {"a": known["model/w/.ATTRIBUTES/VARIABLE_VALUE"]})
    assert mine["dense/bias"].dtype == np.float16
    assert mine["model/nameless/1/.ATTRIBUTES/VARIABLE_VALUE"] == 2
    assert "brain" in mine
    tensors = {tensor.name: tensor for tensor in found.load_table().tensors}
    assert tensors["brain"].dtype == "BF16"
    assert tensors["said/.ATTRIBUTES/VARIABLE_VALUE"].unsupported == "string tensor"
    assert tensors["save_counter"].view == "stored"
    assert {Path(name).name for name in found.files} == {"ckpt-1.index", "ckpt-1.data-00000-of-00001", "checkpoint"}


@pytest.mark.parametrize("path", ["keras/ckpt.index", "keras/other.index", "exported"])
def test_keras_models_have_the_models_own_names(made: Path, path: str) -> None:
    found = look(made / path)
    known = {
        f"sequential/{name}".replace("sequential/sequential/", "sequential/"): array
        for name, array in np.load(made / "keras.npz").items()
    }
    weights = {tensor.name: tensor for tensor in found.load_table().logical}
    assert set(weights) == set(known)
    for name, tensor in weights.items():
        assert read_tensor(tensor).tobytes() == known[name].tobytes(), name


def test_a_saved_model_is_one_checkpoint(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    shutil.copytree(made / "saved", tmp_path / "saved")
    modelhub("scan", tmp_path)
    (listed,) = modelhub("ls", "--json").json
    assert listed["format"] == "savedmodel"
    found = look(tmp_path / "saved")
    said = found.metadata
    assert said["tags"] == ["serve"]
    assert said["tensorflow_version"].startswith("2.")
    assert said["inputs"] == {"x": "float32[?, 3]", "word": "string[]"}
    assert said["outputs"] == {"y": "float32[?, 4]", "number": "int64[]"}
    assert "serving_default" in said["signatures"]
    assert said["operators"]["MatMul"] >= 1
    assert said["assets"] == 1
    assert not [finding for finding in found.findings if finding.severity in ("unsafe", "error")]
    mine, known = values(found), np.load(made / "saved.npz")
    equal({"w": mine["dense/kernel"]}, {"w": known["w/.ATTRIBUTES/VARIABLE_VALUE"]})
    checked = modelhub("verify", tmp_path / "saved", "--level", "values")
    assert checked.stdout.startswith("ok")


def test_a_numbered_version_is_called_after_its_model(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    shutil.copytree(made / "text", tmp_path / "words")
    (tmp_path / "words" / "3" / "tfhub_module.pb").write_bytes(b"\x08\x03")
    assert modelhub("scan", tmp_path, "--json").json["unknown"] == 0
    (listed,) = modelhub("ls", "--json").json
    assert (listed["name"], listed["state"]) == ("words/3", "ready")
    assert modelhub("show", "words/3", "--json").json["id"] == listed["id"]


def test_a_saved_model_of_the_first_tensorflow(made: Path) -> None:
    found = look(made / "simple")
    assert found.metadata["inputs"] == {"x": "float32[?, 6]"}
    assert "part" in values(found)


def test_operators_that_reach_out_are_unsafe(made: Path, modelhub: Modelhub) -> None:
    checked = modelhub("verify", made / "bad", status=None)
    assert checked.returncode
    for operator in ("ReadFile", "WriteFile", "PrintV2"):
        assert operator in checked.stdout
    assert "unsafe" in checked.stdout
    for honest in ("saved", "exported", "simple", "names/model.ckpt-7.index", "frozen/frozen.pb", "first/model.ckpt"):
        assert modelhub("verify", made / honest).returncode == 0


def test_basic_pitch_is_told_and_read(sample_drive: Path) -> None:
    place = sample_drive / "basic-pitch"
    if not place.is_dir():
        pytest.skip("basic-pitch is not in the sample drive")
    (model,) = place.rglob("saved_model.pb")
    found = look(model.parent)
    assert found.parameters == 16_864
    assert found.metadata["outputs"].keys() == {"contour", "note", "onset"}
    assert values(found)["conv2d_1/kernel"].shape == (3, 39, 8, 8)

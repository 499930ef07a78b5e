"""OpenVINO's IR, written by OpenVINO: tensors and their values, what `show` says, and files that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BUILD = """
import sys
import numpy as np
import openvino as ov
from openvino import opset13 as op

image = op.parameter([-1, 3, 8, 8], np.float32, name="image")
weight = op.constant(np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3), name="conv/weight")
convolved = op.convolution(image, weight, [1, 1], [1, 1], [1, 1], [1, 1], name="conv")
added = op.add(convolved, op.convert(op.constant(np.full((1, 4, 1, 1), 0.5, np.float16), name="bias"), "f32"), name="add")
packed = op.constant(ov.Tensor(np.array([0x21, 0xF3], np.uint8), [2, 2], ov.Type.i4), name="packed")
shape = op.constant(np.array([-1, 4], np.int64), name="shape")
out = op.result(op.reshape(added, shape, False), name="out")
numbers = op.result(op.convert(packed, "f32"), name="numbers")
model = ov.Model([out, numbers], [image], "tiny")
ov.save_model(model, sys.argv[1], compress_to_fp16=False)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as OpenVINO saves it."""
    directory = tmp_path_factory.mktemp("ir")
    command = [sys.executable, "-c", BUILD, str(directory / "tiny.xml")]
    subprocess.run(command, check=True, timeout=120)
    return directory / "tiny.xml"


def copy(source: Path, directory: Path, change: tuple[str, str] = ("", "")) -> Path:
    """The model again, with a change to its XML."""
    text = source.read_text()
    assert change[0] in text
    (directory / "tiny.xml").write_text(text.replace(*change) if change[0] else text)
    (directory / "tiny.bin").write_bytes(source.with_suffix(".bin").read_bytes())
    return directory / "tiny.xml"


def test_a_model_of_two_files_is_listed_and_shown(tiny: Path, tmp_path: Path, modelhub) -> None:
    path = copy(tiny, tmp_path)
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (1, 0)
    shown = modelhub("show", path, "--tensors", "--json").json
    assert (shown["format"], shown["state"], len(shown["files"])) == ("openvino", "ready", 2)
    tensors = {item["name"]: (item["dtype"], item["shape"]) for item in shown["tensors"]}
    assert tensors == {"conv/weight": ("F32", [4, 3, 3, 3]), "bias": ("F16", [1, 4, 1, 1]), "packed": ("I4", [2, 2])}
    said = shown["metadata"]
    assert (said["inputs"], said["ir_version"], said["constants"]) == ({"image": "f32[?, 3, 8, 8]"}, 11, 1)
    assert said["outputs"]["numbers"] == "f32[2, 2]"
    assert said["openvino_version"].startswith("20")
    assert modelhub("verify", path, "--level", "values", "--json").json[0]["ok"]
    # whichever of the two files is named, it is the same model
    assert Path(modelhub("show", path.with_suffix(".bin"), "--json").json["path"]).name == "tiny.xml"


def test_values_are_those_that_openvino_was_given(tiny: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", copy(tiny, tmp_path), "--to", "npz:f32", "--skip-unsupported", "-o", tmp_path / "tiny.npz")
    with np.load(tmp_path / "tiny.npz") as arrays:
        np.testing.assert_array_equal(arrays["conv/weight"], np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3))
        np.testing.assert_array_equal(arrays["bias"], np.full((1, 4, 1, 1), 0.5, np.float32))
        assert set(arrays) == {"conv/weight", "bias"}


def test_without_its_weights_it_is_incomplete(tiny: Path, tmp_path: Path, modelhub) -> None:
    path = copy(tiny, tmp_path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:100])
    short = modelhub("show", path, "--json", status=None).json
    assert short["state"] == "incomplete"
    weights.unlink()
    shown = modelhub("show", path, "--json", status=None).json
    assert (shown["state"], shown["reason"]) == ("incomplete", "missing: tiny.bin")


def test_custom_operators_are_reported(tiny: Path, tmp_path: Path, modelhub) -> None:
    old = 'name="conv" type="Convolution" version="opset1"'
    path = copy(tiny, tmp_path, (old, 'name="conv" type="MyConv" version="my_extension"'))
    assert modelhub("show", path, "--json").json["metadata"]["custom_operators"] == ["my_extension.MyConv"]
    (verified,) = modelhub("verify", path, "--json", status=None).json
    assert any("native code" in item["message"] for item in verified["findings"])


BAD = {
    "document type": ("<net ", '<!DOCTYPE net [<!ENTITY a "b">]>\n<net ', "document type"),
    "older": ('version="11"', 'version="7"', "IR version 7"),
    "negative": ('offset="2"', 'offset="-2"', "a number was expected"),
    "huge": ('offset="2"', 'offset="' + "9" * 30 + '"', "a number was expected"),
    "past the end": ('offset="2"', 'offset="99999"', "99999"),
    "another size": ('size="432"', 'size="436"', "432"),
    "cut": ("</layers>", "<layers>", "mismatched tag"),
    "deep": ("<edges>", "<a>" * 300 + "<edges>", "nest deeper"),
    "not numbers": ('shape="4, 3, 3, 3"', 'shape="4, 3, 3, three"', "a number was expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str, tiny: Path, tmp_path: Path, modelhub) -> None:
    old, new, reason = BAD[name]
    shown = modelhub("show", copy(tiny, tmp_path, (old, new)), "--json", status=None).json
    assert shown["state"] in ("invalid", "unsupported", "incomplete")
    assert reason in shown["reason"]


def test_other_xml_is_left_alone(tmp_path: Path, modelhub) -> None:
    (tmp_path / "page.xml").write_text("<?xml version='1.0'?>\n<html><layers/></html>")
    (tmp_path / "net.xml").write_text("<net version='1'><stations/></net>")
    (tmp_path / "page.bin").write_bytes(bytes(100))
    assert modelhub("scan", tmp_path, "--json").json["found"] == 0

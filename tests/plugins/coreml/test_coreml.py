"""Core ML: a real package, as coremltools wrote it, and what damage to it comes to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing
from modelhub.files import list_directory

from tests.made import made_once

PLACE = Path("Data/com.apple.CoreML")


@pytest.fixture
def package(sample_drive: Path, tmp_path: Path) -> Path:
    """basic-pitch's, to be damaged."""
    source = sample_drive / "basic-pitch/saved_models/icassp_2022/nmp.mlpackage"
    return Path(shutil.copytree(source, tmp_path / "nmp.mlpackage"))


def test_a_package_is_one_model(package: Path, modelhub) -> None:
    summary = modelhub("scan", package.parent, "--json").json
    assert (summary["found"], summary["unknown"]) == (1, 0)
    shown = modelhub("show", package, "--tensors", "--json").json
    assert (shown["format"], shown["state"], shown["name"], len(shown["files"])) == ("coreml", "ready", "nmp", 3)
    said = shown["metadata"]
    assert (said["specification_version"], said["model_type"], said["opsets"]) == (6, "ML program", ["CoreML5"])
    assert said["inputs"] == {"input_2": "float32[1, 43844, 1]"}
    # the header of the weights says how many there are
    weights = (package / PLACE / "weights/weight.bin").read_bytes()
    assert len(shown["tensors"]) == int.from_bytes(weights[:4], "little")
    assert modelhub("verify", package, "--level", "values", "--json").json[0]["ok"]


def test_weights_are_those_of_the_same_model_in_onnx(package: Path, sample_drive: Path, tmp_path: Path, modelhub) -> None:
    onnx = pytest.importorskip("onnx")
    modelhub("convert", package, "--to", "npz", "-o", tmp_path / "nmp.npz")
    graph = onnx.load(sample_drive / "basic-pitch/saved_models/icassp_2022/nmp.onnx").graph
    others = [onnx.numpy_helper.to_array(item) for item in graph.initializer]
    with np.load(tmp_path / "nmp.npz") as arrays:
        for name in ("conv_1_weight_0", "conv_0_weight_0", "transpose_63"):
            array = arrays[name]
            assert any(other.shape == array.shape and np.allclose(other, array, atol=1e-6) for other in others), name


def test_a_single_model_says_what_it_is(tmp_path: Path, modelhub) -> None:
    card = b"\x1a\x02me" + b"\x22\x03MIT"
    description = b"\xa2\x06" + bytes([len(card)]) + card
    (tmp_path / "trees.mlmodel").write_bytes(b"\x08\x01\x12" + bytes([len(description)]) + description + b"\x92\x19\x00")
    shown = modelhub("show", tmp_path / "trees.mlmodel", "--json").json
    said = shown["metadata"]
    assert (said["author"], said["license"], said["model_type"]) == ("me", "MIT", "tree ensemble classifier")


PROGRAMS = {
    "plain": ("F32", ""),
    "linear8": ("INT8", "INT8"),
    "blocks4": ("INT4", "INT4"),
    "signed4": ("INT4", "INT4"),
    "palette3": ("LUT3", "LUT3"),
    "groups4": ("LUT4", "LUT4"),
    "sparse": ("F32", "sparse"),
    "sparse_palette": ("F32", "sparse"),
    "sparse_linear": ("F32", "sparse"),
    "older_linear": ("INT8", "INT8"),
    "older_palette": ("LUT6", "LUT6"),
    "older_sparse": ("F16", "sparse"),
}


@pytest.fixture(scope="session")
def made() -> Path:
    """Models that coremltools wrote, and the weights that it reads in them."""
    return made_once(Path(__file__).with_name("coreml_files.py"), "coreml")


@pytest.mark.parametrize("name", PROGRAMS)
def test_compressed_constants_are_what_coremltools_decompresses(name: str, made: Path, tmp_path: Path, modelhub) -> None:
    precision, how = PROGRAMS[name]
    shown = modelhub("show", made / f"{name}.mlpackage", "--json").json
    assert (shown["precision"], shown["parameters"]) == (precision, 96 * 64 + 96 + 32 * 96 + 32)
    assert shown["metadata"].get("compressed_parameters", {}) == ({how: 96 * 64 + 32 * 96} if how else {})
    done = modelhub("convert", made / f"{name}.mlpackage", "--to", "npz", "-o", tmp_path / "all.npz")
    assert "left behind" not in done.stdout + done.stderr
    with np.load(tmp_path / "all.npz") as arrays, np.load(made / f"{name}.npz") as told:
        assert set(arrays) <= set(told)  # coremltools makes constants of an operator's arguments as well
        for tensor in arrays:
            assert (arrays[tensor].dtype, arrays[tensor].shape) == (told[tensor].dtype, told[tensor].shape)
            np.testing.assert_array_equal(arrays[tensor], told[tensor], err_msg=tensor)


def test_tables_of_vectors_and_constants_of_constants(made: Path, tmp_path: Path, modelhub) -> None:
    shown = modelhub("show", made / "vectors.mlpackage", "--json").json
    sizes = {"LUT3": 96 * 64, "LUT2": 32 * 96, "sparse": 16 * 32, "LUT4": 8 * 16 + 8 * 8}
    assert shown["metadata"]["compressed_parameters"] == sizes
    assert shown["parameters"] == sum(sizes.values()) + 96 + 32 + 16
    modelhub("convert", made / "vectors.mlpackage", "--to", "npz", "-o", tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as arrays, np.load(made / "vectors.npz") as told:
        assert set(arrays) == set(told)
        for tensor in told:
            assert (arrays[tensor].dtype, arrays[tensor].shape) == (told[tensor].dtype, told[tensor].shape), tensor
            np.testing.assert_array_equal(arrays[tensor], told[tensor], err_msg=tensor)


@pytest.mark.parametrize(
    ("name", "precision"), [("network", "F32"), ("half", "F16"), ("network8", "INT8"), ("network3", "INT3"), ("table4", "LUT4")]
)
def test_weights_of_networks(name: str, precision: str, made: Path, tmp_path: Path, modelhub) -> None:
    shown = modelhub("show", made / f"{name}.mlmodel", "--json").json
    assert (shown["state"], shown["precision"], shown["metadata"]["operators"]["convolution"]) == ("ready", precision, 2)
    modelhub("convert", made / f"{name}.mlmodel", "--to", "npz", "-o", tmp_path / "all.npz")
    shapes = {"conv/weights": (4, 3, 3, 3), "deconv/weights": (4, 2, 2, 2), "fc/weights": (6, 512), "embed/weights": (5, 10)}
    shapes |= {"lstm/inputGateWeightMatrix": (7, 5), "both/backward/outputGateRecursionMatrix": (7, 7)}
    with np.load(tmp_path / "all.npz") as arrays, np.load(made / f"{name}.npz") as told:
        assert set(arrays) == set(told)
        for tensor in told:
            np.testing.assert_array_equal(arrays[tensor].reshape(-1), told[tensor], err_msg=tensor)
            assert arrays[tensor].shape == shapes.get(tensor, arrays[tensor].shape), tensor


def test_a_pipeline_says_what_it_is_made_of(made: Path, modelhub) -> None:
    shown = modelhub("show", made / "pipeline.mlmodel", "--tensors", "--json").json
    assert (shown["metadata"]["model_type"], shown["metadata"]["components"]) == ("pipeline", ["model0: neural network"])
    assert "model0/conv/weights" in {item["name"] for item in shown["tensors"]}


@pytest.mark.parametrize("seed", range(40))
def test_damaged_networks_are_refused_or_read(seed: int, made: Path, tmp_path: Path, modelhub) -> None:
    random = np.random.default_rng(seed)
    data = bytearray((made / ("network3.mlmodel" if seed % 2 else "pipeline.mlmodel")).read_bytes())
    for at in random.integers(0, len(data), 6):
        data[at] = random.integers(0, 256)
    (tmp_path / "n.mlmodel").write_bytes(data)
    found = inspect_listing(list_directory(str(tmp_path)), plugins.get().formats)
    assert all(one.state in ("ready", "invalid", "unsupported", "incomplete") for one in found.found)
    assert not any(finding.check == "plugin" for one in found.found for finding in one.findings)


def patch(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def manifest(package: Path, path: str) -> None:
    said = json.loads((package / "Manifest.json").read_text())
    said["itemInfoEntries"][said["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(said))


MODEL, WEIGHTS = PLACE / "model.mlmodel", PLACE / "weights/weight.bin"
BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no weights": (lambda at: shutil.rmtree(at / PLACE / "weights"), "incomplete", "weights"),
    "no model": (lambda at: (at / MODEL).unlink(), "incomplete", "model.mlmodel"),
    "cut weights": (lambda at: patch(at / WEIGHTS, lambda data: data[:1000]), "incomplete", "weight.bin"),
    "cut model": (lambda at: patch(at / MODEL, lambda data: data[:5000]), "incomplete", "model.mlmodel"),
    "no record": (lambda at: patch(at / WEIGHTS, lambda data: data[:64] + bytes(4) + data[68:]), "invalid", "0xdeadbeef"),
    "past the end": (
        lambda at: patch(at / WEIGHTS, lambda data: data[:80] + (1 << 60).to_bytes(8, "little") + data[88:]),
        "incomplete",
        "weight.bin",
    ),
    "another size": (lambda at: patch(at / WEIGHTS, lambda data: data[:72] + b"\4" + data[73:]), "invalid", "1236"),
    "another version": (lambda at: patch(at / WEIGHTS, lambda data: data[:4] + b"\1" + data[5:]), "unsupported", "version 1"),
    "weights elsewhere": (
        lambda at: patch(at / MODEL, lambda data: data.replace(b"@model_path/weights/", b"@model_path/../a/../")),
        "invalid",
        "none of the package's files",
    ),
    "model elsewhere": (lambda at: manifest(at, "../../x.mlmodel"), "invalid", "inside of the package"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_packages(name: str, package: Path, modelhub) -> None:
    damage, state, reason = BAD[name]
    damage(package)
    shown = modelhub("show", package, "--json", status=None).json
    assert shown["state"] == state, shown["reason"]
    assert reason in shown["reason"]


def test_other_manifests_are_left_alone(tmp_path: Path, modelhub) -> None:
    (tmp_path / "Manifest.json").write_text('{"name": "an app"}')
    (tmp_path / "other.mlmodel").write_text("hello")
    assert modelhub("scan", tmp_path, "--json").json["found"] == 0

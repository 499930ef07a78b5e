"""Models that are wrong get a reason, and nothing that they name is opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing
from modelhub.engine import read_tensor
from modelhub.files import list_directory
from modelhub.found import Found
from onnx import helper, numpy_helper

from tests.conftest import Modelhub
from tests.corpus.onnx_bad import BAD, W
from tests.plugins.onnx_files import external, model_of, perceptron, save


def look(directory: Path) -> Found:
    found = inspect_listing(list_directory(str(directory)), plugins.get().formats).found
    return next(item for item in found if item.path.endswith("model.onnx"))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_gets_its_reason(tmp_path: Path, name: str) -> None:
    make, state, reason = BAD[name]
    directory = tmp_path / "models"
    directory.mkdir()
    make(directory)
    started = time.perf_counter()
    found = look(directory)
    assert time.perf_counter() - started < 2
    assert (found.format, found.state) == ("onnx", state), found.reason
    assert reason in found.reason
    assert not [finding for finding in found.findings if finding.check == "plugin"]


def test_links_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    """A snapshot's files are links to blobs, all in one directory; the model's own link says which."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "111").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    save(model_of(initializers=[external(W, "model.onnx_data", 0, 64)]), blobs / "222")
    (snapshot / "model.onnx").symlink_to("../../blobs/222")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/111")
    found = look(snapshot)
    assert found.state == "ready", found.reason
    assert [os.path.basename(path) for path in found.files] == ["model.onnx", "model.onnx_data"]


def test_links_within_the_directory_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(64))
    (tmp_path / "w.bin").symlink_to("a.bin")
    os.link(tmp_path / "a.bin", tmp_path / "v.bin")
    save(model_of(initializers=[external(W, "w.bin"), external(numpy_helper.from_array(np.ones(4, "f4"), "v"), "v.bin")]),
         tmp_path / "model.onnx")  # fmt: skip
    assert look(tmp_path).state == "ready"


def test_custom_operators_are_reported(tmp_path: Path, modelhub: Modelhub) -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft"),
        helper.make_node("Spell", ["h"], ["y"], domain="org.sorcery"),
        helper.make_node("Words", ["h"], ["v"], domain="ai.onnx.contrib"),
        helper.make_node("Not", ["h"], ["u"], domain="com.microsoft.not"),
        helper.make_node("Mine", ["h"], ["z"], domain="my.own"),
    ]
    mine = helper.make_function(
        "my.own", "Mine", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    model = model_of(nodes, inputs={"x": [1]}, outputs={"y": [1]}, domains={"org.sorcery": 1, "com.microsoft": 1, "my.own": 1},
                     functions=[mine])  # fmt: skip
    path = save(model, tmp_path / "model.onnx")
    (report,) = modelhub("verify", path, "--level", "safety", "--json").json
    native = "running them takes a library of native code from whoever made the model"
    said = [(one["severity"], one["message"]) for one in report["findings"] if one["check"] == "onnx-operators"]
    assert said == [
        ("warning", "1 node of the domain 'ai.onnx.contrib': running them takes the library onnxruntime-extensions"),
        ("info", "1 node of the domain 'com.microsoft': onnxruntime runs them, other programs may not"),
        ("warning", f"1 node of the domain 'com.microsoft.not': {native}"),
        ("warning", f"1 node of the domain 'org.sorcery': {native}"),
    ]
    assert "my.own" not in str(said)
    domains = modelhub("show", path, "--json").json["metadata"]["custom_domains"]
    assert domains == ["ai.onnx.contrib", "com.microsoft", "com.microsoft.not", "org.sorcery"]


@pytest.mark.parametrize("seed", range(120))
def test_damaged_models_of_every_make(tmp_path: Path, seed: int) -> None:
    """Bytes broken anywhere in a model that has one of everything, or is quantized: a reason or a table, soon, and never an
    exception."""
    data = bytearray((_everything, _blocks, _integers)[seed % 3]())
    random = np.random.default_rng(seed)
    for _ in range(int(random.integers(1, 9))):
        data[int(random.integers(len(data)))] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
    (tmp_path / "model.onnx").write_bytes(data)
    started = time.perf_counter()
    found = look(tmp_path)
    assert time.perf_counter() - started < 2
    assert not [finding for finding in found.findings if finding.check == "plugin"], found.findings


def _everything() -> bytes:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=W)], "b", [], [helper.make_tensor_value_info("c", 1, [16])], [W]
    )
    model = perceptron(functions=[helper.make_function("m", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=W)],
                                                       [helper.make_opsetid("", 21)])])  # fmt: skip
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.initializer.append(external(numpy_helper.from_array(np.ones(4, "f4"), "far"), "far.bin", 0, 16))
    model.training_info.add().algorithm.CopyFrom(branch)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, "f4"), "thin"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5]), ""))
    sparse.dims.append(100)
    onnx.helper.set_model_props(model, {"author": "tests"})
    return model.SerializeToString()


def _blocks() -> bytes:
    """A product with a matrix of 64 x 8 in blocks of 32, four bits each, with zero points."""
    tensors = [
        numpy_helper.from_array(np.arange(256, dtype=np.uint8).reshape(8, 2, 16), "w_Q4"),
        numpy_helper.from_array(np.ones(16, np.float32), "w_scales"),
        numpy_helper.from_array(np.full(8, 0x88, np.uint8), "w_zero_points"),
    ]
    names = ["x", *(tensor.name for tensor in tensors)]
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", K=64, N=8, bits=4, block_size=32)
    return model_of([node], tensors, {"x": [1, 64]}, {"y": [1, 8]}, domains={"com.microsoft": 1}).SerializeToString()


def _integers() -> bytes:
    """Two matrices of integers, one with a scale for all and a zero point in typed data, one with a scale a column."""
    tensors = [
        numpy_helper.from_array(np.ones((8, 4), np.int8), "a"),
        numpy_helper.from_array(np.float32(0.5), "a_scale"),
        helper.make_tensor("a_zero", onnx.TensorProto.INT8, [], [-3]),
        numpy_helper.from_array(np.ones((8, 4), np.uint8), "b_quantized"),
        numpy_helper.from_array(np.ones(4, np.float32), "b_scale"),
        numpy_helper.from_array(np.full(4, 7, np.uint8), "b_zero_point"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "a_scale", "a_zero"], ["c"]),
        helper.make_node("DequantizeLinear", ["b_quantized", "b_scale", "b_zero_point"], ["d"], axis=-1),
    ]
    return model_of(nodes, tensors, outputs={"c": [8, 4], "d": [8, 4]}).SerializeToString()


@pytest.mark.parametrize(("make", "wanted"), [(_blocks, {"w"}), (_integers, {"a", "b"})])
def test_the_sound_ones_are_read_as_wholes(tmp_path: Path, make: Callable[[], bytes], wanted: set[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(make())
    table = look(tmp_path).load_table()
    assert set(table.by_name) == wanted
    if "a" in wanted:
        assert np.all(read_tensor(table.by_name["a"]).view("<f4") == 2.0)
        assert np.all(read_tensor(table.by_name["b"]).view("<f4") == -6.0)


def test_a_zero_point_that_is_computed_is_not_taken_for_none(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(_integers())
    model.graph.initializer.pop(2)
    model.graph.node.insert(0, helper.make_node("Identity", ["somewhere"], ["a_zero"]))
    save(model, tmp_path / "model.onnx")
    assert look(tmp_path).load_table().by_name["a"].dtype == "I8"


def test_a_quantized_weight_of_a_type_that_there_is_not(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.int8), "w")
    weight.data_type = 2**31 - 1
    scale = numpy_helper.from_array(np.float32(1), "s")
    save(model_of([helper.make_node("DequantizeLinear", ["w", "s"], ["y"])], [weight, scale]), tmp_path / "model.onnx")
    found = look(tmp_path)
    assert not [finding for finding in found.findings if finding.check == "plugin"], found.reason

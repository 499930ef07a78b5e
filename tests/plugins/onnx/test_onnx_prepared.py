"""Models as exporters write them are put as onnxruntime's quantizers expect them, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from modelhub_onnx import prepared
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Modelhub
from tests.plugins.onnx_files import model_of, save

RANDOM = np.random.default_rng(0)


def constant(name: str, *shape: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array(*shape), name))


def array(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("recipe", ["int4", "int8"])
def test_weights_in_nodes_of_their_own_are_quantized(tmp_path: Path, modelhub: Modelhub, recipe: str) -> None:
    """As Paddle's exporter has them, and in a branch."""
    branch = helper.make_graph(
        [constant("v", 64, 64), helper.make_node("MatMul", ["h", "v"], ["z"])], "b", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 64])],
    )  # fmt: skip
    nodes = [
        constant("w", 64, 64),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = model_of(nodes, [], {"x": ["n", 64]}, {"y": ["n", 64]})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    report = modelhub("convert", save(model, tmp_path / "m.onnx"), "--to", f"onnx:{recipe}", "--json").json
    assert report["compared"][0]["cosine"] > 0.95
    said = modelhub("show", report["output"], "--json").json["metadata"]
    operator = {"int4": "com.microsoft.MatMulNBits", "int8": "MatMulInteger"}[recipe]
    assert said["operators"][operator] == 3


def test_branches_whose_weights_have_one_name_are_halved(tmp_path: Path, modelhub: Modelhub) -> None:
    """Each computes with its own still, and with a bias from outside."""
    weights = {name: array(8, 8) for name in ("then", "else")}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["z"])], name, [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], [numpy_helper.from_array(values, "w")],
        )
        for name, values in weights.items()
    }  # fmt: skip
    bias = array(8)
    model = model_of(
        [helper.make_node("If", ["c"], ["y"], **branches)], [numpy_helper.from_array(bias, "b")], {"x": ["n", 8]}, {"y": ["n", 8]}
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    output = modelhub("convert", save(model, tmp_path / "m.onnx"), "--to", "onnx:fp16", "--json").json["output"]
    session, x = onnxruntime.InferenceSession(output), array(3, 8)
    for name, values in weights.items():
        (got,) = session.run(None, {"x": x, "c": np.array(name == "then")})
        np.testing.assert_allclose(got, x @ values + bias, atol=0.02)


def test_biases_that_several_operators_share(tmp_path: Path, modelhub: Modelhub) -> None:
    """A value is called as the copy would be that the quantizer makes of a bias; and a bias is a row."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"]),
        helper.make_node("Conv", ["c", "k", "b"], ["b0"]),
        helper.make_node("Conv", ["b0", "k", "b"], ["b1"]),
        helper.make_node("Flatten", ["b1"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "row"], ["y"]),
    ]
    weights = {"k": array(4, 4, 3, 3) / 6, "b": array(4), "w": array(16, 5), "row": array(1, 5)}
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    model = model_of(nodes, tensors, {"x": ["n", 4, 8, 8]}, {"y": ["n", 5]})
    path = save(model, tmp_path / "m.onnx")
    sample = array(2, 4, 8, 8)
    np.savez(tmp_path / "c.npz", x=sample)
    report = modelhub("convert", path, "--to", "onnx:int8-static", "--calibration", tmp_path / "c.npz", "--json").json
    assert report["compared"][0]["cosine"] > 0.99
    own = save(model, tmp_path / "own.onnx")
    prepared.own_biases(str(own))
    assert {tensor.name for tensor in onnx.load(own).graph.initializer} == {"k", "w", "c_bias", "b0_bias", "b1_bias", "y_bias"}
    before, after = (onnxruntime.InferenceSession(one).run(None, {"x": sample})[0] for one in (path, own))
    assert before.tobytes() == after.tobytes()

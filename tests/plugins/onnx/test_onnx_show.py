"""What ``show`` says of a model: where it is from, what it takes and gives, how it is quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.found import Found
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Modelhub
from tests.plugins.onnx_files import model_of, perceptron, save


def look(path: Path) -> Found:
    found = inspect_path(str(path), plugins.get().formats)
    assert found.state == "ready", found.reason
    return found


def test_what_show_says(tmp_path: Path, modelhub: Modelhub) -> None:
    model = perceptron(producer_version="1.2")
    onnx.helper.set_model_props(model, {"license": "mit", "author": "somebody"})
    shown = modelhub("show", save(model, tmp_path / "m.onnx"), "--json").json
    assert (shown["format"], shown["precision"], shown["parameters"]) == ("onnx", "F32", 2 * (32 * 32 + 32))
    said = shown["metadata"]
    assert said["producer"] == "tests 1.2"
    assert (said["opset"], said["ir_version"], said["graph"]) == (21, 10, "graph")
    assert said["inputs"] == {"x": "float32[batch, 32]"}
    assert said["outputs"] == {"y": "float32[batch, 32]"}
    assert said["operators"] == {"MatMul": 2, "Add": 2, "Relu": 2, "Identity": 1}
    assert "quantization" not in said


def test_inputs_that_are_no_plain_tensors(tmp_path: Path) -> None:
    """They say what is in them, as deep as it goes."""
    plain = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3])
    listed = helper.make_sequence_type_proto(plain)
    mapped = onnx.TypeProto()
    mapped.map_type.key_type = TensorProto.STRING
    mapped.map_type.value_type.CopyFrom(helper.make_tensor_type_proto(TensorProto.INT64, []))
    kinds = {
        "s": listed,
        "o": helper.make_optional_type_proto(listed),
        "m": mapped,
        "u": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        "x": helper.make_tensor_type_proto(TensorProto.INT4, [0, None]),
    }
    model = model_of(initializers=[numpy_helper.from_array(np.ones(2), "w")])
    model.graph.input.extend(helper.make_value_info(name, kind) for name, kind in kinds.items())
    assert look(save(model, tmp_path / "m.onnx")).metadata["inputs"] == {
        "s": "sequence(float32[n, 3])",
        "o": "optional(sequence(float32[n, 3]))",
        "m": "map(string, int64[])",
        "u": "float32",
        "x": "int4[0, ?]",
    }


def _quantized(producer: str, *, floats: bool) -> onnx.ModelProto:
    """A product whose weight is quantized on the way (as training toolkits export it), or stands there as integers."""
    weight = np.ones((8, 4), np.float32) if floats else np.ones((8, 4), np.int8)
    tensors = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.full(4, 0.5, np.float32), "scale"),
        numpy_helper.from_array(np.zeros(4, np.int8), "zero"),
        numpy_helper.from_array(np.float32(0.1), "x_scale"),
        numpy_helper.from_array(np.uint8(7), "x_zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq" if floats else "w", "scale", "zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    if floats:
        nodes.insert(2, helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["wq"], axis=1))
    model = model_of(nodes, tensors, {"x": [2, 8]}, {"y": [2, 4]})
    model.producer_name = producer
    return model


@pytest.mark.parametrize(
    ("producer", "floats", "made"),
    [("pytorch", True, "quantization-aware"), ("onnx.quantize", True, "post-training"), ("onnx.quantize", False, "post-training"),
     ("tf2onnx", False, "unknown")],
)  # fmt: skip
def test_how_a_model_is_quantized_is_told(tmp_path: Path, producer: str, floats: bool, made: str) -> None:
    found = look(save(_quantized(producer, floats=floats), tmp_path / "m.onnx"))
    assert found.precision == "INT8"
    assert found.metadata["quantization"] == {
        "scheme": "QDQ", "made": made, "weights": "INT8", "quantized_parameters": 32, "per_channel": True, "activations": "UINT8",
    }  # fmt: skip

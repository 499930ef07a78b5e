"""Small ONNX models, made with the onnx library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def model_of(
    nodes: Sequence[onnx.NodeProto] = (),
    initializers: Sequence[onnx.TensorProto] = (),
    inputs: Mapping[str, Sequence[int | str | None]] | None = None,
    outputs: Mapping[str, Sequence[int | str | None]] | None = None,
    *,
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """A model of F32 inputs and outputs."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (inputs or {}).items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (outputs or {}).items()],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=10, **more)


def perceptron(layers: int = 2, width: int = 32, seed: int = 0, **more: Any) -> onnx.ModelProto:
    """Matrices, biases and ReLU one behind the other; rows of ``x`` are a batch of any size."""
    random = np.random.default_rng(seed)
    nodes, initializers = [], []
    name = "x"
    for layer in range(layers):
        weight = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        initializers += [
            numpy_helper.from_array(weight, f"layers.{layer}.weight"),
            numpy_helper.from_array(random.standard_normal(width).astype(np.float32), f"layers.{layer}.bias"),
        ]
        nodes += [
            helper.make_node("MatMul", [name, f"layers.{layer}.weight"], [f"m{layer}"], name=f"matmul_{layer}"),
            helper.make_node("Add", [f"m{layer}", f"layers.{layer}.bias"], [f"a{layer}"], name=f"add_{layer}"),
            helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"], name=f"relu_{layer}"),
        ]
        name = f"r{layer}"
    nodes.append(helper.make_node("Identity", [name], ["y"], name="last"))
    return model_of(nodes, initializers, {"x": ["batch", width]}, {"y": ["batch", width]}, **more)


def weights(arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A model of nothing but initializers."""
    return model_of(initializers=[numpy_helper.from_array(array, name) for name, array in arrays.items()])


def external(tensor: onnx.TensorProto, location: str, offset: object = None, length: object = None) -> onnx.TensorProto:
    """The tensor as one whose bytes are in another file."""
    made = onnx.TensorProto()
    made.CopyFrom(tensor)
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    return made


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path

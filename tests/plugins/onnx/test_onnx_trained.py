"""Weights that are floats and are quantized on the way (quantization-aware training): what onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Modelhub

CASES = {  # integers, axis (None: one scale), whether there is a zero point
    "per tensor": (np.int8, None, True),
    "per channel": (np.int8, 0, True),
    "from the end": (np.uint8, -1, True),
    "no zero point": (np.uint8, None, False),
    "sixteen bits": (np.int16, 1, True),
}


@pytest.mark.parametrize("nodes_of_their_own", [False, True], ids=["initializers", "constants"])
@pytest.mark.parametrize("case", CASES)
def test_they_lie_on_their_own_grid(case: str, nodes_of_their_own: bool, tmp_path: Path, modelhub: Modelhub) -> None:
    """Scales and zero points are initializers, or stand in nodes of their own, as torch's older exporter writes them."""
    integers, axis, zeros = CASES[case]
    random = np.random.default_rng(0)
    weight = random.standard_normal((6, 8)).astype(np.float32)
    sides = [] if axis is None else [weight.shape[axis]]
    scale = (random.random(sides) * 0.01 + 0.01).astype(np.float32)
    weight.reshape(-1)[:2] = [9e9, -0.5 * np.float32(scale.reshape(-1)[0])]  # out of range; a tie
    parts = {"weight": weight, "scale": np.asarray(scale)}
    if zeros:
        parts["zero"] = random.integers(-3 if integers != np.uint8 else 0, 4, sides).astype(integers)
    names = list(parts)
    axes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", names, ["q"], **axes),
        helper.make_node("DequantizeLinear", ["q", *names[1:]], ["y"], **axes),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in parts.items()]
    if nodes_of_their_own:
        nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in tensors[1:]] + nodes
        del tensors[1:]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, weight.shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    shown = modelhub("show", tmp_path / "m.onnx", "--json").json
    assert shown["parameters"] == weight.size
    assert shown["metadata"]["quantization"]["made"] == "quantization-aware"
    modelhub("convert", tmp_path / "m.onnx", "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    modelhub("convert", tmp_path / "m.onnx", "--to", "npz", "-o", tmp_path / "m.npz")
    (want,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {})
    with np.load(tmp_path / "m.npz") as arrays:
        assert set(arrays) == {"weight"}
        assert arrays["weight"].tobytes() == want.tobytes()
    assert not np.array_equal(want, weight)

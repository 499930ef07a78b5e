"""Weights behind a ``DequantizeLinear`` of the newer kinds: what onnx's own evaluator makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.conftest import Modelhub

KINDS = {"i4": (TensorProto.INT4, -8, 8), "u4": (TensorProto.UINT4, 0, 16), "i8": (TensorProto.INT8, -128, 128)}
CASES = {  # kind, shape, axis, block, zero points, the scales' type
    "blocks of rows": ("i4", (64, 6), 0, 16, False, np.float32),
    "blocks of columns": ("u4", (5, 32), 1, 8, True, np.float32),
    "a last block that is shorter": ("i8", (7, 20), 1, 8, True, np.float32),
    "from the end": ("i8", (3, 4, 16), -1, 4, False, np.float32),
    "four bits per channel": ("u4", (5, 6), 1, 0, True, np.float32),
    "four bits, one scale": ("i4", (8, 5), 1, 0, False, np.float32),
    "half precision": ("i4", (8, 32), 1, 16, False, np.float16),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_onnx_says(case: str, tmp_path: Path, modelhub: Modelhub) -> None:
    kind, shape, axis, block, zeros, dtype = CASES[case]
    element, low, high = KINDS[kind]
    random = np.random.default_rng(0)
    sides = [-(-side // block) if at == axis % len(shape) and block else side for at, side in enumerate(shape)]
    if not block:
        sides = [shape[axis]] if zeros else []
    scale = (random.random(sides) + 0.1).astype(dtype)
    values = random.integers(low, high, shape)
    parts = [
        helper.make_tensor("weight", element, shape, values.reshape(-1)),
        numpy_helper.from_array(np.asarray(scale), "scale"),
    ]
    if zeros:
        parts.append(helper.make_tensor("zero", element, sides, random.integers(low, high, sides).reshape(-1)))
    node = helper.make_node("DequantizeLinear", [part.name for part in parts], ["y"], axis=axis, block_size=block)
    out = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
    graph = helper.make_graph([node], "g", [], [out], parts)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    shown = modelhub("show", tmp_path / "m.onnx", "--json").json
    assert (shown["parameters"], shown["precision"]) == (np.prod(shape), "INT8" if kind == "i8" else "INT4")
    modelhub("convert", tmp_path / "m.onnx", "--to", "npz", "--skip-unsupported", "-o", tmp_path / "m.npz")
    (want,) = ReferenceEvaluator(model).run(None, {})
    with np.load(tmp_path / "m.npz") as arrays:
        assert set(arrays) == {"weight"}
        tolerance = {"rtol": 1e-3} if dtype == np.float16 else {"rtol": 1e-6}  # the evaluator multiplies in the scales' type
        np.testing.assert_allclose(arrays["weight"], want.astype(np.float32), **tolerance)

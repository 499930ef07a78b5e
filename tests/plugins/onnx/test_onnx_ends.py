"""Nodes that end alike, from their operator on: looked at once, counted each time, in one model and from one to the next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from modelhub import File
from modelhub_onnx import graph
from modelhub_onnx.model import Model
from onnx import helper, numpy_helper

from tests.plugins.onnx_files import model_of


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def nodes(layer: int) -> list[bytes]:
    shape = numpy_helper.from_array(np.array([1, 2], np.int64), "shape")
    made = [
        helper.make_node("Gemm", [f"x{layer}", "w"], [f"g{layer}"], name=f"gemm{layer}", alpha=0.5, transB=1),
        helper.make_node("Gemm", [f"x{layer}", "w"], [f"g{layer}"], name=f"gemm{layer}", alpha=0.25, transB=1),
        helper.make_node("Constant", [], [f"c{layer}"], value=shape),
        helper.make_node("Mine", [f"c{layer}"], [f"m{layer}"], domain="com.example"),
        helper.make_node("Mine", [f"c{layer}"], [f"m{layer}"]),
        helper.make_node("DequantizeLinear", ["q", "s"], [f"d{layer}"], name=f"d{layer}"),
        helper.make_node("Relu", [f"m{layer}"], [f"y{layer}"], doc_string=f"layer {layer}"),
    ]
    # Fields in another order than the library's: all that may stand before the operator, and a second domain behind it.
    odd = [
        onnx.NodeProto(attribute=made[2].attribute, output=[f"o{layer}"]).SerializeToString()
        + onnx.NodeProto(op_type="Constant").SerializeToString(),
        onnx.NodeProto(domain="com.example").SerializeToString() + onnx.NodeProto(op_type="Mine").SerializeToString(),
        onnx.NodeProto(op_type="Mine", domain="a").SerializeToString() + onnx.NodeProto(domain="com.example").SerializeToString(),
        onnx.NodeProto(op_type="Relu").SerializeToString() + onnx.NodeProto(op_type="Mine", input=["x"]).SerializeToString(),
    ]
    return [*(node.SerializeToString() for node in made), *odd]


def read(path: Path) -> Model:
    with File(str(path)) as file:
        return graph.parse(file)


def test_nodes_that_end_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(b"\x0a" + varint(len(node)) + node for layer in range(3) for node in nodes(layer))
    model = model_of()
    model.ClearField("graph")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString() + b"\x3a" + varint(len(data)) + data)
    loaded = onnx.load(path)
    expected = Counter((node.domain, node.op_type) for node in loaded.graph.node)
    assert len(loaded.graph.node) == 33

    ends, plain = {}, {}
    monkeypatch.setattr(graph, "_ends", ends)
    monkeypatch.setattr(graph, "_plain", plain)
    cold = read(path)
    assert any(b"Gemm" in text for text in ends)
    assert not any(b"DequantizeLinear" in text for text in ends)
    known = dict(ends)
    warm = read(path)
    assert ends == known
    monkeypatch.setattr(graph, "MAX_REMEMBERED", 0)
    for found in (cold, warm, read(path)):
        assert found.operators == expected
        assert found.constants == 6
        assert [use.operator for use in found.uses] == ["DequantizeLinear"] * 3

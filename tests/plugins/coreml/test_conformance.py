"""Core ML's neural networks, as coremltools' own messages say them, against the conformance kit."""

from __future__ import annotations

import sys
import types
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from modelhub.testing import FormatConformance


@pytest.fixture(scope="module")
def messages() -> Any:
    """``coremltools.proto.Model_pb2`` by itself: all of coremltools takes many seconds to import."""
    before = {name for name in sys.modules if name.partition(".")[0] == "coremltools"}
    assert not before, "coremltools is imported already: then take it from there"
    found = find_spec("coremltools")
    assert found is not None
    package = types.ModuleType("coremltools")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["coremltools"] = package
    try:
        return import_module("coremltools.proto.Model_pb2")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "coremltools"]:
            del sys.modules[name]


class TestCoreML(FormatConformance):
    format = "coreml"
    library_dtypes = ("F32",)
    directory = scalars = empty = False

    @pytest.fixture(autouse=True)
    def _messages(self, messages: Any) -> None:
        self.messages = messages

    def named(self, name: str) -> str:
        return f"{name}/data"

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        model = self.messages.Model(specificationVersion=4)
        model.description.output.add(name="out").type.multiArrayType.dataType = 65568  # FLOAT32
        for name, array in tensors.items():
            layer = model.neuralNetwork.layers.add(name=name, output=["out"])
            layer.loadConstantND.shape.extend(array.shape)
            layer.loadConstantND.data.floatValue.extend(array.reshape(-1).tolist())
        path.write_bytes(model.SerializeToString())

"""TensorFlow's files pass the conformance kit: TensorFlow writes them, and opens the checkpoints that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelhub.testing import FormatConformance


class Library(FormatConformance):
    @pytest.fixture(autouse=True)
    def _library(self, tensorflow: Any) -> None:
        self.library = tensorflow


class TestTensorFlow(Library):
    format = "tensorflow"
    library_dtypes = ("F32", "F64", "I32", "U8", "I16", "I8", "C64", "I64", "BOOL", "U16", "C128", "F16", "U32", "U64")

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        self.library.save(str(path).removesuffix(".index"), tensors)

    def read(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = self.library.load(str(path).removesuffix(".index"))
        return found


class TestFirstVersion(Library):
    format = "tensorflow-v1"
    library_dtypes = ("F32", "F64", "I32", "U8", "I16", "I8", "C64", "I64", "BOOL", "F16")

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        self.library.save(path, tensors, "save_first")


class TestSavedModel(Library):
    format = "savedmodel"
    directory = True
    library_dtypes = TestTensorFlow.library_dtypes

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        self.library.save(path, tensors, "save_model")


class TestGraph(Library):
    format = "graphdef"
    library_dtypes = ("F32", "F64", "C64", "C128", "F16")
    scalars = empty = False

    def possible(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """One number is the graph's arithmetic, and no tensor."""
        return {name: array for name, array in super().possible(tensors).items() if array.size > 1}

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        self.library.save(path, tensors, "save_graph")

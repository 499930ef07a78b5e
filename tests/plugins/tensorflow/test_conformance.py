"""TensorFlow's checkpoints pass the conformance kit: TensorFlow writes them, and opens what is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelhub.testing import FormatConformance


class TestTensorFlow(FormatConformance):
    format = "tensorflow"
    library_dtypes = ("F32", "F64", "I32", "U8", "I16", "I8", "C64", "I64", "BOOL", "U16", "C128", "F16", "U32", "U64")

    @pytest.fixture(autouse=True)
    def _library(self, tensorflow: Any) -> None:
        self.library = tensorflow

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        self.library.save(str(path).removesuffix(".index"), tensors)

    def read(self, path: Path) -> dict[str, Any]:
        return self.library.load(str(path).removesuffix(".index"))

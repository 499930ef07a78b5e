"""TensorFlow's checkpoints pass the conformance kit: TensorFlow writes them, and opens what is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub.testing import FormatConformance
from safetensors.numpy import save_file

from tests.conftest import Modelhub


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


def test_tensorflow_restores_what_was_written_by_the_names_of_variables(
    tensorflow: Any, modelhub: Modelhub, tmp_path: Path
) -> None:
    """There is no graph of objects in what is written here: ``tf.train.Checkpoint.read`` then goes by names."""
    arrays = {"dense/kernel": np.arange(12, dtype="f4").reshape(3, 4), "dense/bias": np.ones(4, "f2")}
    save_file(arrays, tmp_path / "in.safetensors")
    modelhub("convert", tmp_path / "in.safetensors", "--to", "tensorflow", "-o", tmp_path / "out.index")
    found = tensorflow.restore(str(tmp_path / "out"), arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())

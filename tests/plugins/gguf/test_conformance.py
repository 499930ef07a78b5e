"""GGUF against the conformance kit, gguf-py being the outside truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from modelhub.testing import FormatConformance
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def write_gguf(path: Path, tensors: Mapping[str, NDArray[Any]], **options: Any) -> None:
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("A model")
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array).reshape(array.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> Arrays:
    return {
        tensor.name: np.array(tensor.data).reshape([int(side) for side in reversed(tensor.shape)])
        for tensor in gguf.GGUFReader(path).tensors
    }


class TestGguf(FormatConformance):
    format = "gguf"
    library_dtypes = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")

    def write(self, path: Path, tensors: Arrays) -> None:
        write_gguf(path, tensors)

    def read(self, path: Path) -> Arrays:
        return read_gguf(path)


class TestBigEndian(FormatConformance):
    """The same, of files as a big-endian machine writes them."""

    format = "gguf"
    library_dtypes = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")

    def write(self, path: Path, tensors: Arrays) -> None:
        write_gguf(path, tensors, endianess=gguf.GGUFEndian.BIG)

    def read(self, path: Path) -> Arrays:
        return read_gguf(path)

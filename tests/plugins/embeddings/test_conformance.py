"""Files of fastText and word2vec, laid out as their libraries publish it, against the conformance kit. What the libraries
themselves wrote is in ``test_embeddings``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from modelhub.testing import FormatConformance


class Matrices(FormatConformance):
    """Formats with matrices of float32, whose names are fixed."""

    library_dtypes = ("F32",)
    names: tuple[str, ...] = ()

    def possible(self, tensors: dict[str, Any]) -> dict[str, Any]:
        found = [array for array in tensors.values() if array.ndim == 2 and array.size and array.dtype == np.float32]
        return dict(zip(self.names, found, strict=False)) if len(found) >= len(self.names) else {}

    def named(self, name: str) -> str:
        return name


def words(count: int) -> list[bytes]:
    return [f"wörd{number}".encode() for number in range(count)]


class TestWord2vec(Matrices):
    """``word2vec.c``, binary: the number of words and the length of a vector, then each word, a space, its vector, a newline."""

    format = "word2vec"
    names = ("vectors",)

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        vectors = tensors["vectors"]
        rows = b"".join(
            word + b" " + row.tobytes() + b"\n"
            for word, row in zip(words(len(vectors)), np.ascontiguousarray(vectors), strict=True)
        )
        path.write_bytes(b"%d %d\n" % vectors.shape + rows)


class TestWord2vecText(Matrices):
    """The same in text."""

    format = "word2vec"
    names = ("vectors",)

    def possible(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: np.nan_to_num(array, posinf=1.5, neginf=-2.5) for name, array in super().possible(tensors).items()}

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        vectors = tensors["vectors"]
        rows = (
            word + b" " + " ".join(map(repr, row)).encode()
            for word, row in zip(words(len(vectors)), vectors.tolist(), strict=True)
        )
        path.write_bytes(b"%d %d\n" % vectors.shape + b"\n".join(rows) + b"\n")


class TestFasttext(Matrices):
    """``FastText::saveModel``: arguments, the dictionary, the input matrix, the output matrix."""

    format = "fasttext"
    names = ("input", "output")

    def possible(self, tensors: dict[str, Any]) -> dict[str, Any]:
        found = super().possible({**tensors, **{f"{name}/": array for name, array in tensors.items()}})
        return found and {"input": found["input"], "output": np.ascontiguousarray(found["input"][::-1])}

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        rows, dim = tensors["input"].shape
        arguments = (dim, 5, 5, 1, 5, 1, 2, 2, 0, 0, 0, 100)  # negative sampling, skipgram, no pieces of words
        data = struct.pack("<2i12id", 793712314, 12, *arguments, 1e-4)
        data += struct.pack("<3i2q", rows, rows, 0, rows, -1)
        data += b"".join(word + b"\0" + struct.pack("<qb", 1, 0) for word in words(rows))
        for name in self.names:
            data += struct.pack("<?2q", False, *tensors[name].shape) + np.ascontiguousarray(tensors[name]).tobytes()
        path.write_bytes(data)

"""Orbax's containers as TensorStore writes them, against the conformance kit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub.testing import FormatConformance

Arrays = dict[str, Any]
tensorstore = pytest.importorskip("tensorstore")


def tree(names: list[str]) -> str:
    """A ``_METADATA`` as Orbax writes it for a flat dictionary."""
    leaves: dict[str, Any] = {
        f"({name!r},)": {
            "key_metadata": [{"key": name, "key_type": 2}],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
        for name in names
    }
    return json.dumps({"tree_metadata": leaves, "use_ocdbt": True, "use_zarr3": False})


def save(path: Path, tensors: Arrays, driver: str = "zarr", chunk: int = 0) -> None:
    """All arrays into one database, compressed as Orbax asks for."""
    path.mkdir()
    context = tensorstore.Context()
    writes = []
    for name, array in tensors.items():
        metadata: dict[str, Any] = {"compressor": {"id": "zstd", "level": 1}} if driver == "zarr" else {}
        if chunk:
            metadata["chunks"] = [min(chunk, side) or 1 for side in array.shape]
        kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": name + "/"}
        spec = {"driver": driver, "kvstore": kvstore, "metadata": metadata, "create": True}
        opening = tensorstore.open(spec, dtype=array.dtype, shape=array.shape, context=context)
        writes.append((opening, np.ascontiguousarray(array).reshape(array.shape)))
    for write in [opening.result().write(array) for opening, array in writes]:
        write.result()
    (path / "_METADATA").write_text(tree(list(tensors)))


class TestOrbax(FormatConformance):
    format = "orbax"

    def write(self, path: Path, tensors: Arrays) -> None:
        save(path, tensors, chunk=3 if max(array.size for array in tensors.values()) < 1 << 16 else 1 << 20)


class TestOrbaxZarr3(FormatConformance):
    format = "orbax"

    def write(self, path: Path, tensors: Arrays) -> None:
        save(path, tensors, driver="zarr3")

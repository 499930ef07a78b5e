"""Small real checkpoints for tests of the catalog and of scanning."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Tensors = Mapping[str, Sequence[int]]


def safetensors(
    path: Path, tensors: Tensors | None = None, *, fill: int = 0, dtype: str = "F32", metadata: Mapping[str, str] | None = None
) -> Path:
    """Write ``tensors`` (name -> shape), every byte being ``fill``."""
    width = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F64": 8}[dtype]
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in (tensors or {"model.layers.0.weight": (4, 4), "model.layers.1.weight": (4, 4)}).items():
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([fill]) * end)
    return path

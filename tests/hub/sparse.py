"""Checkpoints that are huge, and take no room: one tensor over a hole."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def sparse_checkpoint(path: Path, nbytes: int, tensors: int = 4) -> Path:
    """A safetensors file of F32 zeros, ``nbytes`` long as far as anybody can tell."""
    each = nbytes // tensors // 4 * 4
    header = {
        f"w{index}": {"dtype": "F32", "shape": [each // 4], "data_offsets": [index * each, (index + 1) * each]}
        for index in range(tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * each)
    return path

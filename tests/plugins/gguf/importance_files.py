"""Importance matrices in both layouts, written as ``llama-imatrix`` writes them (``tools/imatrix/imatrix.cpp``)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Sums = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Tensor -> sums of squares (matrices, columns) and counts (matrices,)."""


def write_gguf(path: Path, entries: Sums, *, dataset: str = "text.txt", chunks: int = 3, leave_out: str = "") -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for key in [leave_out] if leave_out in writer.kv_data[0] else []:
        del writer.kv_data[0][key]
    for name, (sums, counts) in entries.items():
        for suffix, values in ((".in_sum2", sums), (".counts", counts.reshape(-1, 1))):
            if name + suffix != leave_out:
                writer.add_tensor(name + suffix, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat(path: Path, entries: Sums, *, dataset: str = "text.txt", chunks: int = 3) -> Path:
    """The layout of before 2025: one count a tensor, and averages times that count."""
    data = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        calls = int(counts[0])
        text = name.encode()
        data += struct.pack("<i", len(text)) + text + struct.pack("<ii", calls, sums.size) + sums.astype("<f4").tobytes()
    text = dataset.encode()
    path.write_bytes(data + struct.pack("<ii", chunks, len(text)) + text)
    return path


def measured(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> Sums:
    """Made-up sums for every matrix that a model multiplies by."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and "blk." in name:
            matrices = shape[0] if len(shape) > 2 else 1
            counts = random.integers(1, 600, matrices).astype(np.float32)
            found[name] = (random.exponential(1, (matrices, shape[-1])).astype(np.float32) * counts[:, None], counts)
    return found

"""Files of tensors (``.ptd``) against the conformance kit, built by the flatbuffers library as ExecuTorch's ``flat_tensor.fbs``
and ``flat_tensor_header.h`` say. What ExecuTorch itself wrote is in ``test_executorch``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from modelhub.testing import FormatConformance

SCALARS = {
    "uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "float32": 6, "float64": 7, "bool": 11, "uint16": 27,
    "uint32": 28, "uint64": 29,
}  # fmt: skip
HEADER = 40
ALIGN = 16


def vector(builder: Any, items: list[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def table(builder: Any, *slots: tuple[str, int]) -> int:
    """A table whose fields are ``slots`` by number; ("", 0) is left out."""
    builder.StartObject(len(slots))
    for number, (kind, value) in enumerate(slots):
        if kind:
            getattr(builder, f"Prepend{kind}Slot")(number, value, 0)
    return int(builder.EndObject())


def flat_tensor(arrays: dict[str, Any], places: list[tuple[int, int]]) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    named = []
    for segment, (name, array) in enumerate(arrays.items()):
        sizes = builder.CreateNumpyVector(np.array(array.shape, np.int32))
        order = builder.CreateNumpyVector(np.arange(array.ndim, dtype=np.uint8))
        layout = table(builder, ("Int8", SCALARS[array.dtype.name]), ("UOffsetTRelative", sizes), ("UOffsetTRelative", order))
        key = builder.CreateString(name)
        named.append(table(builder, ("UOffsetTRelative", key), ("Uint32", segment), ("UOffsetTRelative", layout)))
    segments = [table(builder, ("Uint64", offset), ("Uint64", nbytes)) for offset, nbytes in places]
    parts = vector(builder, segments), vector(builder, named)
    builder.Finish(table(builder, ("Uint32", 0), *(("UOffsetTRelative", part) for part in parts)), b"FT01")
    return bytes(builder.Output())


class TestExecutorch(FormatConformance):
    format = "executorch"
    library_dtypes = tuple({"bool": "BOOL"}.get(name, name[0].upper() + name.lstrip("uintfloa")) for name in SCALARS)

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        places, data = [], b""
        for array in tensors.values():
            data += bytes(-len(data) % ALIGN)
            places.append((len(data), array.nbytes))
            data += np.ascontiguousarray(array).tobytes()
        made = flat_tensor(tensors, places)
        # The header stands behind the offset of the root and the identifier; the offset grows by it.
        root, rest = int.from_bytes(made[:4], "little"), made[8:]
        size = len(made) + HEADER
        base = size + -size % ALIGN
        header = b"FH01" + struct.pack("<IQQQQ", HEADER, 0, size, base, len(data))
        path.write_bytes((root + HEADER).to_bytes(4, "little") + b"FT01" + header + rest + bytes(base - size) + data)

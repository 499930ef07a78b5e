"""Tells TensorFlow Lite models, and reads their tables."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Checkpoint, Detection, File, Metadata, Rejected, Tensor

from modelhub_tflite import describe, schema, tensors
from modelhub_tflite.model import parse

SUFFIXES = (".tflite", ".lite")
MAGICS = tuple(offset.to_bytes(4, "little") + schema.IDENTIFIER for offset in range(8, 68, 4))
"""The identifier stands behind the root's offset, which is as small as this wherever a library wrote it."""


def detect(file: File) -> Detection | Rejected | None:
    """By the identifier; a name alone is not believed, but where it is ``.tflite`` it is said what is wrong."""
    if file.head[4:8] == schema.IDENTIFIER:
        return Detection([file.path], confidence=95)
    if not file.name.lower().endswith(".tflite"):
        return None
    if len(file.head) < 8:
        return Rejected(f"{file.name}: a TensorFlow Lite model of {len(file.head)} bytes", 30, state="incomplete")
    found = file.head[4:8]
    return Rejected(f"{file.name}: no TensorFlow Lite model: {found!r} at offset 4, expected {schema.IDENTIFIER!r}", 30)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    """Constants in the order of the graphs, then what the model says of itself."""
    file = checkpoint.primary
    model = parse(file)
    yield from tensors.tensors(model, file)
    yield describe.metadata(model, file)

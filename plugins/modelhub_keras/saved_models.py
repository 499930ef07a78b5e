"""What Keras stores beside a TensorFlow SavedModel: the configuration of every layer, from which Keras 2 makes the layers anew.

Facts: ``saving/saved_model/load.py`` and ``protobuf/saved_metadata.proto`` of Keras 2 (``keras_metadata.pb``); before TensorFlow
2.5 the same stood in ``saved_model.pb`` (``core/protobuf/saved_object_graph.proto``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, File, Finding, Table, protobuf

from modelhub_keras import config

METADATA, MODEL = "keras_metadata.pb", "saved_model.pb"
MAX_TEXT = 64 << 20
_KERAS = "_tf_keras_"
"""How the identifiers of Keras's own objects begin."""


def code(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Code in the configuration of layers. That of a layer stands in the model's as well: it is told once."""
    told: set[tuple[str, ...]] = set()
    for file in checkpoint:
        name = os.path.basename(file.path)
        for text in _beside(file) if name == METADATA else _inside(file) if name == MODEL else ():
            if not text.lstrip().startswith("{"):
                continue
            found = config.examine(config.load(text, f"{name}: a layer's configuration"), name)
            layers = {path[-1:] for path in found.unsafe}
            if not layers <= told:
                told |= layers
                yield from found.findings


def _beside(file: File) -> Iterator[str]:
    """Of ``SavedMetadata``."""
    wire = protobuf.Wire(file)
    for number, kind, a, b in wire.fields():
        if number == 1 and kind == protobuf.BYTES:
            yield from _configuration(wire, a, b, 4, 5)


def _inside(file: File) -> Iterator[str]:
    """Of ``SavedModel``: its graphs, their objects, those that are the user's."""
    wire = protobuf.Wire(file)
    for start, end in _path(wire, 0, file.size, (2, 7, 1, 4)):
        yield from _configuration(wire, start, end, 1, 3)


def _path(wire: protobuf.Wire, start: int, end: int, numbers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the messages lie that fields of these numbers lead to, one in the other."""
    for number, kind, a, b in wire.fields(start, end):
        if number == numbers[0] and kind == protobuf.BYTES:
            if len(numbers) == 1:
                yield a, b
            else:
                yield from _path(wire, a, b, numbers[1:])


def _configuration(wire: protobuf.Wire, start: int, end: int, identifier: int, metadata: int) -> Iterator[str]:
    texts = {number: (a, b) for number, kind, a, b in wire.fields(start, end) if kind == protobuf.BYTES}
    if identifier in texts and metadata in texts and wire.text(*texts[identifier]).startswith(_KERAS):
        yield wire.text(*texts[metadata], MAX_TEXT)

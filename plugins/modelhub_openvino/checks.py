"""Whose operators a model needs."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Table

from modelhub_openvino.model import parse
from modelhub_openvino.reader import custom

OPERATORS = "openvino-operators"


def operators(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Operators of no standard operation set: running them takes a library of native code."""
    for (opset, name), count in sorted(custom(parse(checkpoint.primary)).items()):
        layers = f"{count} layer{'s' if count > 1 else ''} of {name!r:.80} in {opset!r:.80}"
        yield Finding(OPERATORS, "warning", f"{layers}: running it takes an extension, native code from whoever made the model")

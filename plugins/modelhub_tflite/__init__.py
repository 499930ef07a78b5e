"""TensorFlow Lite for modelhub: models are told, shown and read without TensorFlow, and run with LiteRT where that is there."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, hookimpl

from modelhub_tflite import checks, schema, tensors
from modelhub_tflite.reader import MAGICS, SUFFIXES, detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="tflite",
        title="TensorFlow Lite",
        suffixes=SUFFIXES,
        magics=MAGICS,
        dtypes=schema.DTYPES,
        extension=".tflite",
        sharing="exact",
        detect=detect,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.OPERATORS, level="safety", formats=("tflite",), run=checks.operators)
    yield Check(
        name=checks.RUNS, level="runnable", formats=("tflite",), run=checks.runs, requires=("ai_edge_litert",), extra="tflite"
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from tensors.OPS

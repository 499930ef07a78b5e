"""ONNX for modelhub: models are told, shown and read without onnx; checked, run, quantized and exported with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, Program, hookimpl

from modelhub_onnx import checks, export, logical, smaller
from modelhub_onnx.elements import DTYPES
from modelhub_onnx.reader import DATA_SUFFIXES, ORT_SUFFIX, OTHER_SUFFIXES, SUFFIX, detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="onnx",
        title="ONNX",
        suffixes=(SUFFIX, *DATA_SUFFIXES, *OTHER_SUFFIXES, ORT_SUFFIX),
        dtypes=DTYPES,
        extension=SUFFIX,
        sharing="exact",
        detect=detect,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.LIBRARY, level="structure", formats=("onnx",), run=checks.library, requires=("onnx",), extra="onnx")
    yield Check(name=checks.OPERATORS, level="safety", formats=("onnx",), run=checks.operators)
    yield Check(name=checks.RUNS, level="runnable", formats=("onnx",), run=checks.runs, requires=("onnxruntime",), extra="onnx")


@hookimpl
def modelhub_conversions() -> Iterator[Program]:
    yield from smaller.programs()
    yield from export.programs()


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from logical.OPS

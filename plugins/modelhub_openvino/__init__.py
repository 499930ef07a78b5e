"""OpenVINO IR for modelhub: a model's `.xml` and its `.bin` are told, shown and read without OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, hookimpl

from modelhub_openvino import checks, compressed, layout
from modelhub_openvino.reader import DTYPES, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="openvino",
        title="OpenVINO IR",
        suffixes=(".xml", ".bin"),
        dtypes=tuple(DTYPES.values()),
        sharing="exact",
        detect=layout.detect,
        detect_directory=layout.detect_directory,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.OPERATORS, level="safety", formats=("openvino",), run=checks.operators)
    yield Check(
        name=checks.RUNS, level="runnable", formats=("openvino",), run=checks.runs, requires=("openvino",), extra="openvino"
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from compressed.OPS

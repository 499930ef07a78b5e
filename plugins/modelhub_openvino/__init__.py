"""OpenVINO IR for modelhub: a model's `.xml` and its `.bin` are told, shown and read without OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, hookimpl

from modelhub_openvino import checks
from modelhub_openvino.reader import detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(name="openvino", title="OpenVINO IR", suffixes=(".xml", ".bin"), sharing="exact", detect=detect, read=read)


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.OPERATORS, level="safety", formats=("openvino",), run=checks.operators)

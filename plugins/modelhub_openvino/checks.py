"""Whose operators a model needs, and whether OpenVINO runs it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Table

from modelhub_openvino import layout, running
from modelhub_openvino.model import parse
from modelhub_openvino.reader import custom

OPERATORS, RUNS = "openvino-operators", "openvino-runtime"


def operators(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Operators of no standard operation set: running them takes a library of native code."""
    found: Counter[tuple[str, str]] = Counter()
    for path in (path for path in checkpoint.files if path.endswith(".xml")):
        found.update(custom(parse(checkpoint.open(path))))
    for (opset, name), count in sorted(found.items()):
        layers = f"{count} layer{'s' if count > 1 else ''} of {name!r:.80} in {opset!r:.80}"
        yield Finding(OPERATORS, "warning", f"{layers}: running it takes an extension, native code from whoever made the model")


def runs(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Compile each IR for the processor, and run it on inputs that are made up from what it declares."""
    for _, path, _ in layout.graphs(checkpoint.files):
        name = os.path.basename(path)
        theirs = custom(parse(checkpoint.open(path)))
        try:
            compiled = running.compiled(path)
        except Exception as error:  # noqa: BLE001 - OpenVINO raises what its C++ raises
            said = " ".join(str(error).split())[-500:]
            if theirs:
                whose = f"layers of {min(theirs)[0]!r:.80} are in an extension of native code, and none is loaded here"
                yield Finding(RUNS, "warning", f"not run: its {whose} (OpenVINO: {said})", file=name)
            else:
                yield Finding(RUNS, "error", f"OpenVINO does not load it: {said}", file=name)
            continue
        try:
            shapes, broken = running.tried(compiled)
        except ValueError as error:
            yield Finding(RUNS, "warning", f"OpenVINO loads it; made-up inputs do not suit it: {error}", file=name)
            continue
        for output in broken:
            yield Finding(RUNS, "warning", f"output {output!r:.200} has NaN on made-up inputs", file=name)
        yield Finding(RUNS, "info", f"OpenVINO runs it on {shapes}", file=name)

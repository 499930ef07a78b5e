"""Validators of ONNX models: what the format's own library says, whose operators they need, whether onnxruntime runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Table

from modelhub_onnx import describe, made_up, running
from modelhub_onnx.reader import load

LIBRARY, OPERATORS, RUNS = "onnx-checker", "onnx-operators", "onnx-runtime"
MAX_CHECKED = 1 << 30
"""onnx's checker loads the whole file."""


def library(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """``onnx.checker``: nodes, their attributes and their order, by the specification of their operators."""
    import onnx
    from onnx import checker

    file = checkpoint.primary
    if file.size > MAX_CHECKED:
        yield Finding(LIBRARY, "info", f"not run: onnx loads all of a file, and this one has {file.size:,} bytes")
        return
    try:
        checker.check_model(file.path)
    except (checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError, OSError) as error:
        yield Finding(LIBRARY, "error", f"onnx refuses it: {' '.join(str(error).split())[:500]}", file=file.name)


def operators(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Operators that neither the standard nor the model defines: running them takes somebody's native code."""
    for domain, count in sorted(describe.custom_domains(load(checkpoint)).items()):
        nodes = f"{count} node{'s' if count > 1 else ''} of the domain {domain[:200]!r}"
        if domain in describe.RUNTIMES:
            yield Finding(OPERATORS, "info", f"{nodes}: onnxruntime runs them, other programs may not")
        else:
            yield Finding(OPERATORS, "warning", f"{nodes}: running them takes {describe.whose(domain)}")


def runs(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Load it with onnxruntime, and run it on inputs that are made up from what it declares."""
    import numpy as np

    file = checkpoint.primary
    try:
        loaded = running.session(file.path)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common type of their own
        lacking = running.not_here(file.path, error)
        if lacking:
            yield Finding(RUNS, "warning", f"not run: {lacking}", file=file.name)
        else:
            yield Finding(RUNS, "error", f"onnxruntime does not load it: {running.words(error)}", file=file.name)
        return
    try:
        feeds = made_up.suitable(loaded, 1)
    except ValueError as error:
        yield Finding(RUNS, "warning", f"onnxruntime loads it; made-up inputs do not suit it: {error}", file=file.name)
        return
    outputs = running.run(loaded, feeds)[0]
    names = [one.name for one in loaded.get_outputs()]
    for name, value in zip(names, outputs, strict=True):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isnan(value).any():
            yield Finding(RUNS, "warning", f"output {name[:200]!r} has NaN on made-up inputs", file=file.name)
    yield Finding(RUNS, "info", f"onnxruntime runs it on {running.described(feeds[0])}", file=os.path.basename(file.path))

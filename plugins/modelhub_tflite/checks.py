"""Validators of TensorFlow Lite models: whose operators they need, and whether the runtime runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Finding, Table

from modelhub_tflite import describe
from modelhub_tflite.model import parse

OPERATORS, RUNS = "tflite-operators", "tflite-runtime"
MAX_RUN = 1 << 30
OPEN_SIDES = (1, 8, 64)
"""What is tried for the sides that a model leaves open."""


def operators(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Operators that TensorFlow Lite does not have: running them takes TensorFlow, or somebody's native code."""
    for name, count in sorted(parse(checkpoint.primary).custom.items()):
        if not count:
            continue
        nodes = f"{count} operator{'s' if count > 1 else ''} {name!r}"
        if name.startswith(describe.SELECT):
            yield Finding(OPERATORS, "info", f"{nodes}: a runtime with TensorFlow's own operators runs it, others do not")
        else:
            yield Finding(OPERATORS, "warning", f"{nodes}: running it takes a library of native code from whoever made the model")


def runs(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Load it with LiteRT, and run it on zeros and on random numbers of the types that it takes."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType  # type: ignore[import-untyped]

    file = checkpoint.primary
    if file.size > MAX_RUN:
        yield Finding(RUNS, "info", f"not run: the runtime loads all of a file, and this one has {file.size:,} bytes")
        return
    name = os.path.basename(file.path)
    try:
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # delegates announce themselves on stderr
        loaded = Interpreter(file.path, num_threads=1, experimental_op_resolver_type=kernels)
        loaded.allocate_tensors()
    except (ValueError, RuntimeError, NotImplementedError) as error:
        yield Finding(RUNS, "error", f"LiteRT does not load it: {' '.join(str(error).split())[:500]}", file=name)
        return
    said = ""
    for side in OPEN_SIDES:
        try:
            shapes = _run(loaded, side)
        except (ValueError, RuntimeError) as error:
            said = said or " ".join(str(error).split())[:300]
            continue
        for output in loaded.get_output_details():
            value = loaded.get_tensor(output["index"])
            if value.dtype.kind == "f" and np.isnan(value).any():
                yield Finding(RUNS, "warning", f"output {output['name'][:200]!r} has NaN on made-up inputs", file=name)
        yield Finding(RUNS, "info", f"LiteRT runs it on {', '.join(shapes)[:300] or 'no inputs'}", file=name)
        return
    yield Finding(RUNS, "warning", f"LiteRT loads it; made-up inputs do not suit it: {said}", file=name)


def _run(loaded: Any, side: int) -> list[str]:
    """Fill its inputs and run it; what they are, in words."""
    import numpy as np

    random = np.random.default_rng(0)
    for one in loaded.get_input_details():
        shape = [side if length < 0 else int(length) for length in one["shape_signature"]]
        if shape != one["shape"].tolist():
            loaded.resize_tensor_input(one["index"], shape)
    loaded.allocate_tensors()
    shapes = []
    for one in loaded.get_input_details():
        kind = np.dtype(one["dtype"])
        values = random.standard_normal(one["shape"]) if kind.kind in "fc" else random.integers(0, 2, one["shape"])
        loaded.set_tensor(one["index"], values.astype(kind))
        shapes.append(f"{one['name']}{one['shape'].tolist()}")
    loaded.invoke()
    return shapes

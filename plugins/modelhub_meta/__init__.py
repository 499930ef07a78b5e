"""Meta's own checkpoints for modelhub: a directory with ``params.json`` and ``consolidated.NN.pth``, a part for each GPU that the
model was trained for. Mistral's first models came so too.

The parts are read by the plugin of PyTorch's files; this one knows how they make one model, and its way to Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Conversion, Format, hookimpl

from modelhub_meta import checks
from modelhub_meta.layout import detect_directory
from modelhub_meta.reader import read

_DTYPES = ("BF16", "F16", "F32", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")
"""What such parts may hold, as PyTorch stores it."""


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(name="meta", title="Meta checkpoint", dtypes=_DTYPES, detect_directory=detect_directory, read=read)


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.COPIES, level="values", formats=("meta",), run=checks.copies)


@hookimpl
def modelhub_conversions() -> Iterator[Conversion]:
    from modelhub_meta import to_huggingface

    yield to_huggingface.CONVERSION

"""ExecuTorch for modelhub: programs (``.pte``) and the tensors that stand beside them (``.ptd``), without ExecuTorch."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_executorch.container import SCALARS
from modelhub_executorch.reader import detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="executorch",
        title="ExecuTorch program",
        suffixes=(".pte", ".ptd"),
        dtypes=tuple(SCALARS.values()),
        sharing="any",
        detect=detect,
        read=read,
    )

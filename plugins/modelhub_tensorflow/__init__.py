"""TensorFlow for modelhub: checkpoints, SavedModels and graphs are told, shown and read, and checkpoints written, without
TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, hookimpl

from modelhub_tensorflow import checks
from modelhub_tensorflow.elements import NUMBERS
from modelhub_tensorflow.reader import DATA_SUFFIXES, META, detect, read

DTYPES = tuple(name for name in NUMBERS)


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="tensorflow",
        title="TensorFlow checkpoint",
        suffixes=(".index", META, *DATA_SUFFIXES),
        dtypes=DTYPES,
        extension=".index",
        sharing="none",
        detect=detect,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.CHECKSUMS, level="values", formats=("tensorflow",), run=checks.checksums)

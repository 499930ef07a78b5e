"""Core ML for modelhub: packages (`.mlpackage`) and single files (`.mlmodel`), told, shown and read without coremltools."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, Op, hookimpl

from modelhub_coreml import compressed
from modelhub_coreml.layout import MANIFEST, REACH, detect, detect_directory
from modelhub_coreml.reader import read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="coreml",
        title="Core ML",
        suffixes=(".mlmodel",),
        sharing="exact",
        detect=detect,
        detect_directory=detect_directory,
        marks=(MANIFEST,),
        reach=REACH,
        read=read,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from compressed.OPS

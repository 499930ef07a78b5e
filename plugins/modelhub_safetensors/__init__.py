"""safetensors for modelhub: reads, writes and checks ``.safetensors`` files and sharded sets of them, without the library."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, hookimpl

from modelhub_safetensors import checks
from modelhub_safetensors.header import BITS
from modelhub_safetensors.reader import INDEX_SUFFIX, SUFFIX, detect, read
from modelhub_safetensors.writer import create


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="safetensors",
        title="safetensors",
        suffixes=(SUFFIX, INDEX_SUFFIX),
        dtypes=tuple(BITS),
        extension=SUFFIX,
        sharing="none",
        detect=detect,
        read=read,
        create=create,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(
        name=checks.NAME,
        level="structure",
        formats=("safetensors",),
        run=checks.run,
        requires=("safetensors",),
        extra="safetensors",
    )

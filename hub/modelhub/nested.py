"""Formats around formats: a plugin whose layout holds another format's files reads and writes those by the other's plugin.

Plugins never import each other. They name a format, and get the records or the pieces that its plugin makes; where that plugin is
missing or blocked, they get an error that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelhub import plugins
from modelhub.errors import MissingCapability, UnsupportedFile
from modelhub.files import Checkpoint
from modelhub.table import Table
from modelhub.types import Columns, Finding, Metadata, Placed, StartFile, Tensor, WriteOptions, Writer


def read_as(format_name: str, checkpoint: Checkpoint, files: Sequence[str]) -> Iterator[Tensor | Metadata | Finding]:
    """What the format called ``format_name`` reads in ``files`` of ``checkpoint`` (absolute paths, primary first): its records
    as they are, findings included. `UnsupportedFile` where no loaded plugin reads that format."""
    format = plugins.get().formats.get(format_name)
    if format is None or format.read is None:
        raise UnsupportedFile(
            f"its tensors are in {format_name} files, and no loaded plugin reads those", "see: modelhub plugins"
        )
    inner = Checkpoint(files[0], files, name=checkpoint.name, missing=checkpoint.missing)
    try:
        for record in format.read(inner):
            if isinstance(record, Columns):
                yield from record.tensors()
            else:
                yield record
    finally:
        inner.close()


def read_described(
    format_name: str, checkpoint: Checkpoint, describe: Callable[[Mapping[str, tuple[int, ...]], Metadata], Mapping[str, Any]]
) -> Iterator[Tensor | Metadata | Finding]:
    """What `read_as` gives for all of the checkpoint's files; and what ``describe(shapes, metadata)`` makes of the tensors' names
    and shapes, and of what the container says. For those who know whose tensors these are, and leave the reading to the
    container's plugin."""
    metadata = Metadata()
    shapes: dict[str, tuple[int, ...]] = {}
    for record in read_as(format_name, checkpoint, list(checkpoint.files)):
        if isinstance(record, Metadata):
            metadata = record
            continue
        if isinstance(record, Tensor):
            shapes[record.name] = record.shape
        yield record
    yield replace(
        metadata,
        values={**metadata.values, **describe(shapes, metadata)},
        container=metadata.container or format_name,
    )


def write_as(format_name: str, table: Table, options: WriteOptions) -> Writer:
    """The pieces of ``table`` in the format called ``format_name``, for use inside a `Format.create` as in
    ``yield from write_as(...)``. Every file has its `StartFile`; a single one is called ``options.name`` and the format's
    extension. `MissingCapability` where no loaded plugin writes that format."""
    format = plugins.get().formats.get(format_name)
    if format is None or format.create is None:
        raise MissingCapability(f"no loaded plugin writes {format_name}", "see: modelhub plugins")
    own = StartFile(options.name + format.extension)
    writer = format.create(table, options)
    try:
        piece = next(writer)
        if not isinstance(piece, StartFile):
            yield own
        placed: Placed | None = None
        while True:
            placed = yield (own if piece == StartFile() else piece)
            piece = writer.send(placed)
    except StopIteration:
        return

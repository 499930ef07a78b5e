"""What loading a checkpoint of Paddle's would import: ``paddle.load`` unpickles, and runs whatever a pickle says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelhub import Checkpoint, File, FileProblem, Finding, Table, pickles

from modelhub_paddle.arrays import INNOCENT
from modelhub_paddle.detect import PICKLES

GLOBALS = "paddle-globals"


def findings(names: Iterable[pickles.Global], file: File) -> Iterator[Finding]:
    """An unsafe finding for each global that does more than make arrays."""
    for name in names:
        if name not in INNOCENT:
            yield Finding(GLOBALS, "unsafe", f"loading it imports {str(name)[:200]!r}, and may call it", file=file.path)


def pickle_globals(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    for file in checkpoint:
        if file.name.lower().endswith(PICKLES):
            try:
                yield from findings(pickles.read(file).names, file)
            except FileProblem:  # the reader says what is wrong
                continue

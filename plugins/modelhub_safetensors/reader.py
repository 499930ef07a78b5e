"""Tells safetensors checkpoints, and reads their tables: one file, or a set of shards with or without an index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from modelhub import (
    Checkpoint,
    Columns,
    Detection,
    Extent,
    File,
    FileProblem,
    Finding,
    InvalidFile,
    Metadata,
    Rejected,
    Tensor,
    check_index,
    group_of,
)

from modelhub_safetensors.header import Header, header_length, parse
from modelhub_safetensors.notes import describe, split_ties

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"


def detect(file: File) -> Detection | Rejected | None:
    """A file whose header looks like one; a shard or an index stands for its whole group."""
    if not file.name.lower().endswith((SUFFIX, INDEX_SUFFIX)):
        return None
    try:
        group = group_of(file)
        if group is None:
            header_length(file)
            return Detection([file.path], confidence=95)
    except FileProblem as problem:
        return Rejected(str(problem), confidence=30, state="incomplete" if problem.state == "incomplete" else "invalid")
    directory = os.path.dirname(file.path)
    names = [*group.present, *([group.index_name] if group.index_name else [])]
    return Detection([os.path.join(directory, name) for name in names], confidence=95, missing=group.missing, name=group.stem)


def read(checkpoint: Checkpoint) -> Iterable[Tensor | Columns | Metadata | Finding]:
    """Tensors shard by shard in the order of their bytes, then the ties that the metadata notes."""
    if len(checkpoint.files) > 1 or not checkpoint.files[0].lower().endswith(SUFFIX):
        return _read_shards(checkpoint)
    columns, stored = parse(checkpoint.primary)
    if not stored:
        return [columns]
    ties, kept = split_ties(stored, set(columns.names))
    if ties:
        return [columns, *_noted(stored, {tensor.name: tensor for tensor in columns.tensors()})]
    return [columns, Metadata(values=describe(kept), stored=kept)]


def _read_shards(checkpoint: Checkpoint) -> Iterator[Tensor | Columns | Metadata | Finding]:
    shards = [path for path in checkpoint.files if not path.endswith(".json")]
    stored: dict[str, str] = {}
    by_name: dict[str, Tensor] = {}
    for path in shards:
        header = parse(checkpoint.open(path))
        stored.update(header.stored)
        _collect(by_name, header)
        yield header.columns
    owners = {name: _file_of(tensor) for name, tensor in by_name.items()}
    present = {os.path.basename(path) for path in shards}
    for path in checkpoint.files:
        if path.endswith(".json"):
            yield from check_index(checkpoint.open(path), owners, present, "safetensors-index")
    yield from _noted(stored, by_name)


def _noted(stored: dict[str, str], by_name: Mapping[str, Tensor]) -> Iterator[Tensor | Metadata]:
    ties, kept = split_ties(stored, by_name)
    for alias, name in ties.items():
        yield by_name[name]._replace(name=alias, view="logical")
    if kept:
        yield Metadata(values=describe(kept), stored=kept)


def _collect(by_name: dict[str, Tensor], header: Header) -> None:
    for tensor in header.columns.tensors():
        other = by_name.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise InvalidFile(f"tensor {tensor.name[:200]!r} stands in two shards: {_file_of(other)} and {_file_of(tensor)}")


def _file_of(tensor: Tensor) -> str:
    return os.path.basename(tensor.value.file) if isinstance(tensor.value, Extent) else ""

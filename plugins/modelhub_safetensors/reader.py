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
    group_of,
    read_index,
)

from modelhub_safetensors.header import Header, header_length, parse
from modelhub_safetensors.notes import describe, split_ties

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_CHECK = "safetensors-index"


def detect(file: File) -> Detection | Rejected | None:
    """A file whose header looks like one; a shard or an index stands for its whole group."""
    if not file.name.endswith((SUFFIX, INDEX_SUFFIX)):
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
    if len(checkpoint.files) > 1 or not checkpoint.files[0].endswith(SUFFIX):
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
    for path in checkpoint.files:
        if path.endswith(".json"):
            yield from _hold_against_index(checkpoint.open(path), by_name, {os.path.basename(path) for path in shards})
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


def _hold_against_index(index: File, by_name: Mapping[str, Tensor], present: set[str]) -> Iterator[Finding]:
    """What the index promises and the shards do not hold, and the other way round: at most one finding of each kind."""
    weight_map = read_index(index)
    lost = [
        name
        for name, shard in weight_map.items()
        if shard in present and (name not in by_name or _file_of(by_name[name]) != shard)
    ]
    if lost:
        first = lost[0]
        found = f"it is in {_file_of(by_name[first])}" if first in by_name else "it is in none"
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        message = f"the index places {first[:200]!r} in {weight_map[first]}, {found}{more}"
        yield Finding(_CHECK, "error", message, tensor=first, file=index.name)
    unnamed = [name for name in by_name if name not in weight_map]
    if unnamed:
        message = f"{len(unnamed)} tensors are in the shards and not in the index, the first is {unnamed[0][:200]!r}"
        yield Finding(_CHECK, "warning", message, tensor=unnamed[0], file=index.name)

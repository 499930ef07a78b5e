"""Checkpoints in several files: the names of shards, and the index that says which tensor stands in which.

Formats whose shards are called ``NAME-00001-of-00003.SUFFIX``, with or without ``NAME.SUFFIX.index.json`` beside them, share
this. Nothing here opens a shard; a name in an index is only ever compared with the names that the directory holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from modelhub.documents import read_json
from modelhub.errors import FileProblem, InvalidFile
from modelhub.files import File

MAX_SHARDS = 10_000
"""A name that promises more files than this is a name, not a promise."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5,6})-of-(?P<count>[0-9]{5,6})(?P<suffix>(?:\.[A-Za-z0-9_]+)+)", re.DOTALL)
_INDEX = re.compile(r"(?P<stem>.+)(?P<suffix>\.[A-Za-z0-9_]+)\.index(?P<variant>(?:\.[A-Za-z0-9_-]+)?)\.json", re.DOTALL)


class ShardGroup(NamedTuple):
    """The files of one sharded checkpoint. ``present`` and ``missing`` are names in the order of the shards; ``index_name``
    is that of the index, "" where there is none; ``weight_map`` maps each tensor to its shard's name where there is an index."""

    present: tuple[str, ...]
    missing: tuple[str, ...]
    stem: str
    index_name: str = ""
    weight_map: Mapping[str, str] = {}


_last: tuple[Mapping[str, int], tuple[str, str, str], ShardGroup] | None = None
"""The latest group by name: the core asks about each of its shards in turn, and a group may have thousands."""


def shard_group(name: str, siblings: Mapping[str, int]) -> ShardGroup | None:
    """The group that the file called ``name`` belongs to, told by names alone; None where ``name`` is not a shard's.

    ``siblings``: the names in its directory (`File.siblings`). Shards count from 1, or from 0 where number 0 is there. The index
    is looked for by name, and not read: see `indexed_group`.
    """
    global _last
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    stem, number, total, suffix = match["stem"], match["number"], match["count"], match["suffix"]
    count = int(total)
    if not 0 < count <= MAX_SHARDS or int(number) > count:
        return None
    key = (stem, f"{len(number)}-of-{total}", suffix)
    if _last is not None and _last[0] is siblings and _last[1] == key:
        return _last[2]
    width = len(number)
    first = 0 if f"{stem}-{0:0{width}d}-of-{total}{suffix}" in siblings else 1
    names = [f"{stem}-{i:0{width}d}-of-{total}{suffix}" for i in range(first, first + count)]
    group = ShardGroup(
        tuple(shard for shard in names if shard in siblings),
        tuple(shard for shard in names if shard not in siblings),
        stem,
        next((index for index in _index_names(stem, suffix) if index in siblings), ""),
    )
    _last = (siblings, key, group)
    return group


def _index_names(stem: str, suffix: str) -> list[str]:
    """What the index of these shards may be called. A variant ("fp16") stands in the stem or, in older files, in the suffix, and
    goes behind ``.index`` (transformers, ``_add_variant``)."""
    variant, _, last = suffix[1:].rpartition(".")
    names = [f"{stem}.{last}.index.{variant}.json"] if variant else [f"{stem}{suffix}.index.json"]
    base, dot, variant = stem.rpartition(".")
    if dot and base:
        names.append(f"{base}{suffix}.index.{variant}.json")
    return names


def is_index(name: str) -> bool:
    """Whether ``name`` is that of an index: ``model.safetensors.index.json``."""
    return _INDEX.fullmatch(name) is not None


def read_index(file: File) -> dict[str, str]:
    """The index's ``weight_map``: a tensor's name -> the name of the file it stands in. `InvalidFile` where the index is not one,
    or names a file that could not stand beside it."""
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InvalidFile(f"{file.name} has no weight_map: it is not a shard index")
    names = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise InvalidFile(
                f"{file.name}: tensor {tensor!r} is mapped to a {type(shard).__name__}, the name of a file was expected"
            )
        names.add(shard)
    for shard in names:
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise InvalidFile(f"{file.name} names a file {shard!r}: only plain names of files beside it are allowed")
    if len(names) > MAX_SHARDS:
        raise InvalidFile(f"{file.name} names {len(names)} files; at most {MAX_SHARDS} are read")
    return weight_map


def indexed_group(index: File) -> ShardGroup:
    """The group that an index describes: every file it names, and the index. `InvalidFile` as from `read_index`."""
    weight_map = read_index(index)
    names = sorted(set(weight_map.values()))
    match = _INDEX.fullmatch(index.name)
    return ShardGroup(
        tuple(name for name in names if name in index.siblings),
        tuple(name for name in names if name not in index.siblings),
        (match["stem"] + match["variant"]) if match else index.stem,
        index.name,
        weight_map,
    )


def group_of(file: File) -> ShardGroup | None:
    """The group of the file at hand, whether it is a shard or an index; None where it stands alone.

    An index counts for a shard only if it names it (a leftover of another split may lie beside). One that cannot be read still
    belongs to the group told by the names, without a ``weight_map``: reading the checkpoint will say what is wrong with it.
    """
    if is_index(file.name):
        return indexed_group(file)
    group = shard_group(file.name, file.siblings)
    if group is None or not group.index_name:
        return group
    indexed = _by_index(file, group.index_name)
    if indexed is None:
        return group
    return indexed if file.name in indexed.present else group._replace(index_name="")


_last_index: tuple[Mapping[str, int], str, ShardGroup | None] | None = None


def _by_index(file: File, name: str) -> ShardGroup | None:
    global _last_index
    if _last_index is not None and _last_index[0] is file.siblings and _last_index[1] == name:
        return _last_index[2]
    try:
        with File(os.path.join(os.path.dirname(file.path), name), file.siblings[name], file.siblings) as index:
            group = indexed_group(index)
    except (FileProblem, OSError):
        group = None
    _last_index = (file.siblings, name, group)
    return group

"""Checkpoints in several files: the names of shards, and the index that says which tensor stands in which.

Formats whose shards are called ``NAME-00001-of-00003.SUFFIX``, with or without ``NAME.SUFFIX.index.json`` beside them, share
this. Nothing here opens a shard; a name in an index is only ever compared with the names that the directory holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from modelhub.documents import read_json
from modelhub.errors import FileProblem, InvalidFile
from modelhub.files import File
from modelhub.types import Finding

MAX_SHARDS = 5_000
"""A name that promises more files than this is a name, not a promise."""
MAX_INDEXES = 16
"""Of more indexes in one directory, the rest only count for shards that are called like them."""

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


def shard_group(name: str, siblings: Mapping[str, int]) -> ShardGroup | None:
    """The group that the file called ``name`` belongs to, told by names alone; None where ``name`` is not a shard's.

    ``siblings``: the names in its directory (`File.siblings`). Shards count from 1, or from 0 where number 0 is there. The index
    is looked for by name, and not read: see `indexed_group`.
    """
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    stem, number, total, suffix = match["stem"], match["number"], match["count"], match["suffix"]
    count = int(total)
    if not 0 < count <= MAX_SHARDS or int(number) > count:
        return None
    key = (stem, f"{len(number)}-of-{total}", suffix)
    memo = _memo(siblings)
    if memo.key == key and memo.group is not None:
        return memo.group
    width = len(number)
    first = 0 if f"{stem}-{0:0{width}d}-of-{total}{suffix}" in siblings else 1
    names = [f"{stem}-{i:0{width}d}-of-{total}{suffix}" for i in range(first, first + count)]
    group = ShardGroup(
        tuple(shard for shard in names if shard in siblings),
        tuple(shard for shard in names if shard not in siblings),
        stem,
        next((index for index in _index_names(stem, suffix) if index in siblings), ""),
    )
    memo.key, memo.group = key, group
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


def check_index(index: File, owners: Mapping[str, str], present: Collection[str], check: str) -> Iterator[Finding]:
    """What the index promises and the shards do not hold, and the other way round: at most one finding of each kind.

    ``owners``: each tensor's name -> the name of the shard it stands in; ``present``: the shards that were read; ``check``: the
    findings' name. `InvalidFile` as from `read_index`.
    """
    weight_map = read_index(index)
    lost = [name for name, shard in weight_map.items() if shard in present and owners.get(name) != shard]
    if lost:
        first, more = lost[0], f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        found = f"it is in {owners[first]}" if first in owners else "it is in none"
        message = f"the index places {first[:200]!r} in {weight_map[first]}, {found}{more}"
        yield Finding(check, "error", message, tensor=first, file=index.name)
    unnamed = [name for name in owners if name not in weight_map]
    if unnamed:
        message = f"{len(unnamed)} tensors are in the shards and not in the index, the first is {unnamed[0][:200]!r}"
        yield Finding(check, "warning", message, tensor=unnamed[0], file=index.name)


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

    Names and index together: an index may name files of any name, and a shard that its index forgot is a shard still; but an
    index that names none of a split's shards (a leftover of another split) is not theirs. An index that cannot be read belongs
    to the group that the names tell, without a ``weight_map``: reading the checkpoint will say what is wrong with it.
    """
    if is_index(file.name):
        indexed = indexed_group(file)
        numbered = (shard_group(name, file.siblings) for name in (*indexed.present, *indexed.missing))
        return _join(indexed, next((group for group in numbered if group), None))
    numbered_group = shard_group(file.name, file.siblings)
    if numbered_group is None:
        for name in _memo(file.siblings).index_names(file.name):
            candidate = _by_index(file, name)
            if candidate and file.name in candidate.present:
                return candidate
        return None
    if not numbered_group.index_name:
        return numbered_group
    by_index = _by_index(file, numbered_group.index_name)
    if by_index is None:
        return numbered_group
    if not {*numbered_group.present, *numbered_group.missing} & {*by_index.present, *by_index.missing}:
        return numbered_group._replace(index_name="")
    return _join(by_index, numbered_group)


def _join(indexed: ShardGroup, numbered: ShardGroup | None) -> ShardGroup:
    if numbered is None:
        return indexed
    present = tuple(dict.fromkeys((*numbered.present, *indexed.present)))
    missing = tuple(dict.fromkeys((*numbered.missing, *indexed.missing)))
    return indexed._replace(present=present, missing=missing, stem=numbered.stem)


def _by_index(file: File, name: str) -> ShardGroup | None:
    """The group of the index called ``name`` beside ``file``; None where it cannot be read."""
    known = _memo(file.siblings).indexed
    if name not in known:
        try:
            with File(os.path.join(os.path.dirname(file.path), name), file.siblings[name], file.siblings) as index:
                known[name] = indexed_group(index)
        except (FileProblem, OSError):
            known[name] = None
    return known[name]


class _Memo:
    """What was found out about one directory: the core asks about each of its files in turn, and a group may have thousands."""

    def __init__(self, siblings: Mapping[str, int]) -> None:
        self.siblings = siblings
        self.key = ("", "", "")
        self.group: ShardGroup | None = None
        """The latest group by number."""
        self.indexed: dict[str, ShardGroup | None] = {}
        self._names: list[str] | None = None

    def index_names(self, name: str) -> list[str]:
        """Indexes that may name the file called ``name``."""
        if self._names is None:
            self._names = [other for other in self.siblings if other.endswith(".json") and is_index(other)][:MAX_INDEXES]
        suffix = os.path.splitext(name)[1] + ".index."
        return [other for other in self._names if suffix in other]


_latest = _Memo({})


def _memo(siblings: Mapping[str, int]) -> _Memo:
    global _latest
    if _latest.siblings is not siblings:
        _latest = _Memo(siblings)
    return _latest

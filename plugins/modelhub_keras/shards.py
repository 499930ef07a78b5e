"""Weights that Keras 3 split over several files: which belong together, by the index beside them.

``NAME.weights.json`` maps the path of a layer's group to the file, or files, that hold it (``saving/saving_lib.py``,
``ShardedH5IOStore``); the files are called ``NAME_00000.weights.h5`` and so on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from modelhub import Detection, File, Finding, InvalidFile, read_json

INDEX = ".weights.json"
CHECK = "keras-index"
MAX_SHARDS = 100_000
_SHARD = re.compile(r"(.+)_\d{5}\.weights\.h5")


def group(file: File) -> Detection | None:
    """All files of the weights that ``file`` is the index of, or a part; None where it stands alone. `InvalidFile` for an index
    that is none."""
    found = _SHARD.fullmatch(file.name)
    name = file.name if file.name.endswith(INDEX) else f"{found[1]}{INDEX}" if found else ""
    if not name or name not in file.siblings:
        return None
    directory = os.path.dirname(file.path)
    with File(os.path.join(directory, name), siblings=file.siblings) as index:
        if not isinstance(read_json(index).get("weight_map"), Mapping):
            return None
        parts = [part for parts in weight_map(index).values() for part in parts]
    promised = sorted(dict.fromkeys(parts))
    if found and file.name not in promised:
        return None
    present = [part for part in promised if part in file.siblings]
    missing = [part for part in promised if part not in file.siblings]
    if not present:
        return None
    paths = [os.path.join(directory, part) for part in (*present, name)]
    return Detection(paths, confidence=97, missing=missing, name=name.removesuffix(INDEX))


def weight_map(index: File) -> dict[str, list[str]]:
    """The path of a group -> names of the files that hold it."""
    data = read_json(index)
    entries = data.get("weight_map")
    if not isinstance(entries, Mapping):
        raise InvalidFile(f"{index.name}: no weight_map: this is no index of Keras's weights")
    found: dict[str, list[str]] = {}
    for key, value in entries.items():
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, str) or os.path.basename(part) != part or not part.endswith(".h5"):
                raise InvalidFile(f"{index.name}: {str(part)[:200]!r} is no name of a file of weights beside it")
        found[key.strip("/")] = parts
    return found


def check(index: File, groups: Mapping[str, set[str]]) -> Iterator[Finding]:
    """The index against what the files hold. ``groups``: path of a group with variables -> names of its files."""
    for key, parts in weight_map(index).items():
        if lost := sorted(set(parts) - groups.get(key, set())):
            message = f"{key[:200]!r} is promised in {lost[0][:200]!r} and is not there"
            yield Finding(CHECK, "error", message, file=index.name)
            return

"""LightGBM's models as text: a header of ``key=value`` lines, then the trees (``src/boosting/gbdt_model_text.cpp``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Detection, File, IncompleteFile, Metadata

_START = re.compile(rb"tree\r?\nversion=(v\d{1,3})\r?\n")
_NUMBERS = {"num_class": "classes", "num_tree_per_iteration": "trees_per_iteration"}
MAX_HEADER = 8 << 20
_SHOWN = 64


def detect(file: File) -> Detection | None:
    return Detection([file.path], confidence=92) if _START.match(file.head) else None


def read(checkpoint: Checkpoint) -> Iterator[Metadata]:
    file = checkpoint.primary
    data = file.read(0, min(file.size, MAX_HEADER))
    header, found, rest = data.partition(b"\nTree=0")
    said = dict(line.partition("=")[::2] for line in header.decode("utf-8", "replace").splitlines() if "=" in line)
    sizes = [int(size) for size in said.get("tree_sizes", "").split() if size.isdecimal()]
    end = len(header) + 1 + sum(sizes)
    if not found or end + 12 > file.size or b"end of trees" not in file.read(end, min(64, file.size - end)):
        raise IncompleteFile(f"{file.name}: {len(sizes)} trees of {sum(sizes)} bytes are said, {len(rest)} follow the header")
    values: dict[str, Any] = {"architecture": "lightgbm", "version": said.get("version", ""), "trees": len(sizes)}
    values["objective"] = said.get("objective", "")[:200]
    if said.get("max_feature_idx", "").isdecimal():
        values["features"] = int(said["max_feature_idx"]) + 1
    values.update({name: int(said[key]) for key, name in _NUMBERS.items() if said.get(key, "").isdecimal()})
    names = said.get("feature_names", "").split()
    if names:
        values["feature_names"] = names[:_SHOWN]
    yield Metadata(values=values)

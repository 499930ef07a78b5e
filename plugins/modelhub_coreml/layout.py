"""Which files make up a Core ML model: one `.mlmodel`, or a package whose `Manifest.json` names a model and its weights.

(coremltools ``modelpackage/src/ModelPackage.cpp``: items by identifier, with paths below ``Data``; ``rootModelIdentifier``.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelhub import Detection, File, FileProblem, Listing, Rejected, read_json

MANIFEST = "Manifest.json"
DATA = "Data"
REACH = 3
MAX_MANIFEST = 1 << 20
MAX_ITEMS = 1000
_STARTS = re.compile(rb"\x08[\x01-\x40]\x12")
"""`Model`: the specification's version, then its description (``Model.proto``)."""


def detect(file: File) -> Detection | None:
    """A single model; those in packages are their packages'."""
    return Detection([file.path], confidence=90) if _STARTS.match(file.head) else None


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A package. Items that are not there are missing."""
    if MANIFEST not in listing:
        return None
    try:
        manifest = read_json(listing.file(MANIFEST), limit=MAX_MANIFEST)
    except FileProblem as error:
        return Rejected(f"{MANIFEST}: {error}", 90) if listing.name.endswith(".mlpackage") else None
    items, root = manifest.get("itemInfoEntries"), manifest.get("rootModelIdentifier")
    if not isinstance(items, dict) or not isinstance(root, str) or len(items) > MAX_ITEMS:
        return None
    paths = {identifier: _path(item) for identifier, item in items.items()}
    if root not in paths:
        return Rejected(f"{MANIFEST}: its root {root!r:.80} is none of its items", 90)
    if odd := [identifier for identifier, path in paths.items() if not path]:
        return Rejected(f"{MANIFEST}: the path of item {odd[0]!r:.80} is none inside of the package", 90)
    files, missing = [], []
    model = paths.pop(root)
    for path in (model, *paths.values()):
        found = _below(listing, f"{DATA}/{path}")
        files += found
        if not found:
            missing.append(f"{DATA}/{path}")
    there = len(_below(listing, f"{DATA}/{model}")) == 1
    files.insert(
        len(files) if there else 0, listing.join(MANIFEST)
    )  # first where the model is not there: there is nothing to read
    return Detection(files, confidence=95, missing=missing, name=listing.name.removesuffix(".mlpackage"))


def _path(item: Any) -> str:
    """An item's path below ``Data``; "" where it leads elsewhere."""
    path = item.get("path") if isinstance(item, Mapping) else None
    if not isinstance(path, str) or len(path) > 500 or "\0" in path:
        return ""
    parts = path.split("/")
    return path if all(part not in ("", ".", "..") for part in parts) and len(parts) <= REACH else ""


def _below(listing: Listing, path: str) -> list[str]:
    """The file at ``path``, or those in the directory there."""
    *folders, name = path.split("/")
    for folder in folders:
        if folder not in listing.directories:
            return []
        listing = listing.subdirectory(folder)
    if name in listing:
        return [listing.join(name)]
    if name not in listing.directories:
        return []
    inner = listing.subdirectory(name)
    return [inner.join(file) for file in inner.files]

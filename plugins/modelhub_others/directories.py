"""Formats that are directories: CTranslate2's models and Orbax's checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from modelhub import FileProblem, Listing, Rejected, read_json

MODEL = "model.bin"
_DOCUMENTS = re.compile(r"(preprocessor_)?config\.json|tokenizer.*|.*vocabulary.*|.*\.spm|vmap\.txt|README\.md", re.DOTALL)
_HEADER = re.compile(rb"[\x01-\x20]\0\0\0(?P<length>[\x02-\xff])\0(?P<name>[A-Za-z0-9_]{1,250})\0", re.DOTALL)
"""(CTranslate2 ``python/ctranslate2/specs/model_spec.py``: a version, then texts, each with its length and a zero.)"""

ORBAX_MARKS = ("_METADATA", "manifest.ocdbt")
"""(Orbax's "Checkpoint Format Guide": an item's tree, and TensorStore's manifest.)"""
ORBAX_REACH = 2
MAX_METADATA = 64 << 20
MAX_FILES = 50_000
_PROCESS = re.compile(r"ocdbt\.process_\d+")


def ctranslate2(listing: Listing) -> Rejected | None:
    """``model.bin`` that names its specification, with its vocabulary and configuration."""
    if MODEL not in listing:
        return None
    try:
        header = _HEADER.match(listing.file(MODEL).head)
    except (FileProblem, OSError):
        return None
    if not header or header["length"][0] != len(header["name"]) + 1 or not header["name"].endswith((b"Spec", b"Model")):
        return None
    files = [MODEL, *(name for name in listing.files if _DOCUMENTS.fullmatch(name))]
    what = f"a CTranslate2 model ({header['name'].decode()})"
    return Rejected(
        f"{what}: listed, not read; CTranslate2 (faster-whisper) opens it",
        confidence=95,
        state="unsupported",
        files=[listing.join(name) for name in files],
    )


def orbax(listing: Listing) -> Rejected | None:
    """An item: a tree of arrays in TensorStore's database, or in a directory each (zarr)."""
    if _PROCESS.fullmatch(listing.name):
        return None
    if "_METADATA" in listing:
        try:
            if "tree_metadata" not in read_json(listing.file("_METADATA"), limit=MAX_METADATA):
                return None
        except FileProblem:
            return None
    elif "manifest.ocdbt" not in listing or "d" not in listing.directories:
        return None
    return Rejected(
        "an Orbax checkpoint (JAX): listed, not read; orbax.checkpoint opens it",
        confidence=95,
        state="unsupported",
        files=list(_orbax_files(listing)),
    )


def _orbax_files(listing: Listing) -> Iterator[str]:
    own = [name for name in listing.files if name in ORBAX_MARKS or name in ("_sharding", "_strings.json")]
    found = [listing.join(name) for name in own]
    for name in listing.directories:
        if name not in ("d", "array_metadatas") and not _PROCESS.fullmatch(name):
            continue
        found += _below(listing.subdirectory(name), ("d",) if name not in ("d", "array_metadatas") else ())
    yield from found[:MAX_FILES]


def _below(listing: Listing, deeper: tuple[str, ...]) -> list[str]:
    found = [os.path.join(listing.path, name) for name in listing.files]
    for name in deeper:
        if name in listing.directories:
            inner = listing.subdirectory(name)
            found += [os.path.join(inner.path, file) for file in inner.files]
    return found

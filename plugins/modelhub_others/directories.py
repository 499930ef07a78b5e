"""Formats that are directories: CTranslate2's models, spaCy's pipelines."""

from __future__ import annotations

import re
from itertools import islice

from modelhub import FileProblem, Listing, Rejected, read_json

MAX_FILES = 1000
MODEL = "model.bin"
_DOCUMENTS = re.compile(r"(preprocessor_)?config\.json|tokenizer.*|.*vocabulary.*|.*\.spm|vmap\.txt|README\.md", re.DOTALL)
_HEADER = re.compile(rb"[\x01-\x20]\0\0\0(?P<length>[\x02-\xff])\0(?P<name>[A-Za-z0-9_]{1,250})\0", re.DOTALL)
"""(CTranslate2 ``python/ctranslate2/specs/model_spec.py``: a version, then texts, each with its length and a zero.)"""


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
        f"{what}: listed, not read, because its matrices are laid out for its own kernels; CTranslate2 (faster-whisper) opens it",
        confidence=95,
        state="unsupported",
        files=[listing.join(name) for name in files],
    )


def spacy(listing: Listing) -> Rejected | None:
    """``meta.json`` that says for which spaCy it is, and the configuration beside it (spaCy ``language.py``, ``to_disk``)."""
    if "meta.json" not in listing or "config.cfg" not in listing:
        return None
    try:
        said = read_json(listing.file("meta.json"), limit=1 << 20)
    except (FileProblem, OSError):
        return None
    if not isinstance(said.get("spacy_version"), str) or not isinstance(said.get("lang"), str):
        return None
    pipeline = said.get("pipeline")
    parts = [name for name in pipeline if isinstance(name, str)] if isinstance(pipeline, list) else []
    what = (
        f"a spaCy pipeline ({said['lang']:.20}_{said.get('name')!s:.60} {said.get('version')!s:.20}: {', '.join(parts)!s:.200})"
    )
    below = (listing.subdirectory(name) for name in listing.directories)
    files = [*map(listing.join, sorted(listing.files, key=lambda name: name != "meta.json"))]
    files += islice((part.join(name) for part in below for name in part.files), MAX_FILES)
    return Rejected(
        f"{what}: listed, not read, because each part keeps its layers in a way of its own; spacy.load opens it",
        confidence=90,
        state="unsupported",
        files=files,
    )

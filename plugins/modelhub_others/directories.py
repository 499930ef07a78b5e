"""Formats that are directories: CTranslate2's models."""

from __future__ import annotations

import re

from modelhub import FileProblem, Listing, Rejected

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

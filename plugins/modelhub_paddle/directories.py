"""Directories as Paddle wrote them before version 2, and ``save_vars`` still does: a file for each variable, called as the
variable is, or all of them in ``__params__``; beside them the program, ``__model__``, where it is an inference model.

(``static/io.py``: ``save_vars``, ``save_inference_model`` of version 1; each file is what ``.pdiparams`` has of a tensor.)
"""

from __future__ import annotations

import re

from modelhub import Detection, FileProblem, Listing

from modelhub_paddle.detect import is_program, is_tensor
from modelhub_paddle.program import parameters

MODEL, COMBINED = "__model__", ("__params__", "params")
MAX_FILES = 20_000
ENOUGH = 2
_VARIABLE = re.compile(r".+\.[wb]_\d+")
"""How variables are called that nobody gave a name."""


def detect_directory(listing: Listing) -> Detection | None:
    """By the names of some, and the content of each."""
    if MODEL in listing:
        return _inference(listing)
    usual = [name for name in listing.files if _VARIABLE.fullmatch(name)]
    if len(usual) < ENOUGH or len(listing.files) > MAX_FILES or not all(_is_variable(listing, name) for name in usual[:ENOUGH]):
        return None
    found = sorted(name for name in listing.files if _is_variable(listing, name))
    return Detection([listing.join(name) for name in found], confidence=90)


def _inference(listing: Listing) -> Detection | None:
    try:
        if not is_program(listing.file(MODEL).head):
            return None
        names = parameters(listing.file(MODEL))
    except (FileProblem, OSError):
        return None
    combined = next((name for name in COMBINED if name in listing and _is_variable(listing, name)), "")
    there = [combined] if combined else [name for name in names if name in listing]
    missing = [] if combined else [name for name in names if name not in listing]
    return Detection([listing.join(name) for name in (MODEL, *there)], confidence=92, missing=missing[:1000])


def _is_variable(listing: Listing, name: str) -> bool:
    try:
        return is_tensor(listing.file(name).head)
    except (FileProblem, OSError):
        return False

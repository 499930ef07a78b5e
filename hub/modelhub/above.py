"""Checkpoints that reach into directories below their own: a pipeline with a folder for each component, a model with a folder of
variables. Their files are theirs in whatever directory they stand, whichever directory is looked at, and in whatever order.

Told by marks: names of files whose presence costs one stat to see (`Format.marks`). Only where one is there is its format asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from modelhub.declared import Format
from modelhub.files import Listing, listing_again

MAX_REACH = 4


def owned_from_above(path: str, formats: Sequence[Format], claim: Callable[[Format, Listing], Iterable[str]]) -> set[str]:
    """The files of directory ``path`` that checkpoints of directories above it own. ``claim(format, listing)`` asks a format for
    the files of the checkpoint that a directory is."""
    owned: set[str] = set()
    prefix, above = path.rstrip("/") + "/", os.path.dirname(path.rstrip("/"))
    for level in range(1, 1 + min(MAX_REACH, max((format.reach for format in formats), default=0))):
        for format in formats:
            if level > format.reach or not any(os.path.lexists(f"{above}/{mark}") for mark in format.marks):
                continue
            try:
                listing = listing_again(above)
            except OSError:
                continue
            try:
                owned.update(file for file in claim(format, listing) if file.startswith(prefix))
            finally:
                listing.close()
        if above in ("/", ""):
            break
        above = os.path.dirname(above)
    return owned

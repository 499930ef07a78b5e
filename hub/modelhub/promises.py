"""What a store or a download promises of a file's bytes: the digest that names a blob, or that stands beside what was downloaded.

Three places say it: a blob's own name (``blobs/sha256-...``), the name of the blob that a link of the Hugging Face cache leads to
(SHA-256 of large files, git's SHA-1 of small ones), and ``.cache/huggingface/download/NAME.metadata`` above a file that was
downloaded into a directory (huggingface_hub ``_local_folder.py``: commit, etag, time). Nothing is asked of a network.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

from modelhub.errors import FileProblem
from modelhub.files import File, open_regular

_BLOB = re.compile(r"sha256[:-]([0-9a-f]{64})")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DOWNLOADED = ".cache/huggingface/download"
MAX_LEVELS = 8
PIECE = 4 << 20


class Promise(NamedTuple):
    """The digest that a file should have, and who says so. Of 40 digits: git's, of a blob."""

    digest: str
    by: str

    @property
    def is_sha256(self) -> bool:
        return len(self.digest) == 64


def promise(path: str) -> Promise | None:
    """What is promised of the file at this absolute path; None where nothing is."""
    match = _BLOB.fullmatch(os.path.basename(path))
    if match and os.path.basename(os.path.dirname(path)) == "blobs":
        return Promise(match[1], "its blob's name")
    if "/snapshots/" in path and os.path.islink(path):
        place, name = os.path.split(os.path.realpath(path))
        if os.path.basename(place) == "blobs" and _ETAG.fullmatch(name):
            return Promise(name, "the name of its blob in the cache")
    return _downloaded(path)


def _downloaded(path: str) -> Promise | None:
    above, name = os.path.split(path)
    for _ in range(MAX_LEVELS):
        try:
            with File(f"{above}/{_DOWNLOADED}/{name}.metadata") as file:
                lines = file.read(0, min(file.size, 4096)).decode().split("\n")
            etag, time = lines[1].strip(), float(lines[2])
            # One that was changed since is no download any more.
            if _ETAG.fullmatch(etag) and os.stat(path).st_mtime <= time + 1:
                return Promise(etag, f"{_DOWNLOADED}/{name}.metadata")
            return None
        except (OSError, FileProblem, ValueError, IndexError):
            pass
        above, base = os.path.split(above)
        if not base:
            return None
        name = f"{base}/{name}"
    return None


def git_digest(path: str) -> str:
    """What git calls a file of these bytes: SHA-1 over ``blob``, their number, a zero, and them."""
    with os.fdopen(open_regular(path), "rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()

"""Which names a scan passes by: half-written files, our own scratch, what owners exclude. Looks at names only."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence

PARTIAL = (
    b".incomplete", b".part", b".partial", b".crdownload", b".download", b".tmp", b".aria2", b".!qb", b".opdownload",
)  # fmt: skip
"""Ends of the names that downloaders give to files which are not whole yet."""

IGNORE_FILE = b".modelhubignore"
SCRATCH = b".modelhub-"
"""How the names of our own unfinished files begin."""

_STORE_PARTIAL = re.compile(rb"-partial(-\d+)?$")
_UNFINISHED_BLOB = re.compile(rb"sha256[:-][0-9a-f]{64}(?:-partial|\.tmp)")
_RSYNC = re.compile(rb"\..+\.[A-Za-z0-9]{6}$")
_HIDDEN_DIRECTORIES = frozenset({b".git", b".hg", b".svn", b".no_exist", b"._____temp"})
_DATA = b"datasets--"
"""How a Hugging Face cache calls the directory of a data set's repository. It has ``.no_exist`` for files that a repository does
not have; ModelScope downloads into ``._____temp``."""

Excluded = Callable[[bytes, bool], bool]
"""Told a path relative to the root, and whether it is a directory."""


def is_partial(name: bytes) -> bool:
    """Whether a file of this name is someone's unfinished business, or ours."""
    if name.endswith(PARTIAL):
        return True
    if name.startswith(b"."):
        return name.startswith(SCRATCH) or name == IGNORE_FILE or bool(_RSYNC.match(name))
    return b"-partial" in name and bool(_STORE_PARTIAL.search(name))


def is_unfinished_blob(name: bytes) -> bool:
    """Whether a file of this name in a store's ``blobs`` is a blob that is not whole yet: its pull goes on, or was interrupted
    (Ollama's ``server/download.go`` and ``x/transfer/download.go``)."""
    return bool(_UNFINISHED_BLOB.fullmatch(name))


def is_hidden_directory(name: bytes) -> bool:
    """Whether a directory of this name holds no models of its own: version control, our scratch, cached data sets."""
    return name in _HIDDEN_DIRECTORIES or name.startswith((SCRATCH, _DATA))


def exclusion(patterns: Sequence[str]) -> Excluded | None:
    """What ``patterns`` exclude, None for nothing. As in ``.gitignore``: a pattern without a slash fits a name at any depth,
    one with a slash the path from the root; ``*`` stops at slashes, ``**`` does not; a slash at the end means directories only;
    ``!`` takes back; the last that fits decides."""
    rules = []
    for line in patterns:
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        back = pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        rules.append(
            (re.compile(_regex(os.fsencode(pattern.strip("/")), "/" in pattern.rstrip("/"))), back, pattern.endswith("/"))
        )
    if not rules:
        return None

    def excluded(path: bytes, is_directory: bool) -> bool:
        answer = False
        for regex, back, directories in rules:
            if answer == back and (is_directory or not directories) and regex.fullmatch(path):
                answer = not back
        return answer

    return excluded


def read_patterns(root: bytes) -> list[str]:
    """The lines of a root's ``.modelhubignore``; none where there is none, it cannot be read, or is no file."""
    try:
        # Opening a FIFO would wait for a writer, for ever.
        with open(os.path.join(root, IGNORE_FILE), "rb", opener=_not_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return []
            return os.fsdecode(file.read(1 << 20)).splitlines()
    except OSError:
        return []


def _not_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _regex(pattern: bytes, anchored: bool) -> bytes:
    parts: list[bytes] = []
    rest = pattern
    while rest:
        if rest.startswith(b"**/"):
            parts.append(rb"(?:.*/)?")
            rest = rest[3:]
        elif rest.startswith(b"**"):
            parts.append(rb".*")
            rest = rest[2:]
        elif rest[:1] == b"*":
            parts.append(rb"[^/]*")
            rest = rest[1:]
        elif rest[:1] == b"?":
            parts.append(rb"[^/]")
            rest = rest[1:]
        elif rest[:1] == b"[" and (match := re.match(rb"\[(!?)([^\]/]+)\]", rest)):
            inner = match[2].replace(b"\\", b"\\\\").replace(b"[", rb"\[").replace(b"^", rb"\^")
            parts.append(b"[" + (b"^" if match[1] else b"") + inner + b"]")
            rest = rest[match.end() :]
        else:
            parts.append(re.escape(rest[:1]))
            rest = rest[1:]
    return rb"(?s:" + (b"" if anchored else rb"(?:.*/)?") + b"".join(parts) + b")"


def all_patterns(root: bytes, configured: Iterable[str]) -> list[str]:
    """What the configuration excludes everywhere, and then what the root itself does."""
    return [*configured, *read_patterns(root)]

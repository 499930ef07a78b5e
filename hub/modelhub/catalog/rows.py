"""What scanning and the catalog tell each other: files as they are and as they are known, checkpoints as they are known.
Records only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from modelhub.found import Found

FILE_COLUMNS = "path,size,mtime,inode,key,again+2*missing,content,device"


DISPLACED = b"\0"
"""In the path of a file whose place another took before it was seen elsewhere; a number follows. No path on a drive has it."""

BRIEF_COLUMNS = "path,size,mtime,inode,again+2*missing"
Brief = tuple[bytes, int, int, int, int]
"""What a walk compares: path, size, mtime, inode, flags. A plain tuple, because there is one for each file of a drive."""


class FileRow(NamedTuple):
    """A file as the catalog has it, in the order of `FILE_COLUMNS`. ``flags``: 1 look again, 2 missing, 4 look
    again every time."""

    path: bytes
    size: int
    mtime: int
    inode: int
    key: int
    flags: int
    content: int | None
    device: int


class Stat(NamedTuple):
    """A file as it is now. ``inode`` as the catalog can hold it (63 bits and a sign)."""

    size: int
    mtime: int
    inode: int
    device: int


class Look(NamedTuple):
    """What was seen in one directory, or in a part of a big one. Paths are relative to the root, except in ``found``.

    ``looked`` comes with the last part: every file that was looked at; ``whole``: these are all of the directory's.
    ``unreadable``: files of which nothing is known now.
    """

    directory: bytes
    found: Sequence[Found]
    unknown: Sequence[bytes] = ()
    unreadable: frozenset[bytes] = frozenset()
    looked: Sequence[bytes] | None = None
    whole: bool = True


class Old(NamedTuple):
    """A checkpoint as the catalog has it."""

    key: int
    id: str
    root: int | None
    path: bytes
    version: int
    header: bytes
    size: int
    format: str
    state: str
    missing: int
    files: tuple[int, ...]


Observer = Callable[[str, str, str], None]
"""Told (kind, id, absolute path) once it is recorded; kind is indexed, changed or missing."""


def signed(inode: int) -> int:
    """An inode number as 64 bits with a sign: some file systems use all 64."""
    return inode if inode < 1 << 63 else inode - (1 << 64)


def root_condition(root: int | None) -> tuple[str, tuple[int, ...]]:
    """SQL for the rows of a root, or of those outside of every root, and its values."""
    return ("root IS NULL", ()) if root is None else ("root=?", (root,))


def place_of(path: bytes) -> bytes:
    """The path of a file's row, without what marks one whose place another took."""
    return path.partition(DISPLACED)[0]

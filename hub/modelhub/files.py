"""What a plugin sees of the file system: bounded reads of one file, one directory's listing, one checkpoint's files.

Reads use ``pread``, never ``mmap``: a file on a shared drive can be truncated under its reader, and a mapped read then kills
the process where a ``pread`` comes back short. A short read is an `IncompleteFile` that says what was expected and found.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import TracebackType

from modelhub.errors import IncompleteFile, InvalidFile

HEAD_BYTES = 16 * 1024
"""The core reads this much of a file's start once, for every format that wants to look."""
TAIL_BYTES = 4 * 1024
"""And this much of its end, where the head does not cover it."""
MAX_READ = 1 << 30
"""The longest single read that a parser may ask for. Headers are smaller; weights are not read by parsers."""
_DIGITS = b"0123456789"
_BETWEEN = b"},"
"""What stands between the entries of a list in JSON."""


def open_regular(path: str) -> int:
    """A handle for reading the file at ``path``. `InvalidFile` where that is no regular file: a name that became a FIFO since it
    was listed would have us wait for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat_module.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidFile(f"{os.path.basename(path)} is not a regular file")
    return fd


class File:
    """One regular file, opened on first use. ``path`` is absolute; ``size`` is from the stat that the core made."""

    __slots__ = ("_entries", "_fd", "_head", "_tail", "asked", "name", "path", "siblings", "size")

    def __init__(
        self, path: str, size: int | None = None, siblings: Mapping[str, int] | None = None, *, asked: bool = False
    ) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.siblings: Mapping[str, int] = siblings if siblings is not None else {}
        """Names and sizes of the regular files in the same directory (this one included)."""
        self.asked = asked
        """Whether the user named this very file: what a format passes over where it comes by the thousand, or belongs to what
        stands beside it, is to be shown all the same."""
        self._fd = -1
        self._head: bytes | None = None
        self._tail: bytes | None = None
        self._entries: bytes | None = None
        self.size: int = os.fstat(self._open()).st_size if size is None else size

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = open_regular(self.path)
        return self._fd

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def head(self) -> bytes:
        """The first `HEAD_BYTES` bytes (fewer where the file is shorter)."""
        if self._head is None:
            self._head = self._pread(0, min(HEAD_BYTES, self.size))
        return self._head

    @property
    def tail(self) -> bytes:
        """The last `TAIL_BYTES` bytes (fewer where the file is shorter)."""
        if self._tail is None:
            start = max(0, self.size - TAIL_BYTES)
            if self.size <= HEAD_BYTES:
                self._tail = self.head[start:]
            else:
                self._tail = self._pread(start, self.size - start)
        return self._tail

    def mentions(self, words: tuple[bytes, ...]) -> bool:
        """Whether one of ``words`` stands in `head`. Quick where none does and the head is JSON whose entries differ in their
        numbers only, as those of a table of tensors do."""
        if self._entries is None:
            # With a comma before each and a brace behind, also where they are all the same one.
            entries = dict.fromkeys(self.head.translate(None, _DIGITS).split(_BETWEEN))
            self._entries = _BETWEEN.join((b"", *entries, b""))
        return _may_mention(self._entries, words) and any(word in self.head for word in words)

    def _pread(self, offset: int, nbytes: int) -> bytes:
        fd = self._open()
        data = os.pread(fd, nbytes, offset)
        if len(data) == nbytes or not data:
            return data
        parts = [data]
        got = len(data)
        while got < nbytes:
            data = os.pread(fd, nbytes - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly ``nbytes`` bytes at ``offset``. `IncompleteFile` where the file ends before, checked before anything is
        allocated; `InvalidFile` for a negative or absurd length."""
        if offset < 0 or nbytes < 0 or nbytes > MAX_READ:
            raise InvalidFile(f"{self.name}: a read of {nbytes} bytes at {offset} makes no sense")
        end = offset + nbytes
        if end > self.size:
            raise IncompleteFile(f"{self.name}: {nbytes} bytes at offset {offset} expected, the file ends at {self.size}")
        if self._head is not None and end <= len(self._head):
            return self._head[offset:end]
        data = self._pread(offset, nbytes)
        if len(data) != nbytes:
            raise IncompleteFile(f"{self.name}: {nbytes} bytes at offset {offset} expected, {len(data)} found: it was truncated")
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"File({self.path!r}, size={self.size})"


@lru_cache(64)
def _may_mention(entries: bytes, words: tuple[bytes, ...]) -> bool:
    """Whether one of ``words`` may stand in a head that has ``entries``, without their digits. One training run leaves many files
    of which these are the same."""
    return any(map(entries.__contains__, _without_digits(words)))


@lru_cache(64)
def _without_digits(words: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What stands in an entry of a head without digits where one of ``words`` stands in the head, in one entry or across two."""
    return tuple({word.translate(None, _DIGITS).partition(_BETWEEN)[0] for word in words})


class Listing:
    """One directory as the core listed it: ``files`` maps the names of its regular files to their sizes (links are followed),
    ``directories`` names its sub-directories."""

    __slots__ = ("_opened", "directories", "files", "name", "path")

    def __init__(self, path: str, files: Mapping[str, int], directories: Sequence[str] = ()) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.files = files
        self.directories = directories
        self._opened: dict[str, File] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def file(self, name: str) -> File:
        """The file called ``name`` in this directory; KeyError where there is none."""
        if name not in self._opened:
            self._opened[name] = File(os.path.join(self.path, name), self.files[name], self.files)
        return self._opened[name]

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def subdirectory(self, name: str) -> Listing:
        """The listing of a direct sub-directory, read now."""
        if name not in self.directories:
            raise KeyError(name)
        return list_directory(self.join(name))

    def close(self) -> None:
        for file in self._opened.values():
            file.close()


class Checkpoint:
    """The files of one checkpoint, as a `Detection` named them; what ``Format.read`` is given.

    ``path`` is the primary file, or the directory for a directory's claim. ``files`` are absolute paths, primary first.
    """

    __slots__ = ("_opened", "files", "is_directory", "missing", "name", "path")

    def __init__(self, path: str, files: Sequence[str], *, name: str = "", missing: Sequence[str] = ()) -> None:
        self.path = path
        self.files: tuple[str, ...] = tuple(files)
        self.is_directory = path not in self.files
        self.name = name or os.path.splitext(os.path.basename(path))[0]
        self.missing: tuple[str, ...] = tuple(missing)
        self._opened: dict[str, File] = {}

    @property
    def directory(self) -> str:
        """The directory that the files stand in."""
        return self.path if self.is_directory else os.path.dirname(self.path)

    @property
    def primary(self) -> File:
        return self.open(self.files[0])

    def open(self, path: str) -> File:
        """One of the checkpoint's own files, by absolute path or by its path relative to ``directory``."""
        full = path if path in self.files else os.path.join(self.directory, path)
        if full not in self.files:
            raise InvalidFile(f"{os.path.basename(path)} is not one of this checkpoint's files")
        if full not in self._opened:
            self._opened[full] = File(full)
        return self._opened[full]

    def __contains__(self, path: str) -> bool:
        return path in self.files or os.path.join(self.directory, path) in self.files

    def __iter__(self) -> Iterator[File]:
        for path in self.files:
            yield self.open(path)

    def adopt(self, file: File) -> None:
        """Use a file that detection has opened already (its head is read)."""
        self._opened[file.path] = file

    def close(self) -> None:
        for file in self._opened.values():
            file.close()


MANY = 200
"""Files from which on a directory's listing is worth remembering."""
_remembered: dict[str, tuple[tuple[int, int], Listing]] = {}


def listing_again(path: str) -> Listing:
    """The same as `list_directory`, for those who look at one file of a big directory after another: nothing is listed anew while
    the directory's own mtime stands still. Sizes may be out of date, names are not. At most one listing is remembered."""
    info = os.stat(path)
    stamp = (info.st_mtime_ns, info.st_ino)
    found = _remembered.get(path)
    if found is not None and found[0] == stamp:
        return found[1]
    _remembered.clear()
    listing = list_directory(path)
    # What changed just now may change again in the same tick of the clock.
    if len(listing.files) >= MANY and time.time_ns() - info.st_mtime_ns > 2 * 10**9:
        _remembered[path] = (stamp, listing)
    return listing


def list_directory(path: str) -> Listing:
    """List ``path`` once: regular files (links followed) with sizes, and directories. FIFOs, sockets, devices and dangling
    links are left out. OSError where the directory itself cannot be listed."""
    files: dict[str, int] = {}
    directories: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                info = entry.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES):
                    continue
                raise
            if stat_module.S_ISREG(info.st_mode):
                files[entry.name] = info.st_size
            elif stat_module.S_ISDIR(info.st_mode):
                directories.append(entry.name)
    return Listing(path, dict(sorted(files.items())), sorted(directories))

"""One pass over a directory tree, one stat a file, compared with what the catalog knows. Opens no file but a store's manifests.

The loop runs once per file of a drive: it makes no records, and keeps what it saw only of directories in which something changed.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable
from dataclasses import dataclass, field

from modelhub.catalog.rows import Brief, Stat, signed
from modelhub.ignore import Excluded, is_hidden_directory, is_partial

Problem = tuple[bytes, OSError]


@dataclass(slots=True)
class Directory:
    """A directory in which something is new, changed or gone. ``files``: name -> stat of its regular files. ``dirty``: names to
    look at."""

    path: bytes
    files: dict[bytes, Stat]
    directories: list[bytes]
    dirty: set[bytes]


@dataclass(slots=True)
class Walk:
    """What a pass saw. Paths are relative to the root. ``rest``: rows of files that were not met, which may be gone.
    ``failed``: directories and files that could not be looked at, so that nothing is known of them and what is below them."""

    dirty: dict[bytes, Directory] = field(default_factory=dict)
    rest: dict[bytes, Brief] = field(default_factory=dict)
    failed: list[Problem] = field(default_factory=list)
    stores: list[bytes] = field(default_factory=list)
    files: int = 0

    def unknowable(self, path: bytes) -> bool:
        """Whether ``path`` lies at or below something that could not be looked at."""
        return any(not failed or path == failed or path.startswith(failed + b"/") for failed, _ in self.failed)


Again = Callable[[Brief], bool]


def walk(
    root: bytes,
    start: bytes,
    known: dict[bytes, Brief],
    *,
    excluded: Excluded | None,
    again: Again,
    inodes: bool = True,
    only: frozenset[bytes] | None = None,
) -> Walk:
    """Go through ``root`` from its directory ``start`` on. ``known``: the catalog's files by path; it is not changed.

    ``again`` decides about files that are marked in the catalog. ``inodes=False`` where inode numbers change by themselves.
    ``only``: names, for a root of which only some files were asked for.
    """
    result = Walk(rest=dict(known))
    seen: list[bytes] = []
    links: list[bytes] = []
    stack = [start]
    while stack:
        path = stack.pop()
        seen.append(path)
        stack += _directory(result, root, path, links, excluded, again, inodes, only)
        if not stack and links:
            stack += _follow(root, links, seen)
    return result


def _directory(
    result: Walk,
    root: bytes,
    path: bytes,
    links: list[bytes],
    excluded: Excluded | None,
    again: Again,
    inodes: bool,
    only: frozenset[bytes] | None,
) -> list[bytes]:
    """List one directory; its sub-directories."""
    prefix = path + b"/" if path else b""
    pop = result.rest.pop
    listing: list[tuple[bytes, os.stat_result]] = []
    add = listing.append
    directories: list[bytes] = []
    dirty: set[bytes] = set()
    try:
        with os.scandir(os.path.join(root, path)) as entries:
            for entry in entries:
                name = entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                        continue
                    info = entry.stat()
                except (FileNotFoundError, NotADirectoryError):
                    continue  # gone since it was listed, or a dangling link
                except OSError as error:
                    if entry.is_symlink() and error.errno == errno.ELOOP:  # it leads nowhere
                        continue
                    result.failed.append((prefix + name, error))
                    continue
                if info.st_mode & 0o170000 != 0o100000:  # not a regular file
                    if stat_module.S_ISDIR(info.st_mode) and not is_hidden_directory(name):
                        links.append(prefix + name)
                    continue
                place = prefix + name
                if excluded is not None and excluded(place, False):
                    continue
                row = pop(place, None)
                if row is None:
                    if is_partial(name):
                        continue
                    if only is None or name in only:
                        dirty.add(name)
                elif (
                    row[1] != info.st_size
                    or row[2] != info.st_mtime_ns
                    or (inodes and row[3] != info.st_ino and row[3] != signed(info.st_ino))
                    or (row[4] and again(row))
                ):
                    dirty.add(name)
                add((name, info))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path:
            result.failed.append((path, error))
        return []
    except OSError as error:
        result.failed.append((path, error))
        return []
    result.files += len(listing)
    if directories:
        store = b"blobs" in directories and (b"manifests" in directories or b"snapshots" in directories)
        if store and b"manifests" in directories:
            result.stores.append(path)
        directories = [
            name
            for name in directories
            if not is_hidden_directory(name)
            and not (store and name == b"blobs")
            and not (excluded and excluded(prefix + name, True))
        ]
    if dirty:
        files = {name: Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev) for name, info in sorted(listing)}
        result.dirty[path] = Directory(path, files, sorted(directories), dirty)
    return [] if only is not None else [prefix + name for name in directories]


def _follow(root: bytes, links: list[bytes], seen: list[bytes]) -> list[bytes]:
    """The links to directories that lead somewhere new: not to what was walked already, nor around in a circle."""
    places = set()
    for path in seen:
        try:
            info = os.stat(os.path.join(root, path))
            places.add((info.st_dev, info.st_ino))
        except OSError:
            continue
    found = []
    for path in sorted(links):
        try:
            info = os.stat(os.path.join(root, path))
        except OSError:
            continue
        target = os.path.realpath(os.path.join(root, path))
        # What holds the root would bring everything beside it along.
        if (info.st_dev, info.st_ino) not in places and not (os.path.realpath(root) + b"/").startswith(
            target.rstrip(b"/") + b"/"
        ):
            places.add((info.st_dev, info.st_ino))
            found.append(path)
    links.clear()
    return found


def list_again(root: bytes, path: bytes, excluded: Excluded | None) -> Directory | None:
    """A directory in which nothing changed, listed because something that belongs to it did; None where it is not there."""
    result = Walk()
    _directory(result, root, path, [], excluded, lambda row: False, True, None)
    return result.dirty.get(path)

"""One pass over directories, one stat a file, compared with what the catalog knows. Opens no file.

The loop runs once per file of a drive: it makes no records, and keeps what it saw only of directories in which something changed.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from modelhub.catalog.rows import Brief, Stat, signed
from modelhub.ignore import Excluded, is_hidden_directory, is_partial, is_unfinished_blob

Problem = tuple[bytes, OSError]


class Part(NamedTuple):
    """A directory of a root, relative to it, b"" for the root itself. ``deep``: all below it; else its own entries only."""

    path: bytes
    deep: bool = True


@dataclass(slots=True)
class Directory:
    """A directory in which something is new, changed or gone. ``files``: name -> stat of its regular files. ``dirty``: names to
    look at. ``held``: names that are new or changed, and do not stand still yet; with the seconds to wait. ``whole``: it is
    looked at even where no name is."""

    path: bytes
    files: dict[bytes, Stat]
    directories: list[bytes]
    dirty: set[bytes]
    held: dict[bytes, float] = field(default_factory=dict)
    whole: bool = False


@dataclass(slots=True)
class Walk:
    """What a pass saw. Paths are relative to the root. ``rest``: rows of files that were not met, which may be gone.
    ``failed``: directories and files that could not be looked at, so that nothing is known of them and what is below them.
    ``listed``: directories that were listed. ``new``: how many of the files that were met the catalog does not know."""

    dirty: dict[bytes, Directory] = field(default_factory=dict)
    rest: dict[bytes, Brief] = field(default_factory=dict)
    failed: list[Problem] = field(default_factory=list)
    stores: list[bytes] = field(default_factory=list)
    listed: set[bytes] = field(default_factory=set)
    files: int = 0

    def knowable(self) -> Callable[[bytes], bool]:
        """Whether a path lies neither at nor below anything that could not be looked at."""
        failed = {path for path, _ in self.failed}
        if not failed:
            return lambda path: True
        return lambda path: b"" not in failed and not any(above in failed for above, _ in components(path))


Again = Callable[[Brief], bool]
"""Whether a file that is marked in the catalog is looked at although its stat is the same."""
Hold = Callable[[bytes, os.stat_result], float]
"""Told a path and its stat; the seconds for which it is to be left alone."""
Allowed = Callable[[bytes], bool]
"""Whether a link to a directory (its path) is to be followed, where that cannot be told from what was walked."""


class Walker:
    """Passes over parts of one root, all into one `Walk`.

    ``again`` decides about files that are marked in the catalog. ``inodes=False`` where inode numbers change by themselves.
    ``only``: names, for a root of which only some files were asked for. ``hold``: whether new and changed files stand still.
    ``every``: directories in which nothing changed are kept as well.
    """

    def __init__(
        self,
        root: bytes,
        *,
        excluded: Excluded | None,
        again: Again,
        inodes: bool = True,
        only: frozenset[bytes] | None = None,
        hold: Hold | None = None,
        allowed: Allowed | None = None,
        every: bool = False,
    ) -> None:
        self.root = root
        self.excluded = excluded
        self.again = again
        self.inodes = inodes
        self.only = only
        self.hold = hold
        self.allowed = allowed
        self.every = every
        self.seen = Walk()

    def deep(self, start: bytes, known: dict[bytes, Brief]) -> None:
        """Go through everything from the directory ``start`` on. ``known``: the catalog's files there by path; it is emptied."""
        if self.seen.rest:
            self.seen.rest.update(known)
        else:
            self.seen.rest = known
        walked: list[bytes] = []
        links: list[bytes] = []
        stack = [start]
        while stack:
            path = stack.pop()
            walked.append(path)
            directories, more = self.directory(path)
            if self.only is None:
                stack += directories
            links += more
            if not stack and links:
                stack += self._follow(links, walked, whole=not start)
        self.seen.listed.update(walked)

    def shallow(self, path: bytes, known: dict[bytes, Brief], familiar: Collection[bytes]) -> list[bytes]:
        """Look at one directory's own entries, and go through those of its directories that are not ``familiar`` (names).
        Which paths are not directories any more: everything known below them may be gone."""
        self.seen.rest.update(known)
        failures = len(self.seen.failed)
        gone: list[bytes] = []
        listed = self.directory(path, gone)
        self.seen.listed.add(path)
        if gone:
            return [path]
        if len(self.seen.failed) > failures and self.seen.failed[failures][0] == path:
            return []
        directories, links = listed
        prefix = path + b"/" if path else b""
        there = {*directories, *links}
        if self.only is None:
            links = [link for link in links if link[len(prefix) :] not in familiar]
            for directory in [*directories, *self._follow(links, [], whole=False)]:
                if directory[len(prefix) :] not in familiar:
                    self.deep(directory, {})
        return [prefix + name for name in familiar if prefix + name not in there and (self.only is None or name in self.only)]

    def directory(self, path: bytes, missing: list[bytes] | None = None) -> tuple[list[bytes], list[bytes]]:
        """List one directory: the paths of its directories, and of links to directories. ``missing`` gets the path where there
        is no such directory. Of a store's blobs only those that are not whole are listed: the others are its manifests'."""
        result, excluded, again, inodes, only, hold = self.seen, self.excluded, self.again, self.inodes, self.only, self.hold
        prefix = path + b"/" if path else b""
        pop = result.rest.pop
        listing: list[tuple[bytes, os.stat_result]] = []
        add = listing.append
        directories: list[bytes] = []
        links: list[bytes] = []
        dirty: set[bytes] = set()
        held: dict[bytes, float] = {}
        blobs = os.path.basename(path) == b"blobs" and os.path.dirname(path) in result.stores
        try:
            with os.scandir(os.path.join(self.root, path)) as entries:
                for entry in entries:
                    name = entry.name
                    if blobs and not is_unfinished_blob(name):
                        continue
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
                        if not blobs and is_partial(name):
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
                    if hold is not None and name in dirty and (wait := hold(place, info)):
                        dirty.discard(name)
                        held[name] = wait
                    add((name, info))
        except (FileNotFoundError, NotADirectoryError) as error:
            if not path:
                result.failed.append((path, error))
            if missing is not None:
                missing.append(path)
            return [], []
        except OSError as error:
            result.failed.append((path, error))
            return [], []
        result.files += len(listing)
        if directories:
            store = b"blobs" in directories or prefix + b"blobs" in links
            if store and b"manifests" in directories:
                result.stores.append(path)
                if b"blobs" not in directories:  # moved to another drive
                    links.remove(prefix + b"blobs")
                    directories.append(b"blobs")
            elif store and b"snapshots" in directories:
                directories = [name for name in directories if name != b"blobs"]
                links = [link for link in links if link != prefix + b"blobs"]
            directories = [
                name for name in directories if not is_hidden_directory(name) and not (excluded and excluded(prefix + name, True))
            ]
        if dirty or held or self.every:
            files = {
                name: Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev) for name, info in sorted(listing)
            }
            result.dirty[path] = Directory(path, files, sorted(directories), dirty, held)
        return [prefix + name for name in directories], links

    def relist(self, path: bytes, known: dict[bytes, Brief]) -> Directory | None:
        """List a directory in which nothing was new once more, because something that belongs to it is: with what is new in it
        by now, as in any first listing. None where it is not there any more, or not all of it can be seen. ``known``: the
        catalog's files in it, by path; it is emptied."""
        one = Walker(
            self.root, excluded=self.excluded, again=self.again, inodes=self.inodes, only=self.only, hold=self.hold, every=True
        )
        one.seen.rest = known
        one.directory(path)
        if one.seen.failed:
            self.seen.failed += one.seen.failed
            return None
        return one.seen.dirty.get(path)

    def _follow(self, links: list[bytes], walked: list[bytes], *, whole: bool) -> list[bytes]:
        """The links to directories that lead somewhere new: not to what was walked already, nor around in a circle. ``whole``:
        everything that does not lie behind a link was walked."""
        places = set()
        for path in walked if links else ():
            try:
                info = os.stat(os.path.join(self.root, path))
                places.add((info.st_dev, info.st_ino))
            except OSError:
                continue
        found = []
        real = os.path.realpath(self.root).rstrip(b"/") + b"/"
        for path in sorted(links):
            try:
                info = os.stat(os.path.join(self.root, path))
            except OSError:
                continue
            target = os.path.realpath(os.path.join(self.root, path)).rstrip(b"/") + b"/"
            # What holds the root would bring everything beside it along.
            if (info.st_dev, info.st_ino) in places or real.startswith(target):
                continue
            if not whole and (self.allowed is None or not self.allowed(path)) and target.startswith(real):
                continue  # the root has it where it is
            places.add((info.st_dev, info.st_ino))
            found.append(path)
        links.clear()
        return found


def components(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(the path so far, the name) for each component of a relative path."""
    so_far = b""
    for name in path.split(b"/"):
        so_far = so_far + b"/" + name if so_far else name
        yield so_far, name

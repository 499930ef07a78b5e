"""Bringing one part of a root up to date: what a walk saw, against what the catalog knows.

Decides which directories are looked at, has that done, and hands what comes back to the catalog in batches, while the workers
go on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from modelhub.catalog.database import Reader
from modelhub.catalog.index import Indexer
from modelhub.catalog.rows import FileRow, Look, Stat, signed
from modelhub.ignore import Excluded
from modelhub.walk import Directory, Walk, list_again

if TYPE_CHECKING:
    from modelhub.found import Found
    from modelhub.workers import Result, Task

BATCH = 500
"""Checkpoints in one write transaction."""
WHOLE = 1000
"""A directory of at most so many files is looked at as a whole when one of them changes."""

Progress = Callable[[int, int], None]
"""Told (files looked at, files to look at)."""
Inspect = Callable[[Iterable["Task"]], "Iterator[Result]"]


class Reconciliation:
    """One part of a root. ``index`` has the catalog's files. ``only``: names, where only some files of one directory count."""

    def __init__(self, index: Indexer, seen: Walk, *, excluded: Excluded | None, only: frozenset[bytes] | None) -> None:
        self.index = index
        self.seen = seen
        self.place = index.root_path
        self.excluded = excluded
        self.only = only
        self.problems: list[str] = []
        self.blobs: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.store_directories: set[str] = set()

    def run(self, gone: Sequence[FileRow], inspect: Inspect, progress: Progress | None) -> None:
        """Do it all. ``gone``: rows of files that are certainly not there any more."""
        index = self.index
        with index.database.read() as reader:
            self._prepare(reader, gone)
        self._look(inspect, progress)
        index.finish(gone)

    def _prepare(self, reader: Reader, gone: Sequence[FileRow]) -> None:
        index = self.index
        if index.known:
            index.load(reader)
        self._widen(gone)
        for directory in self.seen.dirty.values():
            prefix = directory.path + b"/" if directory.path else b""
            index.stats.update((prefix + name, stat) for name, stat in directory.files.items())
        index.find_moves(reader, gone)

    def _widen(self, gone: Sequence[FileRow]) -> None:
        """What belongs to what changed is looked at as well: the other files of its checkpoint, the directory whose checkpoint
        it is part of."""
        index, seen = self.index, self.seen
        by_key = {row.key: path for path, row in index.known.items()} if index.owners else {}
        places: dict[bytes, set[bytes]] = defaultdict(set)
        touched = [row.key for row in gone]
        for directory in seen.dirty.values():
            prefix = directory.path + b"/" if directory.path else b""
            touched += [row.key for name in directory.dirty if (row := index.known.get(prefix + name))]
            above = directory.path
            while above:
                above = os.path.dirname(above)
                if above in index.at and not index.at[above].missing:
                    places[above]
        for owner in {owner for key in touched for owner in index.owners.get(key, ())}:
            old = index.old[owner]
            for file in old.files:
                path = by_key.get(file)
                if path is not None:
                    places[os.path.dirname(path)].add(os.path.basename(path))
            if old.path not in index.known:
                places[old.path]
        for row in gone:  # a directory's checkpoint may be another without it
            places[os.path.dirname(row.path)]
        for path, names in places.items():
            listed = seen.dirty.get(path) or self._listed(path)
            if listed is not None:
                listed.dirty |= names & listed.files.keys()

    def _listed(self, path: bytes) -> Directory | None:
        """A directory in which nothing is new, made one to look at; None where there is none."""
        if os.path.basename(path) == b"blobs" or not os.path.isdir(os.path.join(self.place, path)):
            return None
        listed = list_again(self.place, path, self.excluded) or Directory(path, {}, [], set())
        listed.dirty = set()
        self.seen.dirty[path] = listed
        return listed

    def look_again(self, known: Mapping[bytes, FileRow]) -> None:
        """Other plugins are installed: files that none knew may be someone's now."""
        for path, row in known.items():
            if row[6] is None and not row[5] & 2 and path not in self.seen.rest:
                place, name = os.path.split(path)
                listed = self.seen.dirty.get(place) or self._listed(place)
                if listed is not None and name in listed.files:
                    listed.dirty.add(name)

    # --- having it looked at --------------------------------------------------------------------------------------

    def _look(self, inspect: Inspect, progress: Progress | None) -> None:
        """Have the dirty directories inspected, and record what comes back while the workers go on."""
        index = self.index
        tasks = list(self._tasks())
        total = sum(len(task.names if task.only is None else task.only) for task in tasks)
        if not tasks:
            return
        asked = {task.directory: task.only for task in tasks}
        pending: list[Look] = []
        weight = done = 0
        for result in inspect(tasks):
            look = self._as_look(result, asked[result.directory])
            pending.append(look)
            weight += len(look.found) + len(look.unknown) + 1
            done += len(look.found) + len(look.unknown)
            if progress:
                progress(min(done, total), total)
            if weight >= BATCH:
                index.apply(pending)
                pending, weight = [], 0
        if pending:
            index.apply(pending)

    def _tasks(self) -> Iterator[Task]:
        from modelhub.workers import Task

        seen = self.seen
        for path in sorted(seen.dirty):
            directory = seen.dirty[path]
            store = next((store for store in seen.stores if path.startswith((store + b"/manifests/").lstrip(b"/"))), None)
            if store is not None:
                yield from self._store_tasks(store, directory)
                continue
            some = self.only is not None or len(directory.files) > WHOLE
            yield Task(
                os.fsdecode(os.path.join(self.place, path).rstrip(b"/") or b"/"),
                tuple((os.fsdecode(name), stat.size) for name, stat in directory.files.items()),
                tuple(os.fsdecode(name) for name in directory.directories),
                tuple(sorted(os.fsdecode(name) for name in directory.dirty)) if some else None,
            )

    def _store_tasks(self, store: bytes, directory: Directory) -> Iterator[Task]:
        """Look at the blobs that new manifests name."""
        from modelhub.stores import blobs_of
        from modelhub.workers import Task

        blobs = os.fsdecode(os.path.join(self.place, store, b"blobs"))
        rest = []
        names: dict[str, int] = {}
        for name in sorted(directory.dirty):
            manifest = os.path.join(directory.path, name)
            weights = blobs_of(os.fsdecode(os.path.join(self.place, manifest)), blobs)
            if not weights:
                rest.append(manifest)
                continue
            self.blobs[blobs, weights[0]].append(manifest)
            names[weights[0]] = os.stat(os.path.join(blobs, weights[0])).st_size
        if rest:
            self.index.apply([Look(directory.path, (), rest)])
        if names:
            self.store_directories.add(blobs)
            yield Task(blobs, tuple(names.items()), (), tuple(names))

    def _as_look(self, result: Result, asked: tuple[str, ...] | None) -> Look:
        """A result in the catalog's terms."""
        from modelhub.stores import named

        index = self.index
        path = index.relative(result.directory)
        unreadable = frozenset(index.relative(item.file) for item in result.problems if item.check == "read" and item.file)
        self.problems += [item.message for item in result.problems]
        if result.directory in self.store_directories:
            return self._store_look(result)
        found = [named(item) for item in result.found]
        self._stat_others(found)
        looked: list[bytes] | None = None
        if result.last:
            directory = self.seen.dirty[path]
            prefix = path + b"/" if path else b""
            names = directory.files.keys() if asked is None else map(os.fsencode, asked)
            looked = [prefix + name for name in names]
        prefix = path + b"/" if path else b""
        return Look(path, found, [prefix + os.fsencode(name) for name in result.unknown], unreadable, looked)

    def _store_look(self, result: Result) -> Look:
        from modelhub.stores import as_manifest, manifest_name

        index = self.index
        found, unknown = [], []
        for item in result.found:
            for manifest in self.blobs.pop((result.directory, os.path.basename(item.path)), []):
                below = os.fsdecode(manifest.partition(b"manifests/")[2])
                place = os.path.join(self.place, manifest)
                found.append(as_manifest(item, os.fsdecode(place), manifest_name(below), index.stats[manifest].size))
        for name in result.unknown:
            unknown += self.blobs.pop((result.directory, name), [])
        self._stat_others(found)
        return Look(index.relative(result.directory), found, unknown)

    def _stat_others(self, found: Iterable[Found]) -> None:
        """Stat the files of checkpoints that the walk did not meet in a dirty directory, before the catalog is written to."""
        index = self.index
        for item in found:
            for file in item.files:
                path = index.relative(file)
                if path not in index.stats and path not in index.known:
                    try:
                        info = os.stat(file)
                    except OSError:
                        continue
                    index.stats[path] = Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev)

"""Bringing parts of a root up to date: what a walk saw, against what the catalog knows.

Decides which directories are looked at, has that done, and hands what comes back to the catalog in batches, while the workers
go on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modelhub.catalog.database import Reader
from modelhub.catalog.index import Indexer
from modelhub.catalog.places import known_here
from modelhub.catalog.rows import FileRow, Look, Stat, signed
from modelhub.settle import Settling
from modelhub.storescan import StoreScan
from modelhub.walk import Directory, Walker

if TYPE_CHECKING:
    from modelhub.found import Found
    from modelhub.workers import Result, Task

BATCH = 500
"""Checkpoints in one write transaction."""
ROUNDS = 8
"""How often directories are listed again for what turned up in those that were."""
WHOLE = 1000
"""A directory of at most so many files is looked at as a whole when one of them changes."""

Progress = Callable[[int, int], None]
"""Told (files looked at, files to look at)."""
Inspect = Callable[[Iterable["Task"]], "Iterator[Result]"]


class Reconciliation:
    """Some parts of a root (its key). ``index`` takes in what ``walker`` saw. ``settling``: what is waited for, where files have
    to stand still. ``narrow``: not all of the root was walked."""

    def __init__(
        self, root: int, index: Indexer, walker: Walker, *, settling: Settling | None = None, narrow: bool = False
    ) -> None:
        self.root = root
        self.index = index
        self.walker = walker
        self.seen = walker.seen
        self.place = index.root_path
        self.settling = settling
        self.narrow = narrow
        self.problems: list[str] = []
        self.vanished: set[bytes] = set()
        self.unreadable: set[bytes] = set()
        self.stores = StoreScan(self.place, self.seen.stores, self.vanished)
        self.kept: dict[bytes, set[bytes]] = defaultdict(set)
        self.gone: list[FileRow] = []
        self.waiting: set[bytes] = set()
        self.still_there: Callable[[], bool] = lambda: True
        self.went_away = False

    # --- what is to be looked at ----------------------------------------------------------------------------------

    def prepare(self, reader: Reader, gone: Sequence[bytes]) -> set[bytes]:
        """Work out what to look at. ``gone``: paths of files that are not there any more. Which directories are to be walked
        as well, because something that belongs to what changed lies in them: then again."""
        index, seen = self.index, self.seen
        for _ in range(ROUNDS):
            looked = [path for directory in seen.dirty.values() for path in _paths(directory, directory.dirty)]
            held = [path for directory in seen.dirty.values() for path in _paths(directory, directory.held)]
            index.load(reader, [*looked, *held, *gone], self._above())
            self.gone = [row for path in gone if (row := index.known.get(path)) is not None]
            self._release(reader)
            self._keep(reader)
            more, news = self._widen(reader)
            if not news:
                break
        else:  # files turn up faster than they can be listed
            for path in news:
                del seen.dirty[path]
            self.vanished |= news
        candidates: dict[bytes, Stat] = {}
        for directory in seen.dirty.values():
            candidates.update(
                zip(_paths(directory, directory.dirty), map(directory.files.__getitem__, directory.dirty), strict=True)
            )
        more |= {os.path.dirname(path) for path in index.find_moves(reader, candidates, self.gone)}
        return {path for path in more if path not in seen.listed and self.narrow}

    def _above(self) -> set[bytes]:
        """The directories whose checkpoints what changed may be part of."""
        found: set[bytes] = set()
        for path in self.seen.dirty:
            while path and path not in found:
                found.add(path)
                path = os.path.dirname(path)
        return found | {b""}

    def _release(self, reader: Reader) -> None:
        """Files that do not stand still, but that the catalog knows elsewhere just so, did stand still: they were moved or
        linked here."""
        waiting: dict[int, list[tuple[Directory, bytes, Stat]]] = defaultdict(list)
        for directory in self.seen.dirty.values():
            for name in directory.held:
                stat = directory.files[name]
                waiting[stat.inode].append((directory, name, stat))
        for size, mtime, inode, device in reader.rows_in(
            "SELECT size,mtime,inode,device FROM file WHERE inode IN (??) AND content IS NOT NULL AND again=0", list(waiting)
        ):
            for directory, name, stat in waiting[inode]:
                if stat == (size, mtime, inode, device) and name in directory.held:
                    del directory.held[name]
                    directory.dirty.add(name)
                    if self.settling is not None:
                        self.settling.settled(os.path.join(directory.path, name))

    def _keep(self, reader: Reader) -> None:
        """Checkpoints of which a file does not stand still stay as they are, with all of their files; and what is new in a
        directory that is one waits."""
        index, dirty = self.index, self.seen.dirty
        for directory in list(dirty.values()):
            for path in _paths(directory, directory.held):
                row = index.known.get(path)
                if row is None:
                    continue
                name = os.path.basename(path)
                self.kept[directory.path].add(name)
                for owner in index.owners.get(row.key, ()):
                    old = index.old[owner]
                    if old.missing:
                        continue
                    files = self._files_of(reader, owner)
                    if old.path not in files:
                        for place in {old.path, directory.path} & dirty.keys():
                            files += _paths(dirty[place], dirty[place].dirty)
                    self._hold(files, directory.held[name])

    def _hold(self, paths: Iterable[bytes], wait: float) -> None:
        for path in paths:
            place, name = os.path.split(path)
            there = self.seen.dirty.get(place)
            if there is not None and name in there.dirty:
                there.dirty.discard(name)
                there.held[name] = wait
                if path in self.index.known:
                    self.kept[place].add(name)

    def _files_of(self, reader: Reader, owner: int) -> list[bytes]:
        """Paths of a checkpoint's files in this root."""
        rows = reader.rows_in(
            "SELECT path FROM file WHERE root=? AND key IN (??)", self.index.old[owner].files, (self.index.root,)
        )
        return [path for (path,) in rows]

    def _widen(self, reader: Reader) -> tuple[set[bytes], set[bytes]]:
        """What belongs to what changed is looked at as well: the other files of its checkpoint, the directory whose checkpoint
        it is part of. (Directories that are to be walked for it, those that were listed again and in which more is new.)"""
        index, seen = self.index, self.seen
        places: dict[bytes, set[bytes]] = defaultdict(set)
        touched = [row.key for row in self.gone]
        for directory in seen.dirty.values():
            if not directory.dirty:
                continue
            touched += [row.key for path in _paths(directory, directory.dirty) if (row := index.known.get(path))]
            above = directory.path
            while above:
                above = os.path.dirname(above)
                if above in index.at and not index.at[above].missing:
                    places[above]
        owners = {owner for key in touched for owner in index.owners.get(key, ())}
        several = [file for owner in owners for file in index.old[owner].files if len(index.old[owner].files) > 1]
        paths: dict[int, bytes] = dict(
            reader.rows_in("SELECT key,path FROM file WHERE root=? AND key IN (??)", several, (index.root,))
        )
        alone = {row.key: row.path for row in index.known.values()}
        for owner in owners:
            old = index.old[owner]
            files = [path for key in old.files if (path := paths.get(key) or alone.get(key))]
            for path in files:
                places[os.path.dirname(path)].add(os.path.basename(path))
            if old.path not in files and not old.missing:
                places[old.path]
        for row in self.gone:  # a directory's checkpoint may be another without it
            places[os.path.dirname(row.path)]
        more, news = set[bytes](), set[bytes]()
        for path, names in places.items():
            if self.narrow and path not in seen.listed and os.path.basename(path) != b"blobs":
                more.add(path)
                continue
            listed = seen.dirty.get(path)
            if listed is None and (listed := self._listed(reader, path)) is not None and (listed.dirty or listed.held):
                news.add(path)
            if listed is not None:
                listed.dirty |= (names & listed.files.keys()) - listed.held.keys()
                listed.whole = True
        return more, news

    def _listed(self, reader: Reader, path: bytes) -> Directory | None:
        """A directory in which nothing was new, made one to look at; None where there is none. What is new in it by now, moved
        there since the walk came by, has to be told from what the catalog knows like anything else."""
        passed_by = path not in self.seen.listed and self.walker.only is None
        if passed_by or os.path.basename(path) == b"blobs" or not os.path.isdir(os.path.join(self.place, path)):
            return None
        listed = self.walker.relist(path, known_here(reader, self.root, path)[0])
        if listed is not None:
            self.seen.dirty[path] = listed
        return listed

    def look_again(self, reader: Reader, paths: Iterable[bytes]) -> None:
        """Other plugins are installed: files that none knew may be someone's now. Before `prepare`."""
        for path in paths:
            if path not in self.seen.rest:
                place, name = os.path.split(path)
                listed = self.seen.dirty.get(place) or self._listed(reader, place)
                if listed is not None and name in listed.files and name not in listed.held:
                    listed.dirty.add(name)

    def run(self, inspect: Inspect, progress: Progress | None) -> None:
        """Have it all looked at and recorded."""
        index = self.index
        for directory in self.seen.dirty.values():
            some = self._some(directory)
            names = directory.dirty if some else directory.files.keys() - directory.held.keys()
            index.stats.update(_stats(directory, names))
            self.waiting.update(_paths(directory, directory.held))
        index.growing |= self.waiting
        self._look(inspect, progress)
        if self._is_there():
            index.finish(self.gone)

    def _is_there(self) -> bool:
        """Whether the root is still there: what could not be opened because it is not, is not gone."""
        self.went_away = self.went_away or not self.still_there()
        return not self.went_away

    def _some(self, directory: Directory) -> bool:
        """Whether only some files of a directory are looked at."""
        return self.walker.only is not None or len(directory.files) > WHOLE or bool(self.kept.get(directory.path))

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
                if not self._is_there():
                    return
                index.apply([self._there(look) for look in pending])
                pending, weight = [], 0
        if pending and self._is_there():
            index.apply([self._there(look) for look in pending])

    def _tasks(self) -> Iterator[Task]:
        from modelhub.workers import Task

        seen = self.seen
        for path in sorted(seen.dirty):
            directory = seen.dirty[path]
            store = self.stores.whose(path)
            if store is not None:
                if directory.dirty:
                    yield from self._store_tasks(store, directory)
                continue
            some = self._some(directory)
            if not directory.dirty and (some or not directory.whole):
                continue
            if self.stores.is_of_blobs(path):
                yield self.stores.unfinished(directory)
                continue
            hidden = directory.held.keys() - self.kept.get(path, set())
            yield Task(
                os.fsdecode(os.path.join(self.place, path).rstrip(b"/") or b"/"),
                tuple((os.fsdecode(name), stat.size) for name, stat in directory.files.items() if name not in hidden),
                tuple(os.fsdecode(name) for name in directory.directories),
                tuple(sorted(os.fsdecode(name) for name in directory.dirty)) if some else None,
            )

    def _store_tasks(self, store: bytes, directory: Directory) -> Iterator[Task]:
        look, task = self.stores.manifests(store, directory)
        if look.found or look.unknown:
            self._stat_others(look.found)
            self.index.apply([self._there(look)])
        if task is not None:
            yield task

    def _as_look(self, result: Result, asked: tuple[str, ...] | None) -> Look:
        """A result in the catalog's terms."""
        from modelhub.stores import named

        index = self.index
        path = index.relative(result.directory)
        unread = {item: index.relative(item.file) for item in result.problems if item.check == "read" and item.file}
        gone = {item for item in unread if not os.path.lexists(item.file)}  # since it was listed: that is no fault of the drive
        unreadable = frozenset(unread.values())
        self.problems += [item.message for item in result.problems if item not in gone]
        self.unreadable |= {os.path.dirname(file) for item, file in unread.items() if item not in gone}
        self.vanished |= {os.path.dirname(unread[item]) for item in gone}
        if self.stores.knows(result):
            look = self.stores.look(result)
            self._stat_others(look.found)
            return look
        found = [self._whole(named(item)) for item in result.found]
        self._stat_others(found)
        looked: list[bytes] | None = None
        if result.last:
            directory = self.seen.dirty[path]
            looked = _paths(
                directory, directory.files.keys() - directory.held.keys() if asked is None else map(os.fsencode, asked)
            )
        prefix = path + b"/" if path else b""
        unknown = [prefix + os.fsencode(name) for name in result.unknown]
        return Look(path, found, unknown, unreadable, looked, asked is None)

    def _there(self, look: Look) -> Look:
        """Without what went, or was replaced, between the stat that is recorded and now: the bytes that were read may be another
        file's, and somebody else may have found this one elsewhere already."""
        gone = [found for found in look.found if not self._is_same(found)]
        if not gone:
            return look
        self.vanished.add(look.directory)
        files = {self.index.relative(file) for found in gone for file in found.files}
        return look._replace(found=[found for found in look.found if found not in gone], unreadable=look.unreadable | files)

    def _is_same(self, found: Found) -> bool:
        """Whether the files of a checkpoint are those that were listed; where files have to stand still, untouched."""
        stats = self.index.stats
        for file in found.files:
            stat = stats.get(self.index.relative(file))
            if stat is None:
                continue
            try:
                info = os.stat(file)
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError:
                continue  # it could be read, or is told to be unreadable
            if self.walker.inodes and signed(info.st_ino) != stat.inode:
                return False
            if self.settling is not None and (info.st_size, info.st_mtime_ns) != (stat.size, stat.mtime):
                return False
        return True

    def _whole(self, found: Found) -> Found:
        """A checkpoint is not ready while one of its files does not stand still, whatever its bytes say at the moment."""
        waiting = [path for path in found.files if self.index.relative(path) in self.waiting] if self.waiting else []
        if not waiting or found.state != "ready":
            return found
        return replace(found, state="incomplete", reason=f"{os.path.basename(waiting[0])} is still being written")

    def _stat_others(self, found: Iterable[Found]) -> None:
        """Stat the files of checkpoints that the walk did not meet in a dirty directory, before the catalog is written to."""
        index = self.index
        for item in found:
            for file in item.files:
                path = index.relative(file)
                if path not in index.stats and path not in index.others:
                    try:
                        info = os.stat(file)
                    except OSError:
                        continue
                    index.others[path] = Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev)


def _paths(directory: Directory, names: Iterable[bytes]) -> list[bytes]:
    """The paths of some of a directory's files."""
    prefix = directory.path + b"/" if directory.path else b""
    return [prefix + name for name in names]


def _stats(directory: Directory, names: Iterable[bytes]) -> dict[bytes, Stat]:
    """The stats of some of a directory's files, by path."""
    prefix = directory.path + b"/" if directory.path else b""
    return {prefix + name: directory.files[name] for name in names}

"""The scan of one root, or of parts of it: is it there, what is in it, what is gone from it, what does the catalog make of that.

Used by `modelhub.scan` for people and by `modelhub.rescan` for the daemon, so that what an event leads to is the scan that runs
at any other time, over fewer paths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from modelhub.catalog import Catalog, Root, places
from modelhub.catalog.index import Indexer
from modelhub.catalog.rows import Brief, Observer
from modelhub.ignore import all_patterns, exclusion, is_hidden_directory
from modelhub.presence import Mounts, Place, Presence, look_at
from modelhub.reconcile import Progress, Reconciliation
from modelhub.settle import LOCAL, Settling
from modelhub.walk import Part, Walker, components

if TYPE_CHECKING:
    from modelhub.workers import Result, Task

SUDDEN = 5
"""So many files gone at once, and more than half of a root's: perhaps it is not there at all."""
ROUNDS = 8
"""How often a scan of parts goes on to other parts that have to do with what it found."""
SOON = 0.5
"""Seconds after which a directory that changed while it was listed is worth another look."""


class Pool(Protocol):
    """What a scan needs of `modelhub.workers.ParsePool`."""

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]: ...


class RootScan:
    """One root. `begin`, then `parts` any number of times, then `end`. ``strict``: parts that a scan of all would pass by are
    passed by; else they were asked for."""

    def __init__(
        self,
        catalog: Catalog,
        root: Root,
        pool: Pool,
        table: Mounts,
        *,
        plugins: str,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        settle: float = 0.0,
        settling: Settling | None = None,
        observer: Observer | None = None,
        strict: bool = False,
    ) -> None:
        self.catalog = catalog
        self.root = root
        self.place = os.fsencode(root.path)
        self.pool = pool
        self.table = table
        self.progress = progress
        self.exclude = exclude
        self.settle = int(settle * 1e9)
        self.settling = settling
        self.observer = observer
        self.strict = strict
        self.plugins = plugins
        self.relook = bool(root.plugins) and root.plugins != plugins
        self.now = time.time_ns()
        self.updates: dict[str, Any] = {}
        self.before: Place | None = None
        self.new = self.changed = self.missing = self.recorded = self.invalid = 0
        self.problems: list[str] = []
        self.unsettled: dict[bytes, float] = {}
        self.retry: set[bytes] = set()
        self.offline = self.suspect = self.other_patterns = False
        self._growing: set[bytes] = set()

    # --- is the root there? ---------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Whether what is mounted at the root is what was scanned before: the same device and directory, or at least not an
        empty one."""
        root = self.root
        try:
            now = look_at(self.place, self.table.table)
            if self.table.changed():  # some file systems are mounted by being looked at
                self.table.read()
                now = look_at(self.place, self.table.table)
        except OSError as error:
            self.problems.append(f"{root.path} cannot be listed: {error.strerror}")
            return self._is_offline()
        if root.scanned is not None and (root.device, root.inode) != (now.device, now.inode) and now.empty:
            return self._is_offline()
        self.before = now
        self.updates = {"device": now.device, "inode": now.inode, "fstype": now.fstype, "source": now.source}
        patterns = all_patterns(self.place, self.exclude)
        self.excluded = exclusion(patterns)
        if self.settling is not None:
            self.other_patterns = self.settling.patterns not in (None, tuple(patterns))
            self.settling.patterns = tuple(patterns)
        return True

    def _is_offline(self) -> bool:
        self.offline = True
        if not self.root.offline:
            self.catalog.update_root(self.root.key, offline=1)
        return False

    @property
    def remounted(self) -> bool:
        """Whether something else is mounted there than was, or elsewhere than it was."""
        root, now = self.root, self.before
        return root.scanned is not None and now is not None and (root.fstype, root.source) != (now.fstype, now.source)

    @property
    def moved(self) -> bool:
        """Whether the root's directory is another one than it was, or has another number."""
        root, now = self.root, self.before
        return now is not None and (root.device, root.inode) != (now.device, now.inode)

    def end(self, *, always: bool) -> None:
        """Write down what is known of the root itself now; ``always``: even where it is what was known."""
        if self.offline:
            return
        root = self.root
        self.updates |= {"offline": 0, "suspect": None}
        if always:
            self.updates |= {"scanned": self.now, "plugins": self.plugins}
        if always or any(getattr(root, name) != value for name, value in self.updates.items()):
            self.catalog.update_root(root.key, **self.updates)

    # --- parts of it ----------------------------------------------------------------------------------------------

    def parts(self, parts: Sequence[Part], alone: bytes = b"") -> None:
        """Bring parts of the root up to date; or one file of it, whose directory is the one part then."""
        names = self.root.names
        only = frozenset(os.fsencode(name) for name in names) if names is not None else None
        if alone:
            only = frozenset([os.path.basename(alone)])
        narrow = Part(b"") not in parts
        walker = self._walker(only)
        index = Indexer(
            self.catalog.database, self.root.key, self.place, now=self.now, settle=self.settle, observer=self.observer
        )
        work = Reconciliation(self.root.key, index, walker, settling=self.settling, narrow=narrow and only is None)
        work.still_there = self._still_there
        todo = list(self._sound(parts, walker))
        known = 0
        for _ in range(ROUNDS):
            known += self._walk(walker, todo)
            gone = self._gone(walker, alone)
            if gone is None or self._suspicious(walker, gone, known, narrow):
                return self._report(walker)
            self._renumber()
            if not (gone or walker.seen.dirty or self.relook):
                break
            with self.catalog.database.read() as reader:
                if self.relook:
                    work.look_again(
                        reader, [path for part in parts for path in places.unknown_files(reader, self.root.key, part.path)]
                    )
                more = work.prepare(reader, gone)
            todo = list(self._sound([Part(path, False) for path in more], walker))
            if not todo:
                break
        self._report(walker)
        if gone or walker.seen.dirty or self.relook:
            index.rewrite = self.relook
            index.growing |= self._growing
            work.run(self.pool.inspect, self.progress)
            self._take(work)
        return None

    def _take(self, work: Reconciliation) -> None:
        """What came of it."""
        index = work.index
        self.problems += work.problems
        self.retry |= work.unreadable
        for directory in work.vanished:
            self.unsettled.setdefault(directory, 1.0)
        self.new += index.new
        self.changed += index.changed
        self.missing += index.missing
        self.recorded += index.recorded
        self.invalid += index.invalid
        if work.went_away:
            self._is_offline()
        if self.settling is not None:
            for path in index.again:
                self.unsettled.setdefault(path, self.settling.seconds)

    def _walker(self, only: frozenset[bytes] | None) -> Walker:
        settling, growing = self.settling, self._growing

        before = self.before
        local = before.device if before is not None and before.fstype in LOCAL else None

        def hold(path: bytes, info: os.stat_result) -> float:
            verdict = settling.look(path, info, local=info.st_dev == local)  # type: ignore[union-attr]
            if verdict.growing:
                growing.add(path)
            return verdict.wait

        def again(row: Brief) -> bool:
            return bool(row[4] & 6) or settling is not None or abs(self.now - row[2]) >= self.settle

        def known(path: bytes) -> bool:
            with self.catalog.database.read() as reader:
                return places.knows_below(reader, self.root.key, path)

        network = before is not None and before.network
        return Walker(
            self.place,
            excluded=self.excluded,
            again=again,
            inodes=not network,
            only=only,
            hold=hold if settling is not None else None,
            allowed=known,
        )

    def _sound(self, parts: Sequence[Part], walker: Walker) -> Iterator[Part]:
        """The parts that a scan of all would come through, each once."""
        found: dict[bytes, bool] = {}
        for path, deep in parts:
            part: Part | None = Part(path.strip(b"/"), deep)
            for above, name in components(part.path) if part and part.path else ():
                holder = os.path.join(self.place, os.path.dirname(above))
                if name in (b"..", b".", b"") or (
                    self.strict and (is_hidden_directory(name) or (self.excluded is not None and self.excluded(above, True)))
                ):
                    part = None
                    break
                if os.path.islink(os.path.join(self.place, above)) and walker.allowed and not walker.allowed(above):
                    part = None if self.strict else part
                    break
                if name == b"blobs" and any(
                    os.path.isdir(os.path.join(holder, beside)) for beside in (b"manifests", b"snapshots")
                ):
                    part = Part(os.path.dirname(above), True)
                    break
                if name == b"manifests" and os.path.isdir(os.path.join(holder, b"blobs")):
                    walker.seen.stores.append(os.path.dirname(above))
            if part is not None:
                found[part.path] = found.get(part.path, False) or part.deep
        roots = {path for path, deep in found.items() if deep}
        for path, deep in sorted(found.items()):
            above_it = {above for above, _ in components(os.path.dirname(path))} | {b""} if path else set()
            if roots.isdisjoint(above_it):
                yield Part(path, deep)

    def _walk(self, walker: Walker, parts: Iterable[Part]) -> int:
        """Walk ``parts``; how many files the catalog has there."""
        count = 0
        for path, deep in parts:
            if path in walker.seen.listed:
                continue
            with self.catalog.database.read() as reader:
                if deep:
                    known, familiar = places.known_files(reader, self.root.key, path), set[bytes]()
                else:
                    known, familiar = places.known_here(reader, self.root.key, path)
            count += len(known)
            if deep:
                walker.deep(path, known)
                continue
            for below in walker.shallow(path, known, familiar):
                with self.catalog.database.read() as reader:
                    known = places.known_files(reader, self.root.key, below)
                    count += len(known)
                    walker.seen.rest.update(known)
        return count

    # --- what is gone ---------------------------------------------------------------------------------------------

    def _gone(self, walker: Walker, alone: bytes) -> list[bytes] | None:
        """Paths of files that are certainly gone; None where the root itself is."""
        seen = walker.seen
        knowable = seen.knowable()
        missed = [
            path
            for path, row in seen.rest.items()
            if not row[4] & 2
            and knowable(path)
            and not self._kept_blob(path)
            and (not alone or path == alone or path.startswith(alone + b"/"))
        ]
        assert self.before is not None
        presence = Presence(self.place, self.before, self.table, self._known_on)
        devices: dict[bytes, int] = {}
        if missed:
            with self.catalog.database.read() as reader:
                devices = {row.path: self._device(row.device) for row in places.file_rows_at(reader, self.root.key, missed)}
        verdict = presence.judge(devices, lambda path: os.path.dirname(path) in seen.listed and not self._passed_by(path))
        self.problems += [problem for problem in verdict.problems if problem not in self.problems]
        if not verdict.there:
            self._is_offline()
            return None
        for path in verdict.back:
            self.unsettled[os.path.dirname(path)] = SOON
        self.retry.update(map(os.path.dirname, verdict.unknown))
        return verdict.gone

    def _still_there(self) -> bool:
        assert self.before is not None
        return Presence(self.place, self.before, self.table, self._known_on).unchanged()

    def _passed_by(self, path: bytes) -> bool:
        return self.excluded is not None and self.excluded(path, False)

    def _known_on(self, device: int, below: bytes) -> list[bytes]:
        with self.catalog.database.read() as reader:
            return places.present_on(reader, self.root.key, device, below, 50)

    def _device(self, device: int) -> int:
        """The same drive may come back under another device number."""
        return self.updates.get("device", device) if device == self.root.device else device

    def _renumber(self) -> None:
        """What the catalog has of its drive gets the number that it has now."""
        before, now = self.root.device, self.updates.get("device", 0)
        if not before or not now or before == now:
            return
        self.root = self.root._replace(device=now)
        with self.catalog.database.write() as writer:
            places.renumber(writer, self.root.key, before, now)

    def _kept_blob(self, path: bytes) -> bool:
        """Whether it is a store's blob, which a walk does not go through, and there."""
        return os.path.basename(os.path.dirname(path)) == b"blobs" and os.path.exists(os.path.join(self.place, path))

    def _suspicious(self, walker: Walker, gone: Sequence[bytes], known: int, narrow: bool) -> bool:
        """Whether so much is gone that the root is rather taken to be offline: this once; or as long as something else is
        mounted there."""
        if not gone or (len(gone) < SUDDEN and not self.remounted):
            return False
        seen = walker.seen
        elsewhere = {stat[:3] for directory in seen.dirty.values() for stat in directory.files.values()}
        lost = sum(1 for path in gone if seen.rest[path][1:4] not in elsewhere)
        with self.catalog.database.read() as reader:
            there = places.present(reader, self.root.key, 2 * lost + 1)
        if self.remounted and not narrow and self._nothing_left(walker, known):
            why = "something else is mounted there"
            for name in ("device", "inode", "fstype", "source"):
                self.updates.pop(name, None)
        elif lost < SUDDEN or 2 * lost <= there or self.root.suspect is not None:
            return False
        else:
            why = "taken to be offline until the next scan"
            self.updates["suspect"] = self.now
        self.offline = self.suspect = True
        self.catalog.update_root(self.root.key, **{**self.updates, "offline": 1})
        with self.catalog.database.read() as reader:
            there = places.present(reader, self.root.key)
        self.problems.append(f"{lost} of {there} files of {self.root.path} are gone at once: {why}")
        return True

    def _nothing_left(self, walker: Walker, known: int) -> bool:
        """Whether not one file is there just as it was."""
        met = known - len(walker.seen.rest)
        dirty = [
            os.path.join(directory.path, name)
            for directory in walker.seen.dirty.values()
            for name in (*directory.dirty, *directory.held)
        ]
        with self.catalog.database.read() as reader:
            return met <= len(places.file_rows_at(reader, self.root.key, dirty))

    def _report(self, walker: Walker) -> None:
        """What was held back, and what could not be read."""
        for directory in walker.seen.dirty.values():
            if directory.held:
                wait = min(directory.held.values())
                self.unsettled[directory.path] = min(wait, self.unsettled.get(directory.path, wait))
        for path, error in walker.seen.failed:
            text = f"{os.fsdecode(os.path.join(self.place, path))} cannot be read: {error.strerror}"
            if text not in self.problems:
                self.problems.append(text)
                self.retry.add(path if os.path.isdir(os.path.join(self.place, path)) else os.path.dirname(path))

"""Scanning: walk the roots, compare with the catalog, have what is new or changed looked at, record it.

Nothing is called missing unless its root is there, its directory was listed without error, and not most of the root went at once.
An unchanged root costs one pass of stats and one query: no plugin is loaded and no process started for it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelhub.catalog import Catalog, Root
from modelhub.catalog.index import Indexer
from modelhub.catalog.rows import Brief, FileRow, Observer, signed
from modelhub.errors import ModelNotFound
from modelhub.ignore import Excluded, all_patterns, exclusion
from modelhub.mounts import Mount, mount_of, mounts
from modelhub.reconcile import Progress, Reconciliation
from modelhub.walk import Walk, walk

if TYPE_CHECKING:
    from modelhub.workers import Result, Task

SETTLE = 5.0
"""Seconds for which a file's size and mtime stand still before a truncated one is called invalid."""
SUDDEN = 5
"""So many files gone at once, and more than half of a root's: perhaps it is not there at all."""


class Pool(Protocol):
    """What a scan needs of `modelhub.workers.ParsePool`."""

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]: ...


@dataclass(slots=True)
class ScanSummary:
    """What is there after a scan, and what it took. Counts are of checkpoints in what was scanned, except ``unknown``: files.

    ``found``: there now. ``unchanged``: of these, those that were there before just so; ``changed``: those with new content,
    place or state; the rest are new. ``missing``: known, and gone. ``invalid``: found, and broken. ``bytes``: over what was
    found. ``offline``: roots that are not there, or that look as if they were not; ``problems``: what could not be read, in
    words.
    """

    roots: list[str] = field(default_factory=list)
    found: int = 0
    changed: int = 0
    unchanged: int = 0
    missing: int = 0
    invalid: int = 0
    unknown: int = 0
    seconds: float = 0.0
    bytes: int = 0
    offline: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def scan(
    catalog: Catalog,
    paths: Sequence[str] = (),
    *,
    pool: Pool | None = None,
    progress: Progress | None = None,
    exclude: Sequence[str] = (),
    settle: float = SETTLE,
    observer: Observer | None = None,
    plugins: str | None = None,
) -> ScanSummary:
    """Scan ``paths`` (every root, where there are none). A directory becomes a root, unless it lies in one: then that part of
    the root is scanned. A file is looked at alone: its directory becomes a root of which only this file counts, until it is
    scanned as a whole.

    ``pool`` parses; without one, a `ParsePool` is made where something is to be parsed. ``exclude``: patterns as in
    ``.modelhubignore``. ``observer`` is told what was indexed, changed or missing. ``plugins`` identifies the plugins (by
    default those installed): when they change, files that none knew are looked at again. ModelNotFound where a path is neither
    there nor known.
    """
    started = time.monotonic()
    summary = ScanSummary()
    table = mounts()
    work = _scopes(catalog, paths)
    with _Parser(pool) as parser:
        for root, starts in work:
            one = _Scan(catalog, root, summary, parser, progress, exclude, settle, observer, plugins)
            one.run(starts, table)
    summary.seconds = round(time.monotonic() - started, 6)
    return summary


class _Parser:
    """The pool, made when it is first needed, and closed if it was made here."""

    def __init__(self, pool: Pool | None) -> None:
        self.given = pool
        self.made: Any = None

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
        if self.given is None and self.made is None:
            from modelhub.workers import ParsePool

            self.made = ParsePool()
        return (self.given or self.made).inspect(tasks)

    def __enter__(self) -> _Parser:
        return self

    def __exit__(self, *error: object) -> None:
        if self.made is not None:
            self.made.close()


def _scopes(catalog: Catalog, paths: Sequence[str]) -> list[tuple[Root, list[bytes]]]:
    """The roots to scan, each with the directories (or files) of it that were asked for; b"" for all."""
    roots = catalog.roots()
    if not paths:
        return [(root, [b""]) for root in roots]
    chosen: dict[str, list[bytes]] = defaultdict(list)
    for given in paths:
        path = os.path.abspath(os.path.expanduser(given) if given.startswith("~") else given)
        holder = max(
            (root for root in roots if root.names is None and _below(path, root.path) is not None),
            key=lambda root: len(root.path),
            default=None,
        )
        if holder is not None:
            chosen[holder.path].append(os.fsencode(_below(path, holder.path) or ""))
            continue
        partial = next((root for root in roots if root.path == path), None)
        if os.path.isdir(path):
            root = catalog.add_root(path)
        elif os.path.isfile(path):
            root = catalog.add_root(os.path.dirname(path), [os.path.basename(path)])
        elif partial is not None:
            root = partial
        else:
            raise ModelNotFound(f"{given} does not exist", "give a file or a directory")
        roots = catalog.roots()
        chosen[root.path].append(b"")
    known = {root.path: root for root in roots}
    # A directory that became a root may have taken others in.
    return [(known[path], _outermost(starts)) for path, starts in chosen.items() if path in known]


def _below(path: str, root: str) -> str | None:
    if path == root:
        return ""
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _outermost(starts: Iterable[bytes]) -> list[bytes]:
    """Without what lies inside another."""
    found: list[bytes] = []
    for start in sorted(set(starts)):
        if not any(not other or start == other or start.startswith(other + b"/") for other in found):
            found.append(start)
    return found


class _Scan:
    """The scan of one root."""

    def __init__(
        self,
        catalog: Catalog,
        root: Root,
        summary: ScanSummary,
        parser: _Parser,
        progress: Progress | None,
        exclude: Sequence[str],
        settle: float,
        observer: Observer | None,
        plugins: str | None,
    ) -> None:
        self.catalog = catalog
        self.root = root
        self.place = os.fsencode(root.path)
        self.summary = summary
        self.parser = parser
        self.progress = progress
        self.exclude = exclude
        self.settle = int(settle * 1e9)
        self.observer = observer
        self.plugins = plugins_digest() if plugins is None else plugins
        self.relook = bool(root.plugins) and root.plugins != self.plugins
        self.new = self.changed = 0
        self.network = self.other_mount = False
        self.now = time.time_ns()
        self.excluded: Excluded | None = None
        self.updates: dict[str, Any] = {}

    def run(self, starts: list[bytes], table: list[Mount]) -> None:
        self.summary.roots.append(self.root.path)
        if not self._is_there(table):
            self._offline()
            return
        self.excluded = exclusion(all_patterns(self.place, self.exclude))
        for start in starts:
            self._part(start)
        self.updates |= {"scanned": self.now, "plugins": self.plugins}
        self.updates.setdefault("offline", 0)
        self.catalog.update_root(self.root.key, **self.updates)
        there = self.summary.found
        for start in starts:
            self._count(start)
        self.summary.changed += self.changed
        self.summary.unchanged += max(0, self.summary.found - there - self.changed - self.new)

    # --- is the root there? ---------------------------------------------------------------------------------------

    def _is_there(self, table: list[Mount]) -> bool:
        """Whether what is mounted at the root is what was scanned before: the same device and directory, or at least not an
        empty one."""
        root = self.root
        try:
            info = os.stat(self.place)
            with os.scandir(self.place) as entries:
                empty = next(iter(entries), None) is None
        except OSError as error:
            self.summary.problems.append(f"{root.path} cannot be listed: {error.strerror}")
            return False
        mount = mount_of(root.path, table)
        fstype, source = (mount.type, mount.source) if mount else ("", "")
        inode = signed(info.st_ino)
        if root.scanned is not None and (root.device, root.inode) != (info.st_dev, inode) and empty:
            return False
        self.network = mount is not None and mount.network
        self.other_mount = root.scanned is not None and (fstype, source) != (root.fstype, root.source)
        self.updates = {"device": info.st_dev, "inode": inode, "fstype": fstype, "source": source}
        return True

    def _offline(self) -> None:
        self.summary.offline.append(self.root.path)
        if not self.root.offline:
            self.catalog.update_root(self.root.key, offline=1)
        there = self.summary.found
        self._count(b"")
        self.summary.unchanged += self.summary.found - there

    # --- one part of it -------------------------------------------------------------------------------------------

    def _part(self, start: bytes) -> None:
        """Scan the directory ``start`` of the root, b"" for all of it; or one file of it."""
        names = self.root.names
        only = frozenset(os.fsencode(name) for name in names) if names is not None else None
        alone = b""
        if start and not os.path.isdir(os.path.join(self.place, start)):
            start, name = os.path.split(start)
            only, alone = frozenset([name]), os.path.join(start, name)
        brief, _ = self.catalog.known_files(self.root, start, brief=True)
        known: dict[bytes, Brief] = {row[0]: row for row in brief}
        seen = walk(self.place, start, known, excluded=self.excluded, again=self._again, inodes=not self.network, only=only)
        for path, error in seen.failed:
            self.summary.problems.append(f"{os.fsdecode(os.path.join(self.place, path))} cannot be read: {error.strerror}")
        gone = [
            path
            for path, row in seen.rest.items()
            if not row[4] & 2
            and not seen.unknowable(path)
            and not self._kept_blob(path)
            and (not alone or path == alone or path.startswith(alone + b"/"))
        ]
        if self._suspicious(seen, gone) or not (gone or seen.dirty or self.relook):
            return
        raw, generation = self.catalog.known_files(self.root, start)
        rows = {row[0]: FileRow._make(row) for row in self._renumbered(raw)}
        index = Indexer(
            self.catalog.database,
            self.root.key,
            self.place,
            rows,
            now=self.now,
            settle=self.settle,
            generation=generation,
            observer=self.observer,
        )
        work = Reconciliation(index, seen, excluded=self.excluded, only=only)
        if self.relook:
            work.look_again(rows)
        work.run([rows[path] for path in gone if path in rows], self.parser.inspect, self.progress)
        self.summary.problems += work.problems
        self.new += index.new
        self.changed += index.changed

    def _renumbered(self, rows: list[Any]) -> list[Any]:
        """The same drive may come back under another device number."""
        before, after = self.root.device, self.updates.get("device", 0)
        return rows if before in (0, after) or not after else [(*row[:7], after) if row[7] == before else row for row in rows]

    def _again(self, row: Brief) -> bool:
        """Whether a file whose stat is the same is to be looked at all the same."""
        flags, mtime = row[4], row[2]
        return bool(flags & 2) or abs(self.now - mtime) >= self.settle

    def _kept_blob(self, path: bytes) -> bool:
        """Whether it is a store's blob, which a walk does not go through, and there."""
        return os.path.basename(os.path.dirname(path)) == b"blobs" and os.path.exists(os.path.join(self.place, path))

    def _suspicious(self, seen: Walk, gone: Sequence[bytes]) -> bool:
        """Whether so much is gone that the root is rather taken to be offline: this once; or as long as something else is
        mounted there."""
        self.updates.setdefault("suspect", None)
        if not gone or (len(gone) < SUDDEN and not self.other_mount):
            return False
        elsewhere = {stat[:3] for directory in seen.dirty.values() for stat in directory.files.values()}
        lost = sum(1 for path in gone if seen.rest[path][1:4] not in elsewhere)
        there = self.catalog.present_files(self.root)
        if self.other_mount and lost == there:
            why = "something else is mounted there"
            for name in ("device", "inode", "fstype", "source"):
                self.updates.pop(name, None)
        elif lost < SUDDEN or 2 * lost <= there or self.root.suspect is not None:
            return False
        else:
            why = "taken to be offline until the next scan"
            self.updates["suspect"] = self.now
        self.updates["offline"] = 1
        self.summary.offline.append(self.root.path)
        self.summary.problems.append(f"{lost} of {there} files of {self.root.path} are gone at once: {why}")
        return True

    # --- the summary ----------------------------------------------------------------------------------------------

    def _count(self, start: bytes) -> None:
        """Add what the catalog has at and below ``start`` to the summary."""
        there, missing, invalid, size, unknown = self.catalog.tally(self.root, start)
        summary = self.summary
        summary.found += there
        summary.missing += missing
        summary.invalid += invalid
        summary.bytes += size
        summary.unknown += unknown


def plugins_digest() -> str:
    """What tells one set of installed plugins from another: their names and versions, found without loading them."""
    from hashlib import sha256
    from importlib.metadata import entry_points

    found = sorted(
        (point.name, point.value, point.dist.version if point.dist else "") for point in entry_points(group="modelhub")
    )
    return sha256(repr(found).encode()).hexdigest()[:16]

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
from typing import TYPE_CHECKING, Any

from modelhub.catalog import Catalog, Root
from modelhub.catalog.rows import Observer
from modelhub.errors import ModelNotFound
from modelhub.presence import Mounts
from modelhub.reconcile import Progress
from modelhub.rootscan import Pool, RootScan
from modelhub.walk import Part

if TYPE_CHECKING:
    from modelhub.workers import Result, Task

SETTLE = 5.0
"""Seconds for which a file's size and mtime stand still before a truncated one is called invalid."""


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
    roots = _scopes(catalog, paths)
    plugins = plugins_digest() if plugins is None else plugins
    with Parsing(pool) as parser, Mounts() as table:
        for root, starts in roots:
            work = RootScan(
                catalog, root, parser, table,
                plugins=plugins, progress=progress, exclude=exclude, settle=settle, observer=observer,
            )  # fmt: skip
            _scan_root(catalog, work, starts, summary)
    summary.seconds = round(time.monotonic() - started, 6)
    return summary


class Parsing:
    """The pool, made when it is first needed, and closed if it was made here."""

    def __init__(self, pool: Pool | None) -> None:
        self.given = pool
        self.made: Any = None

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
        if self.given is None and self.made is None:
            from modelhub.workers import ParsePool

            self.made = ParsePool()
        return (self.given or self.made).inspect(tasks)

    def __enter__(self) -> Parsing:
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
            what = "is neither a file nor a directory" if os.path.exists(path) else "does not exist"
            raise ModelNotFound(f"{given} {what}", "give a file or a directory")
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


def _scan_root(catalog: Catalog, work: RootScan, starts: list[bytes], summary: ScanSummary) -> None:
    """Scan ``starts`` of one root, and add to the summary what is there then."""
    root = work.root
    summary.roots.append(root.path)
    if work.begin():
        directories = [Part(start) for start in starts if not start or os.path.isdir(os.path.join(work.place, start))]
        gone = [Part(start) for start in starts if Part(start) not in directories]
        if directories:
            work.parts(directories)
        for start, _ in gone:
            if not work.offline:
                work.parts([Part(os.path.dirname(start), False)], alone=start)
        work.end(always=True)
    there = summary.found
    for start in [b""] if work.offline and not work.suspect else starts:
        found, missing, invalid, size, unknown = catalog.tally(root, start)
        summary.found += found
        summary.missing += missing
        summary.invalid += invalid
        summary.bytes += size
        summary.unknown += unknown
    summary.changed += work.changed
    summary.unchanged += max(0, summary.found - there - work.changed - work.new)
    summary.problems += work.problems
    if work.offline:
        summary.offline.append(root.path)


def plugins_digest() -> str:
    """What tells one set of installed plugins from another: their names and versions, found without loading them."""
    from hashlib import sha256

    from modelhub import distribution

    (entries,) = distribution.entries(("modelhub", ""))
    return sha256(repr(sorted((entry.name, entry.value, entry.version) for entry in entries)).encode()).hexdigest()[:16]

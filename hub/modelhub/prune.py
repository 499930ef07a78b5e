"""What may go: scratch of conversions that died, models that have been missing for long, rows that nothing refers to. Every kind
is a plan first, which changes nothing; `apply` carries a plan out as far as it still holds, and says in it what became of it.

Files that are there twice are `modelhub.duplicates`. No checkpoint's file is ever removed here.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelhub.model import iso, printable
from modelhub.scratch import PREFIX, sweep

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.prune import Missing

OLDER = 30 * 86400.0
"""Seconds after which a missing model, or a job that has ended, may go."""


@dataclass(slots=True)
class ScratchPlan:
    """``found``: (path, bytes) of scratch directories that nobody seems to be at work in; ``in_use``: those in which somebody is.
    ``removed``: what `apply` swept away, which decides by stricter rules: another host may be at work in one."""

    found: list[tuple[str, int]] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.found)

    def apply(self) -> None:
        for parent in sorted({os.path.dirname(path) for path, _ in self.found}):
            self.removed += sweep(parent)

    def to_json(self) -> dict[str, Any]:
        return {
            "found": [{"path": printable(path), "size": size, "removed": path in self.removed} for path, size in self.found],
            "in_use": [printable(path) for path in self.in_use],
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class MissingPlan:
    """``before``: in nanoseconds since 1970; ``written``: also models that people wrote something about. ``going`` and ``kept``:
    what has been missing since then, and of it what stays, with the reason. ``removed``: ids."""

    catalog: Catalog
    before: int
    written: bool
    going: list[Missing] = field(default_factory=list)
    kept: list[tuple[Missing, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def apply(self) -> None:
        from modelhub.catalog import prune as rows

        keys = [row.key for row in self.going]
        self.removed = rows.remove_missing(self.catalog.database, keys, self.before, written=self.written)

    def to_json(self) -> dict[str, Any]:
        return {
            "before": iso(self.before),
            "found": [{**_missing(row), "removed": row.id in self.removed} for row in self.going],
            "kept": [{**_missing(row), "why": why} for row, why in self.kept],
        }


@dataclass(slots=True)
class OrphansPlan:
    """``rows``: how many of each table nothing refers to, and jobs that ended before ``before``. ``bytes``: about what they
    take in the catalog, which it will use again itself."""

    catalog: Catalog
    before: int
    rows: Mapping[str, int]
    bytes: int
    removed: bool = False

    @property
    def count(self) -> int:
        return sum(self.rows.values())

    def apply(self) -> None:
        self.catalog.jobs.drop_old(self.before)
        self.catalog.compact()
        self.removed = True

    def to_json(self) -> dict[str, Any]:
        return {"rows": dict(self.rows), "bytes": self.bytes, "removed": self.removed}


def plan_scratch(catalog: Catalog) -> ScratchPlan:
    """Look through the roots that are there, and where jobs have written, for scratch directories."""
    from modelhub.catalog import prune as rows

    with catalog.database.read() as reader:
        places = {os.fsdecode(place): False for place in rows.output_directories(reader)}
    places |= {root.path: root.names is None for root in catalog.roots() if not root.offline}
    plan = ScratchPlan()
    seen = set()
    for place, deep in places.items():
        for path in _scratch(place, deep):
            if path in seen:
                continue
            seen.add(path)
            if _in_use(path):
                plan.in_use.append(path)
            else:
                plan.found.append((path, _size(path)))
    plan.found.sort()
    return plan


def plan_missing(catalog: Catalog, older: float = OLDER, *, written: bool = False) -> MissingPlan:
    """Models that have been missing for ``older`` seconds. What is on a drive that is away is not missing. ``written=False``
    keeps those that have aliases, tags or notes."""
    from modelhub.catalog import prune as rows

    plan = MissingPlan(catalog, time.time_ns() - int(older * 1e9), written)
    with catalog.database.read() as reader:
        found = rows.missing(reader, plan.before)
    for row in found:
        why = "a job is to be done to it" if row.jobs else "" if written else _written(row)
        if why:
            plan.kept.append((row, why))
        else:
            plan.going.append(row)
    return plan


def plan_orphans(catalog: Catalog, older: float = OLDER) -> OrphansPlan:
    """Rows of the catalog that nothing refers to any more, and jobs that ended ``older`` seconds ago."""
    from modelhub.catalog import prune as rows

    before = time.time_ns() - int(older * 1e9)
    with catalog.database.read() as reader:
        return OrphansPlan(catalog, before, *rows.orphans(reader, before))


def _written(row: Missing) -> str:
    kinds = [name for name, count in (("aliases", row.aliases), ("tags", row.tags), ("notes", row.notes)) if count]
    return f"it has {' and '.join(kinds)}" if kinds else ""


def _missing(row: Missing) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": printable(row.name),
        "path": printable(os.fsdecode(os.path.join(row.root or b"", row.path))),
        "size": row.size,
        "since": iso(row.since),
    }


def _scratch(place: str, deep: bool) -> Iterator[str]:
    """The scratch directories in ``place``, ``deep``: and below it. Links are not followed; what cannot be listed has none."""
    stack = [place]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name.startswith(PREFIX) and entry.name.endswith(".tmp"):
                            yield entry.path
                        elif deep:
                            stack.append(entry.path)
        except OSError:
            continue


def _in_use(path: str) -> bool:
    """Whether somebody holds a lock on something in a scratch directory, as its owner does for as long as it lives."""
    for name in _listed(path):
        try:
            fd = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(fd)
    return False


def _listed(path: str) -> Sequence[str]:
    try:
        return [name for name in os.listdir(path) if name.endswith(".lock")]
    except OSError:
        return ()


def _size(path: str) -> int:
    """Bytes of the files below a directory that have no other name."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                info = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += info.st_size if info.st_nlink == 1 else 0
    return total

"""Scanning parts of a root again, for a daemon: what an event leads to. See `modelhub.rootscan` for what a scan is.

Whatever makes the parts say less than the whole would (another drive, a root that was offline, other plugins, other patterns of
what is passed by, a scan that is to decide whether the root is there) makes it a scan of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from modelhub.catalog import Catalog
from modelhub.catalog.rows import Observer
from modelhub.errors import ModelNotFound
from modelhub.presence import Mounts
from modelhub.reconcile import Progress
from modelhub.rootscan import Pool, RootScan
from modelhub.scan import Parsing, plugins_digest
from modelhub.settle import Settling
from modelhub.walk import Part

SECOND_LOOK = 1.0
"""Seconds, at least, between the look that missed most of a root and the one that decides."""


@dataclass(slots=True)
class Seen:
    """Counts of checkpoints: ``found`` those that were looked at and are there; of these, ``new``, ``changed`` (with other
    content, place or state) and ``invalid``; ``gone``: missing since now. ``problems``: what could not be read, in words."""

    found: int = 0
    new: int = 0
    changed: int = 0
    invalid: int = 0
    gone: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Rescan:
    """What a rescan brought. Paths are directories, relative to the root.

    ``unsettled``: where something does not stand still yet, with the seconds until another look is worth it. ``retry``: what
    could not be read, so that nothing is known of it now. ``offline``: the root is not there. ``suspect``: most of it went at
    once; nothing was called missing, and a look some seconds later decides.
    """

    summary: Seen = field(default_factory=Seen)
    unsettled: dict[bytes, float] = field(default_factory=dict)
    retry: list[bytes] = field(default_factory=list)
    offline: bool = False
    suspect: bool = False


def rescan(
    catalog: Catalog,
    root_path: str,
    parts: Sequence[Part],
    *,
    pool: Pool | None = None,
    settling: Settling | None = None,
    observer: Observer | None = None,
    exclude: Sequence[str] = (),
    plugins: str | None = None,
    progress: Progress | None = None,
) -> Rescan:
    """Bring ``parts`` of the root at ``root_path`` up to date, and what has to do with what is found there.

    ``settling``: what this root's files are waited for by; keep it from one call to the next. Without it, everything is taken
    in as it is. The others are as for `modelhub.scan.scan`. ModelNotFound where ``root_path`` is no root (any more).
    """
    root = next((root for root in catalog.roots() if root.path == root_path), None)
    if root is None:
        raise ModelNotFound(f"{root_path} is not a root", "modelhub roots lists them")
    if settling is not None:
        settling.begin()
    with Parsing(pool) as parser, Mounts() as table:
        work = RootScan(
            catalog, root, parser, table,
            plugins=_installed() if plugins is None else plugins,
            progress=progress, exclude=exclude, settling=settling, observer=observer, strict=True,
        )  # fmt: skip
        if work.begin():
            wait = SECOND_LOOK if settling is None else max(SECOND_LOOK, settling.seconds)
            if root.suspect is not None and abs(time.time_ns() - root.suspect) < wait * 1e9:
                return Rescan(Seen(), {b"": wait}, offline=True, suspect=True)
            new = root.scanned is None or root.suspect is not None or root.offline
            whole = new or work.remounted or work.moved or work.relook or work.other_patterns
            if root.names is not None:
                parts = [Part(b"", False)]
            elif whole:
                parts = [Part(b"")]
            work.parts(parts)
            work.end(always=whole or Part(b"") in parts)
    counts = Seen(work.recorded, work.new, work.changed, work.invalid, work.missing, work.problems)
    return Rescan(counts, work.unsettled, sorted(work.retry), work.offline, work.suspect)


@cache
def _installed() -> str:
    """The plugins of this process: others count when it is started anew."""
    return plugins_digest()


__all__ = ["Part", "Rescan", "Seen", "Settling", "rescan"]

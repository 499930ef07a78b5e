"""Scanning parts of a root again, for a daemon."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from modelhub.catalog import Catalog
from modelhub.catalog.rows import Observer
from modelhub.reconcile import Progress
from modelhub.scan import Pool, scan
from modelhub.settle import Settling


class Part(NamedTuple):
    """A directory of a root, relative to it, b"" for the root itself. ``deep``: all below it; else its own entries only."""

    path: bytes
    deep: bool = True


@dataclass(slots=True)
class Seen:
    """Counts of checkpoints: new, with other content, place or state, and gone. ``problems``: what could not be read."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Rescan:
    """What a rescan brought."""

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
    """Bring parts of a root up to date."""
    paths = [os.path.join(root_path, os.fsdecode(part.path)).rstrip("/") or "/" for part in parts]
    found = scan(catalog, paths, pool=pool, progress=progress, exclude=exclude, observer=observer, plugins=plugins)
    seen = Seen(changed=found.changed, gone=found.missing, problems=found.problems)
    return Rescan(seen, offline=bool(found.offline))

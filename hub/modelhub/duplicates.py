"""Files that are there twice on one file system, and letting them share their bytes: a plan, and carrying out of it what was
picked.

`modelhub.dupes` says which models have the same weights; of their files those of one size and the same beginning and end are a
plan's. That they are equal is seen when it is carried out: every byte of both is compared first (`modelhub.linking`). One of
them, the oldest, stays what it is; no content ever loses its last file.
"""

from __future__ import annotations

import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from modelhub import linking
from modelhub.dupes import DupeGroup, find_dupes
from modelhub.errors import ConversionError, UsageError
from modelhub.files import open_regular
from modelhub.model import printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.model import Model

LEAST = 4096
"""Bytes of a file that is worth it: a block."""
CANNOT_SHARE = "this file system cannot share blocks between files; --link hard would make them one file"
EDGE = 65536
"""Bytes of its beginning and its end that are looked at for a plan."""

Link = Literal["reflink", "hard"]
Progress = Callable[[str, int, int], None]
"""Called with a name, bytes done and bytes to do."""


@dataclass(slots=True)
class Twin:
    """A file that could share the bytes of another. ``why_not``: the reason for which it is left as it is, "" for none. ``done``:
    how it was linked ("hard link", "reflink in place", "reflink copy"), or ""."""

    path: str
    size: int
    models: tuple[str, ...]
    why_not: str = ""
    done: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": printable(self.path),
            "size": self.size,
            "models": list(self.models),
            "why_not": self.why_not,
            "done": self.done,
        }


@dataclass(slots=True)
class Twins:
    """Files with the same bytes, as far as a plan can tell. ``kept`` stays as it is. ``linked``: how many names that has."""

    kept: str
    size: int
    models: tuple[str, ...]
    linked: int
    twins: list[Twin] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What there is to gain."""
        return sum(twin.size for twin in self.twins if not twin.why_not)

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": printable(self.kept),
            "size": self.size,
            "models": list(self.models),
            "twins": [twin.to_json() for twin in self.twins],
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class DuplicatesPlan:
    """``problems``: what could not be read, in words. ``failed``: what could not be done, in words, after `apply`."""

    catalog: Catalog
    link: Link
    settle: float
    groups: list[Twins] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(group.bytes for group in self.groups)

    @property
    def only_hard(self) -> int:
        """Bytes that hard links alone could gain."""
        return sum(twin.size for group in self.groups for twin in group.twins if twin.why_not == CANNOT_SHARE)

    @property
    def gained(self) -> int:
        return sum(twin.size for group in self.groups for twin in group.twins if twin.done)

    def apply(self, progress: Progress | None = None) -> None:
        """Compare and link, one file after the other."""
        total, done = 2 * self.bytes, 0
        for group in self.groups:
            for twin in group.twins:
                if twin.why_not:
                    continue

                def tell(n: int, twin: Twin = twin) -> None:
                    nonlocal done
                    done += 2 * n
                    if progress:
                        progress(os.path.basename(twin.path), done, total)

                try:
                    self._link(group.kept, twin, tell)
                except linking.Refused as refusal:
                    twin.why_not = refusal.message
                except (OSError, ConversionError) as error:
                    why = error.message if isinstance(error, ConversionError) else error.strerror or str(error)
                    twin.why_not = f"it could not be done: {why}"
                    self.failed.append(f"{twin.path} was left as it is: {why}")

    def _link(self, kept: str, twin: Twin, tell: Callable[[int], None]) -> None:
        from modelhub.catalog import prune as rows
        from modelhub.catalog.rows import Stat, signed

        busy = _Busy(self.catalog)
        with linking.Pair(kept, twin.path) as pair:
            young = _young(pair.before[0], pair.before[1], self.settle) or busy.why_not(kept) or busy.why_not(twin.path)
            if young:
                raise linking.Refused(young)
            if os.path.samestat(*pair.before):
                raise linking.Refused("it is the same file already")
            pair.compare(tell)
            if self.link == "hard":
                pair.hard_link()
                twin.done = "hard link"
            else:
                twin.done = f"reflink {pair.reflink()}"
            after = os.lstat(twin.path)
            known = [Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev) for info in (pair.before[1], after)]
        if known[0] != known[1]:
            rows.relinked(self.catalog.database, twin.path, known[0], known[1], kept)

    def to_json(self) -> dict[str, Any]:
        return {
            "link": self.link,
            "groups": [group.to_json() for group in self.groups],
            "bytes": self.bytes,
            "gained": self.gained,
            "problems": list(self.problems),
        }


def plan_duplicates(
    catalog: Catalog,
    models: Sequence[Model] | None = None,
    *,
    link: Link = "reflink",
    settle: float = 5.0,
    progress: Progress | None = None,
) -> DuplicatesPlan:
    """What could share bytes among all models; with ``models`` only what these are part of. Reads what `find_dupes` reads, of
    models that have a file of the same size on the same device as another. UsageError for a model that is not in the catalog."""
    plan = DuplicatesPlan(catalog, link, settle)
    for model in models or ():
        if not model.id:
            raise UsageError(f"{model.absolute_path} is not in the catalog", "scan its directory first")
    candidates = _candidates(catalog, models)
    found, plan.problems = find_dupes(catalog, candidates, progress)
    wanted = {model.absolute_path for model in models or ()}
    busy = _Busy(catalog)
    for group in found:
        if group.same == "some tensors":
            continue
        if models is not None and not any(_is_among(copy.model, wanted) for copy in group.copies):
            continue
        plan.groups += _twins(group, busy, link, settle)
    plan.groups.sort(key=lambda twins: (-twins.bytes, twins.kept))
    return plan


def _is_among(model: Model, wanted: Collection[str]) -> bool:
    """Links to one file are one place to `find_dupes`, which takes any of them."""
    return model.absolute_path in wanted or any(_same_file(model.file_paths[:1], path) for path in wanted)


def _same_file(files: Sequence[str], path: str) -> bool:
    try:
        return bool(files) and os.path.samefile(files[0], path)
    except OSError:
        return False


def _candidates(catalog: Catalog, models: Sequence[Model] | None) -> list[Model]:
    from modelhub.catalog import prune as rows

    with catalog.database.read() as reader:
        keys = set(rows.perhaps_copies(reader, LEAST))
    found = [model for model in catalog.models("", ["state=ready"]) if model.key in keys] if keys else []
    if models is None:
        return found
    sizes = {info.st_size for model in models for info in _stats(model.file_paths)}
    return [model for model in found if any(info.st_size in sizes for info in _stats(model.file_paths))]


def _stats(paths: Iterable[str]) -> Iterable[os.stat_result]:
    for path in paths:
        try:
            yield os.stat(path)
        except OSError:
            continue


class _Busy:
    """What jobs read and write just now."""

    def __init__(self, catalog: Catalog) -> None:
        from modelhub.catalog import prune as rows

        with catalog.database.read() as reader:
            self.read, self.written = rows.busy_paths(reader)

    def why_not(self, path: str) -> str:
        place = os.fsencode(path)
        while len(place) > 1:
            if place in self.written:
                return "a job writes it"
            if place in self.read:
                return "a job reads it"
            place = os.path.dirname(place)
        return ""


def _twins(group: DupeGroup, busy: _Busy, link: Link, settle: float) -> list[Twins]:
    """The files of a group of models that seem to be equal, by device."""
    alike: dict[tuple[Any, ...], dict[int, tuple[str, os.stat_result]]] = defaultdict(dict)
    owners: dict[str, list[str]] = defaultdict(list)
    for copy in group.copies:
        for path in copy.model.file_paths:
            try:
                info = os.lstat(path)
                if not stat.S_ISREG(info.st_mode) or info.st_size < LEAST:
                    continue  # what a link leads to is its store's business
                edges = _edges(path, info.st_size)
            except OSError:
                continue
            owners[path].append(copy.model.id or "")
            alike[info.st_dev, info.st_size, edges].setdefault(info.st_ino, (path, info))
    found = []
    for (_, size, _), files in alike.items():
        if len(files) < 2:
            continue
        # What has several names keeps them: it takes all of them to free its bytes. Of the rest the oldest is the original.
        (kept, info), *rest = sorted(files.values(), key=lambda file: (-file[1].st_nlink, file[1].st_mtime_ns, file[0]))
        twins = Twins(kept, size, tuple(owners[kept]), info.st_nlink)
        able = link == "hard" or linking.can_reflink(kept)
        for path, other in rest:
            if link == "reflink" and linking.share_blocks(kept, path):
                continue
            why = _why_not(info, other, link, able, settle) or busy.why_not(kept) or busy.why_not(path)
            twins.twins.append(Twin(path, size, tuple(owners[path]), why))
        if twins.twins:
            found.append(twins)
    return found


def _edges(path: str, size: int) -> bytes:
    from hashlib import sha256

    with os.fdopen(open_regular(path), "rb") as file:
        return sha256(file.read(EDGE) + os.pread(file.fileno(), EDGE, max(EDGE, size - EDGE))).digest()


def _why_not(kept: os.stat_result, other: os.stat_result, link: Link, able: bool, settle: float) -> str:
    if not able:
        return CANNOT_SHARE
    if link == "hard":
        if other.st_nlink > 1:
            return f"it has {other.st_nlink} names, and all of them would have to go"
        if (kept.st_uid, kept.st_gid, kept.st_mode) != (other.st_uid, other.st_gid, other.st_mode):
            return "its owner or mode is another, and one file has one of each"
    return _young(kept, other, settle)


def _young(kept: os.stat_result, other: os.stat_result, settle: float) -> str:
    """Somebody may still be at work on it. What is kept has a new ctime with every link to it."""
    now = time.time()
    latest = (kept.st_mtime, other.st_mtime, other.st_ctime)
    return "it was written to a moment ago" if any(abs(now - when) < settle for when in latest) else ""

"""The stores in one scan of a root: which of their blobs are looked at, and what their manifests make of what is in those.
What a store looks like is `modelhub.stores`' business.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING

from modelhub.catalog.rows import Look
from modelhub.ignore import is_unfinished_blob
from modelhub.stores import Manifest, as_manifest, manifest_name, read_manifest, unfinished, untold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelhub.found import Found
    from modelhub.walk import Directory
    from modelhub.workers import Result, Task

MANIFESTS = b"/manifests/"


class StoreScan:
    """The stores of the root at ``place`` (its path). ``stores``: their directories, relative to it; more may come. Paths are
    relative to the root. ``vanished`` gets the directories of what went while it was looked at."""

    def __init__(self, place: bytes, stores: list[bytes], vanished: set[bytes]) -> None:
        self.place = place
        self.stores = stores
        self.vanished = vanished
        self._waiting: dict[tuple[str, str], list[tuple[bytes, bytes]]] = defaultdict(list)
        """(directory of blobs, name of a blob) -> the manifests that it tells, each with its store."""
        self._directories: set[str] = set()

    def whose(self, path: bytes) -> bytes | None:
        """The store among whose manifests the directory ``path`` is; None where it is in none."""
        return next((store for store in self.stores if path.startswith((store + MANIFESTS).lstrip(b"/"))), None)

    def is_of_blobs(self, path: bytes) -> bool:
        return os.path.basename(path) == b"blobs" and os.path.dirname(path) in self.stores

    def manifests(self, store: bytes, directory: Directory) -> tuple[Look, Task | None]:
        """What is known at once of new manifests in ``directory``, because their weights are not there; and the task to look at
        the blobs that the others name."""
        blobs = self._path(os.path.join(store, b"blobs"))
        rest: list[bytes] = []
        found: list[Found] = []
        sizes: dict[str, int] = {}
        for name in sorted(directory.dirty):
            path = os.path.join(directory.path, name)
            try:
                manifest = self._read(store, path)
                if manifest is None:
                    rest.append(path)
                elif manifest.told_by:
                    sizes[manifest.told_by] = os.stat(os.path.join(blobs, manifest.told_by)).st_size
                    self._waiting[blobs, manifest.told_by].append((store, path))
                else:
                    found.append(untold(manifest, _name(store, path)))
            except OSError:
                rest.append(path)
        return Look(directory.path, found, rest), self._task(blobs, sizes) if sizes else None

    def unfinished(self, directory: Directory) -> Task:
        """The task to look at the blobs that are not whole, in a store's directory of blobs."""
        sizes = {os.fsdecode(name): directory.files[name].size for name in sorted(directory.dirty)}
        return self._task(self._path(directory.path), sizes)

    def _task(self, blobs: str, sizes: dict[str, int]) -> Task:
        from modelhub.workers import Task

        self._directories.add(blobs)
        return Task(blobs, tuple(sizes.items()), (), tuple(sizes))

    def knows(self, result: Result) -> bool:
        """Whether a result is of one of these tasks."""
        return result.directory in self._directories

    def look(self, result: Result) -> Look:
        """What the blobs that were looked at are."""
        found: list[Found] = []
        unknown: list[bytes] = []
        told: dict[str, Found] = {os.path.basename(item.path): item for item in result.found}
        for name in (*told, *result.unknown):
            item = told.get(name)
            if is_unfinished_blob(os.fsencode(name)):
                found += self._unfinished(os.path.join(result.directory, name), item)
                continue
            manifests = self._waiting.pop((result.directory, name), [])
            if item is None:
                unknown += [path for _, path in manifests]
            else:
                found += self._models(item, manifests)
        return Look(self._relative(result.directory), found, unknown)

    def _models(self, item: Found, manifests: Iterable[tuple[bytes, bytes]]) -> Iterator[Found]:
        for store, path in manifests:
            try:
                manifest = self._read(store, path)
                if manifest is not None:
                    yield as_manifest(item, manifest, _name(store, path))
            except OSError:
                self.vanished.add(os.path.dirname(path))

    def _unfinished(self, path: str, item: Found | None) -> list[Found]:
        try:
            return [unfinished(path, item)]
        except OSError:
            self.vanished.add(self._relative(os.path.dirname(path)))
            return []

    def _read(self, store: bytes, path: bytes) -> Manifest | None:
        return read_manifest(self._path(path), self._path(os.path.join(store, b"blobs")))

    def _path(self, relative: bytes) -> str:
        return os.fsdecode(os.path.join(self.place, relative))

    def _relative(self, path: str) -> bytes:
        return os.fsencode(path)[len(self.place.rstrip(b"/")) + 1 :]


def _name(store: bytes, path: bytes) -> str:
    """What users call the model of the manifest at ``path``."""
    return manifest_name(os.fsdecode(path.removeprefix((store + MANIFESTS).lstrip(b"/"))))

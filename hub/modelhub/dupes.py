"""The same weights in several places, whatever the container: tensors with equal digests.

Only tensors whose dtype and shape occur in two places are read at all, and what was read once is remembered with the content.
Links to one file are one place. Constants and tiny tensors say nothing of an origin and do not count.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelhub import ops
from modelhub.digest import CONSTANT, DIGEST_BYTES, UNKNOWN, digest_tensors
from modelhub.errors import ModelhubError
from modelhub.model import Model, printable
from modelhub.table import tensor_nbytes
from modelhub.types import Extent, Tensor

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

TINY = 1024
"""Tensors of fewer bytes than this are not compared: a bias of zeros is nobody's copy."""
Progress = Callable[[str, int, int], None]
"""Called with a model's name, bytes done and bytes to do."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One place: the model, and the names of its tensors that stand elsewhere too."""

    model: Model
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DupeGroup:
    """Places that hold the same: the whole ``file``, all ``weights``, or ``some tensors``. ``bytes_to_gain``: what all but one
    of them take."""

    same: str
    copies: tuple[Copy, ...]
    bytes_to_gain: int

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "bytes_to_gain": self.bytes_to_gain,
            "copies": [
                {
                    "model": copy.model.id or printable(copy.model.absolute_path),
                    "name": printable(copy.model.name),
                    "path": printable(copy.model.absolute_path),
                    "format": copy.model.format,
                    "tensors": list(copy.tensors),
                }
                for copy in self.copies
            ],
        }


@dataclass(frozen=True, slots=True)
class _Place:
    model: Model
    tensors: tuple[Tensor, ...]
    digests: tuple[bytes, ...]

    def by_digest(self) -> dict[bytes, list[Tensor]]:
        found = defaultdict(list)
        for tensor, digest in zip(self.tensors, self.digests, strict=True):
            if digest not in (UNKNOWN, CONSTANT):
                found[digest].append(tensor)
        return found


def find_dupes(catalog: Catalog, models: Sequence[Model], progress: Progress | None = None) -> tuple[list[DupeGroup], list[str]]:
    """Groups of equal weights among ``models``, the largest gain first, and what could not be read, in words."""
    candidates = [(model, model.table().stored) for model in one_for_each_file(models)]
    places: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)
    for number, (_, tensors) in enumerate(candidates):
        for tensor in tensors:
            if tensor_nbytes(tensor) >= TINY:
                places[tensor.dtype, tensor.shape].add(number)
    wanted = {kind for kind, numbers in places.items() if len(numbers) > 1}
    read, problems = [], []
    for model, tensors in candidates:
        chosen = [number for number, tensor in enumerate(tensors) if (tensor.dtype, tensor.shape) in wanted]
        if not chosen:
            continue
        try:
            digests = _digests(catalog, model, tensors, chosen, progress)
        except ModelhubError as error:
            problems.append(f"{model.name}: {error}")
            continue
        read.append(_Place(model, tuple(tensors[n] for n in chosen), tuple(digests[n] for n in chosen)))
    return _group(read), problems


def one_for_each_file(models: Sequence[Model]) -> list[Model]:
    """Models that are there, one for each set of files: a link to a file is not a copy of it."""
    seen: set[frozenset[tuple[int, int]]] = set()
    kept = []
    for model in models:
        if model.state != "ready" or not model.tensors:
            continue
        try:
            files = frozenset((info.st_dev, info.st_ino) for info in map(os.stat, _weights(model)))
        except OSError:
            continue
        if files not in seen:
            seen.add(files)
            kept.append(model)
    return kept


def _weights(model: Model) -> Sequence[str]:
    """The files that hold a model's tensors: what stands beside them in a directory (a model card, a configuration) makes no
    other copy of it."""
    if not os.path.isdir(model.absolute_path):
        return model.file_paths[:1]
    held = {leaf.file for tensor in model.table().stored for leaf in ops.leaves(tensor.value) if isinstance(leaf, Extent)}
    return sorted(held) or model.file_paths


def _digests(
    catalog: Catalog, model: Model, tensors: Sequence[Tensor], chosen: Sequence[int], progress: Progress | None
) -> list[bytes]:
    """Digests in the order of ``tensors``; those of ``chosen`` are there, from the catalog or read now."""
    blob = (catalog.tensor_digests(model) if model.id else None) or b""
    if len(blob) != DIGEST_BYTES * len(tensors):
        blob = UNKNOWN * len(tensors)
    digests = [blob[at : at + DIGEST_BYTES] for at in range(0, len(blob), DIGEST_BYTES)]
    missing = [number for number in chosen if digests[number] == UNKNOWN and tensors[number].value is not None]
    if missing:
        total = sum(tensor_nbytes(tensors[number]) for number in missing)
        done = 0

        def tell(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress(model.name, done, total)

        for number, digest in zip(missing, digest_tensors([tensors[number] for number in missing], progress=tell), strict=True):
            digests[number] = digest
        if model.id:
            catalog.set_tensor_digests(model, b"".join(digests))
    return digests


def _group(places: Sequence[_Place]) -> list[DupeGroup]:
    """Whole copies first; then, among one of each, what some have in common."""
    groups: list[DupeGroup] = []
    whole: dict[frozenset[bytes], list[_Place]] = defaultdict(list)
    for place in places:
        comparable = sum(1 for tensor in place.model.table().stored if tensor_nbytes(tensor) >= TINY)
        digests = place.by_digest()
        # Only a place whose every weight was a candidate can be a copy as a whole; the others share parts.
        constants = sum(digest == CONSTANT for digest in place.digests)
        complete = sum(map(len, digests.values())) + constants == comparable
        key = frozenset(digests) if complete and digests else frozenset((os.fsencode(place.model.absolute_path),))
        whole[key].append(place)
    representatives = []
    for same in whole.values():
        representatives.append(same[0])
        if len(same) > 1:
            groups.append(_whole_group(same))
    groups += _part_groups(representatives)
    return sorted(groups, key=lambda group: (-group.bytes_to_gain, group.copies[0].model.name))


def _whole_group(same: Sequence[_Place]) -> DupeGroup:
    copies = tuple(Copy(place.model, tuple(t.name for tensors in place.by_digest().values() for t in tensors)) for place in same)
    sizes = [place.model.size for place in same]
    digests = {place.model.digest for place in same}
    alike = (
        len({place.model.format for place in same}) == 1 and len(set(sizes)) == 1 and len(digests) == 1 and None not in digests
    )
    return DupeGroup("file" if alike or _equal_files(same) else "weights", copies, sum(sizes) - max(sizes))


def _equal_files(same: Sequence[_Place]) -> bool:
    """Whether places of one file each hold the same bytes; their weights do already, so only the rest can differ."""
    import filecmp

    paths = [place.model.file_paths for place in same]
    if any(len(files) != len(paths[0]) for files in paths) or len({place.model.size for place in same}) > 1:
        return False
    try:
        return all(filecmp.cmp(a, b, shallow=False) for files in paths[1:] for a, b in zip(paths[0], files, strict=True))
    except OSError:
        return False


def _part_groups(places: Sequence[_Place]) -> list[DupeGroup]:
    holders: dict[bytes, list[int]] = defaultdict(list)
    tables = [place.by_digest() for place in places]
    for number, table in enumerate(tables):
        for digest in table:
            holders[digest].append(number)
    shared: dict[tuple[int, ...], list[bytes]] = defaultdict(list)
    for digest, numbers in holders.items():
        if len(numbers) > 1:
            shared[tuple(numbers)].append(digest)
    groups = []
    for among, digests in shared.items():
        copies = tuple(Copy(places[n].model, tuple(t.name for d in digests for t in tables[n][d])) for n in among)
        gain = sum(tensor_nbytes(tables[among[0]][digest][0]) for digest in digests) * (len(among) - 1)
        groups.append(DupeGroup("some tensors", copies, gain))
    return groups

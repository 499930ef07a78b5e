"""Lineage as rows: which content was made from which, up and down, and what is left of sources that are gone. `modelhub.lineage`
makes a graph of them. Opens no file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from modelhub.catalog.database import Reader, Row
from modelhub.catalog.tables import dump, load
from modelhub.model import Model, clean, iso, printable
from modelhub.where import STATE

GENERATIONS = 16
"""How far back a source's own making is written down with it."""
LONGEST = 1 << 16
"""Of what is written down of one source, in characters."""
ORPHANS = 10_000
"""How many outputs of sources that are gone a search looks through."""


class Step(NamedTuple):
    """One source of one output. ``child`` and ``parent`` are keys of checkpoints; ``parent`` is None where the catalog has it no
    more. ``was``: the source as it was then: id (None outside the catalog), name, format, precision, size, version, ``made_from``
    (a list of such steps as JSON, each with ``path``, ``digest`` and so on, and its own ``was``)."""

    child: int
    child_version: int
    parent: int | None
    path: bytes
    sha256: bytes | None
    kind: str
    plugin: str
    plugin_version: str
    recipe: str
    rule: str
    options: Mapping[str, Any]
    worst: Mapping[str, Any] | None
    created: int
    was: Mapping[str, Any]


class Standing(NamedTuple):
    """A checkpoint as it is now. ``replaced``: when its content was replaced last, in nanoseconds, None for never."""

    key: int
    id: str
    name: str
    root: bytes | None
    path: bytes
    format: str
    precision: str
    size: int
    state: str
    version: int
    sha256: bytes | None
    replaced: int | None


_STEP = (
    "l.checkpoint,l.version,l.parent,l.parent_path,l.parent_sha256,l.kind,l.plugin,l.plugin_version,l.recipe,l.rule,l.options,"
    "l.errors,l.created,l.parent_was"
)


def parents(reader: Reader, keys: Sequence[int]) -> list[Step]:
    """What every version of these checkpoints was made from."""
    return _steps(reader.rows_in(f"SELECT {_STEP} FROM lineage l WHERE l.checkpoint IN (??) ORDER BY l.key", keys))


def children(reader: Reader, keys: Sequence[int]) -> list[Step]:
    """What was made from any version of these checkpoints, and is still what stands there."""
    return _steps(
        reader.rows_in(
            f"SELECT {_STEP} FROM lineage l JOIN checkpoint c ON c.key=l.checkpoint AND c.version=l.version "
            "WHERE l.parent IN (??) ORDER BY l.key",
            keys,
        )
    )


def orphans(reader: Reader) -> list[tuple[int, bytes | None, Mapping[str, Any]]]:
    """(key of the step, SHA-256, ``was``) of the sources that are not in the catalog any more, or never were, and of which there
    is an output."""
    rows = reader.rows(
        "SELECT l.key,l.parent_sha256,l.parent_was FROM lineage l "
        "JOIN checkpoint c ON c.key=l.checkpoint AND c.version=l.version "
        f"WHERE l.parent IS NULL ORDER BY l.key DESC LIMIT {ORPHANS}"
    )
    return [(key, sha256, _read(was)) for key, sha256, was in rows]


def steps(reader: Reader, keys: Sequence[int]) -> list[Step]:
    """Steps by their keys."""
    return _steps(reader.rows_in(f"SELECT {_STEP} FROM lineage l WHERE l.key IN (??) ORDER BY l.key", keys))


_STANDING = (
    "SELECT c.key,c.id,c.name,r.path,c.path,c.format,c.precision,c.size,"
    f"{STATE},c.version,c.sha256,(SELECT max(v.replaced_at) FROM version v WHERE v.checkpoint=c.key) "
    "FROM checkpoint c LEFT JOIN root r ON r.key=c.root WHERE "
)


def standing(
    reader: Reader, *, keys: Collection[int] = (), ids: Collection[str] = (), digests: Collection[bytes] = ()
) -> list[Standing]:
    """The checkpoints with these keys, ids, or SHA-256 (of these those that are not missing), by key."""
    rows = reader.rows_in(_STANDING + "c.key IN (??)", list(keys))
    rows += reader.rows_in(_STANDING + "c.id IN (??)", list(ids))
    rows += reader.rows_in(_STANDING + "c.missing=0 AND c.sha256 IN (??)", list(digests))
    return sorted({row[0]: Standing._make(row) for row in rows}.values())


def snapshot(reader: Reader, source: Model, generations: int = GENERATIONS) -> str:
    """``parent_was`` of a source, as JSON."""
    was = _was(source.id, source.name, source.format, source.precision, source.size, source.version if source.key else 0)
    made_from = _made_from(reader, source.key, source.version, generations) if source.key else []
    text = clean(dump({**was, "made_from": made_from}))
    return text if len(text) <= LONGEST else clean(dump({**was, "made_from": []}))


def _was(id: str | None, name: str, format: str, precision: str, size: int, version: int) -> dict[str, Any]:
    return {"id": id, "name": name, "format": format, "precision": precision, "size": size, "version": version}


def _made_from(reader: Reader, key: int, version: int, generations: int) -> list[dict[str, Any]]:
    """How a content came to be, as JSON that needs nothing else to be understood."""
    if generations <= 0:
        return []
    found = []
    for step in parents(reader, [key]):
        if step.child_version == version:
            # What was written with the step has the generations before it already.
            found.append(
                {
                    "path": step.path.decode("utf-8", "surrogateescape"),
                    "digest": None if step.sha256 is None else f"sha256:{step.sha256.hex()}",
                    **how(step),
                    "was": cut(step.was, generations - 1) or _now(reader, step.parent),
                }
            )
    return found


def _now(reader: Reader, key: int | None) -> dict[str, Any]:
    """For a step of which nothing was written down: the source as it is."""
    for row in standing(reader, keys=[key] if key is not None else []):
        return {**_was(row.id, row.name, row.format, row.precision, row.size, row.version), "made_from": []}
    return {}


def cut(was: Mapping[str, Any], generations: int) -> dict[str, Any]:
    """``was`` with at most so many generations before it."""
    steps = was.get("made_from") or []
    if generations <= 0:
        return {**was, "made_from": []} if was else {}
    return {**was, "made_from": [{**step, "was": cut(step.get("was") or {}, generations - 1)} for step in steps]} if was else {}


def how(step: Step) -> dict[str, Any]:
    """How the output was made, as ``--json`` prints it."""
    return {
        "kind": step.kind,
        "recipe": step.recipe,
        "plugin": step.plugin,
        "plugin_version": step.plugin_version,
        "rule": step.rule,
        "options": dict(step.options),
        "worst": None if step.worst is None else dict(step.worst),
        "created": iso(step.created),
    }


def worst(errors: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the errors of tensors (``{name: {rmse, snr, max_error}}``) the one that kept the least of its tensor: the lowest SNR,
    the largest error where there is none. None where nothing was measured, or nothing differs."""
    found: tuple[tuple[float, float], dict[str, Any]] | None = None
    for name, error in errors.items():
        if not isinstance(error, Mapping):
            continue
        rmse, snr = error.get("rmse"), error.get("snr")
        if not isinstance(rmse, (int, float)) or not rmse > 0:
            continue
        rank = (float(snr) if isinstance(snr, (int, float)) else float("inf"), -float(rmse))
        if found is None or rank < found[0]:
            found = (rank, {"tensor": printable(name), "rmse": rmse, "snr": snr, "max_error": error.get("max_error")})
    return found[1] if found else None


def _steps(rows: Sequence[Row]) -> list[Step]:
    found = []
    for row in rows:
        options, errors, created, was = row[-4:]
        found.append(Step._make((*row[:-4], load(options), worst(load(errors)), created, _read(was))))
    return found


def _read(was: str) -> Mapping[str, Any]:
    found = load(was) if was else {}
    return found if isinstance(found, dict) else {}

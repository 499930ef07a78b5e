"""What a MODEL on the command line means: a path, an id, ``name@alias``, ``name:version``, a name, an alias, or the start of an
id."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Protocol

from modelhub.errors import AmbiguousModel, ModelNotFound
from modelhub.model import Model, from_found, printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.found import Found

_ID = re.compile(r"[0-9a-f]{4,16}")


class Inspector(Protocol):
    """What resolving a path needs of `modelhub.workers.ParsePool`."""

    def inspect_path(self, path: str) -> Found: ...


def resolve(catalog: Catalog | None, reference: str, *, pool: Inspector | None = None) -> Model:
    """The model that ``reference`` means. `AmbiguousModel` names the candidates where it could be several, `ModelNotFound` what
    it may have meant where it is none.

    A path that the catalog knows as it is now gives the catalog's record; any other path is looked at, by ``pool`` or a pool
    made for it.
    """
    if os.path.lexists(reference):
        return _path(catalog, os.path.abspath(reference), pool)
    if catalog is not None:
        found = _reference(catalog, reference)
        if found:
            return _only(reference, found)
    raise _not_found(catalog, reference)


def _path(catalog: Catalog | None, path: str, pool: Inspector | None) -> Model:
    known = catalog.at(path) if catalog is not None else []
    if len(known) == 1 and catalog is not None and known[0].state not in ("missing", "offline") and catalog.unchanged(known[0]):
        return known[0]
    if pool is not None:
        return from_found(pool.inspect_path(path))
    from modelhub.workers import ParsePool

    with ParsePool(processes=1) as made:
        return from_found(made.inspect_path(path))


def _reference(catalog: Catalog, reference: str) -> list[Model]:
    if _ID.fullmatch(reference) and len(reference) == 16:
        found = catalog.with_ids(reference, 1)
        if found:
            return found
    if "@" in reference:
        aliased = catalog.aliased(reference)
        if aliased is not None:
            return [aliased]
    name, colon, version = reference.rpartition(":")
    if colon and version.isdecimal():
        found = [model for model in catalog.named(name) if model.version == int(version)]
        if found:
            return found
        replaced = [model for model in catalog.named(name) if model.version > int(version) > 0]
        if replaced:
            raise ModelNotFound(
                f"version {version} of {printable(name)} was replaced: its place has version {replaced[0].version} now",
                f"take {printable(name)}:{replaced[0].version}, or a copy of the old one",
            )
    found = _present(catalog.named(reference))
    if found:
        return found
    aliased = catalog.aliased(reference)
    if aliased is not None:
        return [aliased]
    return catalog.with_ids(reference) if _ID.fullmatch(reference) else []


def _present(models: list[Model]) -> list[Model]:
    """Those that are there; where none is, all of them. Names of one content under several links mean any of them."""
    there = [model for model in models if model.state not in ("missing", "offline")]
    return there or models


def _only(reference: str, found: list[Model]) -> Model:
    if len(found) == 1:
        return found[0]
    shown = ", ".join(f"{(model.id or '')[:8]} ({printable(model.absolute_path)})" for model in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise AmbiguousModel(
        f"'{printable(reference)}' could be {len(found)} models: {shown}{more}", "give the path, or the start of the id"
    )


def _not_found(catalog: Catalog | None, reference: str) -> ModelNotFound:
    shown = printable(reference)
    if "/" in reference and not reference.startswith("@"):
        near: list[str] = []
    else:
        near = difflib.get_close_matches(reference, catalog.names(), 3, 0.6) if catalog is not None else []
    hint = (
        f"did you mean {' or '.join(printable(name) for name in near)}?"
        if near
        else "modelhub ls shows what there is; modelhub scan PATH adds to it"
    )
    return ModelNotFound(f"there is no model '{shown}'", hint)

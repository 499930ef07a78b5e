"""What a MODEL on the command line means: a path, an id, ``name@alias``, ``name:version``, a name, an alias, or the start of an
id."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from modelhub.errors import AmbiguousModel, ModelNotFound
from modelhub.model import Model, from_found, iso, printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.found import Found

_ID = re.compile(r"[0-9a-f]{4,16}")
_VERSION = re.compile(r"(.+):([0-9]{1,9})", re.DOTALL)
Warn = Callable[[str], None]
"""Told in a sentence what is not as it seems, though the answer stands."""


class Inspector(Protocol):
    """What resolving a path needs of `modelhub.workers.ParsePool`."""

    def inspect_path(self, path: str) -> Found: ...


def resolve(catalog: Catalog | None, reference: str, *, pool: Inspector | None = None, warn: Warn | None = None) -> Model:
    """The model that ``reference`` means. `AmbiguousModel` names the candidates where it could be several, `ModelNotFound` what
    it may have meant where it is none.

    A path that the catalog knows as it is now gives the catalog's record; any other path is looked at, by ``pool`` or a pool
    made for it. An alias means what stands now where the content stood that it was given to; where that was replaced, ``warn``
    is told so.
    """
    if os.path.lexists(reference):
        return _path(catalog, os.path.abspath(reference), pool)
    if catalog is not None:
        found = _reference(catalog, reference, warn)
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


def _reference(catalog: Catalog, reference: str, warn: Warn | None) -> list[Model]:
    if _ID.fullmatch(reference) and len(reference) == 16:
        found = catalog.with_ids(reference, 1)
        if found:
            return found
    if "@" in reference:
        aliased = _aliased(catalog, reference, warn)
        if aliased:
            return aliased
    versioned = _VERSION.fullmatch(reference)
    if versioned:
        found = _present([model for model in catalog.named(versioned[1]) if model.version == int(versioned[2])])
        if found:
            return found
    # A name may have a colon itself, with a number after it: another model's versions do not stand in its way.
    return (
        _present(catalog.named(reference))
        or _aliased(catalog, reference, warn)
        or (catalog.with_ids(reference) if _ID.fullmatch(reference) else [])
    )


def _aliased(catalog: Catalog, alias: str, warn: Warn | None) -> list[Model]:
    model = catalog.aliased(alias)
    if model is None:
        return []
    pin = catalog.pin(alias) if warn else None
    if warn and pin and pin.version != model.version:
        when = f" on {iso(pin.replaced)[:10]}" if pin.replaced else ""
        copies = [copy for copy in catalog.with_digest(pin.sha256) if copy.key != model.key] if pin.sha256 else []
        where = f"; what it pinned stands at {printable(copies[0].absolute_path)} as well" if copies else ""
        warn(
            f"{printable(alias)} is stale: its content was replaced{when}, and this is version {model.version}{where}; "
            f"'modelhub alias {printable(alias)} MODEL' gives it anew"
        )
    return [model]


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
    versioned = _VERSION.fullmatch(reference)
    if catalog is not None and versioned:
        of_that_name = _present(catalog.named(versioned[1]))
        if of_that_name:
            return _no_version(catalog, of_that_name, printable(versioned[1]), int(versioned[2]))
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


def _no_version(catalog: Catalog, models: list[Model], name: str, version: int) -> ModelNotFound:
    replaced = next((model for model in models if model.version > version > 0), None)
    if replaced is None:
        there = " or ".join(f"{name}:{number}" for number in sorted({model.version for model in models})[:5])
        return ModelNotFound(f"{name} has no version {version}", f"there is {there}; modelhub show {name} --versions lists them")
    row = next((row for row in catalog.history(replaced) if row["version"] == version), None)
    when = f" on {row['replaced'][:10]}" if row else ""
    digest = row["digest"] if row else None
    copies = catalog.with_digest(bytes.fromhex(digest.removeprefix("sha256:"))) if digest else []
    other = f"the same bytes stand at {printable(copies[0].absolute_path)}" if copies else "or a copy of the old one"
    return ModelNotFound(
        f"version {version} of {name} was replaced{when}: its place has version {replaced.version} now",
        f"take {name}:{replaced.version}{'; ' if copies else ', '}{other}",
    )

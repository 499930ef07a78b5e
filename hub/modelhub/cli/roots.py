"""``modelhub roots``: the directories that are scanned."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, quiet_option
from modelhub.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

COLUMNS = (
    text.Column("path", "ROOT", shrink=20, middle=True),
    text.Column("models", "MODELS", align=">"),
    text.Column("state", "STATE"),
    text.Column("fstype", "FILE SYSTEM", drop=2),
    text.Column("watched", "WATCHED BY", drop=3),
    text.Column("scanned", "SCANNED", drop=1),
)


@define("roots", examples=["modelhub roots", "modelhub roots add /mnt/models", "modelhub roots rm /mnt/old"])
@click.argument("action", type=click.Choice(["ls", "add", "rm"]), default="ls")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@json_option
@quiet_option("paths")
def command(action: str, paths: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """'add' makes a directory a root without scanning it yet ('scan' does both); 'rm' forgets a root and the models in it, with
    their aliases, tags and notes. No file is touched."""
    if (action == "ls") == bool(paths):
        raise UsageError(f"roots {action} takes {'no PATH' if action == 'ls' else 'a PATH'}", "see 'modelhub roots --help'")
    if "" in paths:
        raise UsageError("a PATH is empty", "see 'modelhub roots --help'")
    with Session() as session:
        catalog = session.catalog
        for path in paths:
            full = os.path.realpath(path)
            if action == "add":
                if not os.path.isdir(full):
                    raise ModelNotFound(f"{path} is not a directory", "a single file is indexed by: modelhub scan FILE")
                catalog.add_root(full)
            else:
                known = {root.path for root in catalog.roots()}
                place = next((place for place in (path.rstrip("/") or "/", os.path.abspath(path), full) if place in known), full)
                forgotten = catalog.remove_root(place)
                if not as_json and not quiet:
                    text.line(f"{place} is no root any more; {text.plural(forgotten, 'model')} forgotten, no file touched")
        if action != "ls" and not as_json:
            return 0
        observers = observers_of(catalog)
        roots = [
            {
                "path": root.path,
                "state": "offline" if root.offline else "ready",
                "models": catalog.count("", [f"root={root.path}"]),
                "files": None if root.names is None else list(root.names),
                "fstype": root.fstype,
                "source": root.source,
                "scanned": _time(root.scanned),
                **observers[root.path],
            }
            for root in catalog.roots()
        ]
    if as_json:
        from modelhub.model import printable

        text.print_json([{**root, "path": printable(str(root["path"]))} for root in roots])
    elif quiet:
        for root in roots:
            text.line(root["path"])
    elif roots:
        shown = [
            {
                **root,
                "models": str(root["models"]),
                "scanned": root["scanned"] or "never",
                "watched": f"{root['observer']} ({root['why']})" if root["watched"] else f"nobody; would be {root['observer']}",
            }
            for root in roots
        ]
        text.table(shown, COLUMNS)
    return 0


def observers_of(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """For each root ``{watched, observer, why}``: whether a daemon watches it now; how it does, or would: "events" or "poll"."""
    from modelhub.daemon.lock import alive
    from modelhub.model import printable
    from modelhub.mounts import mounts
    from modelhub.watch.choose import mount_at, observer_for

    status = catalog.daemon_status().get("roots", {}) if alive(catalog) else {}
    table = mounts()
    found = {}
    for root in catalog.roots():
        told = status.get(printable(root.path))
        choice = observer_for(root.path, mount_at(root.path, table))
        found[root.path] = {
            "watched": told is not None,
            "observer": told["observer"] if told else choice.observer,
            "why": told["reason"] if told else choice.reason,
        }
    return found


def _time(ns: int | None) -> str | None:
    from modelhub.model import iso

    return None if ns is None else iso(ns)

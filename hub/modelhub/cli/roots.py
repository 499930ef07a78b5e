"""``modelhub roots``: the directories that are scanned."""

from __future__ import annotations

import os

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, quiet_option
from modelhub.errors import ModelNotFound, UsageError

COLUMNS = (
    text.Column("path", "ROOT", shrink=20, middle=True),
    text.Column("models", "MODELS", align=">"),
    text.Column("state", "STATE"),
    text.Column("fstype", "FILE SYSTEM", drop=2),
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
        roots = [
            {
                "path": root.path,
                "state": "offline" if root.offline else "ready",
                "models": catalog.count("", [f"root={root.path}"]),
                "files": None if root.names is None else list(root.names),
                "fstype": root.fstype,
                "source": root.source,
                "scanned": _time(root.scanned),
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
        text.table([{**root, "models": str(root["models"]), "scanned": root["scanned"] or "never"} for root in roots], COLUMNS)
    return 0


def _time(ns: int | None) -> str | None:
    from modelhub.model import iso

    return None if ns is None else iso(ns)

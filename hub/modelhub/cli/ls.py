"""``modelhub ls``: what is in the catalog, searched, sorted, summed up."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, quiet_option

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

COLUMNS = (
    text.Column("id", "ID"),
    text.Column("name", "NAME", shrink=14, middle=True),
    text.Column("aliases", "ALIASES", shrink=10, drop=4),
    text.Column("format", "FORMAT"),
    text.Column("architecture", "ARCHITECTURE", shrink=10, drop=3),
    text.Column("precision", "PRECISION"),
    text.Column("parameters", "PARAMS", align=">"),
    text.Column("size", "SIZE", align=">"),
    text.Column("state", "STATE"),
    text.Column("modified", "MODIFIED", drop=2),
    text.Column("path", "PATH", shrink=30, middle=True, drop=1),
)
TOTALS = (
    text.Column("format", "FORMAT"),
    text.Column("precision", "PRECISION"),
    text.Column("checkpoints", "CHECKPOINTS", align=">"),
    text.Column("parameters", "PARAMS", align=">"),
    text.Column("size", "SIZE", align=">"),
)
CSV = [
    "id",
    "name",
    "root",
    "path",
    "format",
    "container",
    "architecture",
    "precision",
    "parameters",
    "size",
    "tensors",
    "state",
    "reason",
    "digest",
    "modified",
    "derived_from",
]


@define(
    "ls",
    examples=[
        "modelhub ls",
        "modelhub ls llama --where 'size>1GB' --where 'precision~Q4'",
        "modelhub ls --where 'format=pytorch' --sort -size --limit 10 --json",
        "modelhub ls --totals",
    ],
)
@click.argument("search", metavar="[TEXT]", required=False, default="")
@click.option(
    "--where", "-w", "where", metavar="EXPR", multiple=True, help="FIELD OP VALUE, OP one of = != < <= > >= ~; repeats are AND."
)
@click.option(
    "--sort", metavar="FIELD", default="name", show_default=True, help="Sort by a field; -FIELD is the other way round."
)
@click.option("--limit", metavar="N", type=click.IntRange(min=0), help="Print at most N.")
@click.option("--totals", is_flag=True, help="Sum up by format and precision; what several models share counts once.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with raw numbers.")
@json_option
@quiet_option("ids")
def command(
    search: str, where: tuple[str, ...], sort: str, limit: int | None, totals: bool, as_csv: bool, as_json: bool, quiet: bool
) -> int:
    """TEXT is looked for in names, paths, architectures and tags. Fields of --where: name, path, format, container, architecture,
    precision, state, size, parameters, tensors, modified, dtype, tensor (a tensor's name), alias, tag.KEY and others; '*'
    matches all. Units: GB = 10^9 and GiB = 2^30 for sizes, B = 10^9 for parameters."""
    if sum((as_json, as_csv, quiet)) > 1:
        raise click.UsageError("--json, --csv and -q exclude each other")
    if totals and quiet:
        raise click.UsageError("--totals has no ids to print; leave out -q")
    with Session() as session:
        if totals:
            return _totals(session.catalog, search, where, as_json, as_csv)
        if as_json:
            aliases = _aliases(session.catalog)
            models = session.catalog.models(search, where, sort, limit)
            text.print_json([{**model.to_json(), "aliases": aliases.get(model.id or "", [])} for model in models])
        elif as_csv:
            _csv(CSV, ([_flat(model.to_json().get(key)) if key != "tensors" else model.tensors for key in CSV]
                       for model in session.catalog.models(search, where, sort, limit)))  # fmt: skip
        elif quiet:
            sys.stdout.write("".join(f"{row[0]}\n" for row in session.catalog.select(("id",), search, where, sort, limit)))
        else:
            _table(session.catalog, search, where, sort, limit)
    return 0


SHOWN_ID = 8
"""Of an id's 16 characters, in tables: a unique beginning is as good as the whole."""
FIELDS = ("id", "name", "format", "architecture", "precision", "parameters", "size", "state", "modified", "path")


def _table(catalog: Catalog, search: str, where: tuple[str, ...], sort: str, limit: int | None) -> None:
    from modelhub.model import iso

    found = catalog.select(FIELDS, search, where, sort, limit)
    if not found:
        if sys.stderr.isatty():
            empty = (
                "no model in the catalog answers to that"
                if search or where
                else "the catalog is empty; modelhub scan PATH fills it"
            )
            click.echo(empty, err=True)
        return
    aliases = _aliases(catalog)
    rows = [
        {
            "id": identity[:SHOWN_ID],
            "name": name,
            "aliases": ", ".join(aliases.get(identity, ())),
            "format": kind,
            "architecture": architecture,
            "precision": precision,
            "parameters": text.count(parameters) if parameters else "",
            "size": text.size(size),
            "state": state,
            "modified": iso(modified)[:10],
            "path": os.fsdecode(path),
        }
        for identity, name, kind, architecture, precision, parameters, size, state, modified, path in found
    ]
    text.table(rows, COLUMNS)
    if text.is_terminal():
        text.line(f"{text.plural(len(found), 'model')}, {text.size(catalog.size(search, where, sort, limit))}")


def _aliases(catalog: Catalog) -> dict[str, list[str]]:
    """The aliases of each model that has some, by its id; a stale one says so."""
    found: dict[str, list[str]] = {}
    for alias in catalog.aliases():
        found.setdefault(alias["id"], []).append(f"{alias['alias']} (stale)" if alias["why"] == "replaced" else alias["alias"])
    return found


def _totals(catalog: Catalog, search: str, where: tuple[str, ...], as_json: bool, as_csv: bool) -> int:
    sums = catalog.totals(search, where)
    if as_json:
        text.print_json(sums)
    elif as_csv:
        keys = [column.key for column in TOTALS]
        _csv(keys, [[row[key] for key in keys] for row in sums])
    elif sums:
        whole = {key: sum(row[key] for row in sums) for key in ("checkpoints", "parameters")}
        last = {"format": "all", "precision": "", **whole, "size": catalog.size(search, where)}
        lines = [*sums, last] if len(sums) > 1 else sums
        text.table(
            [{**row, "parameters": text.count(row["parameters"]), "size": text.size(row["size"])} for row in lines], TOTALS
        )
    return 0


def _flat(value: Any) -> Any:
    return "" if value is None else value


def _csv(header: list[str], rows: Any) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([text.escape(cell) for cell in row] for row in rows)

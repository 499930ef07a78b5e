"""Writes what a fresh SQLite catalog is made from, after the schema has changed.

    python migrations/write_fresh.py

`modelhub.catalog.schema` in the words of SQLite, so that the first command on a machine need not import SQLAlchemy for them. A
test holds the file against the schema.
"""

from __future__ import annotations

from pathlib import Path

from modelhub.catalog.schema import metadata
from modelhub.catalog.upgrade import FRESH
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable


def script() -> str:
    """The statements, a line each."""
    dialect = sqlite.dialect()
    found = []
    for table in metadata.sorted_tables:
        found.append(str(CreateTable(table).compile(dialect=dialect)))
        found += [
            str(CreateIndex(index).compile(dialect=dialect)) for index in sorted(table.indexes, key=lambda one: str(one.name))
        ]
    return "".join(" ".join(statement.split()) + ";\n" for statement in found)


if __name__ == "__main__":
    Path(FRESH).write_text(script())

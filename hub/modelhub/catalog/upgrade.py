"""Brings a catalog to the schema that this program knows: makes a fresh one, migrates an older one after a backup, refuses a
newer one.

The ordinary path is one query that compares the stored revision with `HEAD`; Alembic is imported only where they differ.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

from modelhub.catalog.backups import backup
from modelhub.catalog.database import BUSY_SECONDS, Database, Reader, Writer, refuse_network
from modelhub.errors import CatalogError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0002"
"""The newest migration's revision. A test compares it with the migrations."""
FRESH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fresh.sql")
"""The tables of `modelhub.catalog.schema` as statements of SQLite: making a catalog must not take importing SQLAlchemy."""


def prepare(database: Database) -> None:
    """Make sure that ``database`` is there and at `HEAD`."""
    if database.path:
        refuse_network(database.path)
        if not os.path.exists(database.path):
            _make_file(database)
    with database.read() as reader:
        revision = current(reader, bool(database.path))
    if revision == HEAD:
        return
    if revision is None:
        _create(database)
    else:
        _migrate(database, revision)


def current(reader: Reader, sqlite: bool) -> str | None:
    """The stored revision; None for an empty database."""
    if sqlite:
        there = reader.value("SELECT count(*) FROM sqlite_master WHERE type='table'")
    else:
        there = reader.value(
            "SELECT count(*) FROM information_schema.tables WHERE table_schema=current_schema() AND table_name='alembic_version'"
        )
    if not there:
        return None
    try:
        revision = reader.value("SELECT version_num FROM alembic_version")
    except Exception as error:  # whatever the driver calls a missing table
        if "no such table" in str(error):
            raise CatalogError(
                "this database holds something else than a modelhub catalog", "set MODELHUB_CATALOG to another path"
            ) from error
        raise
    return str(revision) if revision else None


def migrations_path() -> str:
    """The migrations: in the package where it was installed, beside it in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (os.path.join(package, "migrations"), os.path.join(package, "..", "..", "migrations")):
        if os.path.isfile(os.path.join(path, "env.py")):
            return os.path.normpath(path)
    raise CatalogError("the migrations are not installed beside modelhub", "install it again")


def alembic_config(database: Database) -> Config:
    """Alembic's configuration for ``database``; there is no alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", migrations_path().replace("%", "%%"))
    config.attributes["database"] = database
    return config


def migrate(database: Database, target: str = "head") -> None:
    """Run the migrations up to ``target``, in one transaction."""
    from alembic import command

    with database.guard():
        command.upgrade(alembic_config(database), target)


def _make_file(database: Database) -> None:
    directory = os.path.dirname(database.path)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise CatalogError(
            f"the catalog's directory {directory} cannot be made: {error.strerror}", "set MODELHUB_HOME or MODELHUB_CATALOG"
        ) from error
    with database.guard():
        connection = sqlite3.connect(database.path, timeout=30, isolation_level=None)
        try:
            _write_ahead(connection)
        finally:
            connection.close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have the file keep a write-ahead log: a property of the file, so once is enough. SQLite does not wait for others who are at
    the same file meanwhile, whatever its timeout says."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _create(database: Database) -> None:
    """A fresh catalog needs no history: its tables as they are now. Another process may be at the same; one of us finds it
    done."""
    if database.path:
        _make_file(database)
        with database.write() as writer:
            if current(writer, sqlite=True) is None:
                with open(FRESH, encoding="utf-8") as statements:
                    for statement in statements:
                        writer.run(statement)
                _stamp(writer)
        return
    from modelhub.catalog.schema import metadata

    with database.write_through_sqlalchemy() as core:
        if current(core, sqlite=False) is None:
            metadata.create_all(core.connection)
            _stamp(core)


def _stamp(writer: Writer) -> None:
    writer.run("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    writer.run("INSERT INTO alembic_version (version_num) VALUES (?)", (HEAD,))


def _migrate(database: Database, revision: str) -> None:
    from alembic.script import ScriptDirectory

    known = [script.revision for script in ScriptDirectory(migrations_path()).walk_revisions()]
    if revision not in known:
        raise CatalogError(
            f"the catalog is newer than this modelhub: it has revision {revision}, and {HEAD} is the newest known here",
            "upgrade modelhub, or set MODELHUB_CATALOG to another catalog",
        )
    if database.path:
        with database.guard():
            backup(database.path, f"before-{HEAD}")
    migrate(database)

"""Connections to the catalog: where it may lie, how it is opened, how reads and writes take turns. Knows no table.

Every statement is SQL text with ``?`` for its values, and runs on SQLite and PostgreSQL alike. A SQLite catalog is read and
written through the driver alone, because importing SQLAlchemy takes longer than a whole ``modelhub ls`` should, and 15 MB in
each worker of a daemon; that is the only difference, and `Database(..., light=False)` takes it away. The schema, and everything
on PostgreSQL, is SQLAlchemy's.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelhub.errors import CatalogError

if TYPE_CHECKING:
    import sqlalchemy

Row = tuple[Any, ...]
Values = Sequence[Any]

CACHE = 64 << 10
"""KiB of a SQLite catalog that a connection may keep in memory."""
SMALL_CACHE = 2 << 10
"""The same for a process that is there for long, beside others."""
BUSY_SECONDS = 30.0
"""How long a write waits for its turn. Writes take a second at most."""
IN_LIMIT = 500
"""How many values one ``IN (...)`` gets."""
WRITER_LOCK = 0x6D6F64656C687562  # "modelhub": the advisory lock that a writer holds on PostgreSQL


class Reader:
    """Runs SELECTs. One is open for the length of a `Database.read`."""

    def __init__(self, cursor: Any, placeholder: str = "?") -> None:
        self._cursor = cursor
        self._placeholder = placeholder

    def _sql(self, sql: str) -> str:
        return sql if self._placeholder == "?" else sql.replace("?", self._placeholder)

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        return self._cursor.execute(sql, tuple(values)).fetchall()  # type: ignore[no-any-return]

    def each(self, sql: str, values: Values = ()) -> Iterator[Row]:
        """The rows one by one, so that not all of them are held twice."""
        return iter(self._cursor.execute(sql, tuple(values)))

    def row(self, sql: str, values: Values = ()) -> Row | None:
        found = self.rows(sql, values)
        return found[0] if found else None

    def value(self, sql: str, values: Values = ()) -> Any:
        found = self.row(sql, values)
        return found[0] if found else None

    def rows_in(self, sql: str, among: Values, before: Values = ()) -> list[Row]:
        """The rows of ``sql``, whose ``(??)`` stands for all of ``among``, asked for in pieces."""
        found: list[Row] = []
        for start in range(0, len(among), IN_LIMIT):
            piece = among[start : start + IN_LIMIT]
            found += self.rows(sql.replace("??", ",".join("?" * len(piece))), [*before, *piece])
        return found


class Writer(Reader):
    """Runs statements inside one write transaction. No file is opened, read or hashed while one is open."""

    def __init__(self, cursor: Any, placeholder: str = "?") -> None:
        super().__init__(cursor, placeholder)
        self._keys: dict[str, int] = {}

    def run(self, sql: str, values: Values = ()) -> int:
        """Run one statement; how many rows it touched."""
        return int(self._cursor.execute(sql, tuple(values)).rowcount)

    def many(self, sql: str, rows: Sequence[Row]) -> None:
        """Run one statement for each of ``rows``."""
        self._cursor.executemany(sql, rows)

    def insert(self, table: str, columns: str, rows: Sequence[Row]) -> None:
        """Insert ``rows``, whose values are in the order of ``columns`` (names between commas)."""
        marks = ",".join("?" * (columns.count(",") + 1))
        self.many(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

    def next_key(self, table: str) -> int:
        """A key that no row of ``table`` has; the next call gives the next. Writers take turns, so nobody else gets it."""
        if table not in self._keys:
            self._keys[table] = int(self.value(f"SELECT max(key) FROM {table}") or 0)
        self._keys[table] += 1
        return self._keys[table]


class CoreWriter(Writer):
    """The same, and a `Reader`, over a SQLAlchemy connection."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        super().__init__(connection, "?" if connection.dialect.paramstyle == "qmark" else "%s")
        self.connection = connection

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        return [tuple(row) for row in self.connection.exec_driver_sql(self._sql(sql), tuple(values))]

    def each(self, sql: str, values: Values = ()) -> Iterator[Row]:
        return iter(self.rows(sql, values))

    def run(self, sql: str, values: Values = ()) -> int:
        return self.connection.exec_driver_sql(self._sql(sql), tuple(values)).rowcount

    def many(self, sql: str, rows: Sequence[Row]) -> None:
        if rows:
            self.connection.exec_driver_sql(self._sql(sql), list(rows))


class Database:
    """One catalog, open. ``url``: an absolute path or a database URL. ``cache``: KiB of a SQLite catalog that a connection may
    keep in memory. Use `modelhub.catalog.Catalog.open`, which also migrates."""

    def __init__(self, url: str, *, light: bool = True, cache: int = CACHE) -> None:
        self.url = url
        self.path = sqlite_path(url)
        """The SQLite file, or "" where the catalog is on a server."""
        self._light = light and bool(self.path)
        self._cache = cache
        self._local = threading.local()
        self._made: sqlalchemy.Engine | None = None

    def _connect(self, purpose: str = "reading") -> sqlite3.Connection:
        """This thread's connection for ``reading`` or ``writing``: what is read meanwhile does not see what is being written."""
        connection: sqlite3.Connection | None = getattr(self._local, purpose, None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            _prepare(connection, self._cache)
            setattr(self._local, purpose, connection)
        return connection

    @property
    def engine(self) -> sqlalchemy.Engine:
        """SQLAlchemy's engine, made on first use."""
        if self._made is None:
            self._made = _engine(self.url, self.path, self._cache)
        return self._made

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Read one consistent state of the catalog."""
        with self.guard():
            if not self._light:
                with self.engine.connect() as core:
                    if self.path:
                        core.exec_driver_sql("BEGIN")
                    else:
                        core.execution_options(isolation_level="REPEATABLE READ")
                    yield CoreWriter(core)
                return
            connection = self._connect()
            if connection.in_transaction:  # a read inside a read sees the same state
                yield Reader(connection)
                return
            connection.execute("BEGIN")
            try:
                yield Reader(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Writer]:
        """One transaction: all of it, or nothing. Waits for its turn; keep it short. ``durable``: it is on the disk when this
        ends (on SQLite the last ones are otherwise lost when the power fails, though nothing is torn)."""
        if self._light:
            with self.guard():
                connection = self._connect("writing")
                if durable:
                    connection.execute("PRAGMA synchronous=FULL")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    yield Writer(connection)
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    if durable:
                        connection.execute("PRAGMA synchronous=NORMAL")
            return
        with self.write_through_sqlalchemy(durable=durable) as writer:
            yield writer

    @contextmanager
    def write_through_sqlalchemy(self, *, durable: bool = False) -> Iterator[CoreWriter]:
        """The same for what needs its connection."""
        with self.guard(), self.engine.connect() as core:
            if self.path:
                if durable:
                    core.exec_driver_sql("PRAGMA synchronous=FULL")
                core.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                core.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
            try:
                yield CoreWriter(core)
                core.commit()
            finally:
                if durable and self.path:
                    core.rollback()  # of nothing, where it was committed
                    core.exec_driver_sql("PRAGMA synchronous=NORMAL")

    def touch(self, sql: str, values: Values) -> None:
        """One UPDATE that nothing depends on. Like reads, it does not import SQLAlchemy for a SQLite catalog: a scan that finds
        nothing new ends with one."""
        if not self._light:
            with self.write() as writer:
                writer.run(sql, values)
            return
        with self.guard():
            self._connect().execute(sql, tuple(values))

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the database's errors into `CatalogError`, with what to do about them."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.explain(error) from error
        except Exception as error:
            # SQLAlchemy's errors, named so that telling them does not import it.
            if type(error).__module__ != "sqlalchemy.exc":
                raise
            raise self.explain(getattr(error, "orig", None) or error) from error

    def explain(self, error: BaseException) -> CatalogError:
        """What an error of the database means to its owner."""
        from modelhub.catalog.backups import newest

        place = self.path or shown(self.url)
        text = " ".join(str(error).split())
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            backup = newest(self.path)
            hint = (
                f"the newest backup is {backup}: put it in its place"
                if backup
                else "no backup of it was found: move it away and scan again"
            )
            return CatalogError(f"the catalog {place} is damaged ({text})", hint)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CatalogError(
                f"the catalog {place} was in use for {BUSY_SECONDS:.0f} seconds", "try again when the other modelhub is done"
            )
        if code == sqlite3.SQLITE_FULL:
            return CatalogError(f"no space is left for the catalog {place}", "free some, or set MODELHUB_CATALOG to another disk")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return CatalogError(
                f"the catalog {place} cannot be opened for writing ({text})", "check its owner and mode, or set MODELHUB_CATALOG"
            )
        return CatalogError(f"the catalog {place} failed: {text}", "run: modelhub doctor")

    def leave(self) -> None:
        """Close what this thread has open: for one that is about to end."""
        for purpose in ("reading", "writing"):
            connection: sqlite3.Connection | None = getattr(self._local, purpose, None)
            if connection is not None:
                connection.close()
                setattr(self._local, purpose, None)

    def close(self) -> None:
        self.leave()
        if self._made is not None:
            self._made.dispose()
            self._made = None


def sqlite_path(url: str) -> str:
    """The absolute path of a SQLite catalog, "" for another database."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return os.path.abspath(url)
    if scheme in ("sqlite", "sqlite+pysqlite"):
        if not rest.startswith("/") or rest == "/":
            raise CatalogError("a catalog in memory would be forgotten at once", "set MODELHUB_CATALOG to a path")
        return os.path.abspath(rest[1:])
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        return ""
    raise CatalogError(f"{scheme} is no database that modelhub keeps a catalog in", "give a path, or a postgresql:// URL")


def shown(url: str) -> str:
    """A URL without its password."""
    scheme, separator, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{login.partition(':')[0]}{at}{place}" if at else url


def refuse_network(path: str) -> None:
    """CatalogError where ``path`` lies on a network file system."""
    from modelhub.mounts import mount_of

    mount = mount_of(path)
    if mount is not None and mount.network:
        raise CatalogError(
            f"the catalog {path} would lie on a network file system ({mount.type} at {mount.point}), where SQLite's locks "
            "and shared memory do not "
            "work and two hosts can destroy it",
            "set MODELHUB_HOME or MODELHUB_CATALOG to a local disk, or to a postgresql:// URL to share one catalog between hosts",
        )


def _prepare(connection: sqlite3.Connection, cache: int) -> None:
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA cache_size=-{cache}")


def _engine(url: str, path: str, cache: int) -> sqlalchemy.Engine:
    """SQLite: transactions begin where we say so, which is `Database.write`'s business and not the driver's."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import URL

    if not path:
        scheme, _, rest = url.partition("://")
        try:
            return create_engine(f"postgresql+psycopg://{rest}" if "+" not in scheme else url, pool_pre_ping=True)
        except ImportError as error:
            raise CatalogError("a catalog on PostgreSQL needs psycopg", "pip install 'modelhub-registry[postgres]'") from error
    engine = create_engine(URL.create("sqlite", database=path), connect_args={"timeout": BUSY_SECONDS, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        _prepare(connection, cache)

    return engine

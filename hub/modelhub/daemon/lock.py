"""One daemon to a catalog. The lock ends with its holder, however that ends; who holds it stands beside it.

A SQLite catalog is locked by a file beside it (``flock(2)``: local disks only, which is all that a SQLite catalog may lie on);
one on PostgreSQL by an advisory lock of a connection that stays open.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelhub.errors import CatalogError

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.database import Database

DAEMON_LOCK = 0x6D6F64656C776174  # "modelwat"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who watches for a catalog: process, host, and since when (seconds since 1970)."""

    pid: int
    host: str
    since: float

    @property
    def text(self) -> str:
        """As it stands beside the lock."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(self.since))}"


class Taken(CatalogError):
    """Another daemon watches for this catalog."""


class DaemonLock:
    """The lock of one catalog. `acquire` and `keep` raise `Taken`, which names the holder, where there is one."""

    def __init__(self, catalog: Catalog) -> None:
        self.database: Database = catalog.database
        self.holder = Holder(0, "", 0.0)
        self._held: Any = None

    def acquire(self) -> Holder:
        self.holder = holder = Holder(os.getpid(), socket.gethostname(), time.time())
        if self.database.path:
            self._lock_file(holder)
        else:
            self._lock_server(holder)
        return holder

    def keep(self) -> bool:
        """Make sure that it is held still, as it is not once the connection to the server was lost: then take it again, if
        nobody else has. Whether it was held all the time. CatalogError where the server cannot be reached."""
        if self.database.path or self._held is None:
            return True
        with contextlib.suppress(Exception):  # whatever its driver says of a connection that is gone
            self._held.exec_driver_sql("SELECT 1")
            self._held.commit()
            return True
        with contextlib.suppress(Exception):
            self._held.invalidate()
            self._held.close()
        with self.database.guard():
            self.acquire()
        return False

    def release(self) -> None:
        held, self._held = self._held, None
        if isinstance(held, int):
            os.close(held)
        elif held is not None:
            held.close()

    def _lock_file(self, holder: Holder) -> None:
        path = lock_path(self.database)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CatalogError(
                f"the daemon's lock {path} cannot be made: {error.strerror}", "the daemon writes beside its catalog"
            ) from error
        for again in range(5):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if again == 4:
                    there = _read(handle)
                    os.close(handle)
                    raise _taken(self.database.path, there) from None
                time.sleep(0.05)  # `holder_of` holds it for an instant to see whether anybody does
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.text.encode(), 0)
        self._held = handle

    def _lock_server(self, holder: Holder) -> None:
        connection = self.database.engine.connect()
        # Not to be given back to those that others are taken from: the lock lasts as long as the connection.
        connection.detach()
        got = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({DAEMON_LOCK})").scalar()
        connection.commit()
        if not got:
            connection.close()
            raise _taken("the server's catalog", _written(self.database))
        self._held = connection
        with self.database.write() as writer:
            writer.run("DELETE FROM daemon")
            now = time.time_ns()
            writer.insert("daemon", "key,owner,started,beat,status", [(1, holder.text, now, now, "{}")])


def lock_path(database: Database) -> str:
    """The lock file of a SQLite catalog."""
    return os.path.realpath(database.path) + ".daemon"


def holder_of(catalog: Catalog) -> Holder | None:
    """The daemon that watches for ``catalog`` now; None where there is none."""
    database = catalog.database
    if not database.path:
        with database.read() as reader:
            locked = reader.value(
                "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND granted "
                "AND database=(SELECT oid FROM pg_database WHERE datname=current_database()) "
                "AND ((classid::bigint << 32) | objid::bigint)=?",
                (DAEMON_LOCK,),
            )
        return _written(database) or Holder(0, "?", 0.0) if locked else None
    try:
        handle = os.open(lock_path(database), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(handle) or Holder(0, socket.gethostname(), 0.0)
    finally:
        os.close(handle)
    return None


def alive(catalog: Catalog) -> bool:
    """Whether a daemon watches for ``catalog``."""
    return holder_of(catalog) is not None


def _read(handle: int) -> Holder | None:
    return _parse(os.pread(handle, 4096, 0))


def _written(database: Database) -> Holder | None:
    with database.read() as reader:
        return _parse(reader.value("SELECT owner FROM daemon") or "")


def _parse(text: bytes | str) -> Holder | None:
    try:
        found = json.loads(text)
        return Holder(int(found["pid"]), str(found["host"]), float(found["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _taken(place: str, holder: Holder | None) -> Taken:
    who = f" ({holder})" if holder else ""
    return Taken(
        f"another modelhub watch{who} is at work for {place}",
        "stop that one first, or set MODELHUB_HOME to a home of its own for this one",
    )

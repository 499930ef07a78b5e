"""`Catalog`: the catalog as the rest of modelhub sees it. Opens and migrates it; its methods are short reads and writes, one
transaction each.

The work is done by the modules beside this one: `query` reads models, `index` takes scans in, `registry` keeps what people wrote,
`content` keeps digests and lineage, `jobs` the queue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub.catalog import upgrade
from modelhub.catalog.database import CACHE, Database, Row
from modelhub.catalog.facets import Digested, Watched, Written
from modelhub.errors import CatalogError, ModelNotFound
from modelhub.model import Model, clean, printable

if TYPE_CHECKING:
    from modelhub.catalog.jobs import Jobs
    from modelhub.found import Found
    from modelhub.types import Finding


class Root(NamedTuple):
    """A directory that is scanned. ``names``: the files asked for, where only those were; else None. Times in nanoseconds."""

    key: int
    path: str
    names: tuple[str, ...] | None
    offline: bool
    fstype: str
    source: str
    device: int
    inode: int
    suspect: int | None
    plugins: str
    generation: int
    added: int
    scanned: int | None


class Catalog(Written, Digested, Watched):
    """An open catalog; a context manager. Threads may share it. All errors of the database are `CatalogError`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str | None = None, *, light: bool = True, cache: int = CACHE) -> Catalog:
        """Open the catalog at ``url`` (a path or a database URL; by default `modelhub.home.catalog_url`), made or migrated as
        need be. ``light=False``: a SQLite catalog is read and written through SQLAlchemy as well; ``cache``: KiB of it that each
        connection may keep in memory."""
        from modelhub.home import catalog_url

        database = Database(catalog_url(url), light=light, cache=cache)
        upgrade.prepare(database)
        return cls(database)

    def close(self) -> None:
        self.database.close()

    @cached_property
    def jobs(self) -> Jobs:
        """The queue of jobs."""
        from modelhub.catalog.jobs import Jobs

        return Jobs(self.database)

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- roots ----------------------------------------------------------------------------------------------------

    def roots(self) -> list[Root]:
        """Every root, by path."""
        import orjson

        with self.database.read() as reader:
            rows = reader.rows(
                "SELECT key,path,names,offline,fstype,source,device,inode,suspect,plugins,generation,added,scanned "
                "FROM root ORDER BY path"
            )
        return [
            Root(key, os.fsdecode(path), None if names is None else tuple(orjson.loads(names)), bool(offline), *rest)
            for key, path, names, offline, *rest in rows
        ]

    def add_root(self, path: str, names: Sequence[str] | None = None) -> Root:
        """Make ``path`` (absolute) a root, or find the root that it is. ``names``: only these files of it; added to those it
        has. A root with names becomes a whole one when it is added without. Roots inside ``path`` become part of it."""
        from modelhub.catalog import places

        with self.database.write() as writer:
            places.add_root(writer, path, names)
        return next(root for root in self.roots() if root.path == path)

    def remove_root(self, path: str) -> int:
        """Forget the root at ``path`` and every checkpoint in it, with what people wrote about them; the files stay. How many
        those were."""
        from modelhub.catalog import places

        with self.database.write() as writer:
            return places.remove_root(writer, path)

    def update_root(self, key: int, **columns: Any) -> None:
        """Set columns of a root (offline, device, inode, fstype, source, suspect, plugins, scanned)."""
        names = [name for name in columns if name in Root._fields]
        sql = f"UPDATE root SET {','.join(f'{name}=?' for name in names)} WHERE key=?"
        self.database.touch(sql, [*(columns[name] for name in names), key])

    def tally(self, root: Root, start: bytes = b"") -> tuple[int, int, int, int, int]:
        """At and below ``start`` of a root: checkpoints there, missing, invalid; bytes of those there; unknown files."""
        from modelhub.catalog import places

        with self.database.read() as reader:
            return places.tally(reader, root.key, start)

    # --- models ---------------------------------------------------------------------------------------------------

    def models(self, text: str = "", where: Sequence[str] = (), sort: str = "name", limit: int | None = None) -> list[Model]:
        """The models in which ``text`` occurs (name, path, architecture, tags) and for which all ``where`` expressions hold.
        ``sort``: a field; ``-FIELD`` for descending."""
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.models(self, reader, text, where, sort, limit)

    def select(
        self, fields: Sequence[str], text: str = "", where: Sequence[str] = (), sort: str = "name", limit: int | None = None
    ) -> list[Row]:
        """The same, as rows of ``fields`` only (those of `modelhub.where.SORT`, and digest, dtypes, key): for long listings.
        Paths and digests are bytes, ``modified`` is in nanoseconds, ``dtypes`` is JSON."""
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.select(reader, fields, text, where, sort, limit)

    def count(self, text: str = "", where: Sequence[str] = ()) -> int:
        """How many models there are, of all or of those."""
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.count(reader, text, where)

    def totals(self, text: str = "", where: Sequence[str] = ()) -> list[dict[str, Any]]:
        """``{format, precision, checkpoints, parameters, size}``, the largest first. The bytes of a file that several share
        count once in each row."""
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.totals(reader, text, where)

    def size(self, text: str = "", where: Sequence[str] = (), sort: str = "name", limit: int | None = None) -> int:
        """The bytes that models take (as for `models`), those of a file that several share once."""
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.size(reader, text, where, sort, limit)

    def get(self, id: str) -> Model:
        """The model with this id. ModelNotFound where there is none."""
        found = self._where("c.id=?", (id,))
        if not found:
            raise ModelNotFound(f"there is no model with the id {id}")
        return found[0]

    def aliased(self, name: str) -> Model | None:
        """The model that an alias means, or None."""
        found = self._where("c.key=(SELECT checkpoint FROM alias WHERE name=?)", (clean(name),))
        return found[0] if found else None

    def children(self, model: Model) -> list[Model]:
        """The models that were made from this one."""
        return self._where("c.key IN (SELECT checkpoint FROM lineage WHERE parent=?)", (model.key,))

    def refresh(self, model: Model) -> Model:
        """The model as the catalog has it now."""
        return self.get(model.id or "")

    def with_ids(self, prefix: str, limit: int = 20) -> list[Model]:
        """The models whose id begins with ``prefix``."""
        return self._where("c.id>=? AND c.id<?", (prefix, prefix + "g"))[:limit]

    def named(self, name: str) -> list[Model]:
        """The models of this name; where there are none, those of this name in any case."""
        name = clean(name)
        return self._where("c.name=?", (name,)) or self._where("lower(c.name)=?", (name.lower(),))

    def with_digest(self, sha256: bytes) -> list[Model]:
        """The models that are there, on a drive that is, and have this SHA-256."""
        return self._where("c.sha256=? AND c.missing=0 AND coalesce(r.offline,0)=0", (sha256,))

    def at(self, path: str) -> list[Model]:
        """The models that lie at ``path`` (absolute): as their place, or as the primary file of theirs."""
        from modelhub.catalog import places

        with self.database.read() as reader:
            return places.models_at(self, reader, path)

    def unchanged(self, model: Model) -> bool:
        """Whether every file of ``model`` has the stat that the catalog knows. Looks at the files."""
        from modelhub.catalog import places

        with self.database.read() as reader:
            rows = places.stats(reader, model)
        return bool(rows) and all(places.still(path, size, mtime) for path, size, mtime, _, _ in rows)

    def complete(self, start: str, limit: int = 100) -> list[str]:
        """Names, aliases and ids that begin with ``start``, for shell completion."""
        from modelhub.where import like

        pattern = like(clean(start))[1:]
        with self.database.read() as reader:
            found = reader.rows(
                "SELECT DISTINCT name FROM checkpoint WHERE name LIKE ? ESCAPE '!' ORDER BY name LIMIT ?", (pattern, limit)
            )
            found += reader.rows("SELECT name FROM alias WHERE name LIKE ? ESCAPE '!' ORDER BY name LIMIT ?", (pattern, limit))
            if start:
                found += reader.rows("SELECT id FROM checkpoint WHERE id LIKE ? ESCAPE '!' ORDER BY id LIMIT ?", (pattern, limit))
        return [name for (name,) in found][:limit]

    def names(self) -> list[str]:
        """Every name and alias: what a mistyped reference may have meant."""
        with self.database.read() as reader:
            return [name for (name,) in reader.rows("SELECT name FROM checkpoint UNION SELECT name FROM alias")]

    def remove(self, models: Iterable[Model]) -> int:
        """Forget ``models`` and what people wrote about them; their files stay. How many there were."""
        from modelhub.catalog import places

        with self.database.write() as writer:
            return places.remove(writer, [model.key for model in models])

    def add(self, found: Found) -> Model:
        """Take one checkpoint in without a scan: an output that was just written. It belongs to the root it lies in, if any."""
        from modelhub.catalog import places

        return places.add(self, found)

    def packed_table(self, model: Model) -> bytes:
        """The model's tensors as `modelhub.table.pack` made them, b"" for none."""
        with self.database.read() as reader:
            found = reader.value(
                "SELECT t.packed FROM tensor_table t JOIN checkpoint c ON c.tensor_table=t.key WHERE c.key=?", (model.key,)
            )
        return found or b""

    def description(self, model: Model) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """``(metadata, stored)`` of the model."""
        from modelhub.catalog.tables import load

        with self.database.read() as reader:
            row = reader.row("SELECT metadata,stored FROM description WHERE checkpoint=?", (model.key,))
        return (load(row[0]), load(row[1])) if row else ({}, {})

    def findings(self, model: Model) -> tuple[Finding, ...]:
        """What scans and verifications had to say of the content that is there now."""
        from modelhub.types import Finding

        with self.database.read() as reader:
            rows = reader.rows(
                "SELECT name,severity,message,tensor,file FROM finding WHERE checkpoint=? ORDER BY key", (model.key,)
            )
        return tuple(Finding(*row) for row in rows)

    def set_findings(self, model: Model, found: Mapping[str, Iterable[Finding]]) -> None:
        """Record what a verification found, by level, in place of what earlier ones found at these levels. Nothing where the
        content was replaced meanwhile."""
        now = time.time_ns()
        with self.database.write() as writer:
            if writer.value("SELECT version FROM checkpoint WHERE key=?", (model.key,)) != model.version:
                return
            writer.many("DELETE FROM finding WHERE checkpoint=? AND level=?", [(model.key, level) for level in found])
            rows = [
                (
                    writer.next_key("finding"),
                    model.key,
                    level,
                    clean(f.check),
                    f.severity,
                    clean(f.message),
                    clean(f.tensor),
                    clean(f.file),
                    now,
                )
                for level, findings in found.items()
                for f in findings
            ]
            writer.insert("finding", "key,checkpoint,level,name,severity,message,tensor,file,recorded", rows)

    def versions(self, model: Model) -> list[dict[str, Any]]:
        """What stood at the model's place before, the newest first: ``{version, format, precision, parameters, size, digest,
        modified, replaced}``."""
        from modelhub.model import iso

        with self.database.read() as reader:
            rows = reader.rows(
                "SELECT number,format,precision,parameters,size,sha256,modified_at,replaced_at FROM version "
                "WHERE checkpoint=? ORDER BY number DESC",
                (model.key,),
            )
        return [
            {
                "version": number,
                "format": format,
                "precision": precision,
                "parameters": parameters,
                "size": size,
                "digest": None if digest is None else f"sha256:{digest.hex()}",
                "modified": iso(modified),
                "replaced": iso(replaced),
            }
            for number, format, precision, parameters, size, digest, modified, replaced in rows
        ]

    # --- health ---------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """What is wrong with the catalog itself, in words; empty where nothing is. Reads all of it."""
        if not self.database.path:
            return []
        try:
            with self.database.read() as reader:
                wrong = [str(text) for (text,) in reader.rows("PRAGMA integrity_check") if text != "ok"]
                broken = reader.rows("PRAGMA foreign_key_check")
        except CatalogError as error:
            return [str(error)]
        return wrong + ([f"{len(broken)} references lead nowhere, the first in table {broken[0][0]}"] if broken else [])

    def backup(self, label: str = "manual") -> str:
        """Make a backup of a SQLite catalog; its path."""
        from modelhub.catalog.backups import backup

        if not self.database.path:
            raise CatalogError("a catalog on a server is backed up there", "use pg_dump")
        with self.database.guard():
            return backup(self.database.path, label)

    def backups(self) -> list[str]:
        """Paths of the catalog's backups, newest first."""
        from modelhub.catalog.backups import backups

        return backups(self.database.path) if self.database.path else []

    def compact(self) -> None:
        """Drop what nothing refers to any more."""
        from modelhub.catalog.tables import drop_orphans

        with self.database.write() as writer:
            drop_orphans(writer)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _where(self, sql: str, values: Sequence[Any]) -> list[Model]:
        from modelhub.catalog import query

        with self.database.read() as reader:
            return query.by_condition(self, reader, sql, values)

    def __repr__(self) -> str:
        return f"Catalog({printable(self.database.path or '(server)')})"

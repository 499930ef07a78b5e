"""Two sides of `Catalog`, apart for length only: what people wrote about models, and what was read of their bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelhub.catalog.database import Database
from modelhub.model import Model

if TYPE_CHECKING:
    from modelhub.catalog.content import Provenance
    from modelhub.catalog.registry import Pin


class Written:
    """Aliases, tags and notes."""

    database: Database

    def set_alias(self, name: str, model: Model) -> None:
        """Let ``name`` (``NAME@LABEL`` or a bare name) mean the content that ``model`` has now, whatever it meant before."""
        from modelhub.catalog import registry

        with self.database.write() as writer:
            registry.set_alias(writer, name, model.key, model.version)

    def remove_alias(self, name: str) -> bool:
        """Forget an alias; False where there was none."""
        with self.database.write() as writer:
            return writer.run("DELETE FROM alias WHERE name=?", (name,)) > 0

    def aliases(self) -> list[dict[str, Any]]:
        """Every alias: ``{alias, id, name, version, stale, now, why}``; stale where its content was replaced or is missing, and
        ``why`` says which; ``now``: the version that stands there."""
        from modelhub.catalog import registry

        with self.database.read() as reader:
            return registry.aliases(reader)

    def pin(self, alias: str) -> Pin | None:
        """What an alias pins; None where there is no such alias."""
        from modelhub.catalog import registry

        with self.database.read() as reader:
            return registry.pin(reader, alias)

    def history(self, model: Model) -> list[dict[str, Any]]:
        """Every version that stood at the model's place, the present one first: ``{version, current, format, precision,
        parameters, size, digest, modified, indexed, replaced, aliases}``; ``aliases``: those that pin it."""
        from modelhub.catalog import registry

        with self.database.read() as reader:
            return registry.versions(reader, model.key)

    def aliases_of(self, model: Model) -> tuple[str, ...]:
        """The model's aliases; those that pin a replaced content end in " (stale)"."""
        with self.database.read() as reader:
            rows = reader.rows(
                "SELECT a.name,a.version<>c.version FROM alias a JOIN checkpoint c ON c.key=a.checkpoint "
                "WHERE c.key=? ORDER BY a.name",
                (model.key,),
            )
        return tuple(f"{name} (stale)" if stale else name for name, stale in rows)

    def tags(self, model: Model) -> dict[str, str]:
        """The model's tags."""
        with self.database.read() as reader:
            return dict(reader.rows("SELECT name,value FROM tag WHERE checkpoint=? ORDER BY name", (model.key,)))

    def set_tags(self, model: Model, tags: Mapping[str, str | None]) -> None:
        """Set tags; None removes one."""
        from modelhub.catalog import registry

        with self.database.write() as writer:
            registry.set_tags(writer, model.key, tags)

    def notes(self, model: Model) -> tuple[str, ...]:
        """The model's notes, oldest first."""
        with self.database.read() as reader:
            return tuple(text for (text,) in reader.rows("SELECT text FROM note WHERE checkpoint=? ORDER BY key", (model.key,)))

    def add_note(self, model: Model, text: str) -> None:
        from modelhub.catalog import registry

        with self.database.write() as writer:
            registry.add_note(writer, model.key, text, time.time_ns())

    def numbered_notes(self, model: Model) -> list[dict[str, Any]]:
        """The model's notes, oldest first: ``{note, text, created}``; ``note`` is its number, from 1."""
        from modelhub.catalog import registry

        with self.database.read() as reader:
            return registry.notes(reader, model.key)

    def remove_notes(self, model: Model, numbers: Collection[int] | None = None) -> int:
        """Remove every note, or those with these numbers; how many. ModelNotFound, and nothing removed, where there is no such
        note."""
        from modelhub.catalog import registry

        with self.database.write() as writer:
            if numbers is None:
                return writer.run("DELETE FROM note WHERE checkpoint=?", (model.key,))
            registry.remove_notes(writer, model.key, numbers)
            return len(set(numbers))

    def export_registry(self) -> dict[str, Any]:
        """Aliases, tags and notes as one JSON value, each with what its model is known by (id, digest, place, name)."""
        from modelhub.catalog import registry

        with self.database.read() as reader:
            return registry.export(reader)

    def import_registry(self, data: Mapping[str, Any]) -> tuple[int, list[str]]:
        """Take in what `export_registry` gave: models are known again by id, digest, or place. How many were, and the names of
        those that were not."""
        from modelhub.catalog import registry

        with self.database.write() as writer:
            return registry.take_in(writer, data, time.time_ns())


class Watched:
    """What the daemon says of itself."""

    database: Database

    def set_daemon_status(self, owner: str, status: Mapping[str, Any]) -> None:
        """Write down how the daemon of process ``owner`` is doing, in place of what the last one wrote."""
        import orjson

        now = time.time_ns()
        self.database.touch(
            "INSERT INTO daemon (key,owner,started,beat,status) VALUES (1,?,?,?,?) "
            "ON CONFLICT (key) DO UPDATE SET owner=excluded.owner,beat=excluded.beat,status=excluded.status,"
            "started=CASE WHEN daemon.owner=excluded.owner THEN daemon.started ELSE excluded.started END",
            (owner, now, now, orjson.dumps(dict(status)).decode()),
        )

    def daemon_status(self) -> dict[str, Any]:
        """What the last daemon wrote, with ``owner``, ``started`` and ``beat`` (nanoseconds); empty where there was none."""
        import orjson

        with self.database.read() as reader:
            row = reader.row("SELECT owner,started,beat,status FROM daemon WHERE key=1")
        if row is None:
            return {}
        try:
            status = orjson.loads(row[3])
        except orjson.JSONDecodeError:
            status = {}
        return {**status, "owner": row[0], "started": row[1], "beat": row[2]}


class Digested:
    """Digests of files and tensors, and lineage."""

    database: Database

    def file_digest(self, path: str) -> bytes | None:
        """The SHA-256 (32 bytes) that an earlier read of ``path`` (absolute) gave, if the file still has the size, mtime and
        inode it had then. Looks at the file's stat. None where nothing is recorded, or it does not count any more."""
        from modelhub.catalog import content

        return content.file_digest(self.database, path)

    def recorded_digest(self, path: str) -> tuple[bytes, int] | None:
        """(SHA-256, when in nanoseconds) that was last recorded for the content at ``path``, whatever the file's stat is now."""
        from modelhub.catalog import content

        return content.recorded_digest(self.database, path)

    def set_file_digest(self, path: str, sha256: bytes, stat: os.stat_result) -> bool:
        """Record the SHA-256 of ``path`` (absolute), read while it had ``stat``. A checkpoint gets its own digest when its last
        file has one. False, and nothing recorded, where the catalog knows no such file, or one with another stat: scan
        first."""
        from modelhub.catalog import content

        return content.set_file_digest(self.database, path, sha256, stat, time.time_ns())

    def tensor_digests(self, model: Model) -> bytes | None:
        """16 bytes for each stored tensor of ``model.table()``, in its order; None where its content was never digested."""
        from modelhub.catalog import content

        return content.tensor_digests(self.database, model)

    def set_tensor_digests(self, model: Model, digests: bytes) -> bool:
        """Record them. Bound to the content of the files: other places of the same content have them too, and replaced content
        has none. False where the content is not what ``model`` says any more."""
        from modelhub.catalog import content

        return content.set_tensor_digests(self.database, model, digests)

    def contents(self, model: Model) -> tuple[int, ...]:
        """Keys of the contents of the model's files: two models with the same ones are links to the same bytes, not copies."""
        with self.database.read() as reader:
            rows = reader.rows(
                "SELECT f.content FROM checkpoint_file x JOIN file f ON f.key=x.file WHERE x.checkpoint=? ORDER BY x.position",
                (model.key,),
            )
        return tuple(key for (key,) in rows if key is not None)

    def record_output(self, output: Model, sources: Sequence[Model], provenance: Provenance) -> None:
        """Record how ``output`` came to be."""
        from modelhub.catalog import content

        content.record_output(self.database, output, sources, provenance, time.time_ns())

    def outputs_of(self, digest: str, recipe: str) -> list[tuple[str, dict[str, Any]]]:
        """(id, options) of what is there that was converted with ``recipe`` ("" for none) from a content whose digest is
        ``digest``."""
        from modelhub.catalog import content

        with self.database.read() as reader:
            return content.outputs_of(reader, bytes.fromhex(digest.removeprefix("sha256:")), recipe)

    def lineage(self, model: Model) -> list[dict[str, Any]]:
        """One entry for each source of the model's present content: ``{parent, path, digest, kind, plugin, plugin_version,
        recipe, options, errors, created, rule}``; parent is an id or None. `modelhub.lineage` has all generations."""
        from modelhub.catalog import content

        with self.database.read() as reader:
            return content.lineage(reader, model)

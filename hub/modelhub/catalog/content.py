"""Digests of files and tensors, bound to content and guarded by the file's stat; and how outputs came to be. Hashes no file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelhub.catalog.database import Database, Reader, Row, Writer
from modelhub.catalog.lineage import snapshot
from modelhub.catalog.places import file_rows
from modelhub.catalog.rows import place_of, signed
from modelhub.catalog.tables import contents_digest, dump, load
from modelhub.model import Model, checkpoint_sha256, clean, iso, printable


@dataclass(frozen=True, slots=True)
class Provenance:
    """How an output was made. ``errors``: the error of each tensor against its source, by name: any JSON value. ``rule``: the
    owner's rule that asked for it, "" where a person did."""

    kind: str = "conversion"
    plugin: str = ""
    plugin_version: str = ""
    recipe: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""


# --- files --------------------------------------------------------------------------------------------------------


def file_digest(database: Database, path: str) -> bytes | None:
    row = _digest_row(database, path)
    if row is None:
        return None
    digest, _, size, mtime, inode = row
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return bytes(digest) if (size, mtime, inode) == (stat.st_size, stat.st_mtime_ns, signed(stat.st_ino)) else None


def recorded_digest(database: Database, path: str) -> tuple[bytes, int] | None:
    row = _digest_row(database, path)
    return (bytes(row[0]), row[1]) if row else None


def _digest_row(database: Database, path: str) -> Row | None:
    with database.read() as reader:
        for key, *_ in file_rows(reader, path):
            row = reader.row(
                "SELECT t.sha256,t.digested,t.size,t.digested_mtime,t.digested_inode FROM content t "
                "JOIN file f ON f.content=t.key WHERE f.key=?",
                (key,),
            )
            if row and row[0] is not None:
                return row
    return None


def set_file_digest(database: Database, path: str, digest: bytes, stat: os.stat_result, now: int) -> bool:
    done = False
    inode = signed(stat.st_ino)
    with database.write() as writer:
        for key, size, mtime, there, content in file_rows(writer, path):
            if (size, mtime) != (stat.st_size, stat.st_mtime_ns) or there != inode:
                continue
            if content is None:  # a file that no format knows
                content = writer.next_key("content")
                continue
            before, then, where = writer.rows("SELECT sha256,digested_mtime,digested_inode FROM content WHERE key=?", (content,))[
                0
            ]
            if before is not None and before != digest:
                if (then, where) != (mtime, inode):  # it was written to meanwhile: not rot, but other weights in the same shapes
                    for (checkpoint,) in writer.rows("SELECT checkpoint FROM checkpoint_file WHERE file=?", (key,)):
                        _new_version(writer, checkpoint, mtime, now)
                content = _split(writer, key, content, stat.st_size)
            writer.run(
                "UPDATE content SET sha256=?,digested=?,digested_mtime=?,digested_inode=? WHERE key=?",
                (digest, now, stat.st_mtime_ns, inode, content),
            )
            for (checkpoint,) in writer.rows(
                "SELECT DISTINCT x.checkpoint FROM checkpoint_file x JOIN file f ON f.key=x.file WHERE f.content=?", (content,)
            ):
                _set_checkpoint_digest(writer, checkpoint)
            done = True
    return done


def _new_version(writer: Writer, checkpoint: int, changed: int, now: int) -> None:
    """A checkpoint's bytes turn out to be others, although its header is the same. ``changed``: the mtime of the file that tells;
    one that is older than the present version is of the same change."""
    same = writer.value(
        "SELECT count(*) FROM version v JOIN checkpoint c ON c.key=v.checkpoint "
        "WHERE c.key=? AND v.number=c.version-1 AND v.header=c.header AND v.replaced_at>=? AND c.sha256 IS NULL",
        (checkpoint, changed),
    )
    if same:
        return
    files = _digests(writer, checkpoint, still=False)
    writer.run(
        "INSERT INTO version (checkpoint,number,format,precision,parameters,size,header,sha256,tensor_table,modified_at,"
        "indexed_at,replaced_at) "
        "SELECT key,version,format,precision,parameters,size,header,?,tensor_table,modified_at,indexed_at,? "
        "FROM checkpoint WHERE key=?",
        (checkpoint_sha256(files) if files else None, now, checkpoint),
    )
    writer.run("UPDATE checkpoint SET version=version+1,sha256=NULL,indexed_at=? WHERE key=?", (now, checkpoint))
    writer.run("DELETE FROM finding WHERE checkpoint=? AND level<>'scan'", (checkpoint,))


def _split(writer: Writer, file: int, content: int, size: int) -> int:
    """The bytes are not what they were, although nothing said so: another content. What was known of the old one stays with
    it."""
    new = writer.next_key("content")
    writer.insert("content", "key,size,header", [(new, size, writer.value("SELECT header FROM content WHERE key=?", (content,)))])
    writer.run("UPDATE file SET content=? WHERE key=?", (new, file))
    return new


def _set_checkpoint_digest(writer: Writer, checkpoint: int) -> None:
    files = _digests(writer, checkpoint, still=True)
    if files:
        writer.run("UPDATE checkpoint SET sha256=? WHERE key=?", (checkpoint_sha256(files), checkpoint))


def _digests(reader: Reader, checkpoint: int, *, still: bool) -> list[tuple[str, bytes]]:
    """(path, SHA-256) of each file of a checkpoint; none where one has none. ``still``: only those made under the present stat
    count."""
    rows = reader.rows(
        "SELECT f.path,f.mtime,f.inode,t.sha256,t.digested_mtime,t.digested_inode,c.path,c.alone "
        "FROM checkpoint_file x JOIN file f ON f.key=x.file "
        "JOIN checkpoint c ON c.key=x.checkpoint LEFT JOIN content t ON t.key=f.content WHERE x.checkpoint=?",
        (checkpoint,),
    )
    files = []
    for path, mtime, inode, digest, then, where, place, alone in rows:
        if digest is None or (still and (mtime, inode) != (then, where)):
            return []
        base = os.path.dirname(place) if alone or path == place else place
        files.append((os.fsdecode(os.path.relpath(place_of(path), base or b".")), bytes(digest)))
    # Beside its primary file or inside its directory: names are relative to the directory that holds them all.
    if any(name.startswith("../") for name, _ in files):
        base = os.path.dirname(rows[0][6])
        files = [(os.fsdecode(os.path.relpath(place_of(row[0]), base or b".")), bytes(row[3])) for row in rows]
    return files


# --- tensors ------------------------------------------------------------------------------------------------------


def _kept_under(reader: Reader, checkpoint: int) -> tuple[bytes, int]:
    """What a checkpoint's tensor digests are kept under, and its version; (b"", 0) where not all of its files have a content."""
    rows = reader.rows(
        "SELECT f.content,c.version FROM checkpoint_file x JOIN file f ON f.key=x.file JOIN checkpoint c ON c.key=x.checkpoint "
        "WHERE x.checkpoint=? ORDER BY x.position",
        (checkpoint,),
    )
    contents = [content for content, _ in rows]
    if not contents or None in contents:
        return b"", 0
    return contents_digest(contents), rows[0][1]


def tensor_digests(database: Database, model: Model) -> bytes | None:
    with database.read() as reader:
        under, version = _kept_under(reader, model.key)
        if version != model.version:
            return None
        digests = reader.value("SELECT digests FROM tensor_digests WHERE contents=?", (under,))
    return None if digests is None else bytes(digests)


def set_tensor_digests(database: Database, model: Model, digests: bytes) -> bool:
    with database.write() as writer:
        under, version = _kept_under(writer, model.key)
        if version != model.version:
            return False
        writer.run("DELETE FROM tensor_digests WHERE contents=?", (under,))
        writer.insert("tensor_digests", "key,contents,digests", [(writer.next_key("tensor_digests"), under, digests)])
    return True


# --- lineage ------------------------------------------------------------------------------------------------------


def record_output(database: Database, output: Model, sources: Sequence[Model], how: Provenance, now: int) -> None:
    with database.write() as writer:
        rows = []
        for source in sources:
            digest = bytes.fromhex(source.digest.removeprefix("sha256:")) if source.digest else None
            rows.append(
                (
                    writer.next_key("lineage"),
                    output.key,
                    output.version,
                    source.key or None,
                    os.fsencode(source.absolute_path),
                    digest,
                    how.kind,
                    how.plugin,
                    how.plugin_version,
                    how.recipe,
                    clean(dump(dict(how.options))),
                    clean(dump(dict(how.errors))),
                    now,
                    clean(how.rule),
                    snapshot(writer, source),
                )
            )
        columns = (
            "key,checkpoint,version,parent,parent_path,parent_sha256,kind,plugin,plugin_version,recipe,options,errors,created,rule,"
            "parent_was"
        )
        writer.run("DELETE FROM lineage WHERE checkpoint=? AND version=?", (output.key, output.version))
        writer.insert("lineage", columns, rows)
        first = sources[0].id if sources else None
        writer.run("UPDATE checkpoint SET derived_from=? WHERE key=?", (first, output.key))


def outputs_of(reader: Reader, digest: bytes, recipe: str) -> list[tuple[str, dict[str, Any]]]:
    """(id, options) of each conversion with ``recipe`` of content with this SHA-256, whose output is still what stands there."""
    rows = reader.rows(
        "SELECT c.id,l.options FROM lineage l JOIN checkpoint c ON c.key=l.checkpoint AND c.version=l.version "
        "WHERE l.parent_sha256=? AND l.recipe=? AND l.kind='conversion' AND c.missing=0 ORDER BY l.key",
        (digest, recipe),
    )
    return [(id, load(options)) for id, options in rows]


def lineage(reader: Reader, model: Model) -> list[dict[str, Any]]:
    rows = reader.rows(
        "SELECT p.id,l.parent_path,l.parent_sha256,l.kind,l.plugin,l.plugin_version,l.recipe,l.options,l.errors,l.created,l.rule "
        "FROM lineage l "
        "LEFT JOIN checkpoint p ON p.key=l.parent WHERE l.checkpoint=? AND l.version=? ORDER BY l.key",
        (model.key, model.version),
    )
    return [
        {
            "parent": parent,
            "path": printable(os.fsdecode(path)),
            "digest": None if digest is None else f"sha256:{digest.hex()}",
            "kind": kind,
            "plugin": plugin,
            "plugin_version": version,
            "recipe": recipe,
            "options": load(options),
            "errors": load(errors),
            "created": iso(created),
            "rule": rule,
        }
        for parent, path, digest, kind, plugin, version, recipe, options, errors, created, rule in rows
    ]

"""The catalog's tables, for SQLAlchemy: what a fresh catalog is made from, and what the migrations must add up to.

Types are those that SQLite and PostgreSQL share: paths and digests are bytes, times are nanoseconds since 1970 in UTC, structured
values are JSON text. Numeric keys are given out by the writer (`modelhub.catalog.database.Writer.next_key`), so that a batch of
rows can refer to one another before it is written. No queries here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite's row id is an INTEGER PRIMARY KEY and nothing else; elsewhere keys take 64 bits.
Key = BigInteger().with_variant(Integer(), "sqlite")


def _column(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]], default: str | None = None) -> Column[Any]:
    """A column that is never null."""
    return Column(name, kind, nullable=False, server_default=default)


def _key() -> Column[int]:
    return Column("key", Key, primary_key=True, autoincrement=False)


def _of(
    table: str, name: str | None = None, *, primary: bool = False, nullable: bool = False, ondelete: str = "CASCADE"
) -> Column[int]:
    return Column(
        name or table,
        Key,
        ForeignKey(f"{table}.key", ondelete=ondelete),
        primary_key=primary,
        nullable=nullable,
        autoincrement=False,
    )


# A directory that is scanned. `search`: its path, casefolded. `names`: JSON array of file names where only those were asked
# for, else null. `device`, `inode`, `fstype`, `source` tell whether what is mounted there is what was scanned. `suspect`: since
# when most of it is gone. `plugins`: a digest of the plugins that looked at its unknown files. `generation` counts writes to
# its files and checkpoints.
root = Table(
    "root",
    metadata,
    _key(),
    Column("path", LargeBinary, nullable=False, unique=True),
    _column("search", Text),
    Column("names", Text),
    _column("offline", Integer, "0"),
    _column("device", BigInteger, "0"),
    _column("inode", BigInteger, "0"),
    _column("fstype", Text, ""),
    _column("source", Text, ""),
    Column("suspect", BigInteger),
    _column("plugins", Text, ""),
    _column("generation", BigInteger, "0"),
    _column("added", BigInteger),
    Column("scanned", BigInteger),
)

# Bytes that were seen, wherever they lie. `header` is null for one of several files of a checkpoint. `sha256` was made at
# `digested`, when the file had `digested_mtime` and `digested_inode`; it counts as long as a file still has them.
content = Table(
    "content",
    metadata,
    _key(),
    _column("size", BigInteger),
    Column("header", LargeBinary),
    Column("sha256", LargeBinary),
    Column("digested", BigInteger),
    Column("digested_mtime", BigInteger),
    Column("digested_inode", BigInteger),
)
Index(
    "ix_content_sha256",
    content.c.sha256,
    sqlite_where=content.c.sha256.is_not(None),
    postgresql_where=content.c.sha256.is_not(None),
)

# A place. `path` is relative to the root, or absolute where there is none. `content` is null for a file that no format knows.
# `missing`: seen once, gone now. `again`: look at it at the next scan although its stat is the same.
file = Table(
    "file",
    metadata,
    _key(),
    _of("root", nullable=True),
    _column("path", LargeBinary),
    _column("size", BigInteger),
    _column("mtime", BigInteger),
    _column("inode", BigInteger),
    _column("device", BigInteger),
    _column("missing", Integer, "0"),
    _column("again", Integer, "0"),
    _of("content", nullable=True, ondelete="SET NULL"),
    UniqueConstraint("root", "path"),
)
Index("ix_file_inode", file.c.inode)
Index("ix_file_content", file.c.content)

# The names of a table's tensors. Few tables differ in them, so that a search is quick. `patterns`: with their numbers as `#`,
# one a line and each once; `packed`: the names themselves, one a line, by zlib.
tensor_names = Table(
    "tensor_names",
    metadata,
    _key(),
    Column("digest", LargeBinary, nullable=False, unique=True),
    _column("patterns", Text),
    _column("packed", LargeBinary),
)

# A packed table of tensors (`modelhub.table.pack`). Equal ones are stored once.
tensor_table = Table(
    "tensor_table",
    metadata,
    _key(),
    Column("digest", LargeBinary, nullable=False, unique=True),
    _of("tensor_names", "names", ondelete="RESTRICT"),
    _column("packed", LargeBinary),
)
Index("ix_tensor_table_names", tensor_table.c.names)

# A model at a place. Several may be missing from one place; one at most is there.
# `search`: name, path and architecture, casefolded, on a line each. `files`: how many;
# `alone`: its path is its only one. `sha256`: over its files, null until all are digested. `missing_since`: of use only while it
# is missing.
checkpoint = Table(
    "checkpoint",
    metadata,
    _key(),
    Column("id", Text, nullable=False, unique=True),
    _of("root", nullable=True),
    _column("path", LargeBinary),
    _column("name", Text),
    _column("format", Text),
    _column("container", Text),
    _column("architecture", Text),
    _column("precision", Text),
    _column("dtypes", Text),
    _column("parameters", BigInteger),
    _column("size", BigInteger),
    _column("files", Integer),
    _column("alone", Integer),
    _column("tensors", Integer),
    _column("state", Text),
    _column("reason", Text),
    _column("missing", Integer, "0"),
    _column("quarantined", Integer, "0"),
    _column("version", Integer, "1"),
    _column("header", LargeBinary),
    Column("sha256", LargeBinary),
    _of("tensor_table", nullable=True, ondelete="SET NULL"),
    _column("created_at", BigInteger),
    _column("indexed_at", BigInteger),
    _column("modified_at", BigInteger),
    Column("derived_from", Text),
    _column("search", Text),
    Column("missing_since", BigInteger),
)
Index("ix_checkpoint_root_path", checkpoint.c.root, checkpoint.c.path)
Index("ix_checkpoint_name", checkpoint.c.name)
Index("ix_checkpoint_tensor_table", checkpoint.c.tensor_table)
Index("ix_checkpoint_indexed_at", checkpoint.c.indexed_at)

# Apart from the checkpoint, so that a search over all checkpoints reads few pages.
description = Table("description", metadata, _of("checkpoint", primary=True), _column("metadata", Text), _column("stored", Text))

# Which files a checkpoint has, the primary one at position 0. A file may belong to several (a blob that two manifests name).
checkpoint_file = Table(
    "checkpoint_file",
    metadata,
    _of("checkpoint", primary=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _of("file"),
    sqlite_with_rowid=False,
)
Index("ix_checkpoint_file_file", checkpoint_file.c.file)

finding = Table(
    "finding",
    metadata,
    _key(),
    _of("checkpoint"),
    _column("level", Text),
    _column("name", Text),
    _column("severity", Text),
    _column("message", Text),
    _column("tensor", Text),
    _column("file", Text),
    _column("recorded", BigInteger),
)
Index("ix_finding_checkpoint", finding.c.checkpoint)

# 16 bytes for each stored tensor, in the table's order, for any checkpoint whose files have these contents. `contents`: SHA-256
# over their keys.
tensor_digests = Table(
    "tensor_digests",
    metadata,
    _key(),
    Column("contents", LargeBinary, nullable=False, unique=True),
    _column("digests", LargeBinary),
)

# What stood at a checkpoint's place before its content was replaced.
version = Table(
    "version",
    metadata,
    _of("checkpoint", primary=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    _column("format", Text),
    _column("precision", Text),
    _column("parameters", BigInteger),
    _column("size", BigInteger),
    _column("header", LargeBinary),
    Column("sha256", LargeBinary),
    _of("tensor_table", nullable=True, ondelete="SET NULL"),
    _column("modified_at", BigInteger),
    _column("indexed_at", BigInteger),
    _column("replaced_at", BigInteger),
)
Index("ix_version_tensor_table", version.c.tensor_table)

# `llama@prod` or a bare name. It pins the version it was given to, and is stale when that was replaced.
alias = Table(
    "alias",
    metadata,
    Column("name", Text, primary_key=True),
    _of("checkpoint"),
    _column("version", Integer),
    _column("created", BigInteger),
)
Index("ix_alias_checkpoint", alias.c.checkpoint)

tag = Table("tag", metadata, _of("checkpoint", primary=True), Column("name", Text, primary_key=True), _column("value", Text))
Index("ix_tag_name", tag.c.name, tag.c.value)

note = Table("note", metadata, _key(), _of("checkpoint"), _column("text", Text), _column("created", BigInteger))
Index("ix_note_checkpoint", note.c.checkpoint)

# How an output came to be. `parent` is null for a source outside the catalog, or one that was removed; what it was stays
# written here. `rule`: the name of the owner's rule that asked for it, "" where a person did. `parent_was`: JSON of the source as
# it was then, with how it came to be itself: what is left when it is replaced or removed.
lineage = Table(
    "lineage",
    metadata,
    _key(),
    _of("checkpoint"),
    _column("version", Integer),
    _of("checkpoint", "parent", nullable=True, ondelete="SET NULL"),
    _column("parent_path", LargeBinary),
    Column("parent_sha256", LargeBinary),
    _column("kind", Text),
    _column("plugin", Text),
    _column("plugin_version", Text),
    _column("recipe", Text),
    _column("options", Text),
    _column("errors", Text),
    _column("created", BigInteger),
    _column("rule", Text, ""),
    _column("parent_was", Text, ""),
)
Index("ix_lineage_checkpoint", lineage.c.checkpoint)
Index("ix_lineage_parent", lineage.c.parent)
Index("ix_lineage_parent_sha256", lineage.c.parent_sha256)

# Work: waiting, at work, or done with. `checkpoint` and `version`: the content it is to be done to; `source` is where that lay.
# `spec`: what to do, JSON by kind. `action`: a digest of kind and spec, by which the same work is known. `owner`: the process
# that has it in hand, as host:pid:start; it must beat before `lease`. `output` and `made` (JSON: the files with their stats) are
# written before anything stands under a real name. `crashes`: how often its process died; `attempts`: how often it was begun.
job = Table(
    "job",
    metadata,
    _key(),
    Column("id", Text, nullable=False, unique=True),
    _column("kind", Text),
    _column("state", Text),
    _column("priority", Integer, "0"),
    _of("checkpoint", nullable=True, ondelete="SET NULL"),
    _column("version", Integer, "0"),
    _column("source", LargeBinary),
    _column("spec", Text),
    _column("action", LargeBinary),
    _column("origin", Text),
    _column("rule", Text, ""),
    _column("attempts", Integer, "0"),
    _column("crashes", Integer, "0"),
    _column("max_attempts", Integer, "1"),
    _column("not_before", BigInteger, "0"),
    _column("created", BigInteger),
    Column("started", BigInteger),
    Column("finished", BigInteger),
    _column("owner", Text, ""),
    _column("lease", BigInteger, "0"),
    _column("cancel", Integer, "0"),
    _column("stage", Text, ""),
    _column("done", BigInteger, "0"),
    _column("total", BigInteger, "0"),
    _column("output", LargeBinary),
    _column("made", Text, ""),
    _column("result", Text, ""),
    _column("error", Text, ""),
    _column("hint", Text, ""),
)
Index("ix_job_state", job.c.state, job.c.priority, job.c.created)
Index("ix_job_checkpoint", job.c.checkpoint)
Index("ix_job_output", job.c.output)
Index("ix_job_finished", job.c.finished)

job_log = Table(
    "job_log",
    metadata,
    _key(),
    _of("job"),
    _column("at", BigInteger),
    _column("level", Text),
    _column("message", Text),
)
Index("ix_job_log_job", job_log.c.job)

# What rules have had done to a content: never twice. Kept when the job's row is dropped.
dispatched = Table(
    "dispatched",
    metadata,
    _of("checkpoint", primary=True),
    Column("action", LargeBinary, primary_key=True),
    _column("version", Integer),
    _column("modified", BigInteger),
    _column("at", BigInteger),
)

# The daemon that watches for this catalog, or the last that did. One row at most. `status`: JSON, for people.
daemon = Table(
    "daemon",
    metadata,
    _key(),
    _column("owner", Text),
    _column("started", BigInteger),
    _column("beat", BigInteger),
    _column("status", Text),
)

"""What `modelhub.prune` asks of the catalog and writes into it: who has been missing for how long, what nothing refers to, which
files may be each other's copies, and a file that has another inode now. Opens no file."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

from modelhub.catalog import places
from modelhub.catalog.database import Database, Reader, Writer
from modelhub.catalog.rows import Stat
from modelhub.catalog.tables import ORPHANS, orphaned_digests

FINISHED = "state IN ('done','failed','cancelled') AND finished<?"


class Missing(NamedTuple):
    """A checkpoint that has been missing for long. Times in nanoseconds. ``aliases``, ``tags``, ``notes``: how many people gave
    it; ``jobs``: that wait for it or work on it."""

    key: int
    id: str
    name: str
    root: bytes | None
    path: bytes
    size: int
    since: int
    aliases: int
    tags: int
    notes: int
    jobs: int


_MISSING = (
    "SELECT c.key,c.id,c.name,r.path,c.path,c.size,c.missing_since,"
    "(SELECT count(*) FROM alias a WHERE a.checkpoint=c.key),(SELECT count(*) FROM tag t WHERE t.checkpoint=c.key),"
    "(SELECT count(*) FROM note n WHERE n.checkpoint=c.key),"
    "(SELECT count(*) FROM job j WHERE j.checkpoint=c.key AND j.state IN ('queued','running')) "
    "FROM checkpoint c LEFT JOIN root r ON r.key=c.root "
    # Of a drive that is away, or of which most was gone at the last look, nobody can say what is missing.
    "WHERE c.missing<>0 AND c.missing_since<=? AND coalesce(r.offline,0)=0 AND r.suspect IS NULL"
)


def missing(reader: Reader, before: int) -> list[Missing]:
    """The checkpoints that have been missing since ``before`` (nanoseconds since 1970) or longer, the longest first."""
    return [Missing._make(row) for row in reader.rows(f"{_MISSING} ORDER BY c.missing_since,c.key", (before,))]


def remove_missing(database: Database, keys: Collection[int], before: int, *, written: bool) -> list[str]:
    """Forget those of ``keys`` for which it still holds; ``written``: also what people wrote something about. Their ids."""
    with database.write() as writer:
        rows = writer.rows_in(f"{_MISSING} AND c.key IN (??)", sorted(keys), (before,))
        found = [
            row for row in map(Missing._make, rows) if not row.jobs and (written or not (row.aliases or row.tags or row.notes))
        ]
        places.remove(writer, [row.key for row in found])
    return [row.id for row in found]


def orphans(reader: Reader, before: int) -> tuple[dict[str, int], int]:
    """How many rows nothing refers to, by table, with the jobs that ended before ``before``; and roughly their bytes."""
    counts = {table: int(reader.value(f"SELECT count(*) FROM {table} WHERE {sql}")) for table, sql in ORPHANS.items()}
    digests = orphaned_digests(reader)
    counts["tensor_digests"] = len(digests)
    counts["job"] = int(reader.value(f"SELECT count(*) FROM job WHERE {FINISHED}", (before,)))
    size = sum(
        int(reader.value(f"SELECT coalesce(sum(length(packed)),0) FROM {table} WHERE {ORPHANS[table]}"))
        for table in ("tensor_table", "tensor_names")
    )
    rows = reader.rows_in("SELECT length(digests) FROM tensor_digests WHERE key IN (??)", digests)
    return counts, size + sum(length for (length,) in rows)


def busy_paths(reader: Reader) -> tuple[set[bytes], set[bytes]]:
    """(what running jobs read, where queued and running jobs will write), absolute."""
    rows = reader.rows("SELECT state,source,output FROM job WHERE state IN ('queued','running')")
    return {bytes(source) for state, source, _ in rows if state == "running"}, {bytes(output) for *_, output in rows if output}


def output_directories(reader: Reader) -> set[bytes]:
    """Where jobs have written, or meant to: the directories of their outputs."""
    return {os.path.dirname(bytes(output)) for (output,) in reader.rows("SELECT DISTINCT output FROM job") if output}


def perhaps_copies(reader: Reader, least: int) -> list[int]:
    """Keys of the checkpoints that are there and have a file of a size (``least`` or more) that another file of theirs or of
    another's on the same device has too, under another inode."""
    rows = reader.rows(
        "SELECT DISTINCT x.checkpoint FROM file f JOIN checkpoint_file x ON x.file=f.key JOIN checkpoint c ON c.key=x.checkpoint "
        "JOIN (SELECT size,device FROM file WHERE missing=0 AND content IS NOT NULL AND size>=? "
        "GROUP BY size,device HAVING count(DISTINCT inode)>1) s ON s.size=f.size AND s.device=f.device "
        "WHERE f.missing=0 AND c.missing=0 ORDER BY x.checkpoint",
        (least,),
    )
    return [key for (key,) in rows]


def relinked(database: Database, path: str, before: Stat, after: Stat, same_as: str) -> bool:
    """The file at ``path`` was ``before`` and is ``after``, with the same bytes as the file at ``same_as`` (and perhaps its
    inode): bring its rows up to date, so that no scan takes it for changed. False where the catalog knew it otherwise; then a
    scan will look at it."""
    done = False
    with database.write() as writer:
        kept = next((row for row in places.file_rows(writer, same_as) if row[4] is not None and row[1:4] == after[:3]), None)
        for key, size, mtime, inode, content in places.file_rows(writer, path):
            if (size, mtime, inode) != before[:3]:
                continue
            new = content
            if content is not None and kept is not None:
                new = kept[4]
                _hand_digest_on(writer, content, new, before, after)
            elif content is not None:
                _hand_digest_on(writer, content, content, before, after)
            writer.run(
                "UPDATE file SET mtime=?,inode=?,device=?,content=? WHERE key=?",
                (after.mtime, after.inode, after.device, new, key),
            )
            _set_modified(writer, key)
            done = True
    return done


def _hand_digest_on(writer: Writer, content: int, new: int, before: Stat, after: Stat) -> None:
    """A SHA-256 that counted for the file as it was counts for it as it is, for the bytes are the same. Where another file has
    the content that it has now, that may have been read already: then nothing is to be done."""
    row = writer.row(
        "SELECT sha256,digested FROM content WHERE key=? AND sha256 IS NOT NULL AND digested_mtime=? AND digested_inode=?",
        (content, before.mtime, before.inode),
    )
    if row is not None and (new == content or writer.value("SELECT sha256 FROM content WHERE key=?", (new,)) is None):
        writer.run(
            "UPDATE content SET sha256=?,digested=?,digested_mtime=?,digested_inode=? WHERE key=?",
            (*row, after.mtime, after.inode, new),
        )


def _set_modified(writer: Writer, file: int) -> None:
    """A checkpoint was modified when the latest of its files was."""
    for (checkpoint,) in writer.rows("SELECT checkpoint FROM checkpoint_file WHERE file=?", (file,)):
        writer.run(
            "UPDATE checkpoint SET modified_at=(SELECT max(f.mtime) FROM checkpoint_file x JOIN file f ON f.key=x.file "
            "WHERE x.checkpoint=checkpoint.key) WHERE key=?",
            (checkpoint,),
        )


def models_with(reader: Reader, paths: Sequence[str]) -> dict[str, list[str]]:
    """Path -> ids of the checkpoints that have it as a file."""
    found: dict[str, list[str]] = {}
    for path in paths:
        keys = [row[0] for row in places.file_rows(reader, path)]
        rows = reader.rows_in(
            "SELECT c.id FROM checkpoint_file x JOIN checkpoint c ON c.key=x.checkpoint WHERE x.file IN (??) ORDER BY c.key", keys
        )
        found[path] = [id for (id,) in rows]
    return found

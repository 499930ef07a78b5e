"""Roots, and what lies where: which root a path belongs to, which models and files are at a path, taking one in, forgetting
some."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelhub.catalog import query
from modelhub.catalog.database import Reader, Row, Writer
from modelhub.catalog.index import Indexer
from modelhub.catalog.rows import (
    BRIEF_COLUMNS,
    DISPLACED,
    FILE_COLUMNS,
    Brief,
    FileRow,
    Look,
    Stat,
    place_of,
    root_condition,
    signed,
)  # fmt: skip
from modelhub.catalog.tables import dump, load
from modelhub.errors import CatalogError, ModelNotFound
from modelhub.model import Model, printable

if TYPE_CHECKING:
    from modelhub.catalog.store import Catalog
    from modelhub.found import Found


def inside(path: bytes, root: bytes) -> bytes | None:
    """``path`` relative to ``root``, b"" for the root itself, None where it lies elsewhere."""
    if path == root:
        return b""
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def add_root(writer: Writer, path: str, names: Sequence[str] | None) -> None:
    place = os.fsencode(path)
    shown = printable(path).casefold().replace("\0", "")
    for key, root, kept in writer.rows("SELECT key,path,names FROM root"):
        if root == place:
            if kept is not None:
                merged = None if names is None else dump(sorted({*load(kept), *names}))
                writer.run("UPDATE root SET names=?,generation=generation+1 WHERE key=?", (merged, key))
                if names is None:
                    _take_in(writer, key, place)
            return
        if kept is None and inside(place, root) is not None:
            raise CatalogError(f"{printable(path)} is part of the root {printable(os.fsdecode(root))}")
    key = writer.next_key("root")
    kept = None if names is None else dump(sorted(names))
    writer.insert("root", "key,path,search,names,added", [(key, place, shown, kept, time.time_ns())])
    if names is None:
        _take_in(writer, key, place)


def _take_in(writer: Writer, key: int, place: bytes) -> None:
    """Make what is known below ``place`` part of its root: other roots, and what was known outside of every root."""
    for other, root in writer.rows("SELECT key,path FROM root WHERE key<>?", (key,)):
        below = inside(root, place)
        if below is not None:
            _absorb(writer, key, other, below)
    for table in ("file", "checkpoint"):
        rows = [(inside(path, place), row) for row, path in writer.rows(f"SELECT key,path FROM {table} WHERE root IS NULL")]
        there = {path for (path,) in writer.rows(f"SELECT path FROM {table} WHERE root=?", (key,))} if rows else set()
        writer.many(
            f"UPDATE {table} SET root=?,path=? WHERE key=?",
            [(key, below, row) for below, row in rows if below and below not in there],
        )


def _absorb(writer: Writer, key: int, other: int, below: bytes) -> None:
    """Make the root ``other`` a part of the root ``key``."""
    for table in ("file", "checkpoint"):
        rows = writer.rows(f"SELECT key,path FROM {table} WHERE root=?", (other,))
        writer.many(
            f"UPDATE {table} SET root=?,path=? WHERE key=?",
            [(key, os.path.join(below, path) if path else below, row) for row, path in rows],
        )
    writer.run("DELETE FROM root WHERE key=?", (other,))


def remove_root(writer: Writer, path: str) -> int:
    key = writer.value("SELECT key FROM root WHERE path=?", (os.fsencode(path),))
    if key is None:
        raise ModelNotFound(f"{printable(path)} is not a root", "modelhub roots lists them")
    count = writer.value("SELECT count(*) FROM checkpoint WHERE root=?", (key,))
    writer.run("DELETE FROM root WHERE key=?", (key,))
    return int(count)


def remove(writer: Writer, keys: Sequence[int]) -> int:
    count = 0
    for key in keys:
        files = [file for (file,) in writer.rows("SELECT file FROM checkpoint_file WHERE checkpoint=?", (key,))]
        writer.run("UPDATE root SET generation=generation+1 WHERE key=(SELECT root FROM checkpoint WHERE key=?)", (key,))
        count += writer.run("DELETE FROM checkpoint WHERE key=?", (key,))
        # A file that is still there is found again by the next scan: it was the entry that was to go, not the file.
        writer.many(
            "DELETE FROM file WHERE key=? AND NOT EXISTS (SELECT 1 FROM checkpoint_file x WHERE x.file=file.key)",
            [(file,) for file in files],
        )
    return count


def known_files(reader: Reader, root: int, start: bytes) -> dict[bytes, Brief]:
    """The files of a root at and below ``start``, by path."""
    below, values = _below(root, start)
    # "+root": in the order of the table. Through the index it takes longer, and most rows are wanted.
    column = "root" if start else "+root"
    return {row[0]: row for row in reader.each(f"SELECT {BRIEF_COLUMNS} FROM file WHERE {column}=?{below}", values)}


def known_here(reader: Reader, root: int, directory: bytes) -> tuple[dict[bytes, Brief], set[bytes]]:
    """The files that lie in one directory itself, by path; and the names of its directories below which files were there at the
    last look. Leaps over those directories, however much is in them."""
    files: dict[bytes, Brief] = {}
    directories: set[bytes] = set()
    prefix = directory + b"/" if directory else b""
    before, end = (" AND path<?", [directory + b"0"]) if directory else ("", [])
    low, limit = prefix, 16
    while True:
        rows = reader.rows(
            f"SELECT {BRIEF_COLUMNS} FROM file WHERE root=? AND path>=?{before} ORDER BY path LIMIT {limit}", [root, low, *end]
        )
        leapt = False
        for row in rows:
            path = row[0]
            if path < low:
                continue
            slash = path.find(b"/", len(prefix))
            if slash < 0:
                low = path + b"\0"
                if DISPLACED not in path:
                    files[path] = row
            else:
                if not row[4] & 2 or knows_below(reader, root, path[:slash]):
                    directories.add(path[len(prefix) : slash])
                low, leapt = path[:slash] + b"0", True
        if len(rows) < limit:
            return files, directories
        limit = 16 if leapt else min(2 * limit, 4096)


def knows_below(reader: Reader, root: int, directory: bytes) -> bool:
    """Whether any file is known below a directory."""
    sql = "SELECT 1 FROM file WHERE root=? AND path>=? AND path<? AND missing=0 LIMIT 1"
    return bool(reader.rows(sql, (root, directory + b"/", directory + b"0")))


def file_rows_at(reader: Reader, root: int, paths: Sequence[bytes]) -> list[FileRow]:
    rows = reader.rows_in(f"SELECT {FILE_COLUMNS} FROM file WHERE root=? AND path IN (??)", paths, (root,))
    return [FileRow._make(row) for row in rows]


def present(reader: Reader, root: int, limit: int | None = None) -> int:
    """How many files of a root were there at the last look; counted to ``limit``."""
    if limit is None:
        return int(reader.value("SELECT count(*) FROM file WHERE root=? AND missing=0", (root,)))
    return int(reader.value("SELECT count(*) FROM (SELECT 1 AS x FROM file WHERE root=? AND missing=0 LIMIT ?) y", (root, limit)))


def present_on(reader: Reader, root: int, device: int, below: bytes, limit: int) -> list[bytes]:
    """Paths of some files at or below ``below`` that were on a device."""
    condition, values = _below(root, below)
    rows = reader.rows(
        f"SELECT path FROM file WHERE root=?{condition} AND device=? AND missing=0 LIMIT ?", [*values, device, limit]
    )
    return [path for (path,) in rows]


def renumber(writer: Writer, root: int, before: int, now: int) -> None:
    """A root's drive has another device number than it had."""
    writer.run("UPDATE file SET device=? WHERE root=? AND device=?", (now, root, before))


def unknown_files(reader: Reader, root: int, start: bytes) -> list[bytes]:
    """Paths of the files at and below ``start`` that no format knew."""
    below, values = _below(root, start)
    return [
        path for (path,) in reader.rows(f"SELECT path FROM file WHERE root=?{below} AND content IS NULL AND missing=0", values)
    ]


def tally(reader: Reader, root: int, start: bytes) -> tuple[int, int, int, int, int]:
    below, values = _below(root, start)
    there, missing, invalid, size = reader.rows(
        "SELECT count(*)-coalesce(sum(missing),0),coalesce(sum(missing),0),coalesce(sum(CASE WHEN missing=0 "
        "AND state='invalid' THEN 1 ELSE 0 END),0),"
        f"coalesce(sum(CASE WHEN missing=0 THEN size ELSE 0 END),0) FROM checkpoint WHERE root=?{below}",
        values,
    )[0]
    unknown = reader.value(f"SELECT count(*) FROM file WHERE root=?{below} AND content IS NULL AND missing=0", values)
    return int(there), int(missing), int(invalid), int(size), int(unknown)


def _below(root: int, start: bytes) -> tuple[str, list[object]]:
    """What to add to ``root=?`` for the paths at and below ``start``, and all the values."""
    if not start:
        return "", [root]
    return " AND (path=? OR (path>=? AND path<?))", [root, start, start + b"/", start + b"0"]


def locate(reader: Reader, path: str) -> tuple[int | None, bytes, bytes]:
    """(key of the root, its path, ``path`` in it) for an absolute path; (None, b"", the path) outside every root. The root that
    is nearest."""
    place = os.fsencode(path)
    best: tuple[int | None, bytes, bytes] = (None, b"", place)
    for key, root in reader.rows("SELECT key,path FROM root"):
        below = inside(place, root)
        if below is not None and len(root) >= len(best[1]):
            best = (key, root, below)
    return best


def file_rows(reader: Reader, path: str) -> list[Row]:
    """(key, size, mtime, inode, content) of the file at ``path``, in each root that has it."""
    place = os.fsencode(path)
    found = reader.rows("SELECT key,size,mtime,inode,content FROM file WHERE root IS NULL AND path=? AND missing=0", (place,))
    for root, prefix in reader.rows("SELECT key,path FROM root"):
        below = inside(place, prefix)
        if below:
            found += reader.rows(
                "SELECT key,size,mtime,inode,content FROM file WHERE root=? AND path=? AND missing=0", (root, below)
            )
    return found


def models_at(catalog: Catalog, reader: Reader, path: str) -> list[Model]:
    root, _, place = locate(reader, path)
    found = _models_at(catalog, reader, root, place)
    # A root of which only some files count leaves what was known before it where it was.
    return found or (_models_at(catalog, reader, None, os.fsencode(path)) if root is not None else [])


def _models_at(catalog: Catalog, reader: Reader, root: int | None, place: bytes) -> list[Model]:
    condition, values = root_condition(root)
    found = query.by_condition(catalog, reader, f"c.{condition} AND c.path=? AND c.missing=0", (*values, place))
    if found:
        return found
    return query.by_condition(
        catalog,
        reader,
        "c.missing=0 AND c.key IN (SELECT x.checkpoint FROM checkpoint_file x JOIN file f ON f.key=x.file "
        f"WHERE f.{condition} AND f.path=? AND x.position=0)",
        (*values, place),
    )


def stats(reader: Reader, model: Model) -> list[tuple[bytes, int, int, int, int]]:
    """(absolute path, size, mtime, inode, missing) of each file of a model, as the catalog knows it."""
    rows = reader.rows(
        "SELECT r.path,f.path,f.size,f.mtime,f.inode,f.missing FROM checkpoint_file x "
        "JOIN file f ON f.key=x.file LEFT JOIN root r ON r.key=f.root "
        "WHERE x.checkpoint=? ORDER BY x.position",
        (model.key,),
    )
    return [(os.path.join(root or b"", place_of(path)), *rest) for root, path, *rest in rows]


def still(path: bytes, size: int, mtime: int) -> bool:
    """Whether the file at ``path`` has this stat."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    return (info.st_size, info.st_mtime_ns) == (size, mtime)


def add(catalog: Catalog, found: Found) -> Model:
    seen = {}
    for name in found.files:
        info = os.stat(name)
        seen[name] = Stat(info.st_size, info.st_mtime_ns, signed(info.st_ino), info.st_dev)
    with catalog.database.read() as reader:
        root, root_path, place = locate(reader, found.path)
    indexer = Indexer(catalog.database, root, root_path, now=time.time_ns())
    indexer.stats = {indexer.relative(name): stat for name, stat in seen.items()}
    indexer.apply([Look(os.path.dirname(place), [found])])
    return catalog.get(indexer.at[place].id)

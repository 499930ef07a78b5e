"""Takes what a scan saw into the catalog: which checkpoint each finding is, what is new about it, which rows that makes.

Identity: a checkpoint that was seen at the same place is the same one, and with other content it starts a new version; a checkpoint
that is gone from its place and turns up elsewhere with equal device, inode, sizes, mtimes and header is the same one, moved; a file that
becomes part of a directory's checkpoint, or is left over from one, hands its identity on. Everything else is new. Works on rows in memory
and writes them in batches; reads no file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from modelhub.catalog.database import Database, Reader, Writer
from modelhub.catalog.tables import dump, store_tables, table_digest
from modelhub.found import Found
from modelhub.model import clean, printable

LARGEST = (1 << 63) - 1

FILE_COLUMNS = "path,size,mtime,inode,key,again+2*missing,content,device"


BRIEF_COLUMNS = "path,size,mtime,inode,again+2*missing"
Brief = tuple[bytes, int, int, int, int]
"""What a walk compares: path, size, mtime, inode, flags. A plain tuple, because there is one for each file of a drive."""


class FileRow(NamedTuple):
    """A file as the catalog has it, in the order of `FILE_COLUMNS`. ``flags``: 1 look again, 2 missing."""

    path: bytes
    size: int
    mtime: int
    inode: int
    key: int
    flags: int
    content: int | None
    device: int


class Stat(NamedTuple):
    """A file as it is now. ``inode`` as the catalog can hold it (63 bits and a sign)."""

    size: int
    mtime: int
    inode: int
    device: int


class Look(NamedTuple):
    """What was seen in one directory, or in a part of a big one. Paths are relative to the root, except in ``found``.

    ``looked`` comes with the last part: every file that was looked at. ``unreadable``: files of which nothing is known now.
    """

    directory: bytes
    found: Sequence[Found]
    unknown: Sequence[bytes] = ()
    unreadable: frozenset[bytes] = frozenset()
    looked: Sequence[bytes] | None = None


class Old(NamedTuple):
    """A checkpoint as the catalog has it."""

    key: int
    id: str
    root: int | None
    path: bytes
    version: int
    header: bytes
    size: int
    format: str
    state: str
    missing: int
    files: tuple[int, ...]


Observer = Callable[[str, str, str], None]
"""Told (kind, id, absolute path) once it is recorded; kind is indexed, changed or missing."""


class Indexer:
    """One root's state during a scan. ``root`` is None for a checkpoint outside any root: its paths are absolute."""

    def __init__(
        self,
        database: Database,
        root: int | None,
        root_path: bytes,
        known: dict[bytes, FileRow],
        *,
        now: int,
        settle: int = 0,
        generation: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.database = database
        self.root = root
        self.root_path = root_path
        self.prefix = len(root_path.rstrip(b"/")) + 1 if root_path else 0
        self.known = known
        self.now = now
        self.settle = settle
        self.observer = observer
        self.generation = generation
        self.stats: dict[bytes, Stat] = {}
        self.old: dict[int, Old] = {}
        self.at: dict[bytes, Old] = {}
        self.owners: dict[int, set[int]] = defaultdict(set)
        self.moves: dict[bytes, int] = {}
        self.contents: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.shared: dict[Stat, int] = {}
        self.touched: set[int] = set()
        self.tables: dict[bytes, int] = {}
        self.new = self.changed = 0

    # --- before anything is parsed --------------------------------------------------------------------------------

    def load(self, reader: Reader) -> None:
        """Read the checkpoints of the root."""
        condition = "c.root IS NULL" if self.root is None else f"c.root={self.root}"
        self._load(reader, condition)

    def _load(self, reader: Reader, condition: str) -> None:
        files: dict[int, list[int]] = defaultdict(list)
        for key, file in reader.rows(
            f"SELECT x.checkpoint,x.file FROM checkpoint_file x JOIN checkpoint c ON c.key=x.checkpoint WHERE {condition} ORDER BY x.checkpoint,x.position"
        ):
            files[key].append(file)
            self.owners[file].add(key)
        for row in reader.rows(
            f"SELECT c.key,c.id,c.root,c.path,c.version,c.header,c.size,c.format,c.state,c.missing FROM checkpoint c WHERE {condition} ORDER BY c.indexed_at"
        ):
            old = Old._make((*row, tuple(files.get(row[0], ()))))
            self.old[old.key] = old
            there = self.at.get(old.path)
            if old.root == self.root and (there is None or there.missing or not old.missing):
                self.at[old.path] = old

    def find_moves(self, reader: Reader, gone: Iterable[FileRow]) -> None:
        """Learn which new files are old ones elsewhere: moved here (for the checkpoints' identity), or the same file under two names
        (for its content). ``gone``: rows whose file is not at its place any more. Stats of the new and changed files are in `stats`."""
        away: dict[Stat, list[int]] = defaultdict(list)
        here, wanted = set(), {}
        left = list(gone)
        for path, stat in self.stats.items():
            row = self.known.get(path)
            if row is None:
                wanted[stat.inode] = stat
                continue
            here.add(row.key)
            if row[1:4] != stat[:3]:
                wanted[stat.inode] = stat
                left.append(row)
        for row in left:
            if row.content is not None:
                away[Stat(row.size, row.mtime, row.inode, row.device)].append(row.key)
                self.contents[row.key] = row.content
        here.update(row.key for row in left)
        others = reader.rows_in(
            "SELECT f.key,f.size,f.mtime,f.inode,f.device,f.missing,f.content,f.path,r.path FROM file f LEFT JOIN root r ON r.key=f.root "
            "WHERE f.inode IN (??) AND f.content IS NOT NULL",
            list(wanted),
        )
        elsewhere = []
        for key, size, mtime, inode, device, missing, content, path, root_path in others:
            stat = Stat(size, mtime, inode, device)
            if stat != wanted[inode] or key in here:
                continue
            if not missing and _still(os.path.join(root_path or b"", path), stat):
                self.shared[stat] = content
            else:
                away[stat].append(key)
                self.contents[key] = content
                elsewhere.append(key)
        if elsewhere:
            owners = {key for (key,) in reader.rows_in("SELECT checkpoint FROM checkpoint_file WHERE file IN (??)", elsewhere)}
            for start in range(0, len(owners), 500):
                keys = sorted(owners)[start : start + 500]
                self._load(reader, f"c.key IN ({','.join(map(str, keys))})")
        for path, stat in self.stats.items():
            keys = away.get(stat, [])
            row = self.known.get(path)
            if len(keys) == 1 and (row is None or row.key != keys[0]):
                self.moves[path] = keys[0]
                for owner in self.owners.get(keys[0], ()):
                    if self.old[owner].files[:1] == (keys[0],):
                        self.leaving.add(owner)

    # --- what was seen --------------------------------------------------------------------------------------------

    def apply(self, looks: Sequence[Look]) -> None:
        """Record ``looks`` in one transaction."""
        events: list[tuple[str, str, bytes]] = []
        packed = {table_digest(found.table): found.table for look in looks for found in look.found if found.table}
        with self.database.write() as writer:
            self._claim_generation(writer)
            store_tables(writer, packed, self.tables)
            batch = _Batch(self, writer, events)
            for look in looks:
                here = {self.relative(found.path) for found in look.found}
                for found in look.found:
                    batch.checkpoint(found, here)
                if look.looked is not None:
                    batch.leftovers(look)
            batch.flush()
        self._tell(events)

    def finish(self, gone: Sequence[FileRow]) -> None:
        """Record that the files of ``gone`` are not there any more."""
        if not gone and self.leaving <= self.touched:
            return
        events: list[tuple[str, str, bytes]] = []
        with self.database.write() as writer:
            self._claim_generation(writer)
            batch = _Batch(self, writer, events)
            batch.gone(gone)
            for key in self.leaving - self.touched:  # gone from its place, and not what turned up elsewhere
                if not self.old[key].missing:
                    batch.mark_missing(self.old[key])
            batch.flush()
        self._tell(events)

    def relative(self, path: str) -> bytes:
        return os.fsencode(path)[self.prefix :]

    def _tell(self, events: list[tuple[str, str, bytes]]) -> None:
        if self.observer:
            for kind, identity, path in events:
                self.observer(kind, identity, os.fsdecode(os.path.join(self.root_path, path)))

    def _claim_generation(self, writer: Writer) -> None:
        """Someone else may have written to this root since we read it: then read it again, now that nobody can."""
        if self.root is None:
            return
        found = writer.value("SELECT generation FROM root WHERE key=?", (self.root,))
        if found is None:
            from modelhub.errors import CatalogError

            raise CatalogError(f"the root {os.fsdecode(self.root_path)} was removed while it was scanned", "scan it again")
        if self.generation is not None and found != self.generation:
            self.known.clear()
            self.known.update(
                (row[0], FileRow(*row)) for row in writer.rows(f"SELECT {FILE_COLUMNS} FROM file WHERE root=?", (self.root,))
            )
            self.old.clear()
            self.at.clear()
            self.owners.clear()
            self.moves.clear()
            self.leaving.clear()
            self.load(writer)
        self.generation = found + 1
        writer.run("UPDATE root SET generation=? WHERE key=?", (self.generation, self.root))


class _Batch:
    """The rows of one transaction."""

    def __init__(self, indexer: Indexer, writer: Writer, events: list[tuple[str, str, bytes]]) -> None:
        self.indexer = indexer
        self.writer = writer
        self.events = events
        self.rows: dict[str, list[tuple[object, ...]]] = defaultdict(list)

    # --- files ----------------------------------------------------------------------------------------------------

    def file(self, path: bytes, again: int, header: bytes | None, keep: bool, content: int | None) -> int:
        """The key of a file's row, made or brought up to date. ``keep``: its content is what it was, whatever its mtime says. ``content``: the
        content that was moved here."""
        indexer = self.indexer
        row, stat = indexer.known.get(path), indexer.stats.get(path)
        if stat is None:
            # Named by a checkpoint, and gone before it could be looked at; or in a directory where nothing has changed.
            stat = Stat(0, 0, 0, 0) if row is None else Stat(row.size, row.mtime, row.inode, row.device)
        same = row is not None and row[1:4] == stat[:3]
        if content is None and row is not None and (same or keep):
            content = row.content
        if content is None:
            content = indexer.shared.get(stat)
        if content is None:
            content = self.writer.next_key("content")
            self.rows["content"].append((content, stat.size, header))
        if stat.inode:
            indexer.shared[stat] = content
        if row is None:
            key = self.writer.next_key("file")
            self.rows["file"].append((key, indexer.root, path, *stat, 0, again, content))
        else:
            key = row.key
            if not same or row.flags != again or row.content != content or row.device != stat.device:
                self.rows["file_update"].append((*stat, 0, again, content, key))
        indexer.known[path] = FileRow(path, stat.size, stat.mtime, stat.inode, key, again, content, stat.device)
        return key

    def unknown(self, path: bytes) -> None:
        """A file that no format knows: remembered, so that it is not looked at again."""
        indexer = self.indexer
        stat, row = indexer.stats.get(path), indexer.known.get(path)
        if stat is None:
            return
        if row is None:
            key = self.writer.next_key("file")
            self.rows["file"].append((key, indexer.root, path, *stat, 0, 0, None))
        else:
            key = row.key
            if any(owner in indexer.touched for owner in indexer.owners.get(key, ())):
                return  # a directory's checkpoint has it
            if row.content is not None or row.flags or row[1:4] != stat[:3]:
                self.rows["file_update"].append((*stat, 0, 0, None, key))
        indexer.known[path] = FileRow(path, stat.size, stat.mtime, stat.inode, key, 0, None, stat.device)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def checkpoint(self, found: Found, here: set[bytes]) -> None:
        indexer = self.indexer
        path = indexer.relative(found.path)
        files = [indexer.relative(name) for name in found.files]
        old, moved = self._identify(found, path, files, here)
        again, state = 0, found.state
        if state == "incomplete" and not found.missing:
            young = abs(indexer.now - found.modified_ns) < indexer.settle
            again, state = (1, state) if young else (0, "invalid")
        size = min(found.size, LARGEST)
        same = old is not None and old.header == found.header_digest and old.size == size
        header = found.header_digest if len(files) == 1 else None
        known = [indexer.known.get(name) for name in files]
        contents = [indexer.contents.get(indexer.moves.get(name, 0)) if moved else None for name in files]
        keys = [self.file(name, again, header, same, content) for name, content in zip(files, contents, strict=True)]
        stale = (
            old is not None
            and not moved
            and same
            and any(row and row[1:4] != indexer.known[name][1:4] for name, row in zip(files, known, strict=True))
        )
        replaced = old is not None and not same
        if old is None:
            key, identity, version, created = self.writer.next_key("checkpoint"), os.urandom(8).hex(), 1, indexer.now
        else:
            key, identity, version, created = old.key, old.id, old.version, 0
            if replaced and old.state != "incomplete":
                version += 1
                self.rows["version"].append((indexer.now, key))
        name, architecture = clean(found.name), clean(found.architecture)
        shown = clean(printable(os.fsdecode(path)))
        values = (
            indexer.root,
            path,
            name,
            found.format,
            found.container,
            architecture,
            clean(found.precision),
            dump(dict(found.dtypes)),
            min(found.parameters, LARGEST),
            size,
            len(files),
            int(files == [path]),
            found.tensors,
            state,
            clean(found.reason),
            version,
            found.header_digest,
            indexer.tables[table_digest(found.table)] if found.table else None,
            indexer.now,
            found.modified_ns,
            "\n".join(part.replace("\n", " ") for part in (name, shown, architecture)).casefold(),
        )
        if old is None:
            self.rows["checkpoint"].append((key, identity, created, *values))
            indexer.new += 1
            self.events.append(("indexed", identity, path))
        else:
            # A digest counts for the content it was made of, and for the stat it was made under.
            self.rows["checkpoint_update" if same and not stale else "checkpoint_replace"].append((*values, key))
            if not same or moved or old.missing or old.state != state:
                indexer.changed += 1
                self.events.append(("changed", identity, path))
            self.rows["described"].append((key,))
            self.rows["finding_drop"].append((key, int(not same)))
            if tuple(keys) != old.files:
                self.rows["files_drop"].append((key,))
        if old is None or tuple(keys) != old.files:
            self.rows["checkpoint_file"] += [(key, position, file) for position, file in enumerate(keys)]
        if found.metadata or found.stored:
            self.rows["description"].append((key, dump(dict(found.metadata)), dump(dict(found.stored))))
        for item in found.findings:
            self.rows["finding"].append(
                (
                    self.writer.next_key("finding"),
                    key,
                    "scan",
                    clean(item.check),
                    item.severity,
                    clean(item.message),
                    clean(item.tensor),
                    clean(item.file),
                    indexer.now,
                )
            )
        self._remember(
            Old(key, identity, indexer.root, path, version, found.header_digest, size, found.format, state, 0, tuple(keys)), old
        )

    def _identify(self, found: Found, path: bytes, files: list[bytes], here: set[bytes]) -> tuple[Old | None, bool]:
        """The checkpoint that this is, and whether it was moved here."""
        indexer = self.indexer
        there = indexer.at.get(path)
        if there is not None and not there.missing and there.key not in indexer.leaving:
            return there, False
        before = tuple(indexer.moves.get(name, 0) for name in files)
        if before and all(before):
            for owner in indexer.owners.get(before[0], ()):
                old = indexer.old[owner]
                if old.files == before and old.header == found.header_digest and owner not in indexer.touched:
                    return old, True
        if there is not None and there.key not in indexer.leaving:
            return there, False
        for name in files:
            row, stat = indexer.known.get(name), indexer.stats.get(name)
            if row is None or row.flags & 2 or (stat is not None and row[1:4] != stat[:3]):
                continue
            for owner in indexer.owners.get(row.key, ()):
                old = indexer.old[owner]
                if not old.missing and old.path not in here and owner not in indexer.touched and old.files[:1] == (row.key,):
                    return old, False
        return None, False

    def _remember(self, new: Old, old: Old | None) -> None:
        indexer = self.indexer
        if old is not None:
            for file in old.files:
                indexer.owners[file].discard(old.key)
            if indexer.at.get(old.path) == old:
                del indexer.at[old.path]
        for file in new.files:
            indexer.owners[file].add(new.key)
        indexer.old[new.key] = new
        indexer.at[new.path] = new
        indexer.touched.add(new.key)

    def leftovers(self, look: Look) -> None:
        """Unknown files; and the checkpoints that were here and are not any more, although their files are."""
        indexer = self.indexer
        for path in look.unknown:
            self.unknown(path)
        looked = set(look.looked or ())
        keys = {owner for path in looked if (row := indexer.known.get(path)) for owner in indexer.owners.get(row.key, ())}
        if look.directory in indexer.at:
            keys.add(indexer.at[look.directory].key)
        unreadable = {row.key for path in look.unreadable if (row := indexer.known.get(path))}
        for key in keys - indexer.touched:
            old = indexer.old[key]
            beside = old.path == look.directory or os.path.dirname(old.path) == look.directory
            if (
                beside
                and not old.missing
                and old.root == indexer.root
                and key not in indexer.leaving
                and unreadable.isdisjoint(old.files)
            ):
                self.mark_missing(old)

    def gone(self, rows: Iterable[FileRow]) -> None:
        indexer = self.indexer
        for row in rows:
            if indexer.known.get(row.path, row).key != row.key:
                continue
            owners = [indexer.old[key] for key in indexer.owners.get(row.key, ())]
            if any(old.key in indexer.touched for old in owners):
                continue  # its checkpoint names it all the same
            if not owners:
                self.rows["file_drop"].append((row.key,))
                indexer.known.pop(row.path, None)
                continue
            if not row.flags & 2:
                self.rows["file_missing"].append((row.key,))
            for old in owners:
                if not old.missing:
                    self.mark_missing(old)

    def mark_missing(self, old: Old) -> None:
        gone = old._replace(missing=1)
        self.indexer.old[old.key] = gone
        if self.indexer.at.get(old.path) == old:
            self.indexer.at[old.path] = gone
        self.rows["missing"].append((old.key,))
        self.events.append(("missing", old.id, old.path))

    # --- writing --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write everything, in an order that keeps every reference whole."""
        writer = self.writer
        for name, sql in _STATEMENTS.items():
            rows = self.rows.get(name)
            if not rows:
                continue
            if sql.startswith("("):
                table, columns = sql[1:-1].split(": ")
                writer.insert(table, columns, rows)
            else:
                writer.many(sql, rows)
        self.rows.clear()


_CHECKPOINT = (
    "root,path,name,format,container,architecture,precision,dtypes,parameters,size,files,alone,tensors,state,reason,version,header,"
    "tensor_table,indexed_at,modified_at,search"
)
_SET = ",".join(f"{column}=?" for column in _CHECKPOINT.split(","))

# In the order in which they run. "(table: columns)" inserts.
_STATEMENTS: Mapping[str, str] = {
    "version": "INSERT INTO version (checkpoint,number,format,precision,parameters,size,header,sha256,tensor_table,modified_at,indexed_at,replaced_at) "
    "SELECT key,version,format,precision,parameters,size,header,sha256,tensor_table,modified_at,indexed_at,? FROM checkpoint WHERE key=?",
    "content": "(content: key,size,header)",
    "file": "(file: key,root,path,size,mtime,inode,device,missing,again,content)",
    "file_update": "UPDATE file SET size=?,mtime=?,inode=?,device=?,missing=?,again=?,content=? WHERE key=?",
    "checkpoint": f"(checkpoint: key,id,created_at,{_CHECKPOINT})",
    "checkpoint_update": f"UPDATE checkpoint SET {_SET},missing=0 WHERE key=?",
    "checkpoint_replace": f"UPDATE checkpoint SET {_SET},missing=0,sha256=NULL WHERE key=?",
    "files_drop": "DELETE FROM checkpoint_file WHERE checkpoint=?",
    "checkpoint_file": "(checkpoint_file: checkpoint,position,file)",
    "described": "DELETE FROM description WHERE checkpoint=?",
    "description": "(description: checkpoint,metadata,stored)",
    "finding_drop": "DELETE FROM finding WHERE checkpoint=? AND (level='scan' OR ?=1)",
    "finding": "(finding: key,checkpoint,level,name,severity,message,tensor,file,recorded)",
    "file_drop": "DELETE FROM file WHERE key=?",
    "file_missing": "UPDATE file SET missing=1 WHERE key=?",
    "missing": "UPDATE checkpoint SET missing=1 WHERE key=?",
}


def _still(path: bytes, stat: Stat) -> bool:
    """Whether the file at ``path`` is still the one of ``stat``. Where that cannot be told, it is: nothing is gone for a failing drive."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return (info.st_size, info.st_mtime_ns, signed(info.st_ino)) == (stat.size, stat.mtime, stat.inode)


def signed(inode: int) -> int:
    """An inode number as 64 bits with a sign: some file systems use all 64."""
    return inode if inode < 1 << 63 else inode - (1 << 64)

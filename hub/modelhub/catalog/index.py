"""Takes what a scan saw into the catalog: which checkpoint each finding is, what is new about it, which rows that makes.

Identity: a checkpoint that was seen at the same place is the same one, and with other content it starts a new version; a
checkpoint that is gone from its place and turns up elsewhere with equal device, inode, sizes, mtimes and header is the same
one, moved; a file that becomes part of a directory's checkpoint, or is left over from one, hands its identity on. Everything
else is new. Keeps what a scan needs to know in memory and has it written in batches (`modelhub.catalog.batch`); opens no file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from modelhub.catalog.batch import Batch
from modelhub.catalog.database import Database, Reader, Writer
from modelhub.catalog.rows import FILE_COLUMNS, FileRow, Look, Observer, Old, Stat, signed
from modelhub.catalog.tables import store_tables, table_digest
from modelhub.errors import CatalogError


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
            "SELECT x.checkpoint,x.file FROM checkpoint_file x JOIN checkpoint c ON c.key=x.checkpoint "
            f"WHERE {condition} ORDER BY x.checkpoint,x.position"
        ):
            files[key].append(file)
            self.owners[file].add(key)
        for row in reader.rows(
            "SELECT c.key,c.id,c.root,c.path,c.version,c.header,c.size,c.format,c.state,c.missing "
            f"FROM checkpoint c WHERE {condition} ORDER BY c.indexed_at"
        ):
            old = Old._make((*row, tuple(files.get(row[0], ()))))
            self.old[old.key] = old
            there = self.at.get(old.path)
            if old.root == self.root and (there is None or there.missing or not old.missing):
                self.at[old.path] = old

    def find_moves(self, reader: Reader, gone: Iterable[FileRow]) -> None:
        """Learn which new files are old ones elsewhere: moved here (for the checkpoints' identity), or the same file under two
        names (for its content). ``gone``: rows whose file is not at its place any more. Stats of the new and changed files are
        in `stats`."""
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
            elif row.flags & 2:  # it is back, perhaps from another root
                wanted[stat.inode] = stat
        for row in left:
            if row.content is not None:
                away[Stat(row.size, row.mtime, row.inode, row.device)].append(row.key)
                self.contents[row.key] = row.content
        here.update(row.key for row in left)
        others = reader.rows_in(
            "SELECT f.key,f.size,f.mtime,f.inode,f.device,f.missing,f.content,f.path,r.path FROM file f "
            "LEFT JOIN root r ON r.key=f.root "
            "WHERE f.inode IN (??) AND f.content IS NOT NULL "
            # What a checkpoint left behind when it moved on is no candidate: it may well come back.
            "AND (f.missing=0 OR EXISTS (SELECT 1 FROM checkpoint_file x WHERE x.file=f.key))",
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
            if row is not None and row[1:4] == stat[:3] and not row.flags & 2:
                continue  # it has been here all along; another name of the same file is what went
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
            batch = Batch(self, writer, events)
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
            batch = Batch(self, writer, events)
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


def _still(path: bytes, stat: Stat) -> bool:
    """Whether the file at ``path`` is still the one of ``stat``. Where that cannot be told, it is: nothing is gone for a
    failing drive."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return (info.st_size, info.st_mtime_ns, signed(info.st_ino)) == (stat.size, stat.mtime, stat.inode)

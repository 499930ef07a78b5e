"""Takes what a scan saw into the catalog: which checkpoint each finding is, what is new about it, which rows that makes.

Identity: a checkpoint that turns up elsewhere with equal device, inode, sizes, mtimes and header, and is not at its place any
more, is the same one, moved; one that was seen at the same place is the same one, and with other content it starts a new version;
a file that becomes part of a directory's checkpoint, or is left over from one, hands its identity on. Everything else is new.

What a batch needs to know is read in the transaction that writes it (`modelhub.catalog.batch`), and forgotten afterwards: a scan
takes no more memory than what changed, and any number of writers may be at work on one root. Opens no file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from modelhub.catalog.batch import Batch
from modelhub.catalog.database import Database, Reader, Writer
from modelhub.catalog.rows import DISPLACED, FILE_COLUMNS, FileRow, Look, Observer, Old, Stat, root_condition, signed
from modelhub.catalog.tables import store_tables, table_digest
from modelhub.errors import CatalogError

PIECE = 2000
"""Files in one transaction that says what is gone."""
_OLD = "c.key,c.id,c.root,c.path,c.version,c.header,c.size,c.format,c.state,c.missing"


class Indexer:
    """One root's state during a scan. ``root`` is None for a checkpoint outside any root: its paths are absolute. ``settle``:
    for how long (in nanoseconds) a file counts as growing after its last change; ``growing``: paths that certainly are."""

    def __init__(
        self,
        database: Database,
        root: int | None,
        root_path: bytes,
        *,
        now: int,
        settle: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.database = database
        self.root = root
        self.root_path = root_path
        self.prefix = len(root_path.rstrip(b"/")) + 1 if root_path else 0
        self.now = now
        self.settle = settle
        self.observer = observer
        self.growing: set[bytes] = set()
        self.stats: dict[bytes, Stat] = {}
        """Stats of the files that were looked at."""
        self.others: dict[bytes, Stat] = {}
        """Stats of further files that checkpoints name; they count where the catalog has none."""
        self.moves: dict[bytes, int] = {}
        self.sources: dict[int, Stat] = {}
        self.contents: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.shared: dict[Stat, int] = {}
        self.twice: set[int] = set()
        self.touched: set[int] = set()
        self.displaced: set[int] = set()
        self.aside: dict[int, bytes] = {}
        """Files whose place another took, so that their checkpoint got a new version; and that place."""
        self.tables: dict[bytes, int] = {}
        self.again: set[bytes] = set()
        self.rewrite = False
        """Whether what is the same is written all the same: other plugins may say something else of it."""
        self.new = self.changed = self.missing = self.invalid = self.recorded = 0
        self._generation: int | None = None
        self._forget()

    # --- what a batch needs to know -------------------------------------------------------------------------------

    def _forget(self) -> None:
        self.known: dict[bytes, FileRow] = {}
        self.old: dict[int, Old] = {}
        self.at: dict[bytes, Old] = {}
        self.owners: dict[int, set[int]] = defaultdict(set)

    def load(self, reader: Reader, paths: Collection[bytes], places: Iterable[bytes] = (), keys: Iterable[int] = ()) -> None:
        """Read the rows of the files at ``paths``; the checkpoints that these files, and the files ``keys``, belong to; and
        those at ``places``."""
        self._forget()
        condition, values = root_condition(self.root)
        rows = reader.rows_in(f"SELECT {FILE_COLUMNS} FROM file WHERE {condition} AND path IN (??)", list(paths), values)
        self.known = {row[0]: FileRow._make(row) for row in rows}
        files = [row.key for row in self.known.values() if row.content is not None or row.flags]
        found = reader.rows_in("SELECT DISTINCT checkpoint FROM checkpoint_file WHERE file IN (??)", [*files, *keys])
        found += reader.rows_in(f"SELECT key FROM checkpoint WHERE {condition} AND path IN (??)", list(set(places)), values)
        self.load_checkpoints(reader, {key for (key,) in found})

    def load_checkpoints(self, reader: Reader, keys: Iterable[int]) -> None:
        wanted = [key for key in keys if key not in self.old]
        files: dict[int, list[int]] = defaultdict(list)
        for key, file in reader.rows_in(
            "SELECT checkpoint,file FROM checkpoint_file WHERE checkpoint IN (??) ORDER BY checkpoint,position", wanted
        ):
            files[key].append(file)
            self.owners[file].add(key)
        rows = reader.rows_in(f"SELECT {_OLD},c.indexed_at FROM checkpoint c WHERE c.key IN (??)", wanted)
        for *row, _ in sorted(rows, key=lambda row: row[-1]):
            old = Old._make((*row, tuple(files.get(row[0], ()))))
            self.old[old.key] = old
            there = self.at.get(old.path)
            if old.root == self.root and (there is None or there.missing or not old.missing):
                self.at[old.path] = old

    def find_moves(self, reader: Reader, candidates: Mapping[bytes, Stat], gone: Iterable[FileRow]) -> set[bytes]:
        """Learn which of the new and changed files ``candidates`` are old ones elsewhere: moved here (for the checkpoints'
        identity), or the same file under two names (for its content). ``gone``: rows whose file is not at its place any more.
        The paths in this root that such files have left, and that may not have been looked at yet."""
        self.moves.clear()
        self.leaving.clear()
        known = self.known
        wanted: dict[int, list[Stat]] = defaultdict(list)
        left: dict[int, FileRow] = {row.key: row for row in gone}
        for path, stat in candidates.items():
            row = known.get(path)
            if row is None or row[1:4] != stat[:3]:
                wanted[stat.inode].append(stat)
                if row is not None:
                    left[row.key] = row
            elif row.flags & 2:  # it is back, perhaps from another root
                wanted[stat.inode].append(stat)
        self.twice = {inode for inode, stats in wanted.items() if len(stats) > 1}
        away: dict[Stat, set[int]] = defaultdict(set)
        for row in left.values():
            if row.content is not None:
                away[Stat(row.size, row.mtime, row.inode, row.device)].add(row.key)
                self.contents[row.key] = row.content
        departed: dict[int, bytes] = {}
        names = {row.key: os.path.basename(row.path) for row in left.values()}
        for key, size, mtime, inode, device, missing, content, path, root, root_path in reader.rows_in(
            "SELECT f.key,f.size,f.mtime,f.inode,f.device,f.missing,f.content,f.path,f.root,r.path FROM file f "
            "LEFT JOIN root r ON r.key=f.root WHERE f.inode IN (??) AND f.content IS NOT NULL",
            list(wanted),
        ):
            stat = Stat(size, mtime, inode, device)
            if key in left or stat not in wanted[inode]:
                continue
            if not missing and _still(os.path.join(root_path or b"", path), stat):
                self.shared[stat] = content
            else:
                away[stat].add(key)
                self.contents[key] = content
                place, aside, _ = path.partition(DISPLACED)
                names[key] = os.path.basename(place)
                if root == self.root and aside:
                    self.aside[key] = place
                elif root == self.root and not missing:
                    departed[key] = path
        # What a checkpoint left behind when it moved on is no candidate: it may well come back.
        keys = {key for found in away.values() for key in found}
        owners: dict[int, set[int]] = defaultdict(set)
        for file, owner, position in reader.rows_in(
            "SELECT file,checkpoint,position FROM checkpoint_file WHERE file IN (??)", list(keys)
        ):
            owners[file].add(owner if position == 0 else 0)
        for path, stat in candidates.items():
            from_ = [key for key in away.get(stat, ()) if key in owners or key in self.aside]
            row = known.get(path)
            if len(from_) > 1:  # one file with several names: that which kept its own
                from_ = [key for key in from_ if names[key] == os.path.basename(path)]
            if len(from_) == 1 and (row is None or row.key != from_[0]):
                self.moves[path] = from_[0]
                self.sources[from_[0]] = stat
                self.leaving |= owners.get(from_[0], set()) - {0}
        return {path for key, path in departed.items() if key in owners}

    # --- what was seen --------------------------------------------------------------------------------------------

    def apply(self, looks: Sequence[Look]) -> None:
        """Record ``looks`` in one transaction."""
        events: list[tuple[str, str, bytes]] = []
        packed = {table_digest(found.table): found.table for look in looks for found in look.found if found.table}
        paths: set[bytes] = set()
        places: set[bytes] = set()
        for look in looks:
            places.add(look.directory)
            for found in look.found:
                places.add(self.relative(found.path))
                paths.update(map(self.relative, found.files))
            paths.update(look.unknown, look.unreadable, look.looked or ())
        with self.database.write() as writer:
            self._claim(writer)
            moved = self._moved_files(writer, paths)
            places.update(self.aside[key] for key in moved if key in self.aside)
            self.load(writer, paths, places, moved)
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

    def leaves(self, old: Old) -> bool:
        """Whether a checkpoint is not at its place any more: unless another writer has found it at its new one meanwhile."""
        return old.key in self.leaving and old.files[:1] != () and old.files[0] in self.sources

    def _moved_files(self, writer: Writer, paths: Iterable[bytes]) -> list[int]:
        """The files that were moved to ``paths``, and still are what they were when that was found out."""
        keys = {path: self.moves[path] for path in paths if path in self.moves}
        there = {
            key: Stat(*stat)
            for key, *stat in writer.rows_in(
                "SELECT key,size,mtime,inode,device FROM file WHERE key IN (??)", list(keys.values())
            )
        }
        for path, key in keys.items():
            if there.get(key) != self.sources[key]:
                del self.moves[path]
        return list(there)

    def finish(self, gone: Sequence[FileRow]) -> None:
        """Record that the files of ``gone`` are not there any more."""
        left = self.leaving - self.touched  # gone from their places, and not what turned up elsewhere
        for start in range(0, max(len(gone), 1), PIECE):
            piece = gone[start : start + PIECE]
            if not (piece or left or self.displaced):
                return
            events: list[tuple[str, str, bytes]] = []
            with self.database.write() as writer:
                self._claim(writer)
                self.load(writer, [row.path for row in piece])
                self.load_checkpoints(writer, left)
                batch = Batch(self, writer, events)
                batch.gone(piece)
                for key in left & self.old.keys():
                    if not self.old[key].missing and self.leaves(self.old[key]):
                        batch.mark_missing(self.old[key])
                batch.flush()
                left = set()
                if start + PIECE >= len(gone):
                    self._drop_displaced(writer)
            self._tell(events)

    def _drop_displaced(self, writer: Writer) -> None:
        """Rows that were kept only so that what left their place could be known again, and that nobody wants any more."""
        keys = [*self.displaced, *(key for key in self.sources)]
        wanted = {key for (key,) in writer.rows_in("SELECT file FROM checkpoint_file WHERE file IN (??)", keys)}
        rows = writer.rows_in("SELECT key,path FROM file WHERE key IN (??)", [key for key in keys if key not in wanted])
        writer.many("DELETE FROM file WHERE key=?", [(key,) for key, path in rows if DISPLACED in path])
        self.displaced.clear()

    def relative(self, path: str) -> bytes:
        return os.fsencode(path)[self.prefix :]

    def _tell(self, events: list[tuple[str, str, bytes]]) -> None:
        if self.observer:
            for kind, identity, path in events:
                self.observer(kind, identity, os.fsdecode(os.path.join(self.root_path, path)))

    def _claim(self, writer: Writer) -> None:
        """Count this write; and take nothing for granted that another writer may have dropped since the last one."""
        if self.root is None:
            return
        if not writer.run("UPDATE root SET generation=generation+1 WHERE key=?", (self.root,)):
            raise CatalogError(f"the root {os.fsdecode(self.root_path)} was removed while it was scanned", "scan it again")
        generation = writer.value("SELECT generation FROM root WHERE key=?", (self.root,))
        if self._generation is not None and generation != self._generation + 1:
            self.tables.clear()
            there = {*self.shared.values(), *self.contents.values()}
            there = {key for (key,) in writer.rows_in("SELECT key FROM content WHERE key IN (??)", list(there))}
            self.shared = {stat: key for stat, key in self.shared.items() if key in there}
            self.contents = {key: content for key, content in self.contents.items() if content in there}
        self._generation = generation


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

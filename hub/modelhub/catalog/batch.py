"""The rows of one transaction: which checkpoint each finding is, what is new about it, and the statements that record it.

See `modelhub.catalog.index` for what makes a checkpoint the same one. Works on the indexer's rows in memory, and brings them up
to date.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from modelhub.catalog.database import Writer
from modelhub.catalog.rows import DISPLACED, FileRow, Look, Old, Stat
from modelhub.catalog.split import split, version_with
from modelhub.catalog.tables import dump, table_digest
from modelhub.ignore import is_unfinished_blob
from modelhub.model import clean, printable

if TYPE_CHECKING:
    from modelhub.catalog.index import Indexer
    from modelhub.found import Found

LARGEST = (1 << 63) - 1


class Batch:
    """The rows of one transaction."""

    def __init__(self, indexer: Indexer, writer: Writer, events: list[tuple[str, str, bytes]]) -> None:
        self.indexer = indexer
        self.writer = writer
        self.events = events
        self.rows: dict[str, list[tuple[object, ...]]] = defaultdict(list)

    # --- files ----------------------------------------------------------------------------------------------------

    def file(
        self,
        path: bytes,
        again: int,
        header: bytes | None,
        *,
        keep: bool,
        content: int | None,
        whose: int | None,
        moved: bool,
        replaced: bool,
    ) -> int:
        """The key of a file's row, made or brought up to date. ``keep``: its content is what it was, whatever its mtime says.
        ``content``: the content that was moved here. ``whose``: the checkpoint's key, None for a new one. ``replaced``: it is
        all of a checkpoint whose content is another one now."""
        indexer = self.indexer
        row, stat = indexer.known.get(path), indexer.stats.get(path)
        if stat is None:
            # Named by a checkpoint, and gone before it could be looked at; or in a directory where nothing has changed.
            nowhere = Stat(0, 0, 0, 0)
            stat = indexer.others.get(path, nowhere) if row is None else Stat(row.size, row.mtime, row.inode, row.device)
        if row is not None and row[1:4] != stat[:3]:
            if replaced and row.inode != stat.inode and indexer.root is not None:
                row = self._put_aside(row)
            else:
                row = self._displace(row, whose, moved)
        same = row is not None and row[1:4] == stat[:3]
        if content is None and row is not None and (same or keep):
            content = row.content
        if content is None:
            content = indexer.shared.get(stat)
        if content is None:
            content = self.writer.next_key("content")
            self.rows["content"].append((content, stat.size, header))
        if stat.inode in indexer.twice:
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

    def _displace(self, row: FileRow, whose: int | None, moved: bool) -> FileRow | None:
        """Another file has taken the place of ``row``. Where it was part of a checkpoint that moved away, or may have, its row
        is kept aside, so that it is known again where it turns up; None then."""
        indexer = self.indexer
        owners = indexer.owners.get(row.key, set()) - {whose}
        if row.content is None or not owners or not (moved or row.key in indexer.sources):
            return row
        self.rows["file_displaced"].append((row.path + DISPLACED + str(row.key).encode(), row.key))
        indexer.displaced.add(row.key)
        del indexer.known[row.path]
        for old in [indexer.old[owner] for owner in owners]:
            if old.files[:1] == (row.key,) and not old.missing and not indexer.leaves(old) and old.key not in indexer.touched:
                self.mark_missing(old)
        return None

    def _put_aside(self, row: FileRow) -> FileRow | None:
        """The file that was here may only have been moved away: its row is kept, until the next such one."""
        aside = row.path + DISPLACED
        self.rows["file_forget"].append((self.indexer.root, aside, aside + b":"))
        self.rows["file_displaced"].append((aside + str(row.key).encode(), row.key))
        del self.indexer.known[row.path]
        return None

    def unknown(self, path: bytes) -> None:
        """A file that no format knows: remembered, so that it is not looked at again."""
        indexer = self.indexer
        stat, row = indexer.stats.get(path), indexer.known.get(path)
        if stat is None:
            return
        if row is not None and row[1:4] != stat[:3] and indexer.touched.isdisjoint(indexer.owners.get(row.key, ())):
            row = self._displace(row, None, True)
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
            young = abs(indexer.now - found.modified_ns) < indexer.settle or not indexer.growing.isdisjoint(files)
            again, state = (1, state) if young else (0, "invalid")
        if again:
            indexer.again.update(map(os.path.dirname, files))
        elif any("/" in name for name in found.missing):
            again = 4  # what it waits for comes into another directory, and nothing changes in its own
        indexer.recorded += 1
        indexer.invalid += state == "invalid"
        size = min(found.size, LARGEST)
        same = old is not None and old.header == found.header_digest and old.size == size
        header = found.header_digest if len(files) == 1 else None
        known = [indexer.known.get(name) for name in files]
        if same and not moved and old is not None and self._is_known(old, found, path, files):
            indexer.touched.add(old.key)
            return
        contents = [indexer.contents.get(indexer.moves.get(name, 0)) if moved else None for name in files]
        whose = None if old is None else old.key
        replaced = old is not None and not same and not moved and old.state != "incomplete"
        alone = replaced and old is not None and len(files) == len(old.files) == 1
        keys = [
            self.file(name, again, header, keep=same, content=content, whose=whose, moved=moved, replaced=alone)
            for name, content in zip(files, contents, strict=True)
        ]
        stale = (
            old is not None
            and not moved
            and same
            and any(row and row[1:4] != indexer.known[name][1:4] for name, row in zip(files, known, strict=True))
        )
        if old is None:
            key, identity, version, created = self.writer.next_key("checkpoint"), os.urandom(8).hex(), 1, indexer.now
        else:
            key, identity, version, created = old.key, old.id, old.version, 0
            if not same and old.state != "incomplete":
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

    def _is_known(self, old: Old, found: Found, path: bytes, files: list[bytes]) -> bool:
        """Whether a checkpoint that was looked at because of what lies beside it is just what it was."""
        indexer = self.indexer
        if (
            indexer.rewrite
            or old.missing
            or (old.state, found.state, old.path, old.format) != ("ready", "ready", path, found.format)
        ):
            return False
        rows = [indexer.known.get(name) for name in files]
        return tuple(row.key for row in rows if row is not None) == old.files and all(
            row is not None and not row.flags and (row.size, row.mtime, row.inode, row.device) == indexer.stats.get(name)
            for name, row in zip(files, rows, strict=True)
        )

    def _identify(self, found: Found, path: bytes, files: list[bytes], here: set[bytes]) -> tuple[Old | None, bool]:
        """The checkpoint that this is, and whether it was moved here."""
        indexer = self.indexer
        there = indexer.at.get(path)
        before = tuple(indexer.moves.get(name, 0) for name in files)
        if before and all(before):
            for owner in indexer.owners.get(before[0], ()):
                old = indexer.old[owner]
                if old.files == before and old.header == found.header_digest and owner not in indexer.touched:
                    return old, True
            if len(before) == 1 and before[0] in indexer.aside and (late := self._late(before[0], found)):
                return late, True
        if there is not None and not indexer.leaves(there):
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

    def _late(self, file: int, found: Found) -> Old | None:
        """The checkpoint that a file put aside was, if it was ``found``: what took its place becomes one of its own."""
        indexer, writer = self.indexer, self.writer
        there = indexer.at.get(indexer.aside[file])
        if there is None or there.missing or len(there.files) != 1 or indexer.owners.get(file):
            return None
        self.flush()
        number = version_with(writer, there.key, found.header_digest)
        if not number:
            return None
        new = there._replace(key=writer.next_key("checkpoint"), id=os.urandom(8).hex(), version=there.version - number)
        split(writer, there.key, number, new.key, new.id)
        indexer.old[new.key] = indexer.at[new.path] = new
        indexer.owners[new.files[0]].discard(there.key)
        indexer.owners[new.files[0]].add(new.key)
        if there.key in indexer.touched:
            indexer.touched.add(new.key)
        self.events.append(("indexed", new.id, new.path))
        was = there._replace(
            version=number, header=found.header_digest, size=min(found.size, LARGEST), state="ready", files=(file,)
        )
        indexer.old[was.key] = was
        return was

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
        if look.whole and look.directory in indexer.at:
            keys.add(indexer.at[look.directory].key)
        unreadable = {row.key for path in look.unreadable if (row := indexer.known.get(path))}
        for key in keys - indexer.touched:
            old = indexer.old[key]
            beside = old.path == look.directory or os.path.dirname(old.path) == look.directory
            if (
                beside
                and not old.missing
                and old.root == indexer.root
                and not indexer.leaves(old)
                and unreadable.isdisjoint(old.files)
            ):
                self.mark_missing(old)

    def gone(self, rows: Iterable[FileRow]) -> None:
        indexer = self.indexer
        for row in rows:
            if indexer.known.get(row.path) != row:
                continue  # somebody has looked at it since
            owners = [indexer.old[key] for key in indexer.owners.get(row.key, ())]
            if any(old.key in indexer.touched for old in owners):
                continue  # its checkpoint names it all the same
            if not owners:
                self.rows["file_drop"].append((row.key,))
                indexer.known.pop(row.path, None)
                continue
            if is_unfinished_blob(os.path.basename(row.path)) and all(old.files == (row.key,) for old in owners):
                self._forget(owners, row)
                continue
            if not row.flags & 2:
                self.rows["file_missing"].append((row.key,))
            for old in owners:
                if not old.missing:
                    self.mark_missing(old)

    def _forget(self, owners: Iterable[Old], row: FileRow) -> None:
        """A pull has ended, one way or the other: what there was of it is nothing that anybody would look for."""
        for old in owners:
            self.rows["checkpoint_drop"].append((old.key,))
            self.indexer.old.pop(old.key)
            self.indexer.at.pop(old.path, None)
            self.events.append(("missing", old.id, old.path))
        self.rows["file_drop"].append((row.key,))
        del self.indexer.known[row.path], self.indexer.owners[row.key]

    def mark_missing(self, old: Old) -> None:
        gone = old._replace(missing=1)
        self.indexer.old[old.key] = gone
        if self.indexer.at.get(old.path) == old:
            self.indexer.at[old.path] = gone
        self.indexer.missing += 1
        self.rows["missing"].append((self.indexer.now, old.key))
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
    "version": "INSERT INTO version (checkpoint,number,format,precision,parameters,size,header,sha256,tensor_table,"
    "modified_at,indexed_at,replaced_at) "
    "SELECT key,version,format,precision,parameters,size,header,sha256,tensor_table,modified_at,indexed_at,? "
    "FROM checkpoint WHERE key=?",
    "content": "(content: key,size,header)",
    "file_forget": "DELETE FROM file WHERE root=? AND path>=? AND path<? AND missing=1 AND NOT EXISTS "
    "(SELECT 1 FROM checkpoint_file x WHERE x.file=file.key)",
    "file_displaced": "UPDATE file SET path=?,missing=1,again=0 WHERE key=?",
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
    "checkpoint_drop": "DELETE FROM checkpoint WHERE key=?",
    "file_drop": "DELETE FROM file WHERE key=?",
    "file_missing": "UPDATE file SET missing=1 WHERE key=?",
    "missing": "UPDATE checkpoint SET missing=1,missing_since=? WHERE key=?",
}

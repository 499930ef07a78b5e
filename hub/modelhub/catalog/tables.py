"""Packed tensor tables and their names, stored once each. Equal tables of different checkpoints are one row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from typing import Any

import orjson

from modelhub.catalog.database import Reader, Writer
from modelhub.model import clean
from modelhub.table import names
from modelhub.where import tensor_pattern


def table_digest(packed: bytes) -> bytes:
    """What tells packed tables apart."""
    return sha256(packed).digest()[:16]


def store_tables(writer: Writer, packed: Mapping[bytes, bytes], known: dict[bytes, int]) -> None:
    """Make sure that each of ``packed`` (digest -> packed table) has a row; ``known`` (digest -> key of the row) remembers."""
    wanted = {digest: blob for digest, blob in packed.items() if digest not in known}
    if not wanted:
        return
    for digest, key in writer.rows_in("SELECT digest,key FROM tensor_table WHERE digest IN (??)", list(wanted)):
        known[digest] = key
        del wanted[digest]
    texts = {digest: clean("\n".join(names(blob))) for digest, blob in wanted.items()}
    keys = _store_names(writer, set(texts.values()))
    rows = []
    for digest, blob in wanted.items():
        known[digest] = writer.next_key("tensor_table")
        rows.append((known[digest], digest, keys[texts[digest]], blob))
    writer.insert("tensor_table", "key,digest,names,packed", rows)


def _store_names(writer: Writer, texts: set[str]) -> dict[str, int]:
    """Keys of lists of names, given as text with one a line."""
    wanted = {sha256(text.encode()).digest()[:16]: text for text in texts}
    found = {}
    for digest, key in writer.rows_in("SELECT digest,key FROM tensor_names WHERE digest IN (??)", list(wanted)):
        found[wanted.pop(bytes(digest))] = key
    rows = []
    for digest, text in wanted.items():
        found[text] = writer.next_key("tensor_names")
        patterns = "\n".join(dict.fromkeys(tensor_pattern(text).split("\n")))
        rows.append((found[text], digest, patterns, zlib.compress(text.encode(), 1)))
    writer.insert("tensor_names", "key,digest,patterns,packed", rows)
    return found


def load_names(packed: bytes) -> str:
    """The names of a list, one a line."""
    return zlib.decompress(packed).decode()


def contents_digest(contents: Sequence[int]) -> bytes:
    """What the tensor digests of a checkpoint are kept under, given the keys of its files' contents in order."""
    return sha256(b"".join(content.to_bytes(8) for content in contents)).digest()


_UNUSED_TABLE = (
    "NOT EXISTS (SELECT 1 FROM checkpoint c WHERE c.tensor_table=tensor_table.key) "
    "AND NOT EXISTS (SELECT 1 FROM version v WHERE v.tensor_table=tensor_table.key)"
)
# Where a checkpoint was before it moved on.
_LEFT_FILE = "missing=1 AND NOT EXISTS (SELECT 1 FROM checkpoint_file x WHERE x.file=file.key)"
ORPHANS = {
    "tensor_names": "NOT EXISTS (SELECT 1 FROM tensor_table WHERE tensor_table.names=tensor_names.key "
    f"AND NOT ({_UNUSED_TABLE}))",
    "tensor_table": _UNUSED_TABLE,
    "content": f"NOT EXISTS (SELECT 1 FROM file WHERE file.content=content.key AND NOT ({_LEFT_FILE}))",
    "file": _LEFT_FILE,
}
"""Table -> the condition for a row of it to which nothing refers but rows of which this is true as well."""


def orphaned_digests(reader: Reader) -> list[int]:
    """Keys of the tensor digests of contents that no checkpoint has."""
    living = set()
    rows = reader.rows(
        "SELECT x.checkpoint,f.content FROM checkpoint_file x JOIN file f ON f.key=x.file WHERE f.content IS NOT NULL "
        "ORDER BY x.checkpoint,x.position"
    )
    for _, group in groupby(rows, lambda row: row[0]):
        living.add(contents_digest([content for _, content in group]))
    return [key for key, contents in reader.rows("SELECT key,contents FROM tensor_digests") if bytes(contents) not in living]


def drop_orphans(writer: Writer) -> None:
    """Delete what nothing refers to any more: tables, names, places, contents, tensor digests."""
    # A scan at work has keys of what goes now in its hands: it is to ask again.
    writer.run("UPDATE root SET generation=generation+1")
    doomed = {table: [key for (key,) in writer.rows(f"SELECT key FROM {table} WHERE {sql}")] for table, sql in ORPHANS.items()}
    for table in ("tensor_table", "tensor_names", "file", "content"):  # what refers to another goes before it
        writer.many(f"DELETE FROM {table} WHERE key=?", [(key,) for key in doomed[table]])
    # Last, and never left out: the keys of contents that are gone are given out again.
    writer.many("DELETE FROM tensor_digests WHERE key=?", [(key,) for key in orphaned_digests(writer)])


def dump(value: Any) -> str:
    """``value`` as JSON text, whatever strings are in it."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # lone surrogates, integers past 64 bits
        return json.dumps(value)


def load(text: str) -> Any:
    """What `dump` made into text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)

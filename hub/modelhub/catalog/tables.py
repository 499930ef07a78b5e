"""Packed tensor tables and their names, stored once each. Equal tables of different checkpoints are one row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from modelhub.catalog.database import Writer
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


def drop_orphans(writer: Writer) -> None:
    """Delete what nothing refers to any more: tables, names, contents, tensor digests."""
    writer.run(
        "DELETE FROM tensor_table WHERE NOT EXISTS (SELECT 1 FROM checkpoint c WHERE c.tensor_table=tensor_table.key) "
        "AND NOT EXISTS (SELECT 1 FROM version v WHERE v.tensor_table=tensor_table.key)"
    )
    writer.run("DELETE FROM tensor_names WHERE NOT EXISTS (SELECT 1 FROM tensor_table t WHERE t.names=tensor_names.key)")
    writer.run("DELETE FROM content WHERE NOT EXISTS (SELECT 1 FROM file f WHERE f.content=content.key)")


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

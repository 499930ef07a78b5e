"""Reads models from the catalog: by condition, by id, by place. Writes nothing."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from modelhub import where
from modelhub.catalog.database import Reader, Row
from modelhub.catalog.rows import place_of
from modelhub.errors import UsageError
from modelhub.model import Model

if TYPE_CHECKING:
    from modelhub.catalog.store import Catalog

_COLUMNS = (
    "c.id,c.name,r.path,c.path,c.format,c.container,c.architecture,c.precision,c.dtypes,c.parameters,c.size,c.tensors,c.alone,"
    f"{where.STATE},c.reason,c.sha256,c.modified_at,c.derived_from,c.version,c.key"
)
_FROM = " FROM checkpoint c LEFT JOIN root r ON r.key=c.root"
_CELLS = {
    "digest": "c.sha256",
    "modified": "c.modified_at",
    "dtypes": "c.dtypes",
    "key": "c.key",
}


def conditions(reader: Reader, text: str, expressions: Sequence[str]) -> tuple[str, list[Any]]:
    """The WHERE clause (with its blank, "" for none) of a search and expressions, all of which must hold."""
    parsed = [where.parse(expression) for expression in expressions]
    if text:
        parsed.append(where.text(text))
    clauses: list[str] = []
    values: list[Any] = []
    for condition in parsed:
        if condition.tensor:
            clauses.append(
                f"c.tensor_table IN (SELECT t.key FROM tensor_table t WHERE t.names IN ({_names_with(reader, condition)}))"
            )
            if where.is_exact(condition.tensor):
                values += condition.values
        else:
            clauses.append(condition.sql)
            values += condition.values
    return (" WHERE " + " AND ".join(clauses) if clauses else ""), values


def _names_with(reader: Reader, condition: where.Condition) -> str:
    """What goes into ``IN (...)`` for the keys of the lists of names in which one contains ``condition.tensor``."""
    if where.is_exact(condition.tensor):
        return f"SELECT n.key FROM tensor_names n WHERE {condition.sql}"
    from modelhub.catalog.tables import load_names

    wanted = condition.tensor.lower()
    rows = reader.rows(f"SELECT n.key,n.packed FROM tensor_names n WHERE {condition.sql}", condition.values)
    return ",".join(str(key) for key, packed in rows if wanted in load_names(packed).lower()) or "NULL"


def order(sort: str) -> str:
    """The ORDER BY clause of ``--sort FIELD``; ``-FIELD`` is the other way round."""
    field = sort.removeprefix("-").lower()
    if field not in where.SORT:
        raise UsageError(f"'{field}' is not a field to sort by", "fields: " + ", ".join(sorted(where.SORT)))
    down = " DESC" if sort.startswith("-") else ""
    return f" ORDER BY {where.SORT[field]}{down},c.name,r.path,c.path"


def models(
    catalog: Catalog,
    reader: Reader,
    text: str = "",
    expressions: Sequence[str] = (),
    sort: str = "name",
    limit: int | None = None,
) -> list[Model]:
    """The models for which it all holds."""
    clause, values = conditions(reader, text, expressions)
    sql = f"SELECT {_COLUMNS}{_FROM}{clause}{order(sort)}"
    if limit is not None:
        sql += f" LIMIT {max(0, int(limit))}"
    return build(catalog, reader, reader.rows(sql, values), everything=not clause and limit is None)


def select(
    reader: Reader, fields: Sequence[str], text: str, expressions: Sequence[str], sort: str, limit: int | None
) -> list[Row]:
    """Only some fields, as rows: what a long listing needs. Paths come as bytes, digests as bytes, times as nanoseconds."""
    columns = []
    for field in fields:
        column = _CELLS.get(field) or where.SORT.get(field)
        if column is None:
            raise UsageError(f"'{field}' is not a field", "fields: " + ", ".join(sorted({*where.SORT, *_CELLS})))
        columns.append(column)
    clause, values = conditions(reader, text, expressions)
    tail = "" if limit is None else f" LIMIT {max(0, int(limit))}"
    return reader.rows(f"SELECT {','.join(columns)}{_FROM}{clause}{order(sort)}{tail}", values)


def by_condition(catalog: Catalog, reader: Reader, sql: str, values: Sequence[Any]) -> list[Model]:
    """The models for which an SQL condition on ``c`` and ``r`` holds, by name."""
    return build(catalog, reader, reader.rows(f"SELECT {_COLUMNS}{_FROM} WHERE {sql} ORDER BY c.name,r.path,c.path", values))


def build(catalog: Catalog, reader: Reader, rows: list[Row], everything: bool = False) -> list[Model]:
    """Rows of `_COLUMNS` as models, with their files."""
    several = [row[19] for row in rows if not row[12]]
    files = _files(reader, several, everything and len(several) > 1000)
    decode, loads = os.fsdecode, orjson.loads
    found = []
    for row in rows:
        path = decode(row[3])
        key = row[19]
        names = (path,) if row[12] else files.get(key, ())
        root, sha256 = row[2], row[15]
        found.append(
            Model(
                row[0],
                row[1],
                None if root is None else decode(root),
                path,
                row[4],
                row[5],
                row[6],
                row[7],
                loads(row[8]),
                row[9],
                row[10],
                row[11],
                names,
                row[13],
                row[14],
                None if sha256 is None else f"sha256:{sha256.hex()}",
                row[16],
                row[17],
                row[18],
                key,
                catalog,
            )
        )
    return found


def _files(reader: Reader, keys: list[int], everything: bool) -> dict[int, tuple[str, ...]]:
    """The files of each checkpoint, primary first: relative to the checkpoint's root; absolute where they lie outside it."""
    sql = (
        "SELECT x.checkpoint,f.path,f.root,c.root,r.path FROM checkpoint_file x JOIN file f ON f.key=x.file "
        "JOIN checkpoint c ON c.key=x.checkpoint LEFT JOIN root r ON r.key=f.root"
    )
    tail = " ORDER BY x.checkpoint,x.position"
    rows = reader.rows(sql + tail) if everything else reader.rows_in(f"{sql} WHERE x.checkpoint IN (??){tail}", keys)
    found: dict[int, list[str]] = defaultdict(list)
    for key, row, root, home, root_path in rows:
        path = place_of(row)
        found[key].append(os.fsdecode(path if root == home or root is None else os.path.join(root_path, path)))
    return {key: tuple(paths) for key, paths in found.items()}


def count(reader: Reader, text: str, expressions: Sequence[str]) -> int:
    """How many models there are for which it all holds."""
    clause, values = conditions(reader, text, expressions)
    return int(reader.value(f"SELECT count(*){_FROM}{clause}", values))


_ONCE = "f.size,f.mtime,f.inode,f.device"
"""What is one file, however many paths lead to it."""
_FILES = _FROM + " JOIN checkpoint_file x ON x.checkpoint=c.key JOIN file f ON f.key=x.file"


def totals(reader: Reader, text: str, expressions: Sequence[str]) -> list[dict[str, Any]]:
    """Checkpoints, parameters and bytes by format and precision, the largest first. A file that several checkpoints share counts
    once in each row."""
    clause, values = conditions(reader, text, expressions)
    sizes = {
        (kind, precision): int(size)  # PostgreSQL sums to a decimal
        for kind, precision, size in reader.rows(
            f"SELECT format,precision,sum(size) FROM (SELECT DISTINCT c.format,c.precision,{_ONCE}{_FILES}{clause}) y "
            "GROUP BY format,precision",
            values,
        )
    }
    found = [
        {"format": f, "precision": p, "checkpoints": n, "parameters": int(q), "size": sizes.get((f, p), 0)}
        for f, p, n, q in reader.rows(
            f"SELECT c.format,c.precision,count(*),sum(c.parameters){_FROM}{clause} GROUP BY c.format,c.precision", values
        )
    ]
    return sorted(found, key=lambda row: (-row["size"], row["format"], row["precision"]))


def size(reader: Reader, text: str, expressions: Sequence[str], sort: str = "name", limit: int | None = None) -> int:
    """The bytes that these models take (as for `models`); a file that several share counts once."""
    clause, values = conditions(reader, text, expressions)
    if limit is not None:
        clause = f" WHERE c.key IN (SELECT c.key{_FROM}{clause}{order(sort)} LIMIT {max(0, int(limit))})"
    return int(reader.value(f"SELECT coalesce(sum(size),0) FROM (SELECT DISTINCT {_ONCE}{_FILES}{clause}) y", values))

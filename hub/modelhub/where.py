"""``--where`` expressions and free text, as SQL conditions on the catalog. Asks the database nothing; `modelhub.catalog.query`
runs them.

An expression is ``field op value``. The conditions speak of ``c`` (checkpoint) and ``r`` (its root), with ``?`` for values.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple

from modelhub.errors import UsageError
from modelhub.model import clean

STATE = (
    "CASE WHEN r.offline<>0 THEN 'offline' WHEN c.missing<>0 THEN 'missing' WHEN c.quarantined<>0 THEN 'quarantined' "
    "ELSE c.state END"
)
"""What people are told: the place comes before what is stored."""

_TEXT = {
    "id": "c.id",
    "name": "c.name",
    "architecture": "c.architecture",
    "precision": "c.precision",
    "container": "c.container",
    "state": STATE,
    "reason": "c.reason",
    "derived_from": "coalesce(c.derived_from,'')",
}
_NUMBER = {"size": "c.size", "parameters": "c.parameters", "tensors": "c.tensors", "files": "c.files", "version": "c.version"}
_SPECIAL = ("format", "path", "root", "modified", "digest", "dtype", "tensor", "alias", "tag.KEY", "note", "finding")
FIELDS = tuple(sorted([*_TEXT, *_NUMBER, *_SPECIAL]))
"""Every field that an expression may name."""

SORT = {
    **_TEXT,
    **_NUMBER,
    "format": "c.format",
    "path": "c.path",
    "root": "r.path",
    "modified": "c.modified_at",
    "created": "c.created_at",
    "indexed": "c.indexed_at",
}
"""Fields to sort by -> the column."""

_EXPRESSION = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*(!=|<=|>=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([A-Za-z]*)", re.IGNORECASE)
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_UNITS = {
    "size": {f"{k}{b}": n for k, n in _DECIMAL.items() for b in ("", "b")}
    | {f"{k}i{b}": 1024 ** (i + 1) for i, k in enumerate("kmgtp") for b in ("", "b")},
    "count": {**_DECIMAL, "b": 10**9},
}
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?Z?)?")


class Condition(NamedTuple):
    """``sql`` holds for a checkpoint, given ``values``. With ``tensor``, it holds for ``n``, the names of its tensors, and one
    of these contains ``tensor``."""

    sql: str
    values: tuple[object, ...] = ()
    tensor: str = ""


def parse(expression: str) -> Condition:
    """The condition that ``expression`` states. UsageError with what is allowed where it is none."""
    if expression.strip() == "*":
        return Condition("1=1")
    match = _EXPRESSION.fullmatch(expression)
    if not match:
        raise UsageError(
            f"'{expression}' is not an expression: field op value",
            "like 'size>1GB' or 'precision~Q4'; op is one of = != < <= > >= ~",
        )
    name, op, value = match.groups()
    op = "=" if op == "==" else op
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    raw, value = value, clean(value)
    if name.lower().startswith("tag."):
        return _related("tag", "x.name=? AND ", "x.value", op, value, (name[4:],))
    name = name.lower().replace("-", "_")
    if name in _TEXT:
        return _text(f"({_TEXT[name]})", op, value)
    if name in _NUMBER:
        return _number(_NUMBER[name], name, op, value)
    match name:
        case "format":
            return _either(_text("c.format", op, value), _text("c.container", op, value), op)
        case "path" | "root":
            return _path(name, op, raw)
        case "modified":
            return _date(op, value)
        case "digest":
            return _digest(op, value)
        case "dtype" | "dtypes":
            return _dtype(op, value)
        case "tensor":
            return _tensor(op, value)
        case "alias" | "note" | "finding":
            column = {"alias": "x.name", "note": "x.text", "finding": "x.name"}[name]
            return _related(name, "", column, op, value)
    near = difflib.get_close_matches(name, FIELDS, 1)
    raise UsageError(f"'{name}' is not a field", (f"did you mean {near[0]}? " if near else "") + "fields: " + ", ".join(FIELDS))


def text(words: str) -> Condition:
    """A free search: name, path, architecture, and tags' keys and values."""
    pattern = like(clean(words).casefold())
    return Condition(
        "(c.search LIKE ? ESCAPE '!' OR EXISTS (SELECT 1 FROM tag x WHERE x.checkpoint=c.key "
        "AND (lower(x.name) LIKE ? ESCAPE '!' OR lower(x.value) LIKE ? ESCAPE '!')))",
        (pattern, pattern, pattern),
    )


def like(value: str) -> str:
    """The LIKE pattern (escaped with ``!``) for "contains ``value``"."""
    return "%" + value.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%"


def quantity(value: str, kind: str, field: str) -> int | float:
    """A number with a unit: bytes (GB = 10^9, GiB = 2^30) for "size", else a count (B = 10^9)."""
    match = _QUANTITY.fullmatch(value)
    factor = _UNITS[kind].get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor >= 1 << 63:  # no more does a database compare
        example = "1.5GB, 700MiB or 4096" if kind == "size" else "7B, 350M or 1000"
        raise UsageError(f"'{value}' is no value for {field}", f"like {example}")
    number = float(match[1]) * factor
    return int(number) if number == int(number) else number


def _text(column: str, op: str, value: str) -> Condition:
    folded = value.lower()
    if op == "~":
        return Condition(f"lower({column}) LIKE ? ESCAPE '!'", (like(folded),))
    return Condition(f"lower({column}){'<>' if op == '!=' else op}?", (folded,))


def _path(name: str, op: str, value: str) -> Condition:
    if op == "~" and name == "root":
        return Condition("r.search LIKE ? ESCAPE '!'", (like(clean(value).casefold()),))
    if op == "~":  # the middle one of the three lines
        return Condition("c.search LIKE ? ESCAPE '!'", (f"%\n{like(clean(value).casefold())}\n%",))
    if op not in ("=", "!="):
        raise UsageError(f"{name} is neither more nor less than another", f"use = != or ~, like '{name}~llama'")
    return Condition(f"{name[0] if name == 'root' else 'c'}.path{'=' if op == '=' else '<>'}?", (os.fsencode(value),))


def _number(column: str, name: str, op: str, value: str) -> Condition:
    if op == "~":
        raise UsageError(f"{name} is a number, which contains nothing", f"use = != < <= > >=, like '{name}>=1'")
    return Condition(f"{column}{'<>' if op == '!=' else op}?", (quantity(value, "size" if name == "size" else "count", name),))


def _either(one: Condition, other: Condition, op: str) -> Condition:
    return Condition(f"({one.sql} {'AND' if op == '!=' else 'OR'} {other.sql})", one.values + other.values)


def _date(op: str, value: str) -> Condition:
    from calendar import timegm

    match = _DATE.fullmatch(value)
    if not match or op == "~":
        raise UsageError(f"'{value}' is no time", "like 'modified>2024-01-31' or 'modified<2024-01-31T12:00:00Z', in UTC")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    start = timegm((year, month, day, hour, minute, second)) * 10**9
    length = (1 if match[6] else 60 if match[4] else 86400) * 10**9
    # A day is a day long: `=2024-01-31` is all of it, `>` begins after it.
    inside = ("c.modified_at>=? AND c.modified_at<?", (start, start + length))
    return {
        "=": Condition(f"({inside[0]})", inside[1]),
        "!=": Condition(f"NOT ({inside[0]})", inside[1]),
        "<": Condition("c.modified_at<?", (start,)),
        ">=": Condition("c.modified_at>=?", (start,)),
        ">": Condition("c.modified_at>=?", (start + length,)),
        "<=": Condition("c.modified_at<?", (start + length,)),
    }[op]


def _digest(op: str, value: str) -> Condition:
    try:
        digest = bytes.fromhex(value.lower().removeprefix("sha256:"))
    except ValueError:
        digest = b""
    if len(digest) != 32 or op not in ("=", "!="):
        raise UsageError(f"'{value}' is no SHA-256", "like 'digest=sha256:...' with all 64 digits")
    return Condition("c.sha256=?" if op == "=" else "(c.sha256 IS NULL OR c.sha256<>?)", (digest,))


def _dtype(op: str, value: str) -> Condition:
    if op not in ("=", "!=", "~"):
        raise UsageError("dtype is a name, which is neither more nor less", "use = != or ~, like 'dtype=BF16'")
    # `dtypes` is a JSON object: its keys stand in quotes before a colon.
    pattern = like(f'"{value.lower()}":') if op != "~" else like(value.lower())
    return Condition(f"lower(c.dtypes) {'NOT ' if op == '!=' else ''}LIKE ? ESCAPE '!'", (pattern,))


def _tensor(op: str, value: str) -> Condition:
    if op != "~":
        raise UsageError("tensor takes ~ (contains) only", f"like 'tensor~{value or 'lora_A'}'")
    # Names are kept with their numbers as `#`, so that a number in what is sought must be checked against the names themselves.
    pattern = like(tensor_pattern(value).lower())
    return Condition("lower(n.patterns) LIKE ? ESCAPE '!'", (pattern,), value)


def is_exact(tensor: str) -> bool:
    """Whether the patterns alone tell where names contain ``tensor``."""
    return tensor_pattern(tensor) == tensor and "#" not in tensor


def tensor_pattern(name: str) -> str:
    """A tensor's name with each run of digits as ``#``."""
    return _DIGITS.sub("#", name)


_DIGITS = re.compile("[0-9]+")


def _related(table: str, more: str, column: str, op: str, value: str, values: tuple[object, ...] = ()) -> Condition:
    """There is a row of ``table`` for which it holds; for ``!=``, there is none for which ``=`` does. ``tag.key=*``: any
    value."""
    inner = Condition("1=1") if value == "*" and op in ("=", "!=") else _text(column, "=" if op == "!=" else op, value)
    exists = f"EXISTS (SELECT 1 FROM {table} x WHERE x.checkpoint=c.key AND {more}{inner.sql})"
    return Condition(f"{'NOT ' if op == '!=' else ''}{exists}", values + inner.values)

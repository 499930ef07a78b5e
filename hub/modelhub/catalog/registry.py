"""What people wrote about models: aliases, tags, notes; their export and import. No scan touches these rows. And the versions
that aliases pin."""

from __future__ import annotations

import os
import re
import time
from base64 import b64decode, b64encode
from calendar import timegm
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from modelhub.catalog.database import Reader, Writer
from modelhub.errors import ModelNotFound, UsageError
from modelhub.model import clean, iso

_ALIAS = re.compile(r"[^\s@:/\\][^\s@:\\]*(@[^\s@:/\\]+)?")
_TAG = re.compile(r"[^\s=]+")


class Pin(NamedTuple):
    """What an alias pins: the version; when that was replaced (nanoseconds) and its SHA-256, where this is known."""

    version: int
    replaced: int | None
    sha256: bytes | None


def set_alias(writer: Writer, name: str, checkpoint: int, version: int) -> None:
    """UsageError where ``name`` cannot be told from a path or a version."""
    if not _ALIAS.fullmatch(name) or not name.isprintable():
        raise UsageError(f"'{name}' cannot be an alias", "NAME or NAME@LABEL, without blanks, colons or a leading slash")
    writer.run("DELETE FROM alias WHERE name=?", (name,))
    writer.run(
        "INSERT INTO alias (name,checkpoint,version,created) SELECT ?,key,?,indexed_at FROM checkpoint WHERE key=?",
        (name, version, checkpoint),
    )


def aliases(reader: Reader) -> list[dict[str, Any]]:
    rows = reader.rows(
        "SELECT a.name,c.id,c.name,a.version,c.version,c.missing FROM alias a JOIN checkpoint c ON c.key=a.checkpoint "
        "ORDER BY a.name"
    )
    return [
        {
            "alias": alias,
            "id": id,
            "name": name,
            "version": version,
            "stale": version != now or bool(missing),
            "now": now,
            "why": "replaced" if version != now else "missing" if missing else "",
        }
        for alias, id, name, version, now, missing in rows
    ]


def pin(reader: Reader, alias: str) -> Pin | None:
    row = reader.row(
        "SELECT a.version,v.replaced_at,v.sha256 FROM alias a "
        "LEFT JOIN version v ON v.checkpoint=a.checkpoint AND v.number=a.version WHERE a.name=?",
        (clean(alias),),
    )
    return Pin._make(row) if row else None


def versions(reader: Reader, checkpoint: int) -> list[dict[str, Any]]:
    pins = defaultdict(list)
    for name, version in reader.rows("SELECT name,version FROM alias WHERE checkpoint=? ORDER BY name", (checkpoint,)):
        pins[version].append(name)
    columns = "format,precision,parameters,size,sha256,modified_at,indexed_at"
    rows = reader.rows(f"SELECT version,{columns},NULL FROM checkpoint WHERE key=?", (checkpoint,))
    rows += reader.rows(
        f"SELECT number,{columns},replaced_at FROM version WHERE checkpoint=? ORDER BY number DESC", (checkpoint,)
    )
    return [
        {
            "version": number,
            "current": replaced is None,
            "format": format,
            "precision": precision,
            "parameters": parameters,
            "size": size,
            "digest": None if digest is None else f"sha256:{digest.hex()}",
            "modified": iso(modified),
            "indexed": iso(indexed),
            "replaced": None if replaced is None else iso(replaced),
            "aliases": pins.get(number, []),
        }
        for number, format, precision, parameters, size, digest, modified, indexed, replaced in rows
    ]


def set_tags(writer: Writer, checkpoint: int, tags: Mapping[str, str | None]) -> None:
    for name, value in tags.items():
        if not _TAG.fullmatch(name):
            raise UsageError(f"'{name}' cannot be the key of a tag", "no blanks and no =")
        writer.run("DELETE FROM tag WHERE checkpoint=? AND name=?", (checkpoint, name))
        if value is not None:
            writer.insert("tag", "checkpoint,name,value", [(checkpoint, clean(name), clean(value))])


def add_note(writer: Writer, checkpoint: int, text: str, now: int) -> None:
    writer.insert("note", "key,checkpoint,text,created", [(writer.next_key("note"), checkpoint, clean(text), now)])


def notes(reader: Reader, checkpoint: int) -> list[dict[str, Any]]:
    rows = reader.rows("SELECT text,created FROM note WHERE checkpoint=? ORDER BY key", (checkpoint,))
    return [{"note": number, "text": text, "created": iso(created)} for number, (text, created) in enumerate(rows, 1)]


def remove_notes(writer: Writer, checkpoint: int, numbers: Collection[int]) -> None:
    keys = [key for (key,) in writer.rows("SELECT key FROM note WHERE checkpoint=? ORDER BY key", (checkpoint,))]
    for number in numbers:
        if not 1 <= number <= len(keys):
            raise ModelNotFound(f"there is no note {number}", "'modelhub note MODEL' lists them with their numbers")
    writer.many("DELETE FROM note WHERE key=?", [(keys[number - 1],) for number in set(numbers)])


def export(reader: Reader) -> dict[str, Any]:
    """``{"modelhub": 1, "models": [{id, name, digest, path_b64, aliases: [[name, current]], tags, notes, noted}]}``; ``noted``:
    when each of the notes was written."""
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"aliases": [], "tags": {}, "notes": [], "noted": []})
    for key, name, current in reader.rows(
        "SELECT a.checkpoint,a.name,a.version=c.version FROM alias a JOIN checkpoint c ON c.key=a.checkpoint ORDER BY a.name"
    ):
        found[key]["aliases"].append([name, bool(current)])
    for key, name, value in reader.rows("SELECT checkpoint,name,value FROM tag ORDER BY name"):
        found[key]["tags"][name] = value
    for key, text, created in reader.rows("SELECT checkpoint,text,created FROM note ORDER BY key"):
        found[key]["notes"].append(text)
        found[key]["noted"].append(iso(created))
    models = []
    rows = reader.rows_in(
        "SELECT c.key,c.id,c.name,c.sha256,c.path,r.path FROM checkpoint c LEFT JOIN root r ON r.key=c.root WHERE c.key IN (??)",
        list(found),
    )
    for key, id, name, sha256, path, root in sorted(rows, key=lambda row: row[1]):
        place: bytes = os.path.join(root or b"", path)
        digest = None if sha256 is None else f"sha256:{sha256.hex()}"
        models.append({"id": id, "name": name, "digest": digest, "path_b64": b64encode(place).decode(), **found[key]})
    return {"modelhub": 1, "models": models}


def take_in(writer: Writer, data: Mapping[str, Any], now: int) -> tuple[int, list[str]]:
    """See `Catalog.import_registry`. Tags and aliases of the import win; notes are added unless they are there."""
    if data.get("modelhub") != 1 or not isinstance(data.get("models"), list):
        raise UsageError("this is no export of modelhub's aliases, tags and notes", "make one with: modelhub export")
    known, unknown = 0, []
    for model in data["models"]:
        try:
            key, version = _recognise(writer, model)
            if key:
                for alias, current in model["aliases"]:
                    set_alias(writer, alias, key, version if current else 0)
                set_tags(writer, key, {str(name): str(value) for name, value in model["tags"].items()})
                there = {text for (text,) in writer.rows("SELECT text FROM note WHERE checkpoint=?", (key,))}
                noted = [_time(when) for when in model.get("noted") or ()]
                for number, text in enumerate(model["notes"]):
                    if text not in there:
                        add_note(writer, key, text, noted[number] if number < len(noted) else now)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the export is damaged: {type(error).__name__} {error}", "nothing was taken in") from error
        if key:
            known += 1
        else:
            unknown.append(str(model["name"]))
    return known, unknown


def _time(text: str) -> int:
    """Nanoseconds since 1970 of a time as `iso` writes it."""
    return timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) * 10**9


def _recognise(writer: Writer, model: Mapping[str, Any]) -> tuple[int, int]:
    """(key, version) of the model that an export speaks of; (0, 0) where there is none, or where several could be meant."""
    row = writer.row("SELECT key,version FROM checkpoint WHERE id=?", (str(model["id"]),))
    rows = [row] if row else []
    if not rows and model.get("digest"):
        digest = bytes.fromhex(str(model["digest"]).removeprefix("sha256:"))
        rows = writer.rows("SELECT key,version FROM checkpoint WHERE sha256=? AND missing=0", (digest,))
    if len(rows) != 1:
        place = b64decode(model["path_b64"])
        for root, prefix in writer.rows("SELECT key,path FROM root"):
            inside = prefix.rstrip(b"/") + b"/"
            if place.startswith(inside):
                rows = writer.rows(
                    "SELECT key,version FROM checkpoint WHERE root=? AND path=? ORDER BY missing", (root, place[len(inside) :])
                )[:1]
    return (rows[0][0], rows[0][1]) if len(rows) == 1 else (0, 0)

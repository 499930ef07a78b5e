"""What people wrote about models: aliases, tags, notes; their export and import. No scan touches these rows."""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from modelhub.catalog.database import Reader, Writer
from modelhub.errors import UsageError
from modelhub.model import clean

_ALIAS = re.compile(r"[^\s@:/\\][^\s@:\\]*(@[^\s@:/\\]+)?")
_TAG = re.compile(r"[^\s=]+")


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
        "SELECT a.name,c.id,c.name,a.version,a.version<>c.version OR c.missing<>0 FROM alias a "
        "JOIN checkpoint c ON c.key=a.checkpoint ORDER BY a.name"
    )
    return [
        {"alias": alias, "id": id, "name": name, "version": version, "stale": bool(stale)}
        for alias, id, name, version, stale in rows
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


def export(reader: Reader) -> dict[str, Any]:
    """``{"modelhub": 1, "models": [{id, name, digest, path_b64, aliases: [[name, current]], tags, notes}]}``."""
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"aliases": [], "tags": {}, "notes": []})
    for key, name, current in reader.rows(
        "SELECT a.checkpoint,a.name,a.version=c.version FROM alias a JOIN checkpoint c ON c.key=a.checkpoint ORDER BY a.name"
    ):
        found[key]["aliases"].append([name, bool(current)])
    for key, name, value in reader.rows("SELECT checkpoint,name,value FROM tag ORDER BY name"):
        found[key]["tags"][name] = value
    for key, text in reader.rows("SELECT checkpoint,text FROM note ORDER BY key"):
        found[key]["notes"].append(text)
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
                for text in model["notes"]:
                    if text not in there:
                        add_note(writer, key, text, now)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the export is damaged: {type(error).__name__} {error}", "nothing was taken in") from error
        if key:
            known += 1
        else:
            unknown.append(str(model["name"]))
    return known, unknown


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

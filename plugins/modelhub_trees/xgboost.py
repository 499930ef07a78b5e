"""XGBoost's models, in JSON or UBJSON: what they predict, from what, and by how many trees.

(XGBoost's "Introduction to Model IO" and ``doc/model.schema``; UBJSON draft 12, of which XGBoost writes typed arrays with counts,
``include/xgboost/json_io.h``.) The binary format of older versions is told and not read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Detection, File, InvalidFile, Metadata, Rejected, read_json

MAX_JSON = 256 << 20
MAX_VALUES = 4_000_000
MAX_DEPTH = 64
MAX_TEXT = 1 << 20
OLD = b"binf"
UBJSON = b"{L" + bytes(7) + b"\x07learner{"
MAGICS = (OLD, UBJSON)
_JSON = re.compile(rb'\s*\{\s*"(learner|version)"\s*:\s*[\{\[]')
_SIZES = {"i": "b", "U": "B", "I": ">h", "l": ">i", "L": ">q", "d": ">f", "D": ">d"}


def detect(file: File) -> Detection | Rejected | None:
    """The key that all begin with; in JSON also what only XGBoost says."""
    head = file.head
    if head.startswith(UBJSON):
        return Detection([file.path], confidence=92)
    if head.startswith(OLD) and file.size > 136:
        reason = "an XGBoost model in its old binary format: not read; an XGBoost of that time opens it, and saves it as .json"
        return Rejected(reason, confidence=60, state="unsupported")
    told = _JSON.match(head) and any(
        word in head or word in file.tail for word in (b'"gradient_booster"', b'"learner_model_param"')
    )
    return Detection([file.path], confidence=90) if told else None


def read(checkpoint: Checkpoint) -> Iterator[Metadata]:
    file = checkpoint.primary
    said: Any = _Ubjson(file).value() if file.head.startswith(UBJSON) else read_json(file, limit=MAX_JSON)
    learner = said.get("learner") if isinstance(said, dict) else None
    booster = learner.get("gradient_booster") if isinstance(learner, dict) else None
    if not isinstance(learner, dict) or not isinstance(booster, dict):
        raise InvalidFile(f"{file.name}: has no learner with a gradient_booster")
    values: dict[str, Any] = {"architecture": "xgboost", "booster": str(booster.get("name", ""))[:40]}
    version = said.get("version")
    if isinstance(version, list) and len(version) <= 4:
        values["version"] = ".".join(str(part)[:10] for part in version)
    objective = learner.get("objective")
    if isinstance(objective, dict):
        values["objective"] = str(objective.get("name", ""))[:200]
    params = learner.get("learner_model_param")
    for key, name in (("num_feature", "features"), ("num_class", "classes"), ("base_score", "base_score")):
        if isinstance(params, dict) and isinstance(params.get(key), str) and params[key] != "0":
            values[name] = int(params[key]) if params[key].isdecimal() and len(params[key]) < 18 else params[key][:40]
    model = booster.get("model") if booster.get("name") != "dart" else (booster.get("gbtree") or {}).get("model")
    if isinstance(model, dict) and isinstance(model.get("trees"), list):
        values["trees"] = len(model["trees"])
    names = learner.get("feature_names")
    if isinstance(names, list) and names:
        values["feature_names"] = [str(name)[:100] for name in names[:64]]
    yield Metadata(values=values, container="UBJSON" if file.head.startswith(UBJSON) else "JSON")


class _Ubjson:
    """A walk over UBJSON: typed arrays are gone past, what stands in them is not kept."""

    def __init__(self, file: File) -> None:
        self.file, self.at, self.left = file, 0, MAX_VALUES
        self.window, self.base = b"", 0

    def take(self, nbytes: int) -> bytes:
        low = self.at - self.base
        if low < 0 or low + nbytes > len(self.window):
            size = min(max(nbytes, 1 << 16), max(nbytes, self.file.size - self.at))
            self.window, self.base, low = self.file.read(self.at, size), self.at, 0
        self.at += nbytes
        return self.window[low : low + nbytes]

    def marker(self) -> str:
        found = self.take(1)
        while found == b"N":
            found = self.take(1)
        return found.decode("latin-1")

    def number(self, marker: str) -> Any:
        layout = _SIZES.get(marker)
        if layout is None:
            raise InvalidFile(f"{self.file.name}: {marker!r} at offset {self.at - 1} is no number of UBJSON")
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def length(self, limit: int) -> int:
        value = self.number(self.marker())
        if not isinstance(value, int) or not 0 <= value <= limit:
            raise InvalidFile(f"{self.file.name}: a length of {value!r:.40} at offset {self.at}, at most {limit} makes sense")
        return value

    def text(self) -> str:
        return self.take(self.length(min(MAX_TEXT, self.file.size - self.at))).decode("utf-8", "replace")

    def value(self, depth: int = 0, marker: str = "") -> Any:
        self.left -= 1
        if depth > MAX_DEPTH or self.left < 0:
            raise InvalidFile(f"{self.file.name}: nested more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values")
        marker = marker or self.marker()
        if marker == "S":
            return self.text()
        if marker in "ZTF":
            return {"Z": None, "T": True, "F": False}[marker]
        if marker == "C":
            return self.take(1).decode("latin-1")
        if marker in "[{":
            return self._array(depth) if marker == "[" else self._object(depth)
        return self.number(marker)

    def _typed(self) -> tuple[str, int | None]:
        """(the type of all, how many there are) of a container, where it says so."""
        kind, count = "", None
        if self.peek() == b"$":
            self.take(1)
            kind = self.take(1).decode("latin-1")
        if self.peek() == b"#":
            self.take(1)
            count = self.length(self.file.size)
        elif kind:
            raise InvalidFile(f"{self.file.name}: a type without a count at offset {self.at}")
        return kind, count

    def peek(self) -> bytes:
        found = self.take(1)
        self.at -= 1
        return found

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._typed()
        if kind in _SIZES and count is not None:
            nbytes = count * struct.calcsize(_SIZES[kind])
            if nbytes > self.file.size - self.at:
                self.file.read(self.at, min(nbytes, 1 << 30))  # says what is missing
            self.at += nbytes
            return []
        found: list[Any] = []
        while len(found) != count:
            if count is None and self.peek() == b"]":
                self.take(1)
                break
            found.append(self.value(depth + 1, kind))
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        kind, count = self._typed()
        found: dict[str, Any] = {}
        number = 0
        while number != count:
            if count is None and self.peek() == b"}":
                self.take(1)
                break
            key = self.text()
            found[key] = self.value(depth + 1, kind)
            number += 1
        return found

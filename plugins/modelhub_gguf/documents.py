"""The documents that stand beside a Hugging Face checkpoint's weights: found by name among its files, read once, and bounded.

Nothing is taken from them here: who asks judges what a document says. Names are as in ``transformers`` (``utils/hub.py`` and
``tokenization_utils_base.py``: ``config.json``, ``tokenizer.json``, ``chat_template.jinja``, ``additional_chat_templates``, ...).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelhub import File, InvalidFile, read_json

MAX_JSON = 256 << 20
"""The largest tokenizer.json in the field (262k tokens, 500k merges, indented) takes 35 MB."""
MAX_TEXT = 64 << 20
"""The longest text document (merges.txt, a chat template)."""
MAX_MODEL = 256 << 20
"""The largest SentencePiece model in the field (256k pieces) takes 5 MB."""
MAX_LINES = 4 << 20
_TEMPLATES = "additional_chat_templates/"


class Documents:
    """The documents among ``files`` (absolute paths), by their path below the directory of them all ("1_Pooling/config.json");
    those that were ``made`` (name -> content) come before them.

    A document is read when it is first asked for, and kept. A missing one is None (or empty); one that is not what its name says
    is an `InvalidFile`."""

    def __init__(self, files: Iterable[str], made: Mapping[str, bytes] | None = None) -> None:
        paths = list(files)
        self.directory: str = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        self._paths = {os.path.relpath(path, self.directory): path for path in paths}
        self._made = dict(made or {})
        self._json: dict[str, dict[str, Any] | None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._made or name in self._paths

    def first(self, names: Sequence[str]) -> str:
        """The first of ``names`` that is there, or ""."""
        return next((name for name in names if name in self), "")

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object called ``name``, or None where it is not there. `InvalidFile` where it is not JSON, or no object."""
        if name not in self._json:
            path = self._paths.get(name)
            if name in self._made:
                self._json[name] = _object(name, self._made[name])
            elif path is None:
                self._json[name] = None
            else:
                with File(path) as file:
                    self._json[name] = read_json(file, limit=MAX_JSON)
        return self._json[name]

    def object(self, name: str) -> Mapping[str, Any]:
        """The same, and an empty object where it is not there."""
        return self.json(name) or {}

    def data(self, name: str, *, limit: int = MAX_MODEL) -> bytes | None:
        """The bytes of the document called ``name``, or None where it is not there."""
        if name in self._made:
            return self._made[name]
        path = self._paths.get(name)
        if path is None:
            return None
        with File(path) as file:
            if file.size > limit:
                raise InvalidFile(f"{name} is {file.size} bytes long; no such document needs more than {limit}")
            return file.read(0, file.size)

    def text(self, name: str) -> str | None:
        """The text of the document called ``name`` (UTF-8, a byte order mark dropped), or None where it is not there."""
        raw = self.data(name, limit=MAX_TEXT)
        if raw is None:
            return None
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{name} is not UTF-8: byte {error.start}") from None

    def lines(self, name: str) -> list[str] | None:
        """The lines of a text document, without their ends (only newlines count: a token may hold any other separator)."""
        text = self.text(name)
        if text is None:
            return None
        if text.count("\n") > MAX_LINES:
            raise InvalidFile(f"{name} has more than {MAX_LINES} lines")
        lines = text.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        return [line.removesuffix("\r") for line in lines]

    def chat_templates(self) -> dict[str, str]:
        """Chat templates that stand in files of their own, by name; the main one is called "default"."""
        found: dict[str, str] = {}
        main = self.text("chat_template.jinja")
        if main is not None:
            found["default"] = main
            for name in sorted({*self._paths, *self._made}):
                if name.startswith(_TEMPLATES) and name.endswith(".jinja"):
                    found[os.path.basename(name).removesuffix(".jinja")] = self.text(name) or ""
        else:
            template = self.object("chat_template.json").get("chat_template")
            if isinstance(template, str):
                found["default"] = template
        return found


def _object(name: str, data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise InvalidFile(f"{name} is not a JSON object")
    return found


def whole(value: Any) -> int | None:
    """``value`` where it is a whole number that is not negative (a boolean is none)."""
    return value if type(value) is int and value >= 0 else None


def flag(value: Any) -> bool | None:
    """``value`` where it is a boolean."""
    return value if isinstance(value, bool) else None


def text(value: Any) -> str:
    """``value`` where it is a text, else ""."""
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """``value`` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []

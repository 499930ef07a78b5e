"""The model card: what the YAML front matter of ``README.md`` says of licence, base model and tags.

Not a YAML parser. Front matter that people and the Hub write is ``key: text``, ``key: [a, b]`` and ``key:`` over ``- item``
lines; anything else is skipped, and nothing in it can fail.
"""

from __future__ import annotations

import re
from typing import Any

from modelhub import File

from modelhub_huggingface.config import MAX_TEXT

MAX_CARD = 64 << 10
_TEXTS = {
    "license": "license",
    "license_name": "license_name",
    "pipeline_tag": "pipeline_tag",
    "library_name": "library",
}
_LISTS = {"base_model": "base_model", "tags": "tags", "language": "languages", "datasets": "datasets"}
_MAX_ITEMS = 100
_LINE = re.compile(r"([A-Za-z_]+):(?:\s+(.*))?")
_ITEM = re.compile(r"\s*-\s+(.*)")


def read_card(file: File) -> dict[str, Any]:
    """The known keys of the front matter; {} where there is none. ``base_model`` is a text where there is one, else a list."""
    lines = file.read(0, min(file.size, MAX_CARD)).decode("utf-8-sig", "replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    values: dict[str, Any] = {}
    key = ""
    for line in lines[1:]:
        if line.rstrip() in ("---", "..."):
            break
        if match := _LINE.fullmatch(line.rstrip()):
            key, rest = match[1], (match[2] or "").strip()
            if key in _TEXTS and (text := _scalar(rest)):
                values[_TEXTS[key]] = text
            elif key in _LISTS and rest:
                items = rest[1:-1].split(",") if rest.startswith("[") and rest.endswith("]") else [rest]
                _add(values, key, items)
        elif (match := _ITEM.fullmatch(line.rstrip())) and key in _LISTS:
            _add(values, key, [match[1]])
        elif not line.startswith(" "):
            key = ""
    base = values.get("base_model")
    if base and len(base) == 1:
        values["base_model"] = base[0]
    return values


def _add(values: dict[str, Any], key: str, items: list[str]) -> None:
    found = [text for item in items if (text := _scalar(item))]
    if found:
        values.setdefault(_LISTS[key], []).extend(found[: _MAX_ITEMS - len(values.get(_LISTS[key], []))])


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    plain = 0 < len(text) <= MAX_TEXT and text[0] not in "[{|>&*!%@`" and text != "null"
    return text if plain else ""

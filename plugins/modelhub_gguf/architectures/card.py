"""The front matter of a model card, as far as GGUF's ``general.*`` keys quote it.

Not a YAML parser: front matter that people and the Hub write is ``key: text``, ``key: [a, b]`` and ``key:`` over ``- item``
lines; anything else is skipped, and nothing in it can fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

MAX_LINES = 2000
MAX_TEXT = 4096
MAX_ITEMS = 500
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*):(?:\s+(.*))?")
_ITEM = re.compile(r"\s*-\s+(.*)")


def front_matter(card: str) -> dict[str, str | list[str]]:
    """Top-level keys with a text or a list of texts; {} where there is no front matter."""
    lines = card.replace("\t", "  ").splitlines()[:MAX_LINES]
    if not lines or lines[0] != "---":
        return {}
    found: dict[str, str | list[str]] = {}
    key = ""
    for line in lines[1:]:
        stripped = line.rstrip()
        if stripped == "---":
            break
        if match := _LINE.fullmatch(stripped):
            key, rest = match[1], (match[2] or "").strip()
            if rest.startswith("[") and rest.endswith("]"):
                found[key] = [text for item in rest[1:-1].split(",")[:MAX_ITEMS] if (text := _scalar(item))]
            elif text := _scalar(rest):
                found[key] = text
        elif (match := _ITEM.fullmatch(stripped)) and key:
            items = found.setdefault(key, [])
            if isinstance(items, list) and len(items) < MAX_ITEMS and (text := _scalar(match[1])):
                items.append(text)
        elif not line.startswith(" "):
            key = ""
    return found


def written(values: Mapping[str, str | Sequence[str]]) -> str:
    """The front matter that says ``values``, as `front_matter` and any YAML parser read it; what is empty is left out."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, str):
            if value:
                lines.append(f"{key}: {_quoted(value)}")
        elif value:
            lines += [f"{key}:", *(f"- {_quoted(item)}" for item in value)]
    return "\n".join([*lines, "---", ""]) if len(lines) > 1 else ""


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_/][\w./+-]*( [\w./+-]+)*", text, re.ASCII) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""Plain texts that YAML takes for something else: Norwegian is ``"no"``."""


def _scalar(text: str) -> str:
    """A plain or quoted text; "" for what is a structure, a reference or nothing."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1][:MAX_TEXT]
    text = re.split(r"\s#", text, maxsplit=1)[0].rstrip()
    plain = 0 < len(text) <= MAX_TEXT and text[0] not in "[{|>&*!%@`#" and text not in ("null", "~")
    return text if plain and not re.match(r"[\w-]+:\s", text) else ""

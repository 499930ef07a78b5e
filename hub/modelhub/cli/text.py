"""What the commands print: escaped text, sizes and counts for people, tables that fit the terminal, JSON for programs.

Text that came from a file goes through `escape` before it reaches a terminal: a tensor's name can hold escape sequences.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Control characters, line separators, bidi marks and overrides, invisible characters, tags, lone surrogates. Zero-width joiners
# stay: emoji and several scripts need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: object) -> str:
    """``text`` with every character that could move a cursor, reorder a line or hide itself written as an escape."""
    text = str(text)
    # Tables have many cells, and nearly all of them are plain.
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escaped, text)


def print_json(data: object) -> None:
    """One JSON document on stdout, indented, safe for a terminal."""
    import orjson

    try:
        document = orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=list).decode()
    except TypeError:  # lone surrogates, or integers past 64 bits
        import json

        document = json.dumps(data, indent=2, ensure_ascii=False, default=list)
    if not document.isascii() or "\x7f" in document:
        # A newline outside of a string is the document's own; inside one it is an escape already.
        document = re.sub(
            r"[^\n\x20-\x7e]", lambda match: _json_escape(match[0]) if _UNSAFE.match(match[0]) else match[0], document
        )
    sys.stdout.write(document + "\n")


def _json_escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def line(what: object) -> None:
    """One escaped line on stdout."""
    sys.stdout.write(escape(what) + "\n")


# --- for people -----------------------------------------------------------------------------------------------------


def size(nbytes: int | None) -> str:
    """Bytes as people say them, in powers of ten like the expressions of ``ls --where``: 4.4 GB."""
    if nbytes is None:
        return ""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{nbytes} B" if unit == "B" else f"{value:.{1 if abs(value) < 99.95 else 0}f} {unit}"


def count(number: int | None) -> str:
    """A number of parameters: 7.24B, 22.7M."""
    if number is None:
        return ""
    value = float(number)
    for unit in ("", "K", "M", "B", "T"):
        if abs(value) < 999.5 or unit == "T":
            break
        value /= 1000
    return str(number) if not unit else f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}{unit}"


def plural(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def seconds(value: float) -> str:
    """0.12 s, 4.5 s, 2 min 5 s."""
    if value < 60:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float | None) -> str:
    """A measured error or ratio in a few characters."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.3g}"


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table. ``key``: of the rows; ``align``: < or >; ``shrink``: the least width it may be cut to (0: never
    cut); ``middle``: cut in the middle, as for paths; ``drop``: leave it out, the highest first, where a narrow terminal needs
    the room."""

    key: str
    title: str
    align: str = "<"
    shrink: int = 0
    middle: bool = False
    drop: int = 0


def width(text: str) -> int:
    """Terminal cells that ``text`` takes."""
    if text.isascii():
        return len(text)
    cells = 0
    for char in text:
        if unicodedata.category(char) in ("Mn", "Me", "Cf"):
            continue
        cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def shorten(text: str, cells: int, middle: bool = False) -> str:
    """``text`` in at most ``cells`` terminal cells, with an ellipsis where something is left out."""
    if width(text) <= cells:
        return text
    if cells <= 1:
        return "…"[:cells]
    if middle:
        tail = _take(text[::-1], (cells - 1) * 2 // 3)[::-1]
        return _take(text, cells - 1 - width(tail)) + "…" + tail
    return _take(text, cells - 1) + "…"


def _take(text: str, cells: int) -> str:
    end = taken = 0
    for end, char in enumerate(text):
        taken += width(char)
        if taken > cells:
            return text[:end]
    return text


def is_terminal() -> bool:
    return sys.stdout.isatty()


def colour() -> bool:
    """May stdout be styled? Only a terminal, and not where NO_COLOR is set (to anything but nothing) or the terminal is dumb."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code and colour() else text


BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
STATES = {
    "ready": "", "incomplete": YELLOW, "invalid": RED, "unsupported": YELLOW, "missing": RED, "offline": DIM, "quarantined": RED,
    "ok": GREEN, "failed": RED, "error": RED, "unsafe": RED, "warning": YELLOW, "blocked": DIM, "clash": RED, "partial": YELLOW,
    "same": DIM, "differs": YELLOW,
}  # fmt: skip
"""The colour of a state, a status or a severity, wherever one is shown."""


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> None:
    """Print rows as a table: cut to the terminal's width, uncut into a pipe. Columns that are empty in every row are left out."""
    cells = {column.key: [escape(row.get(column.key, "") or "") for row in rows] for column in columns}
    used = [column for column in columns if any(cells[column.key])]
    widths = {column.key: max(width(column.title), max(map(width, cells[column.key]))) for column in used}
    if is_terminal():
        used = _fit(used, widths, shutil.get_terminal_size().columns)
    title = "  ".join(_laid_out([column.title], column, widths[column.key])[0] for column in used).rstrip()
    bodies = [_laid_out(cells[column.key], column, widths[column.key]) for column in used]
    if colour():
        bodies = [
            [style(shown, STATES.get(text, "")) for shown, text in zip(body, cells[column.key], strict=True)]
            for column, body in zip(used, bodies, strict=True)
        ]
    lines = [style(title, BOLD), *("  ".join(line).rstrip() for line in zip(*bodies, strict=True))]
    sys.stdout.write("\n".join(lines) + "\n")


def _laid_out(texts: Sequence[str], column: Column, room: int) -> list[str]:
    """The cells of a column, each exactly ``room`` cells wide."""
    right = column.align == ">"
    laid_out = []
    for text in texts:
        if not text.isascii() or len(text) > room:
            text = shorten(text, room, column.middle)
            gap = " " * (room - width(text))
            laid_out.append(gap + text if right else text + gap)
        else:
            laid_out.append(text.rjust(room) if right else text.ljust(room))
    return laid_out


def _fit(columns: list[Column], widths: dict[str, int], room: int) -> list[Column]:
    """Shrink ``widths`` and leave out columns until a line takes at most ``room`` cells."""
    columns = list(columns)

    def over() -> int:
        return sum(widths[column.key] for column in columns) + 2 * (len(columns) - 1) - room

    def least() -> int:
        return sum(min(column.shrink, widths[column.key]) if column.shrink else widths[column.key] for column in columns) + 2 * (
            len(columns) - 1
        )

    while least() > room and any(column.drop for column in columns):
        columns.remove(max(columns, key=lambda column: column.drop))
    while over() > 0:
        able = [column for column in columns if column.shrink and widths[column.key] > column.shrink]
        # A terminal too narrow for everything: the widest gives, whatever it is.
        widest = max(able or columns, key=lambda column: widths[column.key])
        if widths[widest.key] <= 1:
            break
        widths[widest.key] -= 1
    return columns


def pairs(items: Iterable[tuple[str, Any]]) -> None:
    """Print ``label  value`` lines, aligned; those without a value are left out."""
    kept = [(label, escape(value)) for label, value in items if value not in (None, "", [], {})]
    room = max((len(label) for label, _ in kept), default=0)
    for label, value in kept:
        lead = f"{label:<{room}}  "
        if is_terminal():
            value = shorten(value, max(20, shutil.get_terminal_size().columns - len(lead)), middle=True)
        sys.stdout.write(style(lead, DIM) + value + "\n")

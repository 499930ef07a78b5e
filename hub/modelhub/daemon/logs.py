"""The daemon's log: one line an event on stderr, as ``time level event key=value ...`` or as JSON."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any, TextIO

from modelhub.model import printable

LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}
"""Names with their priorities in syslog(3), by which a journal files a line that begins with ``<priority>``."""

_PLAIN = re.compile(r"[^\s\"=]+")


class Log:
    """``style``: text or json. ``level``: the least that is told. Lines are whole: one write each."""

    def __init__(self, style: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
        self.style = style
        self.least = LEVELS[level]
        self.stream = stream or sys.stderr
        self.journal = style == "text" and "JOURNAL_STREAM" in os.environ and not self.stream.isatty()

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        if LEVELS[level] > self.least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        fields = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
        if self.style == "json":
            shown = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
            line = json.dumps({"time": stamp, "level": level, "event": event, **shown})
        else:
            words = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
            head = f"<{LEVELS[level]}>" if self.journal else f"{stamp} {level:7} "
            line = f"{head}{event}{' ' if words else ''}{words}"
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            pass

    def error(self, event: str, **fields: Any) -> None:
        self("error", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self("warning", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self("info", event, **fields)

    def debug(self, event: str, **fields: Any) -> None:
        self("debug", event, **fields)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = printable(str(value))
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)

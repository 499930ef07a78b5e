"""A line of progress on stderr, and only where stderr is a terminal. Whatever is counted: bytes, files, tensors."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from modelhub.cli import text

EVERY = 0.1
"""Seconds between two drawings."""


class Progress:
    """Call it with what is done and what there is; it redraws one line, now and then, and wipes it at the end.

    ``unit``: "B" shows sizes, anything else shows counts of that noun.
    """

    def __init__(self, label: str, unit: str = "B") -> None:
        self.label = label
        self.unit = unit
        self.shown = sys.stderr.isatty()
        self.began = time.monotonic()
        self.drawn = self.began + 0.2  # what is done at once draws nothing

    def __call__(self, done: int, total: int | None = None, what: str = "") -> None:
        if not self.shown:
            return
        now = time.monotonic()
        if now < self.drawn:
            return
        self.drawn = now + EVERY
        line = " ".join(part for part in (self.label, self._figures(done, total, now - self.began), text.escape(what)) if part)
        room = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + text.shorten(line, room) + "\x1b[K")
        sys.stderr.flush()

    def _figures(self, done: int, total: int | None, spent: float) -> str:
        if self.unit != "B":
            return f"{done:,}/{total:,} {self.unit}" if total else f"{done:,} {self.unit}"
        rate = text.size(int(done / spent)) + "/s" if spent > 0 else ""
        if not total:
            return f"{text.size(done)}  {rate}"
        left = text.seconds((total - done) * spent / done) + " left" if done else ""
        return f"{min(done * 100 // total, 100):3d}%  {text.size(done)} of {text.size(total)}  {rate}  {left}".rstrip()

    def note(self, line: str) -> None:
        """Say something that stays, above the line of progress."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        sys.stderr.write(text.escape(line) + "\n")

    def close(self) -> None:
        if self.shown and self.drawn > self.began + 0.2:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

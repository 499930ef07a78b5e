"""A line of progress on stderr, and only where stderr is a terminal. Whatever is counted: bytes, files, tensors."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

from modelhub.cli import text

EVERY = 0.1
"""Seconds between two drawings."""
PATIENCE = 0.3
"""What is done sooner than this draws nothing."""


class Progress:
    """Tell it what is done; it redraws one line, now and then, and wipes it at the end. May be told from several threads.

    ``unit``: "B" shows sizes, anything else shows counts of that noun.
    """

    def __init__(self, label: str, unit: str = "B", total: int = 0) -> None:
        self.label = label
        self.unit = unit
        self.total = total
        self.done = 0
        self._lock = threading.Lock()
        self._shown = sys.stderr.isatty()
        self._began = time.monotonic()
        self._due = self._began + PATIENCE
        self._drawn = False

    def advance(self, amount: int, what: str = "") -> None:
        """``amount`` more is done."""
        with self._lock:
            self.done += amount
            self._draw(what)

    def reach(self, done: int, total: int, what: str = "") -> None:
        """``done`` of ``total`` is done."""
        with self._lock:
            self.done, self.total = done, total
            self._draw(what)

    def _draw(self, what: str) -> None:
        now = time.monotonic()
        if not self._shown or now < self._due:
            return
        self._due = now + EVERY
        self._drawn = True
        figures = self._figures(self.done, self.total, now - self._began)
        line = " ".join(part for part in (self.label, figures, text.escape(what)) if part)
        sys.stderr.write("\r" + text.shorten(line, shutil.get_terminal_size().columns - 1) + "\x1b[K")
        sys.stderr.flush()

    def _figures(self, done: int, total: int, spent: float) -> str:
        if self.unit != "B":
            return f"{done:,}/{total:,} {self.unit}" if total else f"{done:,} {self.unit}"
        rate = text.size(int(done / spent)) + "/s" if spent > 0 else ""
        if not total:
            return f"{text.size(done)}  {rate}"
        left = text.seconds((total - done) * spent / done) + " left" if done else ""
        return f"{min(done * 100 // total, 100):3d}%  {text.size(done)} of {text.size(total)}  {rate}  {left}".rstrip()

    def clear(self) -> None:
        """Wipe the line, so that something else can be written; it is drawn again when there is more to tell."""
        with self._lock:
            if self._drawn:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._drawn = False

    def close(self) -> None:
        """Wipe the line, and draw no more."""
        self.clear()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

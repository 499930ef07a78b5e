"""A `NativeWatch` to test with, and what it tells."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelhub.watch.native import NativeWatch
from modelhub.watch.pending import Hint


class Heard:
    """A watch of a directory, and what it told. ``hold``: while it is set, the watch's thread is kept from reading on."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.all: list[Hint | None] = []
        self.hold = threading.Event()
        self.watch = NativeWatch(str(root), self._notify, **options)

    def _notify(self, root: str, hint: Hint | None) -> None:
        assert root == str(self.root)
        self.all.append(hint)
        while self.hold.is_set():
            time.sleep(0.005)

    def start(self) -> Heard:
        self.watch.start()
        self.until(lambda: self.watch.ready and self.all)
        assert self.all == [None], "all is watched, and the root is to be looked at"
        self.all.clear()
        return self

    def until(self, true: Callable[[], Any], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"never so; heard {self.all}, {self.watch.failed}"
            time.sleep(0.005)

    def take(self, quiet: float = 0.1) -> set[Hint | None]:
        """What was heard until now, once it is quiet."""
        count = -1
        while count != len(self.all):
            count = len(self.all)
            time.sleep(quiet)
        found = set(self.all)
        self.all.clear()
        return found

    def hears(self, *hints: Hint | None) -> bool:
        """Whether these were heard, however late; others may have been."""
        self.until(lambda: set(hints) <= set(self.all))
        self.take(0.06)
        return True

    def only(self, *hints: Hint) -> bool:
        """Whether these were heard, however late, and no others."""
        self.until(lambda: set(hints) <= set(self.all))
        return self.take(0.06) == set(hints)

    def sees(self, directory: str) -> bool:
        """Whether a new file in ``directory`` is told of, under that name."""
        self.take(0.06)
        path = self.root / directory / "probe"
        path.write_bytes(b"x")
        self.until(lambda: Hint(os.fsencode(directory), False) in self.all)
        path.unlink()
        self.take(0.06)
        return True


@contextlib.contextmanager
def watched(root: Path, **options: Any) -> Iterator[Heard]:
    heard = Heard(root, **options)
    try:
        yield heard.start()
    finally:
        heard.hold.clear()
        assert heard.watch.stop(5.0)


def model_root(tmp_path: Path) -> Path:
    """A root with ``llama/model.safetensors``, ``llama/v1`` and ``other``."""
    root = tmp_path / "root"
    (root / "llama" / "v1").mkdir(parents=True)
    (root / "llama" / "model.safetensors").write_bytes(b"weights")
    (root / "other").mkdir()
    return root

"""The watch of systems without inotify, over whatever observer watchdog has here: hints, no more."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelhub.watch.pending import Hint
from modelhub.watch.portable import PortableWatch


@contextlib.contextmanager
def watching(root: Path) -> Iterator[tuple[PortableWatch, list[Hint | None]]]:
    heard: list[Hint | None] = []
    watch = PortableWatch(str(root), lambda _, hint: heard.append(hint))
    watch.start()
    until(lambda: heard == [None])
    heard.clear()
    try:
        yield watch, heard
    finally:
        assert watch.stop(5.0)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rule_1_events_are_hints_at_directories(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    with watching(tmp_path) as (watch, heard):
        assert watch.alive
        assert watch.ready
        (tmp_path / "llama" / "model.gguf").write_bytes(b"x")
        until(lambda: Hint(b"llama", False) in heard)
        (tmp_path / "new").mkdir()
        until(lambda: Hint(b"new", True) in heard)
        heard.clear()
        (tmp_path / "llama" / "model.gguf").rename(tmp_path / "new" / "model.gguf")
        until(lambda: {Hint(b"llama", False), Hint(b"new", False)} <= set(heard))


def test_rule_19_partial_names_and_scratch_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / ".modelhub-out").mkdir()
    with watching(tmp_path) as (_, heard):
        (tmp_path / "llama" / "model.gguf.part").write_bytes(b"x")
        (tmp_path / ".modelhub-out" / "model.gguf").write_bytes(b"x")
        (tmp_path / "llama" / "model.gguf").write_bytes(b"x")
        until(lambda: Hint(b"llama", False) in heard)
        assert not any(hint and b".modelhub" in hint.path for hint in heard)


def test_rule_20_a_watch_whose_root_goes_is_not_alive(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with watching(root) as (watch, _):
        shutil.rmtree(root)
        until(lambda: not watch.alive)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    heard: list[Hint | None] = []
    watch = PortableWatch(str(tmp_path / "none"), lambda _, hint: heard.append(hint))
    watch.start()
    until(lambda: heard == [None])
    assert not watch.alive
    assert not watch.ready
    assert "No such file" in watch.failed
    watch.stop()

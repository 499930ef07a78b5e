"""What modelhub is called where it is installed: its distribution's name and version, and the line that installs an extra."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """An entry point, and the distribution that brings it ("" where that does not say)."""

    name: str
    value: str
    distribution: str
    version: str
    load: Callable[[], Any]


SCRIPT = ("console_scripts", "modelhub")


def entries(*wanted: tuple[str, str]) -> list[list[Entry]]:
    """For each (group, name) of ``wanted`` the installed entry points, in one look at what is installed; no name is any name.
    Each distribution's metadata is parsed once: that takes over a millisecond, and one may bring many entry points."""
    every = _entry_points(tuple(map(_changed, sys.path)))
    said: dict[int, tuple[str, str]] = {}
    found: list[list[Entry]] = []
    for group, name in wanted:
        found.append([])
        for point in every.select(group=group, name=name) if name else every.select(group=group):
            if id(point.dist) not in said:
                metadata = point.dist.metadata if point.dist else None
                said[id(point.dist)] = (metadata["Name"] or "", metadata["Version"] or "") if metadata else ("", "")
            found[-1].append(Entry(point.name, point.value, *said[id(point.dist)], point.load))
    return found


@lru_cache(1)
def _entry_points(_: tuple[tuple[str, int], ...]) -> Any:
    """What is installed, looked at anew where one of the directories has changed since."""
    from importlib.metadata import entry_points

    return entry_points()


def _changed(path: str) -> tuple[str, int]:
    try:
        return path, os.stat(path or ".").st_mtime_ns
    except OSError:
        return path, 0


@cache
def _installed() -> tuple[str, str]:
    for entry in entries(SCRIPT)[0]:
        if entry.value.startswith("modelhub.") and entry.distribution:
            return entry.distribution, entry.version
    return "modelhub-registry", "unknown"  # run from a source tree that was never installed


def name() -> str:
    """The distribution's name, as pip knows it."""
    return _installed()[0]


def version() -> str:
    """The installed version."""
    return _installed()[1]


def install_hint(extra: str) -> str:
    """The command that brings what ``extra`` stands for."""
    return f"pip install '{name()}[{extra}]'"

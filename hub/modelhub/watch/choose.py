"""Which observer a root gets: events where the kernel tells of every change, polling where it does not, and why, in words.

Chosen by the mount table alone: a drive that does not answer must not stall whoever asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from modelhub.mounts import NETWORK, Mount

_POLLED = NETWORK | {"fuse", "fuseblk", "autofs", "drvfs", "vmhgfs", "pvfs2", "panfs"}
_POLLED_PREFIXES = ("fuse.", "nfs", "cifs", "smb", "gluster", "lustre", "ceph")
_LINKS = 40


class Choice(NamedTuple):
    """``observer``: "events" or "poll"; ``reason``: why, as one says it."""

    observer: str
    reason: str


def observer_for(path: str, mount: Mount | None, *, poll: float | None = None) -> Choice:
    """How to watch ``path``, which lies on ``mount`` (None: not known). ``poll``: seconds between polls, where the user wants
    everything polled."""
    if poll is not None:
        return Choice("poll", f"every {poll:g} s, as asked for")
    if mount is not None and is_polled(mount.type):
        return Choice("poll", f"{mount.type}: changes made elsewhere raise no events")
    missing = no_events()
    if missing:
        return Choice("poll", missing)
    return Choice("events", mount.type if mount else "local")


def is_polled(fstype: str) -> bool:
    """Whether a file system of this type may change without an event: others write to it, or a program of its own serves it."""
    return fstype in _POLLED or fstype.startswith(_POLLED_PREFIXES)


@cache
def no_events() -> str:
    """Why this system has no events; empty where it has."""
    if sys.platform == "linux":
        try:
            import watchdog.observers.inotify_c  # noqa: F401
        except (ImportError, OSError):  # a C library without inotify
            return "inotify is not available"
        return ""
    if sys.platform in ("darwin", "win32"):
        return ""
    return f"no events on {sys.platform}"


def mount_at(path: str, table: Sequence[Mount]) -> Mount | None:
    """The mount that ``path`` lies on, links followed; but nothing is looked at on a file system that is polled, where the look
    might never end."""
    parts = [part for part in path.split("/") if part]
    place = ""
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            place = place.rpartition("/")[0]
            continue
        here = f"{place}/{part}"
        mount = _holding(here, table)
        if mount is not None and is_polled(mount.type):
            return mount
        try:
            target = os.readlink(here)
        except OSError:  # not a link, or not there
            place = here
            continue
        links += 1
        if links > _LINKS:
            break
        parts = [part for part in target.split("/") if part not in ("", ".")] + parts
        if target.startswith("/"):
            place = ""
    return _holding(place or "/", table)


def mounts_below(path: str, table: Sequence[Mount]) -> list[Mount]:
    """What is mounted somewhere below ``path``."""
    prefix = path.rstrip("/") + "/"
    return [mount for mount in table if mount.point.startswith(prefix)]


def _holding(path: str, table: Sequence[Mount]) -> Mount | None:
    """By names alone. The longest point; of equals the last, which covers the others."""
    best: Mount | None = None
    for mount in table:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best

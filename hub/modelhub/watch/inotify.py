"""`Inotify`: one inotify instance (inotify(7)), as plain as the kernel has it, through watchdog's binding to the C library.

watchdog's own reader of it (`InotifyFD`) takes 0.44 KiB a watch for its books, 6 µs an event, and must not be closed while
another thread adds a watch; this one keeps no books, takes 2 µs, and is closed by the thread that reads. Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
from typing import NamedTuple

from watchdog.observers.inotify_c import InotifyConstants as C
from watchdog.observers.inotify_c import Mask, WatchDescriptor, inotify_add_watch, inotify_init, inotify_rm_watch

CREATE, DELETE, MOVED_FROM, MOVED_TO = int(C.IN_CREATE), int(C.IN_DELETE), int(C.IN_MOVED_FROM), int(C.IN_MOVED_TO)
ATTRIB, IS_DIRECTORY = int(C.IN_ATTRIB), int(C.IN_ISDIR)
DELETE_SELF, MOVE_SELF, UNMOUNT = int(C.IN_DELETE_SELF), int(C.IN_MOVE_SELF), int(C.IN_UNMOUNT)
IGNORED, OVERFLOW = int(C.IN_IGNORED), int(C.IN_Q_OVERFLOW)

ENTRIES = CREATE | DELETE | MOVED_FROM | MOVED_TO | ATTRIB | int(C.IN_MODIFY) | int(C.IN_CLOSE_WRITE)
"""Whatever can change what a listing with stats says. What happens to a directory itself is told by the one that holds it."""
DIRECTORY = ENTRIES | int(C.IN_ONLYDIR) | int(C.IN_DONT_FOLLOW) | int(C.IN_EXCL_UNLINK)
TOP = ENTRIES | DELETE_SELF | MOVE_SELF | int(C.IN_ONLYDIR) | int(C.IN_EXCL_UNLINK)
"""For the root, which no watched directory holds, and which may be given as a link."""

BUFFER = 1 << 18
_HEADER = struct.Struct("iIII")


class Event(NamedTuple):
    """``watch``: as returned by `Inotify.add`, -1 for an overflow. ``name``: of the entry, empty for the directory itself."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class NoInstance(OSError):
    """The user has as many inotify instances as the system allows."""


class Inotify:
    """`NoInstance` where the system gives no more of them. Only `wake` may be called from another thread."""

    def __init__(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        handle = inotify_init()
        if handle < 0:
            error = _error(b"")
            os.close(self._wake_read)
            os.close(self._wake_write)
            raise NoInstance(*error.args) if error.errno == errno.EMFILE else error
        self._handle = handle
        os.set_inheritable(handle, False)
        self._lock = threading.Lock()
        self._woken = self._closed = False
        self._poll = select.poll()
        for readable in (handle, self._wake_read):
            self._poll.register(readable, select.POLLIN)

    def add(self, path: bytes, mask: int = DIRECTORY) -> int:
        """Watch a directory; the number of its watch, the same one if it is watched already (under whatever path)."""
        watch = inotify_add_watch(self._handle, path, Mask(mask))
        if watch < 0:
            raise _error(path)
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching; nothing happens where the kernel did so already."""
        inotify_rm_watch(self._handle, WatchDescriptor(watch))

    def read(self, wait: float | None = None) -> list[Event]:
        """Wait for events, for so many seconds at most; none where there were none, or `wake` was called."""
        ready = [handle for handle, _ in self._poll.poll(None if wait is None else wait * 1000)]
        if self._handle not in ready or self._wake_read in ready:
            return []
        data = os.read(self._handle, BUFFER)
        events = []
        place = 0
        while place < len(data):
            watch, mask, cookie, length = _HEADER.unpack_from(data, place)
            place += 16 + length
            events.append(Event(watch, mask, cookie, data[place - length : place].rstrip(b"\0")))
        return events

    def wake(self) -> None:
        """Have `read` return, now and ever after."""
        with self._lock:
            if not self._closed and not self._woken:
                self._woken = True
                os.write(self._wake_write, b"\0")

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for handle in (self._handle, self._wake_read, self._wake_write):
                    os.close(handle)


def _error(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(path))


def limit(name: str) -> tuple[int, str]:
    """A limit (max_user_watches, max_user_instances) and the setting that has it: the system's, or this user's where that is
    lower."""
    found = []
    for place, setting in (
        (f"/proc/sys/fs/inotify/{name}", f"fs.inotify.{name}"),
        (f"/proc/sys/user/{name.replace('max_user_', 'max_inotify_')}", f"user.{name.replace('max_user_', 'max_inotify_')}"),
    ):
        try:
            with open(place, encoding="ascii") as file:
                found.append((int(file.read()), setting))
        except (OSError, ValueError):
            continue
    return min(found, default=(0, f"fs.inotify.{name}"))

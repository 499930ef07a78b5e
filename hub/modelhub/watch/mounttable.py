"""`MountTable`: says when a file system was mounted or unmounted (proc(5): ``/proc/self/mountinfo``). It looks at none of them.

Where there is no such table it is never ready, and nothing ever changed: roots that come and go are found by timers there.
"""

from __future__ import annotations

import os
import select
import selectors
import sys

TABLE = "/proc/self/mountinfo"


class MountTable:
    """Register ``fileno()`` for ``events`` with a selector; when it is ready, ask `changed`. A context manager."""

    events = selectors.EVENT_READ

    def __init__(self, path: str = TABLE) -> None:
        self._table = -1
        self._poll: select.epoll | None = None
        self._text = b""
        if sys.platform != "linux":
            return
        try:
            self._table = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # The table can always be read, so that a selector would return at once: a change is an exceptional condition, for
            # which `selectors` has no name. An epoll is itself ready to be read when what it waits for has happened.
            self._poll = select.epoll()
            self._poll.register(self._table, select.EPOLLPRI | select.EPOLLERR)
        except OSError:
            self.close()
            return
        self._text = self._read()

    def fileno(self) -> int:
        """What to wait for; -1 where there is nothing."""
        return -1 if self._poll is None else self._poll.fileno()

    def changed(self) -> bool:
        """Whether the table is another than at the last call. It does not wait."""
        if self._table < 0:
            return False
        before, self._text = self._text, self._read()
        return before != self._text

    def close(self) -> None:
        if self._poll is not None:
            self._poll.close()
        if self._table >= 0:
            os.close(self._table)
        self._table, self._poll = -1, None

    def __enter__(self) -> MountTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> bytes:
        # In one go: what is read in pieces may be of two times. The kernel gives at most a page or so at once, so this only
        # makes a torn read unlikely; the change that tore it is told again.
        os.lseek(self._table, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._table, 1 << 20):
            parts.append(part)
        return b"".join(parts)

"""Whether a file stands still: one that is still being written is not taken in yet. Looks at no file, only at the stats it is
given.

Two looks at least ``seconds`` of monotonic time apart that see the same size, mtime and inode will do. Where the clock of the
file system is this host's own, one look will do too: at a change (ctime) that is so long ago. A clock that is set back or
forward is noticed, and not relied on then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "ramfs", "jfs", "overlay"})
"""File systems whose times are this host's, and whose ctime says when a file was last changed."""
JUMP = 1.0
"""Seconds by which the clock may drift from the monotonic one between two looks."""
FORGET = 3600.0
"""Seconds after which a file that nobody looked at again is forgotten."""


class Verdict(NamedTuple):
    """``wait``: seconds until it is worth looking again, 0 where the file is taken in. ``growing``: it is taken in although it
    does not stand still, because that lasted too long."""

    wait: float
    growing: bool = False


class _Waiting:
    """A file that did not stand still: its signature, since when it has had it, since when it is waited for, the last look."""

    __slots__ = ("looked", "signature", "since", "still")

    def __init__(self, signature: tuple[int, int, int], now: float) -> None:
        self.signature = signature
        self.since = self.still = self.looked = now


class Settling:
    """What is waited for in one root. Paths are relative to it; kept from one scan to the next."""

    def __init__(
        self,
        seconds: float,
        *,
        longest: float = 30.0,
        trust_clock: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.seconds = seconds
        self.longest = max(longest, seconds)
        self.trust_clock = trust_clock
        self._clock = clock
        self._wall = wall
        self.patterns: tuple[str, ...] | None = None
        """What the last scan of this root passed by."""
        self._waiting: dict[bytes, _Waiting] = {}
        self._now = clock()
        self._offset = wall() - self._now
        self._jumped = -FORGET

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self) -> None:
        """A scan begins: look at the clocks, forget what nobody has asked about for long."""
        self._now = now = self._clock()
        offset = self._wall() - now
        if abs(offset - self._offset) > JUMP:
            self._jumped = now
        self._offset = offset
        for path in [path for path, one in self._waiting.items() if now - one.looked > FORGET]:
            del self._waiting[path]

    def look(self, path: bytes, info: os.stat_result, *, local: bool = True) -> Verdict:
        """Judge a new or changed file by its stat. ``local``: it lies on a file system whose times are this host's."""
        now = self._clock()
        age = self._age(info, now) if local else 0.0
        if age >= self.seconds:
            self._waiting.pop(path, None)
            return Verdict(0.0)
        signature = (info.st_size, info.st_mtime_ns, info.st_ino)
        one = self._waiting.get(path)
        if one is None:
            if self.seconds <= 0:
                return Verdict(0.0)
            one = self._waiting[path] = _Waiting(signature, now)
        elif one.signature != signature:
            one.signature, one.still = signature, now
        one.looked = now
        still, waited = now - one.still, now - one.since
        if still >= self.seconds:
            del self._waiting[path]
            return Verdict(0.0)
        if waited >= self.longest:
            one.since = now
            return Verdict(0.0, True)
        return Verdict(max(0.05, min(self.seconds - max(still, age), self.longest - waited)))

    def _age(self, info: os.stat_result, now: float) -> float:
        """For how long a file has certainly not been changed, by its times alone; 0 where they cannot be relied on."""
        if not self.trust_clock or now - self._jumped < self.seconds:
            return 0.0
        wall = now + self._offset
        age = wall - info.st_ctime_ns / 1e9
        if age < 0:
            return 0.0  # in the future: the clock was set back
        written = wall - info.st_mtime_ns / 1e9
        return min(age, written) if written >= 0 else age

    def settled(self, path: bytes) -> None:
        """A file is known to be one that stood still elsewhere."""
        self._waiting.pop(path, None)

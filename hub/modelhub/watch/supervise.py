"""`Supervisor`: has each root watched by events or polled, restarts watches that ended, and has roots reconciled by the clock.

A poll is a reconcile: the scan of everything that compares stats with the catalog. (A watcher that polls by itself would keep
the stat of every file in memory, walk the drive a second time for each scan, and end when the drive goes.)

Called by the daemon's loop alone; never waits for a drive: all that touches one are the watches' own threads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modelhub.mounts import Mount, mounts
from modelhub.watch.choose import Choice, is_polled, mount_at, mounts_below, observer_for
from modelhub.watch.pending import NEVER, Hint

FIRST, LONGEST = 60.0, 3600.0
"""Seconds between two starts of a watch that keeps ending: at first, and at most. They are doubled from one to the next."""
AGAIN = 3600.0
"""Seconds after which a root that is polled for want of watches is tried again."""
SLOW = 10.0
"""Seconds after which a root is looked at though not all of it is watched yet; it will be looked at once more when it is."""
SHARE = 5.0
"""Polls are so many times further apart than one takes."""


class Watch(Protocol):
    """`NativeWatch`, and what stands in for it elsewhere."""

    failed: str
    limited: bool
    gone: bool
    ready: bool

    @property
    def alive(self) -> bool: ...
    @property
    def watches(self) -> int: ...
    @property
    def blind(self) -> int: ...
    def start(self) -> None: ...
    def stop(self, wait: float = 0.0) -> bool: ...


@dataclass(slots=True)
class _Root:
    """``started``: the last start of a watch; ``wait``: seconds from then to the next, if it ends; ``again``: when that is.
    ``asked``: since when a poll is under way; ``took``: seconds of the last one; ``mounted``: what of the mount table
    concerns this root; ``nested``: directories below it that are polled; ``full``: when it is reconciled next;
    ``early``: when it is for the first time, if by then it is not watched."""

    path: str
    choice: Choice
    mounted: tuple[Mount, ...] = ()
    nested: tuple[bytes, ...] = ()
    watch: Watch | None = None
    started: float = -NEVER
    wait: float = FIRST
    again: float = -NEVER
    restarts: int = 0
    error: str = ""
    limited: bool = False
    gone: bool = False
    offline_since: float | None = None
    poll_at: float = NEVER
    asked: float | None = None
    took: float = 0.0
    full: float = NEVER
    early: float = NEVER

    @property
    def polled(self) -> bool:
        """Whether it has to be polled now: by choice, or because nothing watches it."""
        return self.choice.observer == "poll" or self.limited or self.watch is None


class Supervisor:
    """``poll``: poll everything, so often; ``interval``: seconds between polls of what is polled anyway; ``reconcile``: seconds
    between reconciles of what is watched by events. ``exclude``: patterns of the configuration. ``notify(root, hint)`` is called
    from `tick` and from the watches' threads; None: reconcile the root."""

    def __init__(
        self,
        notify: Callable[[str, Hint | None], None],
        *,
        poll: float | None = None,
        interval: float = 60.0,
        reconcile: float = 3600.0,
        exclude: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.roots: dict[str, _Root] = {}
        self.poll = poll
        self.interval = interval
        self.reconcile = reconcile
        self.exclude = exclude
        self._notify = notify
        self._clock = clock
        self._ending: list[Watch] = []

    # --- what the loop tells --------------------------------------------------------------------------------------

    def set_roots(self, paths: Iterable[str]) -> None:
        """These are the roots from now on."""
        now = self._clock()
        before, self.roots = self.roots, {}
        table = mounts()
        for path in paths:
            if path in before:
                self.roots[path] = before.pop(path)
                continue
            root = self.roots[path] = _Root(path, Choice("poll", ""))
            self._choose(root, table, now)
        for root in before.values():
            self._end(root)

    def configure(self, *, interval: float, reconcile: float, exclude: Sequence[str] | None = None) -> None:
        """Other settings; ``exclude`` None: as before."""
        now = self._clock()
        self.interval, self.reconcile = interval, reconcile
        changed = exclude is not None and list(exclude) != list(self.exclude)
        for root in self.roots.values():
            root.poll_at = min(root.poll_at, now + self._every(root)) if root.polled or root.nested else NEVER
            root.full = min(root.full, now + reconcile)
        if changed and exclude is not None:
            self.exclude = exclude
            for root in self.roots.values():
                if root.watch is not None:
                    self._start(root, now)

    def mounts_changed(self, now: float) -> None:
        """Something was mounted or unmounted: look whether a root is concerned."""
        table = mounts()
        for root in self.roots.values():
            if _concerning(root.path, table) != root.mounted or (root.watch is None and root.gone):
                self._choose(root, table, now)

    def done(self, root: str, seconds: float, now: float) -> None:
        """A scan of this root has ended, after so many seconds."""
        state = self.roots.get(root)
        if state is None or state.asked is None or now - seconds < state.asked:
            return  # it had begun before the poll was asked for
        state.took = seconds
        state.poll_at = max(now, state.asked + self._every(state))
        state.asked = None

    def there(self, root: str, there: bool, now: float) -> None:
        """Whether a scan found the root."""
        state = self.roots.get(root)
        if state is None:
            return
        if not there:
            state.offline_since = state.offline_since or now
        elif state.offline_since is not None:
            since, state.offline_since = state.offline_since, None
            if state.choice.observer == "events" and not state.limited and (state.watch is None or state.started < since):
                self._start(state, now)  # what is watched may be what was there before

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._ending = [watch for watch in self._ending if not watch.stop()]
        for root in self.roots.values():
            if root.watch is not None:
                self._look(root, now)
            if root.choice.observer == "events" and root.watch is None and now >= root.again:
                root.restarts += 1
                self._start(root, now)
            if now >= root.poll_at and (root.polled or root.nested):
                self._poll(root, now)
            if now >= root.early:
                root.early = NEVER
                if root.watch is not None and not root.watch.ready:
                    self._notify(root.path, None)
            if now >= root.full:
                root.full = now + self.reconcile
                self._notify(root.path, None)

    def next_due(self) -> float:
        """When to call `tick` again; infinity where only an event will make it necessary."""
        return min((self._due(root) for root in self.roots.values()), default=NEVER)

    def close(self, wait: float = 1.0) -> None:
        """End all watches; wait so long for it, and no longer."""
        for root in self.roots.values():
            self._end(root)
        self.roots = {}
        deadline = time.monotonic() + wait
        self._ending = [watch for watch in self._ending if not watch.stop(max(0.0, deadline - time.monotonic()))]

    # --- what it tells --------------------------------------------------------------------------------------------

    def status(self, root: str) -> dict[str, Any]:
        """``observer``: "events" or "poll", and the ``reason``; ``watches`` of directories, and the number of those that cannot
        be watched (``blind``); ``restarts``; ``error``: why the last watch ended, as long as it has no successor."""
        state = self.roots[root]
        watch = state.watch
        observer, reason = state.choice
        if state.polled and observer == "events":
            observer, reason = "poll", "too few watches" if state.limited else "not watched at the moment"
        return {
            "observer": observer,
            "reason": reason,
            "watches": watch.watches if watch is not None and not state.limited else 0,
            "blind": watch.blind if watch is not None else 0,
            "restarts": state.restarts,
            "error": state.error,
        }

    # --- one root -------------------------------------------------------------------------------------------------

    def _choose(self, root: _Root, table: list[Mount], now: float) -> None:
        """How to watch it, and begin with it."""
        mount = mount_at(root.path, table)
        root.mounted = _concerning(root.path, table)
        root.choice = observer_for(root.path, mount, poll=self.poll)
        below = mounts_below(root.path, table) if root.choice.observer == "events" else []
        prefix = len(os.fsencode(root.path.rstrip("/"))) + 1
        root.nested = tuple(sorted({os.fsencode(mount.point)[prefix:] for mount in below if is_polled(mount.type)}))
        root.limited = root.gone = False
        root.wait = FIRST
        root.error = ""
        root.poll_at = now if root.choice.observer == "poll" else now + self._every(root) if root.nested else NEVER
        root.asked = None
        root.full = root.early = NEVER
        if root.choice.observer == "events":
            self._start(root, now)
        else:
            self._end(root)

    def _start(self, root: _Root, now: float) -> None:
        """Start a watch, in place of the one that is there. It has the root reconciled when everything is watched."""
        self._end(root)
        root.started = now
        root.full = now + self.reconcile
        root.early = now + SLOW
        root.watch = _watch(root.path, self._heard, self.exclude, root.nested)
        root.watch.start()

    def _heard(self, path: str, hint: Hint | None) -> None:
        """From a watch's thread."""
        root = self.roots.get(path)
        if hint is None and root is not None:
            root.full = self._clock() + self.reconcile
            root.early = NEVER
        self._notify(path, hint)

    def _end(self, root: _Root) -> None:
        if root.watch is not None:
            if not root.watch.stop():
                self._ending.append(root.watch)
            root.watch = None

    def _look(self, root: _Root, now: float) -> None:
        """Whether its watch is well."""
        watch = root.watch
        if watch is None:
            return
        if watch.alive:
            if watch.ready and (root.error or root.limited):
                root.error, root.limited = "", False
                root.poll_at = now + self._every(root) if root.nested else NEVER
                root.asked = None
            return
        healthy = watch.ready and now - root.started >= LONGEST
        self._end(root)
        root.error = watch.failed or "the watch ended"
        root.limited, root.gone = watch.limited, watch.gone
        if watch.limited:
            root.again = now + AGAIN
        else:
            root.again = now if healthy else max(now, root.started + root.wait)
            root.wait = FIRST if healthy else min(LONGEST, root.wait * 2)
        root.poll_at = min(root.poll_at, now + self._every(root))
        root.full = root.early = NEVER

    def _poll(self, root: _Root, now: float) -> None:
        root.asked = now
        # Should its end never be told of, it is asked for again.
        root.poll_at = now + max(LONGEST, 10 * self._every(root))
        if root.polled:
            self._notify(root.path, None)
        else:
            for place in root.nested:
                self._notify(root.path, Hint(place, True))

    def _every(self, root: _Root) -> float:
        return max(self.poll or self.interval, SHARE * root.took)

    def _due(self, root: _Root) -> float:
        due = [root.full, root.early]
        if root.polled or root.nested:
            due.append(root.poll_at)
        if root.choice.observer == "events" and root.watch is None:
            due.append(root.again)
        return min(due)


def _concerning(path: str, table: list[Mount]) -> tuple[Mount, ...]:
    """What of the mount table matters to this root."""
    mount = mount_at(path, table)
    return ((mount,) if mount is not None else ()) + tuple(mounts_below(path, table))


def _watch(path: str, notify: Callable[[str, Hint | None], None], exclude: Sequence[str], skip: tuple[bytes, ...]) -> Watch:
    if sys.platform == "linux":
        from modelhub.watch.native import NativeWatch

        return NativeWatch(path, notify, exclude=exclude, skip=skip)
    from modelhub.watch.portable import PortableWatch

    return PortableWatch(path, notify, exclude=exclude, skip=skip)

"""`NativeWatch`: hints from the kernel's events for one root, on Linux. It finds out *where* something happened, never what.

One thread a root adds a watch for every directory, and then reads. An event costs a look-up: the directories that were touched
are gathered over what was read at once, and told of once each. Nothing runs while nothing happens. Where the kernel lost events,
the tree of watches is made anew from the directories that are there, and the whole root is to be looked at.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from modelhub.ignore import IGNORE_FILE, Excluded, all_patterns, exclusion, is_hidden_directory, is_partial
from modelhub.watch.pending import Hint

if TYPE_CHECKING:
    from modelhub.watch.inotify import Event, Inotify
    from modelhub.watch.tree import Node, Tree

Notify = Callable[[str, Hint | None], None]

PAUSE = 0.03
"""Seconds between reads while little happens, so that a file that is written piece by piece is told of so often at most."""
BUSY = 512
"""So many events at once, and there is no pause: the kernel keeps 16,384, and drops the rest."""
CALM, LOST = 0.1, 5.0
"""Lost events are made up for when so many seconds were quiet, or so many have gone by though the storm goes on."""


class _Ended(Exception):
    """Why nothing is watched any more. ``limited``: the kernel gives no more watches; ``gone``: the root is not there."""

    def __init__(self, reason: str, *, limited: bool = False, gone: bool = False) -> None:
        super().__init__(reason)
        self.limited = limited
        self.gone = gone


class NativeWatch:
    """Watches ``root`` from `start` until `stop`, or until it ``failed`` (a sentence; ``limited``: for want of watches; ``gone``:
    because the root is not there).

    ``notify(root, hint)`` is called from the watch's thread; with None when everything is watched, when events were lost, and
    when the watch ends by itself. ``exclude``: patterns beside those of the root's own ``.modelhubignore``. ``skip``:
    directories not to go into, relative to the root (what is mounted there is watched by other means). ``ready``: everything is
    watched.
    """

    def __init__(self, root: str, notify: Notify, *, exclude: Sequence[str] = (), skip: Collection[bytes] = ()) -> None:
        self.root = root
        self.failed = ""
        self.limited = self.gone = self.ready = False
        self._notify = notify
        self._configured = exclude
        self._skip = frozenset(skip)
        self._place = os.fsencode(root)
        self._excluded: Excluded | None = None
        self._inotify: Inotify | None = None
        self._tree: Tree | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {root}", daemon=True)
        # What the events that were read at once come to.
        self._touched: dict[Node, None] = {}
        self._entered: set[bytes] = set()
        self._moved: list[Node] = []
        self._unmounted: list[tuple[Node, bytes]] = []
        self._new_patterns = False
        self._lost = 0.0

    # --- from outside ---------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self.failed and self._thread.is_alive()

    @property
    def watches(self) -> int:
        return len(self._tree.nodes) if self._tree is not None else 0

    @property
    def blind(self) -> int:
        """Directories that cannot be watched (for want of permission, say), as far as they are known."""
        return len(self._tree.blind) if self._tree is not None else 0

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, wait: float = 0.0) -> bool:
        """End, and wait so many seconds for it: a drive that does not answer may hold the thread. Whether it has ended."""
        self._stopping.set()
        if self._inotify is not None:
            self._inotify.wake()
        if self._thread.is_alive() and wait > 0:
            self._thread.join(wait)
        return not self._thread.is_alive()

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watch()
        except _Ended as end:
            self.limited, self.gone = end.limited, end.gone
            self.failed = str(end)
        except OSError as error:
            self.failed = f"{error.strerror}: {error.filename or self.root}"
        except Exception as error:  # noqa: BLE001 - a fault of ours must show, and be made up for by a restart
            self.failed = f"{type(error).__name__}: {error}"
        finally:
            self._tree = None
            if self._inotify is not None:
                self._inotify.close()
            self._tell_all()

    def _watch(self) -> None:
        from modelhub.watch.inotify import Inotify, NoInstance
        from modelhub.watch.tree import Tree

        try:
            inotify = self._inotify = Inotify()
        except NoInstance as error:
            raise _no_instance() from error
        self._tree = tree = Tree(inotify, self._place, self._passed, self._stopping.is_set)
        try:
            self._build(tree)
            self.ready = True
            self._tell_all()
            while not self._stopping.is_set():
                self._turn(tree, inotify.read(CALM if self._lost else None))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise self._no_watch(error, tree) from error
            raise

    def _turn(self, tree: Tree, events: Sequence[Event]) -> None:
        self._take(tree, events)
        lost = self._lost and (not events or time.monotonic() - self._lost > LOST)
        if lost or self._new_patterns:
            self._build(tree)
            self._tell_all()
        if len(events) < BUSY and not self._lost:
            self._stopping.wait(PAUSE)

    def _build(self, tree: Tree) -> None:
        self._lost, self._new_patterns = 0.0, False
        self._excluded = exclusion(all_patterns(self._place, self._configured))
        try:
            tree.build()
        except OSError as error:
            if error.filename != self.root or error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            raise _Ended(f"{self.root} cannot be watched: {error.strerror}", gone=gone) from error

    def _passed(self, path: bytes, name: bytes) -> bool:
        """Whether a directory is none of ours."""
        return is_hidden_directory(name) or path in self._skip or bool(self._excluded and self._excluded(path, True))

    def _is_excluded(self, tree: Tree, node: Node, name: bytes) -> bool:
        above = tree.path(node)
        path = above + b"/" + name if above else name
        return self._excluded is not None and self._excluded(path, False)

    # --- events ---------------------------------------------------------------------------------------------------

    def _take(self, tree: Tree, events: Sequence[Event]) -> None:
        """Go through what was read at once, and then tell of each directory once."""
        from modelhub.watch.inotify import IS_DIRECTORY, OVERFLOW

        nodes, touched = tree.nodes, self._touched
        for watch, mask, _, name in events:
            node = nodes.get(watch)
            if node is None:
                if mask & OVERFLOW and not self._lost:
                    self._lost = time.monotonic()
            elif not name:
                self._itself(tree, node, mask)
            elif mask & IS_DIRECTORY:
                if not is_hidden_directory(name):
                    self._directory(tree, node, mask, name)
            elif node not in touched:
                if not is_partial(name):
                    if self._excluded is None or not self._is_excluded(tree, node, name):
                        touched[node] = None
                elif name == IGNORE_FILE and node is tree.top:
                    self._new_patterns = True
        for node in self._moved:
            if node.parent is None:  # it did not turn up again: it was moved out of the root
                tree.forget(node)
        self._moved.clear()
        for parent, name in self._unmounted:
            self._enter(tree, parent, name)
        self._unmounted.clear()
        self._tell(tree)

    def _itself(self, tree: Tree, node: Node, mask: int) -> None:
        """Something happened to a watched directory itself. Of others than the root, the directory that holds it tells more."""
        from modelhub.watch.inotify import DELETE_SELF, IGNORED, MOVE_SELF, UNMOUNT

        if node is tree.top:
            for bit, what in ((UNMOUNT, "unmounted"), (DELETE_SELF, "removed"), (MOVE_SELF, "moved away"), (IGNORED, "lost")):
                if mask & bit:
                    raise _Ended(f"{self.root} was {what}", gone=True)
            self._touched[node] = None
        elif mask & UNMOUNT:
            if node.parent is not None:
                self._unmounted.append((node.parent, node.name))
            tree.forget(node)
        elif mask & IGNORED:
            tree.forget(node)

    def _directory(self, tree: Tree, node: Node, mask: int, name: bytes) -> None:
        """A directory came, went or changed its permissions in a watched one."""
        from modelhub.watch.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO

        child = node.child(name)
        if mask & (CREATE | MOVED_TO):
            self._enter(tree, node, name)
        elif mask & (DELETE | MOVED_FROM):
            self._touched[node] = None
            if tree.blind:
                tree.blind.discard(b"/".join(filter(None, (tree.path(node), name))))
            if child is None:
                return
            if mask & DELETE or self._excluded is not None or self._skip:  # what is passed by below it depends on its path
                tree.forget(child)
            else:
                child.detach()
                self._moved.append(child)
        elif child is not None:
            self._touched[child] = None
        else:  # perhaps it may be read now
            self._enter(tree, node, name)

    def _enter(self, tree: Tree, node: Node, name: bytes) -> None:
        path = tree.enter(node, name)
        if path is not None:
            self._entered.add(path)
        else:
            self._touched[node] = None

    def _tell(self, tree: Tree) -> None:
        """Told after the watches are there: what happened in a new directory before was not heard."""
        hints = {Hint(path, True) for path in self._entered}
        for node in self._touched:
            path = tree.path(node)
            if path is None:
                continue
            if node.name == b"blobs" and node.parent is not None and _is_store(node.parent):
                # A scan goes through a store's manifests, not its blobs.
                hints.add(Hint(path.rpartition(b"/")[0], True))
            else:
                hints.add(Hint(path, False))
        self._touched.clear()
        self._entered.clear()
        for hint in hints:
            self._notify(self.root, hint)

    def _tell_all(self) -> None:
        if not self._stopping.is_set():
            self._notify(self.root, None)

    # --- what the kernel does not give ----------------------------------------------------------------------------

    def _no_watch(self, error: OSError, tree: Tree) -> _Ended:
        """Says what is needed. The watches that are there go back to the system first."""
        from modelhub.watch.inotify import limit

        had = len(tree.nodes)
        tree.inotify.close()
        number, setting = limit("max_user_watches")
        needed = tree.count()
        enough = max(1 << 19, 1 << (2 * (number + needed)).bit_length())
        return _Ended(
            f"{self.root} has {needed} directories, of which {had} could be watched: {setting} is {number} ({error.strerror}); "
            f"raise it with `sysctl {setting}={enough}`",
            limited=True,
        )


def _no_instance() -> _Ended:
    from modelhub.watch.inotify import limit

    number, setting = limit("max_user_instances")
    return _Ended(
        f"no inotify instance is left: {setting} is {number}, and each root needs one; raise it with "
        f"`sysctl {setting}={max(1024, 4 * number)}`",
        limited=True,
    )


def _is_store(node: Node) -> bool:
    return node.child(b"manifests") is not None or node.child(b"snapshots") is not None

"""`NativeWatch`: hints from the kernel's events for one root, on Linux. It finds out *where* something happened, never what.

One thread a root adds a watch for every directory, and then reads. An event costs a look-up: the directories that were touched
are gathered over what was read at once, and told of once each. Nothing runs while nothing happens.

What the tree of watches stands for is the kernel's: a directory that is renamed keeps its watch, and its node goes to its new
place. Where events were lost, the tree is made anew from the directories that are there.
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

Notify = Callable[[str, Hint | None], None]

PAUSE = 0.03
"""Seconds between reads while little happens, so that a file that is written piece by piece is told of so often at most."""
BUSY = 512
"""So many events at once, and there is no pause: the kernel keeps 16,384, and drops the rest."""
LOST = 5.0
"""Seconds after which a lost event is made up for though the storm goes on."""


class Ended(Exception):
    """Why nothing is watched any more. ``limit``: the kernel gives no more watches; ``gone``: the root is not there."""

    def __init__(self, reason: str, *, limit: bool = False, gone: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.limit = limit
        self.gone = gone


class _Node:
    """A watched directory. ``parent`` is None for the root, and for what was taken out of the tree."""

    __slots__ = ("children", "name", "parent", "watch")

    def __init__(self, watch: int, parent: _Node | None, name: bytes) -> None:
        self.watch = watch
        self.parent = parent
        self.name = name
        self.children: dict[bytes, _Node] | None = None


class NativeWatch:
    """Watches ``root`` from `start` until `stop`, or until it ``failed`` (a sentence; ``limited``: for want of watches; ``gone``:
    because the root is not there).

    ``notify(root, hint)`` is called from the watch's thread; with None when everything is watched, when events were lost, and
    when the watch ends by itself. ``exclude``: patterns beside those of the root's own ``.modelhubignore``. ``skip``:
    directories not to go into, relative to the root (what is mounted there is watched by other means). ``ready``: everything is
    watched. ``blind``: directories that could not be watched, as far as they are known.
    """

    def __init__(self, root: str, notify: Notify, *, exclude: Sequence[str] = (), skip: Collection[bytes] = ()) -> None:
        self.root = root
        self.failed = ""
        self.limited = self.gone = False
        self.ready = False
        self.blind: set[bytes] = set()
        self._notify = notify
        self._configured = exclude
        self._skip = frozenset(skip)
        self._place = os.fsencode(root)
        self._excluded: Excluded | None = None
        self._inotify: Inotify | None = None
        self._nodes: dict[int, _Node] = {}
        self._top = _Node(-1, None, b"")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {root}", daemon=True)
        # What the events that were read at once come to.
        self._touched: dict[_Node, bool] = {}
        self._hints: set[Hint] = set()
        self._moved: list[_Node] = []
        self._unmounted: list[tuple[_Node, bytes]] = []
        self._new_patterns = False
        self._lost = 0.0

    # --- from outside ---------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self.failed and self._thread.is_alive()

    @property
    def watches(self) -> int:
        return len(self._nodes)

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
        except Ended as end:
            self.limited, self.gone = end.limit, end.gone
            self.failed = end.reason
        except OSError as error:
            self.failed = f"{error.strerror}: {error.filename or self.root}"
        except Exception as error:  # noqa: BLE001 - a fault of ours must show, and be made up for by a restart
            self.failed = f"{type(error).__name__}: {error}"
        finally:
            if self._inotify is not None:
                self._inotify.close()
            self._nodes.clear()
            self._top.children = None
            self._tell_all()

    def _watch(self) -> None:
        from modelhub.watch.inotify import Inotify, limit

        try:
            self._inotify = inotify = Inotify()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            number, setting = limit("max_user_instances")
            raise Ended(
                f"no inotify instance is left: {setting} is {number}; raise it with `sysctl {setting}={max(1024, 4 * number)}`",
                limit=True,
            ) from error
        self._build(inotify)
        self.ready = True
        self._tell_all()
        while not self._stopping.is_set():
            events = inotify.read()
            self._take(inotify, events)
            if self._lost and (len(events) < BUSY or time.monotonic() - self._lost > LOST):
                self._lost = 0.0
                self._build(inotify)
                self._tell_all()
            if len(events) < BUSY:
                self._stopping.wait(PAUSE)

    # --- the tree of watches --------------------------------------------------------------------------------------

    def _build(self, inotify: Inotify) -> None:
        """Watch every directory that is there; nothing else."""
        from modelhub.watch.inotify import TOP

        self._excluded = exclusion(all_patterns(self._place, self._configured))
        self._new_patterns = False
        before, self._nodes = self._nodes, {}
        self.blind.clear()
        try:
            watch = inotify.add(self._place, TOP)
        except OSError as error:
            self._limit(error, inotify)
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            raise Ended(f"{self.root} cannot be watched: {error.strerror}", gone=gone) from error
        self._top = self._nodes[watch] = _Node(watch, None, b"")
        self._descend(inotify, self._top, b"", fresh=True)
        for old in before.keys() - self._nodes.keys():
            inotify.remove(old)

    def _enter(self, inotify: Inotify, parent: _Node, name: bytes) -> None:
        """A directory is new here: watch it and all below it, and have all of that looked at."""
        above = self._path(parent)
        if above is None:
            return
        path = above + b"/" + name if above else name
        if self._passed(path, name):
            return
        node = self._add(inotify, parent, name, path, fresh=False)
        if node is not None:
            self._descend(inotify, node, path, fresh=False)
        if path in self.blind or name in (parent.children or ()):
            # Told after the watches are there: what happened before was not heard.
            self._hints.add(Hint(path, True))
        else:  # gone already
            self._touched.setdefault(parent, False)

    def _descend(self, inotify: Inotify, node: _Node, path: bytes, *, fresh: bool) -> None:
        stack = [(node, path)]
        while stack and not self._stopping.is_set():
            node, path = stack.pop()
            for name in self._directories(path):
                below = path + b"/" + name if path else name
                if not self._passed(below, name):
                    child = self._add(inotify, node, name, below, fresh=fresh)
                    if child is not None:
                        stack.append((child, below))

    def _add(self, inotify: Inotify, parent: _Node, name: bytes, path: bytes, *, fresh: bool) -> _Node | None:
        """The node of a directory that was not known here; None where there is none, or it is known. ``fresh``: no node is
        older than this pass, so that a directory that is met twice is one that is mounted twice."""
        try:
            watch = inotify.add(os.path.join(self._place, path))
        except OSError as error:
            self._limit(error, inotify)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self.blind.add(path)
            return None
        self.blind.discard(path)
        node = self._nodes.get(watch)
        if node is not None:
            if node.parent is parent and node.name == name:
                return None
            if fresh or node is self._top:
                return None
            self._attach(inotify, node, parent, name)  # it was renamed, and we were not told
            return None
        node = self._nodes[watch] = _Node(watch, None, b"")
        self._attach(inotify, node, parent, name)
        return node

    def _attach(self, inotify: Inotify, node: _Node, parent: _Node, name: bytes) -> None:
        """Put a node (with what is below it) into its place, and out of where it was."""
        _detach(node)
        if parent.children is None:
            parent.children = {}
        other = parent.children.get(name)
        if other is not None:
            self._forget(inotify, other)
            parent.children = parent.children or {}
        parent.children[name] = node
        node.parent, node.name = parent, name

    def _forget(self, inotify: Inotify, node: _Node) -> None:
        """Take a node and what is below it out of the tree, and its watches from the kernel."""
        _detach(node)
        stack = [node]
        while stack:
            node = stack.pop()
            if self._nodes.pop(node.watch, None) is not None:
                inotify.remove(node.watch)
            if node.children:
                stack += node.children.values()
                node.children = None

    def _path(self, node: _Node) -> bytes | None:
        """Relative to the root; None for what is no longer in it."""
        names = []
        at: _Node | None = node
        while at is not self._top:
            if at is None:
                return None
            names.append(at.name)
            at = at.parent
        return b"/".join(reversed(names))

    def _directories(self, path: bytes) -> list[bytes]:
        try:
            with os.scandir(os.path.join(self._place, path)) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            self.blind.add(path)
            return []

    def _passed(self, path: bytes, name: bytes) -> bool:
        """Whether a directory is none of ours."""
        return is_hidden_directory(name) or path in self._skip or bool(self._excluded and self._excluded(path, True))

    def _limit(self, error: OSError, inotify: Inotify) -> None:
        """Say what is needed where the kernel gives no more watches; the ones there are go back first."""
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            return
        from modelhub.watch.inotify import limit

        had = len(self._nodes)
        inotify.close()
        number, setting = limit("max_user_watches")
        needed = self._count()
        enough = max(1 << 19, 1 << (2 * (number + needed)).bit_length())
        raise Ended(
            f"{setting} is {number}, and {self.root} alone has {needed} directories, of which {had} could be watched: it is "
            f"polled; raise the limit with `sysctl fs.inotify.max_user_watches={enough}`",
            limit=True,
        ) from error

    def _count(self) -> int:
        """How many directories there are to watch."""
        stack = [b""]
        count = 0
        while stack and not self._stopping.is_set():
            path = stack.pop()
            count += 1
            for name in self._directories(path):
                below = path + b"/" + name if path else name
                if not self._passed(below, name):
                    stack.append(below)
        return count

    # --- events ---------------------------------------------------------------------------------------------------

    def _take(self, inotify: Inotify, events: Sequence[Event]) -> None:
        """Go through what was read at once, and then tell of each directory once."""
        from modelhub.watch.inotify import IS_DIRECTORY, OVERFLOW

        nodes, touched = self._nodes, self._touched
        for event in events:
            watch, mask, _, name = event
            node = nodes.get(watch)
            if node is None:
                if mask & OVERFLOW and not self._lost:
                    self._lost = time.monotonic()
            elif not name:
                self._itself(inotify, node, mask)
            elif mask & IS_DIRECTORY:
                if not is_hidden_directory(name):
                    self._directory(inotify, node, event)
            elif node not in touched:
                if not is_partial(name):
                    touched[node] = False
                elif name == IGNORE_FILE and node is self._top:
                    self._new_patterns = True
        for node in self._moved:
            if node.parent is None:  # it did not turn up again: moved out of the root
                self._forget(inotify, node)
        self._moved.clear()
        for parent, name in self._unmounted:
            self._enter(inotify, parent, name)
        self._unmounted.clear()
        if self._new_patterns:
            self._build(inotify)
            touched.clear()
            self._hints.clear()
            self._tell_all()
            return
        self._tell()

    def _itself(self, inotify: Inotify, node: _Node, mask: int) -> None:
        """Something happened to a watched directory itself."""
        from modelhub.watch.inotify import ATTRIB, DELETE_SELF, IGNORED, MOVE_SELF, UNMOUNT

        if node is self._top:
            for bit, what in ((UNMOUNT, "unmounted"), (DELETE_SELF, "removed"), (MOVE_SELF, "moved away")):
                if mask & bit:
                    raise Ended(f"{self.root} was {what}", gone=True)
            if mask & ATTRIB:
                self._touched[node] = self._touched.get(node, False)
            if mask & IGNORED:
                raise Ended(f"{self.root} is no longer watched")
        elif mask & UNMOUNT:
            if node.parent is not None:
                self._unmounted.append((node.parent, node.name))
            self._forget(inotify, node)
        elif mask & IGNORED:
            self._forget(inotify, node)

    def _directory(self, inotify: Inotify, node: _Node, event: Event) -> None:
        """A directory came, went or changed its permissions in a watched one."""
        from modelhub.watch.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO

        _, mask, _, name = event
        child = node.children.get(name) if node.children else None
        if mask & (CREATE | MOVED_TO):
            self._enter(inotify, node, name)
        elif mask & (MOVED_FROM | DELETE):
            self._touched.setdefault(node, False)
            if self.blind:
                self.blind.discard(b"/".join(filter(None, (self._path(node), name))))
            if child is None:
                return
            if mask & DELETE or self._excluded is not None or self._skip:  # what is to be watched below depends on the path
                self._forget(inotify, child)
            else:
                _detach(child)
                self._moved.append(child)
        elif child is not None:
            self._touched.setdefault(child, False)
        else:  # perhaps it may be read now
            self._enter(inotify, node, name)

    def _tell_all(self) -> None:
        if not self._stopping.is_set():
            self._notify(self.root, None)

    def _tell(self) -> None:
        hints = self._hints
        for node, deep in self._touched.items():
            path = self._path(node)
            if path is None:
                continue
            if node.name == b"blobs" and node.parent is not None and _is_store(node.parent):
                # A scan goes through a store's manifests, not its blobs.
                path, deep = path.rpartition(b"/")[0], True
            hints.add(Hint(path, deep))
        self._touched.clear()
        self._hints = set()
        for hint in hints:
            self._notify(self.root, hint)


def _detach(node: _Node) -> None:
    """Take a node with what is below it out of the tree; it keeps its watches."""
    parent, node.parent = node.parent, None
    if parent is not None and parent.children is not None and parent.children.get(node.name) is node:
        del parent.children[node.name]


def _is_store(node: _Node) -> bool:
    return bool(node.children) and node.children is not None and (b"manifests" in node.children or b"snapshots" in node.children)

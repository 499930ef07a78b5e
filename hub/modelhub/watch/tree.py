"""`Tree`: the directories of a root that are watched, as the kernel has them: a watch is a directory's, wherever that goes.

A directory that is renamed keeps its watch and takes its node along, with all below it. What a node stands for is settled by the
kernel, which gives a directory that is watched already the same number again.

Events tell of the past, paths lead to what is there now: while renames are still to be heard of, a path may lead to another
directory than the one meant, or to none. So all below a directory that is new or renamed is gone through whenever that is heard
of, known or not; after the last such event, every node is in its place. Linux only; one thread's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from modelhub.watch.inotify import TOP, Inotify

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_LIMITS = frozenset({errno.ENOSPC, errno.ENOMEM})


class Node:
    """A watched directory. ``parent`` is None for the root, and for what was taken out of the tree."""

    __slots__ = ("children", "name", "parent", "watch")

    def __init__(self, watch: int) -> None:
        self.watch = watch
        self.parent: Node | None = None
        self.name = b""
        self.children: dict[bytes, Node] | None = None

    def child(self, name: bytes) -> Node | None:
        return self.children.get(name) if self.children else None

    def detach(self) -> None:
        """Take it, with what is below it, out of the tree; the watches stay."""
        parent, self.parent = self.parent, None
        if parent is not None and parent.child(self.name) is self and parent.children is not None:
            del parent.children[self.name]


class Tree:
    """``nodes`` by the number of their watch; ``blind``: directories (relative to the root) that cannot be watched.
    ``passed(path, name)``: whether a directory is none of ours; ``stopping()``: whether to leave off.

    Whatever adds watches raises OSError (ENOSPC, ENOMEM) where the kernel gives no more of them.
    """

    def __init__(
        self, inotify: Inotify, place: bytes, passed: Callable[[bytes, bytes], bool], stopping: Callable[[], bool]
    ) -> None:
        self.inotify = inotify
        self.place = place
        self.nodes: dict[int, Node] = {}
        self.top = Node(-1)
        self.blind: set[bytes] = set()
        self._passed = passed
        self._stopping = stopping

    def build(self) -> None:
        """Watch every directory that is there; nothing else. OSError where the root cannot be watched."""
        before, self.nodes = self.nodes, {}
        self.blind.clear()
        watch = self.inotify.add(self.place, TOP)
        self.top = self.nodes[watch] = Node(watch)
        self._descend(self.top, b"", fresh=True)
        for old in before.keys() - self.nodes.keys():
            self.inotify.remove(old)

    def enter(self, parent: Node, name: bytes) -> bytes | None:
        """A directory is new here: watch it and all below it. Its path; None where it is none of ours, or gone already."""
        above = self.path(parent)
        if above is None:
            return None
        path = above + b"/" + name if above else name
        if self._passed(path, name):
            return None
        node = self._add(parent, name, path, fresh=False)
        if node is not None:
            self._descend(node, path, fresh=False)
        return path if node is not None or path in self.blind else None

    def forget(self, node: Node) -> None:
        """Take a node and what is below it out of the tree, and its watches from the kernel."""
        node.detach()
        stack = [node]
        while stack:
            node = stack.pop()
            if self.nodes.pop(node.watch, None) is not None:
                self.inotify.remove(node.watch)
            if node.children:
                stack += node.children.values()
                node.children = None

    def path(self, node: Node) -> bytes | None:
        """Relative to the root; None for what is no longer in the tree."""
        names = []
        at: Node | None = node
        while at is not self.top:
            if at is None:
                return None
            names.append(at.name)
            at = at.parent
        return b"/".join(reversed(names))

    def count(self) -> int:
        """How many directories there are to watch."""
        stack = [b""]
        count = 0
        while stack and not self._stopping():
            path = stack.pop()
            count += 1
            stack += self._below(path)
        return count

    # --- one directory --------------------------------------------------------------------------------------------

    def _descend(self, node: Node, path: bytes, *, fresh: bool) -> None:
        stack = [(node, path)]
        while stack and not self._stopping():
            node, path = stack.pop()
            for below in self._below(path):
                child = self._add(node, below[len(path) + 1 if path else 0 :], below, fresh=fresh)
                if child is not None:
                    stack.append((child, below))

    def _below(self, path: bytes) -> list[bytes]:
        """The directories in one that are ours. What cannot be listed is noted."""
        try:
            with os.scandir(os.path.join(self.place, path)) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            if error.errno not in _GONE:
                self.blind.add(path)
            return []
        prefix = path + b"/" if path else b""
        return [prefix + name for name in names if not self._passed(prefix + name, name)]

    def _add(self, parent: Node, name: bytes, path: bytes, *, fresh: bool) -> Node | None:
        """The node of a directory, in its place; None where it cannot be watched. ``fresh``: no node is older than this pass, so
        that a directory that is met twice is one that is mounted twice, and is left where it is."""
        try:
            watch = self.inotify.add(os.path.join(self.place, path))
        except OSError as error:
            if error.errno in _LIMITS:
                raise
            if error.errno not in _GONE:
                self.blind.add(path)
            return None
        self.blind.discard(path)
        node = self.nodes.get(watch)
        if node is None:
            node = self.nodes[watch] = Node(watch)
        elif node.parent is parent and node.name == name:
            return node
        elif fresh or _holds(node, parent):
            return None
        self._attach(node, parent, name)
        return node

    def _attach(self, node: Node, parent: Node, name: bytes) -> None:
        """Put a node, with what is below it, into its place, and out of where it was."""
        node.detach()
        other = parent.child(name)
        if other is not None:
            self.forget(other)
        if parent.children is None:
            parent.children = {}
        parent.children[name] = node
        node.parent, node.name = parent, name


def _holds(node: Node, other: Node) -> bool:
    """Whether ``other`` is ``node``, or below it: what is mounted inside itself is not to become its own child."""
    at: Node | None = other
    while at is not None:
        if at is node:
            return True
        at = at.parent
    return False

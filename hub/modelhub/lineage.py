"""The lineage of a model as a graph: what its content was made from, over all generations, and what was made of it.

A model is one node, whatever versions of it the edges speak of; an edge says which version of its source it was made of, and
whether that has been replaced since. Sources that are gone from the catalog are nodes of what was written down of them. An output
that was written over its own source makes a circle of nodes: contents never do, and it is contents that are followed, each once.
Reads the catalog, and no file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelhub.model import printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.database import Reader
    from modelhub.catalog.lineage import Standing, Step
    from modelhub.model import Model

MOST = 1000
"""Nodes of one graph; what lies beyond is left out, and the graph says so."""
DEEPEST = 64
"""Generations in either direction."""


@dataclass(frozen=True, slots=True)
class Node:
    """A model of the graph. ``path`` is absolute. ``state`` is "gone" where the catalog has it no more: then the rest is as it
    was when something was made of it, and ``version`` 0 where it never was in the catalog."""

    id: str | None
    name: str
    path: str
    format: str = ""
    precision: str = ""
    size: int | None = None
    state: str = "gone"
    version: int = 0
    digest: str | None = None

    def to_json(self, number: int) -> dict[str, Any]:
        return {
            "node": number,
            "id": self.id,
            "name": printable(self.name),
            "path": printable(self.path),
            "format": self.format,
            "precision": self.precision,
            "size": self.size,
            "state": self.state,
            "version": self.version,
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class Edge:
    """``child`` was made from ``parent`` (numbers of nodes): from its version ``parent_version`` (0: not known). ``stale``: that
    content has been replaced since; None where the parent is gone, so that nobody can tell. ``how``: kind, recipe, plugin,
    plugin_version, rule, options, worst (the tensor that lost the most, or None), created."""

    parent: int
    child: int
    parent_version: int
    child_version: int
    stale: bool | None
    how: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "parent": self.parent,
            "child": self.child,
            "parent_version": self.parent_version or None,
            "child_version": self.child_version,
            "stale": self.stale,
            **self.how,
        }


@dataclass(slots=True)
class Graph:
    """``nodes[0]`` is the model that was asked for. ``truncated``: there is more than was followed."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": [node.to_json(number) for number, node in enumerate(self.nodes)],
            "edges": [edge.to_json() for edge in self.edges],
            "truncated": self.truncated,
        }

    def parents(self, node: int) -> list[Edge]:
        """The edges to what a node was made from."""
        return [edge for edge in self.edges if edge.child == node]

    def children(self, node: int) -> list[Edge]:
        """The edges to what was made of a node."""
        return [edge for edge in self.edges if edge.parent == node]


def lineage(catalog: Catalog, model: Model) -> Graph:
    """Ancestors and descendants of the content that ``model`` has now."""
    start = Node(
        model.id,
        model.name,
        model.absolute_path,
        model.format,
        model.precision,
        model.size,
        model.state,
        model.version if model.id else 0,
        model.digest,
    )
    with catalog.database.read() as reader:
        work = _Search(reader, start, model.key)
        if model.key:
            work.up(model.key, model.version)
            work.down(model.key)
    return work.graph


class _Search:
    """One graph in the making. A node is known by the key of its checkpoint, or by what it was where it has none."""

    def __init__(self, reader: Reader, start: Node, key: int) -> None:
        self.reader = reader
        self.graph = Graph([start])
        self.numbers: dict[object, int] = {key: 0}
        self.known: dict[int, Standing] = {}
        self.drawn: set[tuple[int, int, int, int]] = set()
        self.up_seen: set[tuple[int, int]] = set()

    # --- what it was made from ------------------------------------------------------------------------------------

    def up(self, key: int, version: int) -> None:
        from modelhub.catalog import lineage as rows

        frontier = {(key, version)}
        for _ in range(DEEPEST):
            frontier -= self.up_seen
            if not frontier:
                return
            self.up_seen |= frontier
            steps = [
                step
                for step in rows.parents(self.reader, [key for key, _ in frontier])
                if (step.child, step.child_version) in frontier
            ]
            self._meet(step.parent for step in steps)
            frontier = set()
            for step in steps:
                child = self.numbers[step.child]
                parent = self.known.get(step.parent or 0) or self._again(step.sha256, step.path, step.was)
                if parent is None:
                    frontier |= self._gone(child, step.child_version, step.path, step.sha256, step.was, rows.how(step))
                    continue
                frontier |= self._edge(parent, child, step)
        self.graph.truncated = True

    def _edge(self, parent: Standing, child: int, step: Step) -> set[tuple[int, int]]:
        """Draw one edge from a parent that is in the catalog; what is to be followed from there."""
        from modelhub.catalog.lineage import how

        number = self._number(parent)
        if number is None:
            return set()
        version = _version(step.was) if step.was.get("id") == parent.id else 0
        made_of = version or parent.version
        replaced = _stale(parent, version, step.sha256, step.created)
        self._draw(Edge(number, child, version, step.child_version, replaced, how(step)))
        return {(parent.key, made_of)}

    def _gone(
        self,
        child: int,
        child_version: int,
        path: bytes,
        digest: bytes | None,
        was: Mapping[str, Any],
        how: Mapping[str, Any],
        depth: int = 0,
    ) -> set[tuple[int, int]]:
        """A parent of which only what was written down is left, and what that says of its own; those of them that are in the
        catalog are to be followed."""
        place = os.fsdecode(path)
        sha256 = None if digest is None else f"sha256:{digest.hex()}"
        # One that was never in the catalog is known by place and bytes.
        identity = (was.get("id"), _version(was)) if was.get("id") else (place, sha256)
        number = self.numbers.get(identity)
        if number is None:
            name = str(was.get("name") or os.path.splitext(os.path.basename(place))[0])
            kind, precision = str(was.get("format") or ""), str(was.get("precision") or "")
            size = was.get("size") if isinstance(was.get("size"), int) else None
            number = self._add(identity, Node(was.get("id"), name, place, kind, precision, size, "gone", _version(was), sha256))
        if number is None:
            return set()
        self._draw(Edge(number, child, _version(was), child_version, None, how))
        found: set[tuple[int, int]] = set()
        steps = was.get("made_from")
        for before in steps if isinstance(steps, list) and depth < DEEPEST else ():
            earlier = before.get("was") or {}
            above, sha = os.fsencode(str(before.get("path") or "")), _digest(before.get("digest"))
            described = {key: value for key, value in before.items() if key not in ("path", "digest", "was")}
            parent = self._with_id(earlier.get("id")) or self._again(sha, above, earlier)
            if parent is None:
                found |= self._gone(number, _version(was), above, sha, earlier, described, depth + 1)
                continue
            higher = self._number(parent)
            if higher is not None:
                version = _version(earlier) if earlier.get("id") == parent.id else 0
                replaced = _stale(parent, version, sha, None)
                self._draw(Edge(higher, number, version, _version(was), replaced, described))
                found.add((parent.key, version or parent.version))
        return found

    # --- what was made of it --------------------------------------------------------------------------------------

    def down(self, key: int) -> None:
        """All that was made of a checkpoint, or of what stood there before, directly or by way of something that is gone."""
        from modelhub.catalog import lineage as rows

        self._meet([key])
        lost = _Lost(rows.orphans(self.reader))
        frontier, followed = {key}, set[int]()
        for _ in range(DEEPEST):
            frontier -= followed
            if not frontier:
                return
            followed |= frontier
            steps = [(self.known[step.parent], step) for step in rows.children(self.reader, sorted(frontier)) if step.parent]
            for key in sorted(frontier):
                steps += [(self.known[key], step) for step in rows.steps(self.reader, lost.of(self.known[key]))]
            self._meet(step.child for _, step in steps)
            frontier = set()
            for parent, step in steps:
                number = self._number(self.known[step.child])
                if number is None:
                    continue
                frontier.add(step.child)
                if step.parent is not None or (step.sha256 is not None and step.sha256 == parent.sha256):
                    self._edge(parent, number, step)
                else:
                    self._gone(number, step.child_version, step.path, step.sha256, step.was, rows.how(step))
        self.graph.truncated = True

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _meet(self, keys: Iterable[int | None]) -> None:
        from modelhub.catalog.lineage import standing

        wanted = {key for key in keys if key and key not in self.known}
        for row in standing(self.reader, keys=wanted):
            self.known[row.key] = row

    def _with_id(self, identity: object) -> Standing | None:
        from modelhub.catalog.lineage import standing

        found = standing(self.reader, ids=[identity]) if isinstance(identity, str) and identity else []
        return self._remember(found)

    def _again(self, digest: bytes | None, path: bytes, was: Mapping[str, Any]) -> Standing | None:
        """The checkpoint that has the same bytes as a source that is gone: it was forgotten, and found anew."""
        from modelhub.catalog.lineage import standing

        found = standing(self.reader, digests=[digest]) if digest else []
        found.sort(key=lambda row: (row.id != was.get("id"), os.path.join(row.root or b"", row.path) != path, row.key))
        return self._remember(found)

    def _remember(self, found: list[Standing]) -> Standing | None:
        for row in found[:1]:
            return self.known.setdefault(row.key, row)
        return None

    def _number(self, row: Standing) -> int | None:
        number = self.numbers.get(row.key)
        if number is not None:
            return number
        digest = None if row.sha256 is None else f"sha256:{row.sha256.hex()}"
        place = os.fsdecode(os.path.join(row.root or b"", row.path))
        return self._add(
            row.key, Node(row.id, row.name, place, row.format, row.precision, row.size, row.state, row.version, digest)
        )

    def _add(self, identity: object, node: Node) -> int | None:
        if len(self.graph.nodes) >= MOST:
            self.graph.truncated = True
            return None
        self.graph.nodes.append(node)
        self.numbers[identity] = len(self.graph.nodes) - 1
        return self.numbers[identity]

    def _draw(self, edge: Edge) -> None:
        ends = (edge.parent, edge.child, edge.parent_version, edge.child_version)
        if ends not in self.drawn:
            self.drawn.add(ends)
            self.graph.edges.append(edge)


class _Lost:
    """Outputs whose sources are not in the catalog: by what is written down of these."""

    def __init__(self, orphans: Iterable[tuple[int, bytes | None, Mapping[str, Any]]]) -> None:
        self.by_id: dict[str, list[int]] = defaultdict(list)
        self.by_digest: dict[bytes, list[int]] = defaultdict(list)
        for key, sha256, was in orphans:
            if sha256:
                self.by_digest[bytes(sha256)].append(key)
            for identity in _mentioned(was):
                self.by_id[identity].append(key)

    def of(self, source: Standing) -> list[int]:
        """Keys of the steps by which something was made of a checkpoint's bytes when it was another one; or of something gone
        that was made of it."""
        found = self.by_digest.get(bytes(source.sha256), []) if source.sha256 else []
        return list(dict.fromkeys([*found, *self.by_id.get(source.id, [])]))


def _mentioned(was: Mapping[str, Any]) -> set[str]:
    """Ids of a source and of all that it was made from."""
    found, left = set(), [was]
    while left:
        one = left.pop()
        if isinstance(one.get("id"), str):
            found.add(one["id"])
        left += [step.get("was") or {} for step in one.get("made_from") or ()]
    return found


def _version(was: Mapping[str, Any]) -> int:
    found = was.get("version")
    return found if isinstance(found, int) else 0


def _digest(text: str | None) -> bytes | None:
    return bytes.fromhex(text.removeprefix("sha256:")) if text else None


def _stale(parent: Standing, version: int, digest: bytes | None, created: int | None) -> bool:
    """Whether what a source has now is something else than what was made use of: by the digests, else the version, else the time
    of the last change."""
    if digest is not None and parent.sha256 is not None:
        return digest != parent.sha256
    if version:
        return version != parent.version
    return created is not None and parent.replaced is not None and parent.replaced > created

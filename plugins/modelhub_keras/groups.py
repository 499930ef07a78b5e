"""Groups of HDF5 files: what their names stand for, and the way through all of them. Links out of the file are told, not taken.

Old groups are a B-tree and a heap of names (specification III.A.1, III.B, III.D); newer ones have links in their headers
(IV.A.2.g), or in a heap of their own (`modelhub_keras.dense`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras import dense
from modelhub_keras.container import LAYOUT, LINK, LINK_INFO, MAX_OBJECTS, MAX_TEXT, SYMBOLS, Container, Cursor

MAX_DEPTH = 64
MAX_HOPS = 16
"""Soft links that are followed for one name."""
MAX_PARTS = 1000
MAX_PATH = 1 << 13
"""Characters of a dataset's path: long names of groups would be repeated with every dataset in them."""
MAX_KEPT = 5000
"""Groups whose links are kept; of larger ones, but one."""


class Link(NamedTuple):
    """What a name in a group stands for: an object's ``address``, another path (``soft``), or something outside (``outside``)."""

    address: int = -1
    soft: str = ""
    outside: str = ""


def is_group(file: Container, address: int) -> bool:
    return any(message.type in (SYMBOLS, LINK_INFO, LINK) for message in file.messages(address))


def links(file: Container, address: int) -> dict[bytes, Link]:
    """What is in a group, by name."""
    known: dict[bytes, Link] | None = file.kept.get(address)
    if known is None:
        known = _read_links(file, address)
        if len(file.kept) > MAX_KEPT or len(known) > MAX_KEPT:
            file.kept.clear()
        file.kept[address] = known
    return known


def _read_links(file: Container, address: int) -> dict[bytes, Link]:
    found: dict[bytes, Link] = {}
    for message in file.messages(address):
        data = Cursor(message.data, f"{file.name}: the group at {address}")
        if message.type == SYMBOLS:
            tree, heap = data.number(file.offsets), data.number(file.offsets)
            found.update(_symbols(file, tree, heap))
        elif message.type == LINK:
            name, link = _link(file, data)
            found[name] = link
        elif message.type == LINK_INFO:
            data.take(1)
            data.take(8 if data.number(1) & 1 else 0)
            heap, tree = data.number(file.offsets), data.number(file.offsets)
            if heap != file.undefined:
                for data in (Cursor(one, data.what) for one in dense.messages(file, heap, tree)):
                    name, link = _link(file, data)
                    found[name] = link
    return found


def _link(file: Container, data: Cursor) -> tuple[bytes, Link]:
    data.take(1)
    flags = data.number(1)
    kind = data.number(1) if flags & 8 else 0
    data.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = data.take(data.number(1 << (flags & 3)))
    if kind == 0:
        return name, Link(address=data.number(file.offsets))
    value = data.take(data.number(2))
    if kind == 1:
        return name, Link(soft=value.decode("utf-8", "surrogateescape"))
    where = value[1:].replace(b"\0", b" ").strip().decode("utf-8", "replace")[:300]
    return name, Link(outside=f"link to another file, {where}" if kind == 64 else "link of an unknown kind")


def _symbols(file: Container, tree: int, heap: int) -> Iterator[tuple[bytes, Link]]:
    """The entries of a group's B-tree, with their names from its heap."""
    head = Cursor(file.at(heap, 8 + 2 * file.lengths + file.offsets, "a heap"), f"{file.name}: the heap at {heap}")
    if head.take(4) != b"HEAP":
        raise InvalidFile(f"{file.name}: no heap at address {heap}")
    head.take(4)
    size = head.number(file.lengths)
    head.take(file.lengths)
    if size > MAX_TEXT:
        raise InvalidFile(f"{file.name}: a heap of {size} bytes at address {heap}")
    names = file.at(head.number(file.offsets), size, "a heap's data")
    width = 2 * file.offsets + 24
    for _, node in file.entries(tree, 0, file.lengths):
        entry = Cursor(file.at(node, 8, "a symbol table"), f"{file.name}: the symbol table at {node}")
        if entry.take(4) != b"SNOD":
            raise InvalidFile(f"{file.name}: no symbol table at address {node}")
        entry.take(2)
        count = entry.number(2)
        table = Cursor(file.at(node + 8, count * width, "a symbol table"), entry.what)
        for _ in range(count):
            name, address, kind = table.number(file.offsets), table.number(file.offsets), table.number(4)
            table.take(4)
            scratch = table.take(16)
            if kind == 2:
                target = Cursor(names, f"{file.name}: a soft link", int.from_bytes(scratch[:4], "little")).text()
                yield Cursor(names, entry.what, name).text(), Link(soft=target.decode("utf-8", "surrogateescape"))
            else:
                yield Cursor(names, entry.what, name).text(), Link(address=address)


class Entry(NamedTuple):
    """A dataset that was found under ``path``, or something that leads out of the file (``outside`` says where to)."""

    path: str
    address: int
    outside: str = ""


def walk(file: Container) -> Iterator[Entry]:
    """Every dataset, group by group in the order of their names. A group that is in several places is gone through in the first;
    a soft link to a dataset is told as that dataset, one to a group is not followed: what is there is found in its own place."""
    seen, left = {file.root}, MAX_OBJECTS
    stack: list[tuple[int, str, int]] = [(file.root, "", 0)]
    while stack:
        group, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InvalidFile(f"{file.name}: groups nest deeper than {MAX_DEPTH}: {path[:200]!r}")
        inner = []
        members = links(file, group)
        for name in sorted(members, key=_natural):
            left -= 1
            if left < 0:
                raise InvalidFile(f"{file.name}: more than {MAX_OBJECTS} objects")
            full = path + ("/" if path else "") + name.decode("utf-8", "surrogateescape")
            if len(full) > MAX_PATH:
                raise InvalidFile(f"{file.name}: a name of {len(full)} characters, {MAX_PATH} at most are read: {full[:200]!r}")
            link = follow(file, group, members[name])
            if link.outside:
                yield Entry(full, -1, link.outside)
            elif link.address < 0:
                continue
            elif file.message(link.address, LAYOUT):
                yield Entry(full, link.address)
            elif members[name].address >= 0 and link.address not in seen and is_group(file, link.address):
                seen.add(link.address)
                inner.append((link.address, full, depth + 1))
        stack.extend(reversed(inner))


def _natural(name: bytes) -> tuple[int, int, bytes]:
    """Numbers by their size, before all others."""
    return (0, int(name), name) if name.isdigit() and len(name) < 10 else (1, 0, name)


def follow(file: Container, group: int, link: Link) -> Link:
    """Where a link leads in the end: an object, something outside, or nowhere (an empty `Link`)."""
    hops, left = 0, list[str]()
    while True:
        if link.outside:
            return link
        if link.soft:
            hops += 1
            group = file.root if link.soft.startswith("/") else group
            left = [part for part in link.soft.split("/") if part not in ("", ".")] + left
            if hops > MAX_HOPS or len(left) > MAX_PARTS:
                return Link()
            link = Link(address=group)
        if not left:
            return link
        if link.address < 0 or not is_group(file, link.address):
            return Link()
        group = link.address
        link = links(file, group).get(left.pop(0).encode("utf-8", "surrogateescape"), Link())


def group_at(file: Container, path: str, start: int | None = None) -> int | None:
    """The address of the group at a path below ``start`` (default: the root), or None; only hard links are followed."""
    at = file.root if start is None else start
    for part in path.split("/"):
        link = links(file, at).get(part.encode("utf-8", "surrogateescape")) if is_group(file, at) else None
        if link is None or link.address < 0:
            return None
        at = link.address
    return at if is_group(file, at) else None

"""What the manifest and the nodes of an OCDBT database say, decoded from their bytes.

(TensorStore's ``kvstore/ocdbt/index.rst``, "Storage format": manifest, data file table, version tree, B+tree.) All have a magic
number, their length, a version, a compression, a body and a CRC-32C. Counts are held against the body's length, for every entry
takes a byte at least.
"""

from __future__ import annotations

from typing import NamedTuple

from modelhub import InvalidFile, UnsupportedFile, crc32c

from modelhub_orbax import zstd

MANIFEST, BTREE = 0x0CDB3A2A, 0x0CDB20DE
SINGLE, NUMBERED = 0, 1
MAX_NODE = 256 << 20
"""Bytes that a node unpacks to at the most. Orbax asks TensorStore for nodes of up to 100 MB."""
MAX_PATH = MAX_KEY = 65535
MAX_ENTRIES = 4_000_000
NOWHERE = (1 << 64) - 1
"""Offset and length of the root of a database that has no keys."""


class Place(NamedTuple):
    """Bytes in a data file. ``base``: the part of its path that goes before the paths that a node there names."""

    path: bytes
    base: bytes
    offset: int
    length: int


class Root(NamedTuple):
    """The B+tree of a generation; ``place`` is None where it has no keys."""

    generation: int
    height: int
    place: Place | None


class Manifest(NamedTuple):
    kind: int
    root: Root | None


class Child(NamedTuple):
    """A node below another: what its keys begin with, and where it stands."""

    prefix: bytes
    place: Place


class Node(NamedTuple):
    """A node of the tree: ``children`` of one that has a height, ``values`` (key, bytes or their place) of a leaf."""

    height: int
    children: list[Child]
    values: list[tuple[bytes, bytes | Place]]


class _Body:
    """Reads on; every error says where."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, nbytes: int) -> bytes:
        if nbytes > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise InvalidFile(f"{self.where}: {nbytes} bytes at byte {self.at} expected, {left} are left")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, limit: int = NOWHERE) -> int:
        value = shift = 0
        start = self.at
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > limit:
                    raise InvalidFile(f"{self.where}: {value} at byte {start}, at most {limit} makes sense")
                return value
            shift += 7
        raise InvalidFile(f"{self.where}: a number at byte {start} is longer than ten bytes")

    def count(self) -> int:
        return self.varint(min(MAX_ENTRIES, len(self.data) - self.at))

    def varints(self, count: int, limit: int = NOWHERE) -> list[int]:
        return [self.varint(limit) for _ in range(count)]


def _opened(data: bytes, magic: int, where: str) -> _Body:
    """The body of what stands in ``data``. `InvalidFile` where magic, length, version or checksum are not what they must be."""
    if len(data) < 18 or int.from_bytes(data[:4], "big") != magic:
        raise InvalidFile(f"{where}: begins with {data[:4].hex()}, {magic:08x} was expected")
    length = int.from_bytes(data[4:12], "little")
    if length != len(data):
        raise InvalidFile(f"{where}: says that it is {length} bytes long, there are {len(data)}")
    if crc32c(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
        raise InvalidFile(f"{where}: the checksum does not fit the {length} bytes: they are damaged")
    head = _Body(data[:-4], where)
    head.at = 12
    version, compression = head.varint(), head.varint()
    if version or compression > 1:
        raise UnsupportedFile(f"{where}: version {version}, compression {compression}; 0, and 0 or 1 are read")
    body = head.data[head.at :]
    return _Body(zstd.unpack(body, MAX_NODE, where) if compression else body, where)


def _files(body: _Body, base: bytes) -> list[tuple[bytes, bytes]]:
    """The data file table: (path, the part of it that is a base) of each."""
    count = body.count()
    shared = [0, *body.varints(max(0, count - 1), MAX_PATH)][:count]
    more, bases = body.varints(count, MAX_PATH), body.varints(count, MAX_PATH)
    found: list[tuple[bytes, bytes]] = []
    previous, total = b"", 0
    for index in range(count):
        path = previous[: shared[index]] + body.take(more[index])
        total += len(path) + len(base)
        if len(path) != shared[index] + more[index] or bases[index] > len(path) or len(base) + len(path) > MAX_PATH:
            raise InvalidFile(f"{body.where}: the path of data file {index} is put together wrongly")
        if total > min(MAX_NODE, most_keys(len(body.data))):
            raise InvalidFile(f"{body.where}: {total} bytes of paths in {len(body.data)} bytes: no writer shares so much")
        found.append((base + path, base + path[: bases[index]]))
        previous = path
    return found


def _places(body: _Body, count: int, files: list[tuple[bytes, bytes]], lengths: list[int] | None = None) -> list[Place]:
    numbers = body.varints(count, max(0, len(files) - 1))
    if count and not files:
        raise InvalidFile(f"{body.where}: entries in data files, and no data file is named")
    offsets = body.varints(count)
    sizes = lengths if lengths is not None else body.varints(count)
    return [Place(*files[number], offset, size) for number, offset, size in zip(numbers, offsets, sizes, strict=True)]


def most_keys(nbytes: int) -> int:
    """Bytes that the keys in ``nbytes`` of nodes may take: each says how much of the one before it begins with."""
    return (1 << 20) + 64 * nbytes


def manifest(data: bytes, where: str) -> Manifest:
    """What a manifest says: its kind, and the newest generation where it has any."""
    body = _opened(data, MANIFEST, where)
    body.take(16)  # the database's own number
    kind = body.varint()
    body.varint()  # the longest value inside a node
    body.varint()  # the largest node
    body.byte()  # the version tree's arity
    compression = body.varint()
    if kind > NUMBERED or compression > 1:
        raise UnsupportedFile(f"{where}: kind {kind}, compression {compression}; 0 or 1 are read")
    if compression:
        body.take(4)
    if kind == NUMBERED:
        return Manifest(kind, None)
    files = _files(body, b"")
    count = body.count()
    if not count:
        raise InvalidFile(f"{where}: names no generation")
    generations = body.varints(count)
    heights = body.take(count)
    places = _places(body, count, files)
    newest = max(range(count), key=lambda index: generations[index])
    place = places[newest]
    missing = (place.offset, place.length) == (NOWHERE, NOWHERE)
    return Manifest(kind, Root(generations[newest], heights[newest], None if missing else place))


def node(data: bytes, base: bytes, prefix: bytes, where: str) -> Node:
    """A node of the B+tree. ``base``: of the file that it stands in; ``prefix``: what all keys below begin with."""
    body = _opened(data, BTREE, where)
    height = body.byte()
    files = _files(body, base)
    count = body.count()
    if not count:
        raise InvalidFile(f"{where}: a node without entries")
    shared = [0, *body.varints(count - 1, MAX_KEY)]
    more = body.varints(count, MAX_KEY)
    common = body.varints(count, MAX_KEY) if height else []
    keys: list[bytes] = []
    previous, total = b"", 0
    for index in range(count):
        key = previous[: shared[index]] + body.take(more[index])
        total += len(key) + len(prefix)
        if len(key) != shared[index] + more[index] or len(prefix) + len(key) > MAX_KEY or (keys and key <= previous):
            raise InvalidFile(f"{where}: key {index} is put together wrongly, or out of order")
        if total > min(MAX_NODE, most_keys(len(body.data))):
            raise InvalidFile(f"{where}: {total} bytes of keys in {len(body.data)} bytes: no writer shares so much")
        keys.append(key)
        previous = key
    if height:
        if any(length > len(key) for length, key in zip(common, keys, strict=True)):
            raise InvalidFile(f"{where}: more of a key is common to a subtree than there is of it")
        places = _places(body, count, files)
        return Node(height, [Child(prefix + key[:n], at) for key, n, at in zip(keys, common, places, strict=True)], [])
    lengths = body.varints(count)
    kinds = body.varints(count, 1)
    outside = [index for index in range(count) if kinds[index]]
    found: dict[int, bytes | Place] = {}
    found.update(zip(outside, _places(body, len(outside), files, [lengths[index] for index in outside]), strict=True))
    for index in range(count):
        if not kinds[index]:
            found[index] = body.take(lengths[index])
    return Node(0, [], [(prefix + keys[index], found[index]) for index in range(count)])

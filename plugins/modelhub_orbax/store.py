"""The values of a checkpoint by their keys, wherever they stand: in an OCDBT database, or in files of their own.

A key is what TensorStore calls it: ``params.dense.kernel/.zarray``, ``params.dense.kernel/0.0``. Nothing but what the database's
nodes are is read here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from modelhub import Checkpoint, Extent, File, IncompleteFile, Inline, InvalidFile

from modelhub_orbax import nodes

DATABASE = "manifest.ocdbt"
MAX_NODES = 1_000_000
MAX_NODE_BYTES = 512 << 20
"""Of nodes as they are stored, all told."""
MAX_KEYS = 4_000_000
MAX_KEY_BYTES = 512 << 20
"""Of keys, all told."""
Values = dict[str, Extent | Inline]


class Store:
    """An item: the files below ``directory``, and the values in them."""

    def __init__(self, checkpoint: Checkpoint, directory: str) -> None:
        self.directory = directory
        self.prefix = directory.rstrip("/") + "/"
        self.files = frozenset(path for path in checkpoint.files if path.startswith(self.prefix))
        self.values: Values = self._database() if self.prefix + DATABASE in self.files else self._directories()

    def open(self, name: str) -> File:
        """A file of the item, by its path below it. `IncompleteFile` where the checkpoint has none: nothing else is opened."""
        path = self.prefix + name
        if path not in self.files:
            raise IncompleteFile(f"{name!r:.200} is not there: the database refers to it")
        return File(path)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.files

    def read(self, value: Extent | Inline, limit: int, what: str) -> bytes:
        """The bytes of a short value."""
        if isinstance(value, Inline):
            return value.data
        if value.nbytes > limit:
            raise InvalidFile(f"{what} is {value.nbytes} bytes long; at most {limit} are read")
        with File(value.file) as file:
            return file.read(value.offset, value.nbytes)

    def _directories(self) -> Values:
        start = len(self.prefix)
        return {path[start:]: Extent(path, 0, os.stat(path).st_size) for path in sorted(self.files) if "/" in path[start:]}

    # --- the database ---------------------------------------------------------------------------------------------

    def _database(self) -> Values:
        root = self._manifest(DATABASE)
        found: Values = {}
        if root.place is None:
            return found
        left, seen, last = MAX_NODE_BYTES, 0, b""
        of_keys = 0
        stack = [(root.place, b"", root.height)]
        while stack:
            place, prefix, height = stack.pop()
            left, seen = left - place.length, seen + 1
            if left < 0 or seen > MAX_NODES:
                raise InvalidFile(f"{DATABASE}: more nodes than are read of one database")
            name = os.fsdecode(place.path)
            where = f"{os.path.basename(name)}: a node at offset {place.offset}"
            with self.open(name) as file:
                data = file.read(place.offset, place.length)
            node = nodes.node(data, place.base, prefix, where)
            if node.height != height:
                raise InvalidFile(f"{where}: has height {node.height}, {height} was expected: the tree is no tree")
            stack.extend((child.place, child.prefix, height - 1) for child in reversed(node.children))
            for key, value in node.values:
                if found and key <= last:
                    raise InvalidFile(f"{where}: key {key!r:.200} is there before: the tree is no tree")
                last = key
                of_keys += len(key)
                found[os.fsdecode(key)] = Inline(value) if isinstance(value, bytes) else self._extent(value)
            if len(found) > MAX_KEYS or of_keys > min(MAX_KEY_BYTES, nodes.most_keys(MAX_NODE_BYTES - left)):
                raise InvalidFile(
                    f"{DATABASE}: more than {MAX_KEYS} keys, or keys of {of_keys} bytes: nothing honest has so many"
                )
        return found

    def _extent(self, place: nodes.Place) -> Extent:
        name = os.fsdecode(place.path)
        if self.prefix + name not in self.files:
            raise IncompleteFile(f"{name!r:.200} is not there: the database refers to it")
        return Extent(self.prefix + name, place.offset, place.length)

    def _manifest(self, name: str) -> nodes.Root:
        """The newest generation; of numbered manifests, the one with the highest number has it."""
        with self.open(name) as file:
            found = nodes.manifest(file.read(0, file.size), name)
        if found.root is None and name == DATABASE:
            numbered = [path for path in self.files if os.path.dirname(path) + "/" == self.prefix and _is_numbered(path)]
            if numbered:
                return self._manifest(os.path.basename(max(numbered)))
        if found.root is None:
            raise IncompleteFile(f"{name} says that manifests with numbers are beside it, and there are none")
        return found.root


def _is_numbered(path: str) -> bool:
    stem, _, digits = os.path.basename(path).rpartition(".")
    return stem == "manifest" and len(digits) == 16 and all(digit in "0123456789abcdef" for digit in digits)


def arrays(values: Mapping[str, Extent | Inline]) -> dict[str, Values]:
    """What belongs to each array, by the array's name, with the keys behind it."""
    found: dict[str, Values] = {}
    heads = {key.rpartition("/")[0] for key in values if key.rpartition("/")[2] in (".zarray", "zarr.json")}
    for key, value in values.items():
        at = key.rfind("/")
        while at >= 0:  # a name may have slashes of its own, and so have the names of chunks
            if key[:at] in heads:
                found.setdefault(key[:at], {})[key[at + 1 :]] = value
                break
            at = key.rfind("/", 0, at)
    return found

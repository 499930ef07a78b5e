"""PyTorch's format of before 1.6: five pickles one behind the other, then the storages.

Layout (torch/serialization.py, ``_legacy_save``): the magic number, the protocol version 1001, ``sys_info``, the object, the
list of storage keys, each a pickle; then for each key an int64 count of elements and the elements. Count and elements are
little-endian on every machine (torch/csrc/serialization.cpp, ``THPStorage_writeFileRaw``), so ``sys_info`` says nothing of
them, and torch ignores it.
"""

from __future__ import annotations

from typing import Any

from modelhub import Extent, File, IncompleteFile, InvalidFile

from modelhub_pytorch.allow import Report
from modelhub_pytorch.archive import MAX_PICKLE, Pickled
from modelhub_pytorch.pickle_vm import Exhausted, Machine
from modelhub_pytorch.rebuild import World
from modelhub_pytorch.stubs import Storage

MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""LONG1, ten bytes: 0x1950a86a20f9469cfc6c."""
_NUMBER = 0x1950A86A20F9469CFC6C
_PARTS = ("magic number", "protocol version", "system information", "object", "storage keys")


def is_legacy(head: bytes) -> bool:
    """Whether a file starts with the magic number's pickle, whatever its protocol."""
    return head[:1] == b"\x80" and MAGIC in head[:32]


class Legacy:
    """One legacy file. The places of its storages are known once `load` has run."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._places: dict[str, Extent] = {}

    def load(self, report: Report) -> Pickled:
        """Every one of the five pickles, and the places of the storages behind them."""
        file = self.file
        world = World(file.name, report)
        data = file.read(0, min(file.size, 256 << 10))
        position = 0
        parts: list[Any] = []
        attributes: list[tuple[Any, Any]] = []
        for number, what in enumerate(_PARTS):
            report.where = "" if what == "object" else f"pickle {number + 1} ({what})"
            while True:
                machine = Machine(data, f"{file.name}: {what}", world.resolve, world.persistent, report, file.size - len(data))
                try:
                    part, position = machine.load(position)
                except Exhausted:
                    if len(data) >= MAX_PICKLE:
                        raise InvalidFile(f"{file.name}: {what} is a pickle of more than {MAX_PICKLE} bytes") from None
                    data = file.read(0, min(file.size, len(data) * 4, MAX_PICKLE))
                    continue
                break
            parts.append(part)
            if what == "object":
                attributes = machine.attributes
            if what == "magic number" and part != _NUMBER:
                raise InvalidFile(f"{file.name}: the magic number is not a PyTorch checkpoint's")
            if what == "protocol version" and part != 1001:
                raise InvalidFile(f"{file.name}: protocol version {part!r:.40}, 1001 expected")
        report.where = ""
        self._locate(parts[4], position, world)
        return Pickled(parts[3], attributes, world)

    def _locate(self, keys: Any, position: int, world: World) -> None:
        """Walk the storages behind the pickles, eight bytes at each."""
        file = self.file
        if type(keys) is not list or not all(type(key) in (str, int, bytes) for key in keys):
            raise InvalidFile(f"{file.name}: the storage keys are not a list of texts")
        sizes: dict[str, int] = {}
        for storage in world.storages.values():  # the first mention of a key decides, as it does for torch
            sizes.setdefault(storage.key, storage.itemsize)
        for key in keys:
            name = key.decode("latin-1") if type(key) is bytes else str(key)
            if name not in sizes or name in self._places:
                raise InvalidFile(
                    f"{file.name}: storage {name!r:.80} is stored, but "
                    + ("twice" if name in self._places else "nothing names it")
                )
            count = int.from_bytes(file.read(position, 8), "little", signed=True)
            nbytes = count * sizes[name]
            if count < 0 or position + 8 + nbytes > file.size:
                raise IncompleteFile(
                    f"{file.name}: storage {name!r:.80} at offset {position} has {count} elements, the file ends at {file.size}"
                )
            self._places[name] = Extent(file.path, position + 8, nbytes)
            position += 8 + nbytes
        if position != file.size:
            raise InvalidFile(f"{file.name}: {file.size - position} bytes follow the last storage")

    def place(self, storage: Storage) -> Extent:
        """Where a storage's bytes lie. `InvalidFile` where there are more or fewer than it declares."""
        extent = self._places.get(storage.key)
        if extent is None:
            raise InvalidFile(f"{self.file.name}: storage {storage.key!r:.80} is named and is not in the file")
        expected = storage.whole * storage.itemsize
        if extent.nbytes != expected:
            raise InvalidFile(f"{self.file.name}: storage {storage.key!r:.80} has {extent.nbytes} bytes, {expected} expected")
        return extent

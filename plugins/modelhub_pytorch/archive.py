"""PyTorch's zip format, and TorchScript's: one file's pickles, and where its storages lie.

Layout (caffe2/serialize/inline_container.h, torch/serialization.py ``_save``): ``ROOT/data.pkl``, ``ROOT/data/KEY`` for each
storage, ``ROOT/byteorder``, ``ROOT/version``; TorchScript adds ``ROOT/constants.pkl``, ``ROOT/constants/KEY`` and
``ROOT/code/``. ROOT is the first member's, whatever the file is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelhub import Extent, File, InvalidFile, Node, UnsupportedFile, ZipMember, ops, zip_members

from modelhub_pytorch.allow import Report
from modelhub_pytorch.pickle_vm import Machine
from modelhub_pytorch.rebuild import World
from modelhub_pytorch.stubs import Storage

MAX_PICKLE = 512 << 20
"""The longest pickle that is read."""


@dataclass(frozen=True)
class Pickled:
    """What one file's pickles hold. ``attributes``: states set on plain containers. ``constants`` of a TorchScript archive."""

    root: Any
    attributes: list[tuple[Any, Any]]
    world: World
    big: bool = False
    constants: Any = None


class Archive:
    """One zip, its members checked, nothing unpickled yet. `InvalidFile` where it is no PyTorch archive that can be trusted."""

    def __init__(self, file: File) -> None:
        self.file = file
        members = zip_members(file)
        self.members = {member.name: member for member in members}
        roots = [name[: -len("/data.pkl")] for name in self.members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            if any(name.endswith("/model.json") for name in self.members):
                raise UnsupportedFile(
                    f"{file.name} is a TorchScript archive of before PyTorch 1.4 (model.json), which is not read"
                )
            what = f"{len(roots)} roots have a data.pkl: {', '.join(roots[:3])}" if roots else "no data.pkl in it"
            raise InvalidFile(f"{file.name} is no PyTorch archive: {what}")
        self.root = roots[0]
        first = min(members, key=lambda member: member.header_offset)
        if first.name.split("/", 1)[0] != self.root:
            raise InvalidFile(
                f"{file.name}: its first member is {first.name}, its data.pkl is under {self.root}: readers disagree on the root"
            )
        self.torchscript = f"{self.root}/constants.pkl" in self.members
        self.big = self._big_endian()

    def _big_endian(self) -> bool:
        record = self.members.get(f"{self.root}/byteorder")
        order = record.read(self.file, limit=64).decode("ascii", "backslashreplace") if record else "little"
        if order not in ("little", "big"):
            raise InvalidFile(f"{self.file.name}: byteorder is {order!r}, little or big expected")
        return order == "big"

    def pickles(self) -> list[ZipMember]:
        """Every member that some program may unpickle: ``data.pkl``, and what else ends in .pkl."""
        return [member for name, member in self.members.items() if name.lower().endswith((".pkl", ".pickle"))]

    def unpickle(self, member: ZipMember, world: World, report: Report) -> tuple[Any, Machine]:
        """The object of one pickle. Its CRC is checked, unless the archive was written without."""
        data = member.read(self.file, limit=MAX_PICKLE)
        name = member.name.split("/", 1)[-1]
        report.where = "" if name == "data.pkl" else name
        machine = Machine(data, f"{self.file.name}: {name}", world.resolve, world.persistent, report)
        root, end = machine.load()
        if end != len(data):
            report.note(f"{len(data) - end} bytes follow the end of the pickle")
        return root, machine

    def load(self, report: Report) -> Pickled:
        """The archive's objects. What is not innocent goes to ``report``, also where this raises."""
        world = World(self.file.name, report, torchscript=self.torchscript)
        data = self.members[f"{self.root}/data.pkl"]
        for member in self.pickles():  # others than data.pkl: looked at for what they name, not for tensors
            if member is not data and member.name != f"{self.root}/constants.pkl" and member.size <= MAX_PICKLE:
                self._look(member, report)
        root, machine = self.unpickle(data, world, report)
        constants = None
        if self.torchscript:
            world.area = "constants"
            constants, _ = self.unpickle(self.members[f"{self.root}/constants.pkl"], world, report)
        report.where = ""
        return Pickled(root, machine.attributes, world, self.big, constants)

    def _look(self, member: ZipMember, report: Report) -> None:
        try:
            self.unpickle(member, World(self.file.name, report, torchscript=self.torchscript), report)
        except InvalidFile as problem:
            report.note(f"cannot be followed to its end: {problem.message}")

    def place(self, storage: Storage) -> Extent | Node:
        """Where a storage's bytes lie. `InvalidFile` where there are more or fewer than it declares."""
        member = self.members.get(f"{self.root}/{storage.area}/{storage.key}")
        if member is None:
            raise InvalidFile(f"{self.file.name}: storage {storage.area}/{storage.key[:80]!r} is named and is not in the archive")
        expected = storage.whole * storage.itemsize
        if member.size != expected:
            raise InvalidFile(
                f"{self.file.name}: storage {storage.area}/{storage.key[:80]!r} has {member.size} bytes, {expected} expected"
            )
        return ops.inflate(member.extent, nbytes=member.size) if member.deflated else member.extent

"""Reads ExecuTorch's programs and files of tensors: constants, methods, operators and delegates.

Fields are by their numbers in ``schema/program.fbs`` and ``extension/flat_tensor/serialize/flat_tensor.fbs``. A constant is a
tensor value with a buffer and no place in the memory that is planned; one with both is a buffer that begins with what stands
there. What a delegate (XNNPACK, Core ML, ...) took over is in its own format, and is counted, not read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Detection, File, InvalidFile, Metadata, Tensor
from modelhub.flatbuffers import Table

from modelhub_executorch.container import Container, Segment, nbytes_of, opened, shaped, tensor

TENSOR_VALUE, KERNEL, DELEGATE = 5, 1, 2
EXTERNAL = 1
MAX_PLANS = 1000
_SHOWN = 64
_IDENTIFIER = re.compile(rb"(ET|FT)\d\d")


def detect(file: File) -> Detection | None:
    """The FlatBuffers identifier: ``ET12`` or ``FT01``. Where one program stands in a directory, the tensors there are its."""
    if not _IDENTIFIER.fullmatch(file.head[4:8]):
        return None
    names = {suffix: [name for name in file.siblings or () if name.lower().endswith(suffix)] for suffix in (".pte", ".ptd")}
    if len(names[".pte"]) != 1 or not names[".ptd"] or not file.name.lower().endswith((".pte", ".ptd")):
        return Detection([file.path], confidence=90)
    directory = os.path.dirname(file.path)
    paths = [os.path.join(directory, name) for name in (*names[".pte"], *names[".ptd"])]
    if not all(_is_ours(path) for path in paths if path != file.path):
        return Detection([file.path], confidence=90)
    return Detection(paths, confidence=91)


def _is_ours(path: str) -> bool:
    with File(path) as other:
        return bool(_IDENTIFIER.fullmatch(other.head[4:8]))


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    """The tensors of the files beside the program first: its own constants that stand there are none of it."""
    values: dict[str, Any] = {}
    outside: set[str] = set()
    program: File | None = None
    for file in checkpoint:
        if file.head[4:6] != b"FT":
            program = file
            continue
        for record in _tensors(opened(file, 1)):
            if isinstance(record, Metadata):
                values["blobs"] = values.get("blobs", 0) + record.values.get("blobs", 0)
            else:
                outside.add(record.name)
                yield record
    if program is not None:
        for found in _program(opened(program, 4)):
            if isinstance(found, Metadata):
                values = {**found.values, "blobs": values.get("blobs", 0) + found.values.get("blobs", 0)}
            elif found.name not in outside:
                yield found
    if not values.get("blobs"):
        values.pop("blobs", None)
    yield Metadata(values=values, container="program" if program else "tensors")


def _tensors(container: Container) -> Iterator[Tensor | Metadata]:
    """A file of tensors: names, layouts and segments; what has no layout is data of a delegate's own."""
    others = 0
    for entry in container.root.tables(2):
        name, layout = entry.text(0), entry.table(2)
        place = _segment(container, entry.number(1, "I"), name)
        if layout is None:
            others += 1
            continue
        where = f"{container.file.name}: {name!r:.200}"
        shape = shaped(layout.numbers(1, "i"), where)
        yield tensor(name, layout.number(0, "b"), shape, layout.numbers(2, "B"), place, container.file)
    yield Metadata(values={"blobs": others} if others else {}, container="tensors")


def _segment(container: Container, number: int, what: str) -> Segment:
    if number >= len(container.segments):
        raise InvalidFile(f"{container.file.name}: {what!r:.200} is in segment {number} of {len(container.segments)}")
    return container.segments[number]


class _Constants:
    """Where a program's buffers stand: in a segment, each at an offset, or (older programs) in the FlatBuffer."""

    def __init__(self, container: Container) -> None:
        self.container = container
        root, self.inline = container.root, []
        for buffer in root.tables(2):
            place = buffer.place(0)
            self.inline.append(Segment(*place) if place else Segment(0, 0))
        described = root.table(5)
        self.constant = self._offsets(described) if described else []
        self.mutable = [self._offsets(item) for item in root.tables(6)]

    def _offsets(self, described: Table) -> list[Segment]:
        """What is left of the segment from each offset on."""
        offsets = described.numbers(1, "Q")
        if not offsets:
            return []
        segment = _segment(self.container, described.number(0, "I"), "a table of constants")
        found = [Segment(segment.offset + offset, segment.nbytes - offset) for offset in offsets]
        if any(item.nbytes < 0 for item in found):
            raise InvalidFile(f"{self.container.file.name}: a constant begins behind its segment of {segment.nbytes} bytes")
        return found

    def place(self, number: int, mutable: int | None, where: str) -> Segment:
        if mutable is not None:
            places = self.mutable[mutable] if mutable < len(self.mutable) else []
        else:
            places = self.constant or self.inline
        if number >= len(places):
            raise InvalidFile(f"{where} has buffer {number} of {len(places)}")
        return places[number]


def _program(container: Container) -> Iterator[Tensor | Metadata]:
    constants = _Constants(container)
    root = container.root
    seen: dict[str, Tensor] = {}
    methods: dict[str, Any] = {}
    for plan in root.tables(1):
        if len(methods) >= MAX_PLANS:
            raise InvalidFile(f"{container.file.name}: more than {MAX_PLANS} methods")
        method = plan.text(0) or f"method_{len(methods)}"
        values = list(_values(plan))
        for number, value in values:
            record = _constant(f"{method}.{number}", value, constants)
            if record is not None and seen.setdefault(record.name, record) is record:
                yield record
        methods[method] = _described(plan, dict(values))
    values_shown: dict[str, Any] = {"version": root.number(0, "I"), "methods": methods}
    named = root.count(7)
    if named:
        values_shown["blobs"] = named  # data of delegates, by names of their own
    yield Metadata(values=values_shown, container="program")


def _values(plan: Table) -> Iterator[tuple[int, Table]]:
    """(number, value) of those that are tensors."""
    for number, value in enumerate(plan.tables(2)):
        inside = value.table(1) if value.number(0, "B") == TENSOR_VALUE else None
        if inside is not None:
            yield number, inside


def _constant(name: str, value: Table, constants: _Constants) -> Tensor | None:
    """A tensor value's record, where the program holds what is in it."""
    extra = value.table(9)
    name = (extra.text(1) if extra else "") or name
    where = f"{constants.container.file.name}: {name!r:.200}"
    shape = shaped(value.numbers(2, "i"), where)
    scalar, order, buffer = value.number(0, "b"), value.numbers(3, "B"), value.number(5, "I")
    planned = value.table(6) is not None
    if extra is not None and extra.number(2, "b") == EXTERNAL and not planned:
        return Tensor(name, _dtype(scalar), shape, None, unsupported="constant of a .ptd file that is not beside the program")
    if buffer == 0:
        return None
    mutable = extra.number(0, "Q") if planned and extra is not None else 0 if planned else None
    place = constants.place(buffer, mutable, where)
    skip = value.number(1, "i") * max(0, nbytes_of(scalar, (1,)))
    if not 0 <= skip <= place.nbytes:
        raise InvalidFile(f"{where} begins {skip} bytes into a buffer of {place.nbytes}")
    return tensor(name, scalar, shape, order, Segment(place.offset + skip, place.nbytes - skip), constants.container.file)


def _dtype(scalar: int) -> str:
    from modelhub_executorch.container import SCALARS

    return SCALARS.get(scalar, f"type {scalar}")


def _described(plan: Table, values: dict[int, Table]) -> dict[str, Any]:
    """A method's inputs and outputs, operators by their uses, and delegates."""
    names = [":".join(filter(None, (op.text(0), op.text(1)))).removesuffix(":out") for op in plan.tables(6)]
    used: Counter[str] = Counter()
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            call = instruction.table(1)
            if instruction.number(0, "B") == KERNEL and call is not None:
                number = call.number(0, "i")
                used[names[number] if 0 <= number < len(names) else f"operator {number}"] += 1
    found: dict[str, Any] = {}
    for key, field in (("inputs", 3), ("outputs", 4)):
        found[key] = [_said(values.get(number)) for number in plan.numbers(field, "i", most=1 << 16)[:_SHOWN]]
    if used:
        found["operators"] = dict(used.most_common(_SHOWN))
    delegates = Counter(delegate.text(0) for delegate in plan.tables(7))
    if delegates:
        found["delegates"] = dict(delegates.most_common(_SHOWN))
    return found


def _said(value: Table | None) -> str:
    if value is None:
        return "no tensor"
    return f"{_dtype(value.number(0, 'b'))} {'x'.join(map(str, value.numbers(2, 'i', most=64))) or 'scalar'}"

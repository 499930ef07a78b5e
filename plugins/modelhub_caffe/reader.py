"""Trained networks of Caffe: a protobuf message with a message for each layer, whose weights are its "blobs".

Numbers of fields are those of Caffe's ``src/caffe/proto/caffe.proto``: NetParameter, LayerParameter, V1LayerParameter (files of
before 2014), BlobProto. A blob is called as pycaffe finds it: ``net.params["conv1"][0]`` is ``conv1.0``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from modelhub import Checkpoint, Detection, Extent, File, FileProblem, Inline, InvalidFile, Metadata, Rejected, Tensor
from modelhub.protobuf import BYTES, FIXED32, FIXED64, VARINT, Wire

SUFFIX = ".caffemodel"
MAX_NAME = 1 << 16
MAX_RANK = 32
"""As many sides as Caffe allows (``kMaxBlobAxes``, ``blob.hpp``)."""
MAX_LAYERS = 100_000
LOOKED_AT = 64
"""Fields of the network among which the first layer is to stand: what its inputs are may come before."""
NAME, LAYERS_V1, LAYERS = 1, 2, 100


class Kind(NamedTuple):
    """The numbers of the fields of one version's layers."""

    name: int
    type: int
    blobs: int


KINDS = {LAYERS: Kind(1, 2, 7), LAYERS_V1: Kind(4, 5, 6)}
V1_TYPES = {
    1: "Accuracy", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 12: "ImageData", 14: "InnerProduct",
    15: "LRN", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 23: "TanH",
    25: "Eltwise", 39: "Deconvolution",
}  # fmt: skip
"""``V1LayerParameter.LayerType`` -> what later versions call it."""
SHAPE, DATA, DOUBLES = 7, 5, 8
OLD_SIDES = (1, 2, 3, 4)
"""num, channels, height, width, of before there were shapes."""
FLOATS = {DATA: ("F32", FIXED32, 4), DOUBLES: ("F64", FIXED64, 8)}


def detect(file: File) -> Detection | Rejected | None:
    """A file with a layer in it; the description beside it belongs to it where it has the same name."""
    if not file.name.lower().endswith(SUFFIX):
        return None
    try:
        wire = Wire(file)
        for count, (number, kind, a, b) in enumerate(wire.fields()):
            if count >= LOOKED_AT or (number in KINDS and kind != BYTES):
                return None
            if number in KINDS and _named(wire, KINDS[number], a, b):
                break
        else:
            return None
    except FileProblem as problem:
        return Rejected(str(problem), 30, state="incomplete" if problem.state == "incomplete" else "invalid")
    beside = f"{os.path.splitext(file.name)[0]}.prototxt"
    found = [os.path.join(os.path.dirname(file.path), beside)] if beside in file.siblings else []
    return Detection([file.path, *found], confidence=90)


def _named(wire: Wire, fields: Kind, start: int, end: int) -> bool:
    return any(number == fields.name and kind == BYTES for number, kind, _, _ in wire.fields(start, end))


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    """The blobs of every layer, in the order of the file. `InvalidFile` where two have one name, or a shape and its data do not
    fit each other."""
    file = checkpoint.primary
    wire = Wire(file)
    network, layers = "", 0
    types: Counter[str] = Counter()
    names: set[str] = set()
    for number, kind, a, b in wire.fields():
        if number == NAME and kind == BYTES:
            network = wire.text(a, b, MAX_NAME)
        if number not in KINDS or kind != BYTES:
            continue
        layers += 1
        if layers > MAX_LAYERS:
            raise InvalidFile(f"{file.name}: more than {MAX_LAYERS} layers")
        name, type_name, blobs = _layer(wire, KINDS[number], a, b)
        types[type_name] += 1
        for index, (start, end) in enumerate(blobs):
            tensor = _blob(file, wire, f"{name}.{index}", start, end)
            if tensor.name in names:
                raise InvalidFile(f"{file.name}: two layers are called {name[:200]!r}, and both have weights")
            names.add(tensor.name)
            yield tensor
    values = {"network": network[:300], "layers": layers, "layer_types": dict(types.most_common(24))}
    yield Metadata(values={key: value for key, value in values.items() if value})


def _layer(wire: Wire, fields: Kind, start: int, end: int) -> tuple[str, str, list[tuple[int, int]]]:
    name, type_name = "", "unknown"
    blobs: list[tuple[int, int]] = []
    for number, kind, a, b in wire.fields(start, end):
        if number == fields.name and kind == BYTES:
            name = wire.text(a, b, MAX_NAME)
        elif number == fields.type and kind == BYTES:
            type_name = wire.text(a, b, MAX_NAME)[:100]
        elif number == fields.type and kind == VARINT:
            type_name = V1_TYPES.get(a, f"type {a}")
        elif number == fields.blobs and kind == BYTES:
            blobs.append((a, b))
    return name, type_name, blobs


def _blob(file: File, wire: Wire, name: str, start: int, end: int) -> Tensor:
    sides: list[int] | None = None
    old: dict[int, int] = {}
    runs: list[tuple[int, int, int]] = []
    loose = False
    for number, kind, a, b in wire.fields(start, end):
        if number == SHAPE and kind == BYTES:
            sides = _shape(wire, a, b)
        elif number in OLD_SIDES and kind == VARINT:
            old[number] = a
        elif number in FLOATS and kind == BYTES:
            runs.append((number, a, b))
        elif number in FLOATS:
            loose = True
    if sides is None:
        sides = [old.get(number, 1) for number in OLD_SIDES] if old else []
    who = f"{file.name}: blob {name[:200]!r}"
    if len(sides) > MAX_RANK or any(side >> 63 for side in sides):
        raise InvalidFile(f"{who} has the shape {sides[:MAX_RANK]}")
    if loose or len(runs) > 1:
        return Tensor(name, "F32", tuple(sides), None, unsupported="blob whose numbers do not stand in one run")
    count = prod(sides)
    if not runs:
        if count:
            raise InvalidFile(f"{who} of {sides} has no data")
        return Tensor(name, "F32", tuple(sides), Inline(b""))
    ((number, a, b),) = runs
    dtype, _, size = FLOATS[number]
    if b - a != count * size:
        raise InvalidFile(f"{who}: {dtype} {sides} takes {count * size} bytes, its data has {b - a} at offset {a}")
    return Tensor(name, dtype, tuple(sides), Extent(file.path, a, b - a))


def _shape(wire: Wire, start: int, end: int) -> list[int]:
    sides: list[int] = []
    for number, kind, a, b in wire.fields(start, end):
        if number == 1:
            sides += [a] if kind == VARINT else wire.varints(a, b, MAX_RANK + 1)
            if len(sides) > MAX_RANK:
                break
    return sides

"""Reads a TensorFlow Lite model's tables: its tensors and where their bytes lie, its operators, what it takes and gives.

Weights are never read: a buffer is known by its place. Numbers that refer to something else (a tensor's buffer, an operator's
inputs) are held against what there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from modelhub import File, IncompleteFile, InvalidFile, flatbuffers
from modelhub.flatbuffers import Table

from modelhub_tflite import schema

MAX_RANK = 64
MAX_NAME = 1 << 16
MAX_METADATA = 1 << 20
KEPT = 300
"""Characters of a text that are kept."""


class Scales(NamedTuple):
    """How a tensor is quantized: (start, count) of its float scales and of its 64-bit zero points, along ``axis``; ``details`` is
    the kind of another scheme, whose table says more."""

    scales: tuple[int, int]
    zeros: tuple[int, int]
    axis: int
    details: int
    table: Table | None


class Entry(NamedTuple):
    """A tensor as it stands. ``place``: (start, end) of its constant value, or None for one that is computed."""

    name: str
    graph: int
    number: int
    type: int
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    place: tuple[int, int] | None
    scales: Scales | None
    variable: bool
    sparse: Table | None
    external: bool


@dataclass(slots=True)
class Model:
    """What a model says of itself; ``operators`` and ``custom``: name -> how many; ``named``: metadata's name -> place."""

    version: int = 0
    description: str = ""
    operators: Counter[str] = field(default_factory=Counter)
    custom: Counter[str] = field(default_factory=Counter)
    graphs: list[str] = field(default_factory=list)
    tensors: list[list[Entry]] = field(default_factory=list)
    inputs: list[Entry] = field(default_factory=list)
    outputs: list[Entry] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    named: dict[str, tuple[int, int]] = field(default_factory=dict)
    external_groups: int = 0


def parse(file: File) -> Model:
    """The model in ``file``. `InvalidFile` or `IncompleteFile` where its tables contradict themselves or the file's length."""
    buffer = flatbuffers.FlatBuffer(file)
    if buffer.identifier != schema.IDENTIFIER:
        raise InvalidFile(
            f"{file.name}: no TensorFlow Lite model: {buffer.identifier!r} at offset 4, expected {schema.IDENTIFIER!r}"
        )
    root = buffer.root()
    model = Model(version=int(root.number(schema.Model.VERSION, "I")))
    if model.version != 3:
        raise InvalidFile(f"{file.name}: a TensorFlow Lite schema of version {model.version}, expected 3")
    model.description = root.text(schema.Model.DESCRIPTION)[:KEPT]
    model.external_groups = root.count(schema.Model.EXTERNAL_GROUPS)
    places = [_place(one, file, number) for number, one in enumerate(root.tables(schema.Model.BUFFERS))]
    codes = [_operator(one) for one in root.tables(schema.Model.OPERATOR_CODES)]
    for number, graph in enumerate(root.tables(schema.Model.SUBGRAPHS)):
        _graph(model, graph, number, places, codes, file)
    if not model.tensors:
        raise InvalidFile(f"{file.name}: a TensorFlow Lite model without a graph")
    for one in root.tables(schema.Model.METADATA):
        at = int(one.number(schema.Metadata.BUFFER, "I"))
        if at >= len(places):
            raise InvalidFile(f"{file.name}: metadata in buffer {at}, there are {len(places)}")
        if place := places[at]:
            model.named.setdefault(one.text(schema.Metadata.NAME, limit=MAX_NAME)[:KEPT], place)
    for one in root.tables(schema.Model.SIGNATURES):
        if int(one.number(schema.Signature.SUBGRAPH, "I")) >= len(model.tensors):
            raise InvalidFile(f"{file.name}: a signature of a graph that is not there")
        model.signatures.append(one.text(schema.Signature.KEY, limit=MAX_NAME)[:KEPT])
    return model


def _place(buffer: Table, file: File, number: int) -> tuple[int, int] | None:
    """Where a buffer's bytes lie: in its own table, or behind all tables in models of more than 2 GB."""
    offset, size = int(buffer.number(schema.Buffer.OFFSET, "Q")), int(buffer.number(schema.Buffer.SIZE, "Q"))
    found = buffer.place(schema.Buffer.DATA)
    inside = found is not None and found[1] > 0
    if offset > 1 and size:  # 1 is what a converter leaves where it has not put the real one
        if inside:
            raise InvalidFile(f"{file.name}: buffer {number} has its data twice, in its table and at offset {offset}")
        if offset + size > file.size:
            raise IncompleteFile(
                f"{file.name}: buffer {number}: {size} bytes at offset {offset} expected, the file ends at {file.size}"
            )
        return offset, offset + size
    return (found[0], found[0] + found[1]) if found and inside else None


def _operator(code: Table) -> tuple[str, bool]:
    """(name, whether it is nobody's but the author's). Numbers past 127 stand in the newer field alone."""
    number = max(
        int(code.number(schema.OperatorCode.BUILTIN_CODE, "i")), int(code.number(schema.OperatorCode.DEPRECATED_CODE, "b"))
    )
    if number == schema.CUSTOM:
        return code.text(schema.OperatorCode.CUSTOM_CODE, "?", limit=MAX_NAME)[:KEPT], True
    return schema.operator_name(number), False


def _graph(
    model: Model,
    graph: Table,
    number: int,
    places: Sequence[tuple[int, int] | None],
    codes: Sequence[tuple[str, bool]],
    file: File,
) -> None:
    name = graph.text(schema.SubGraph.NAME, limit=MAX_NAME)[:KEPT]
    where = f"{file.name}: graph {name or number!r}"
    entries = [_entry(one, number, index, places, where) for index, one in enumerate(graph.tables(schema.SubGraph.TENSORS))]
    computed: set[int] = {-1}
    model.graphs.append(name)
    model.tensors.append(entries)
    for at, one in enumerate(graph.tables(schema.SubGraph.OPERATORS)):
        code = int(one.number(schema.Operator.CODE, "I"))
        if code >= len(codes):
            raise InvalidFile(f"{where}: operator {at} is of kind {code}, there are {len(codes)}")
        operator, custom = codes[code]
        model.operators[operator] += 1
        model.custom[operator] += custom
        for index in (*one.numbers(schema.Operator.INPUTS, "i"), *one.numbers(schema.Operator.OUTPUTS, "i")):
            if not -1 <= index < len(entries):
                raise InvalidFile(f"{where}: operator {at} ({operator}) takes or gives tensor {index}, there are {len(entries)}")
        computed.update(one.numbers(schema.Operator.OUTPUTS, "i"))
    for which, found in ((schema.SubGraph.INPUTS, model.inputs), (schema.SubGraph.OUTPUTS, model.outputs)):
        for index in graph.numbers(which, "i"):
            if not 0 <= index < len(entries):
                raise InvalidFile(f"{where} takes or gives tensor {index}, there are {len(entries)}")
            if number == 0:
                found.append(entries[index])
            if which == schema.SubGraph.INPUTS:
                computed.add(index)
    for index, entry in enumerate(entries):  # a constant of no elements has no bytes, as what is computed has none
        if entry.place is None and 0 in entry.shape and index not in computed and not entry.variable:
            entries[index] = entry._replace(place=(0, 0))


def _entry(tensor: Table, graph: int, index: int, places: Sequence[tuple[int, int] | None], where: str) -> Entry:
    name = tensor.text(schema.Tensor.NAME, limit=MAX_NAME)
    shape = tensor.numbers(schema.Tensor.SHAPE, "i", most=MAX_RANK)
    at = int(tensor.number(schema.Tensor.BUFFER, "I"))
    if at >= len(places):
        raise InvalidFile(f"{where}: tensor {name[:200]!r} lies in buffer {at}, there are {len(places)}")
    if any(side < 0 for side in shape) and places[at]:
        raise InvalidFile(f"{where}: tensor {name[:200]!r} has the shape {list(shape)}")
    return Entry(
        name,
        graph,
        index,
        int(tensor.number(schema.Tensor.TYPE, "b")),
        shape,
        tensor.numbers(schema.Tensor.SIGNATURE, "i", most=MAX_RANK),
        places[at],
        _scales(tensor.table(schema.Tensor.QUANTIZATION)),
        bool(tensor.number(schema.Tensor.IS_VARIABLE, "?")),
        tensor.table(schema.Tensor.SPARSITY),
        bool(tensor.number(schema.Tensor.EXTERNAL_BUFFER, "I")),
    )


def _scales(table: Table | None) -> Scales | None:
    """None where a tensor is not quantized: converters leave an empty table at many that are not."""
    if table is None:
        return None
    scales = table.place(schema.Quantization.SCALE, 4) or (0, 0)
    details = int(table.number(schema.Quantization.DETAILS_TYPE, "B"))
    if not scales[1] and not details:
        return None
    zeros = table.place(schema.Quantization.ZERO_POINT, 8) or (0, 0)
    axis = int(table.number(schema.Quantization.AXIS, "i"))
    return Scales(scales, zeros, axis, details, table.table(schema.Quantization.DETAILS) if details else None)

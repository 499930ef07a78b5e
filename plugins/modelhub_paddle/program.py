"""What an inference model's program says: its parameters, its operators, its inputs and outputs.

(``framework.proto``: ProgramDesc 1 blocks; BlockDesc 3 vars, 4 ops; VarDesc 1 name, 2 type, 3 persistable; VarType 1 type, 3
dense_tensor; OpDesc 1 inputs, 2 outputs, 3 type. PIR's JSON: an op "p" is a parameter, its attributes ``A`` end in its name.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from modelhub import File, InvalidFile, protobuf, read_json

MAX_BLOCKS, MAX_ITEMS, MAX_JSON = 4096, 2_000_000, 256 << 20
_NOT_TENSORS = (9, 10)  # FEED_MINIBATCH, FETCH_LIST
_MAX_DEPTH = 16


@dataclass(slots=True)
class Program:
    """``parameters``: names, in the order in which their file has them: sorted. ``operators``: how often each is used."""

    parameters: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read(file: File) -> Program:
    found = _pir(file) if file.name.lower().endswith(".json") else _protobuf(file)
    found.parameters = sorted(set(found.parameters))
    return found


def is_one(file: File) -> bool:
    """Whether a file of a model is its program, by its name."""
    return file.name.lower().endswith((".pdmodel", ".json")) or file.name == "__model__"


def parameters(file: File) -> list[str]:
    return read(file).parameters if is_one(file) else []


def _protobuf(file: File) -> Program:
    program, wire = Program(), protobuf.Wire(file)
    for number, (key, kind, start, end) in enumerate(wire.fields()):
        if key == 1 and kind == protobuf.BYTES and number < MAX_BLOCKS:
            for inner, what, low, high in wire.fields(start, end):
                if inner == 3 and what == protobuf.BYTES:
                    _variable(wire, low, high, program)
                elif inner == 4 and what == protobuf.BYTES:
                    _operator(wire, low, high, program)
    return program


def _variable(wire: protobuf.Wire, start: int, end: int, program: Program) -> None:
    name, kind, persistent = "", 0, False
    for key, what, low, high in wire.fields(start, end):
        if key == 1 and what == protobuf.BYTES:
            name = wire.text(low, high, 1 << 12)
        elif key == 2 and what == protobuf.BYTES:
            kind = next((value for inner, form, value, _ in wire.fields(low, high) if (inner, form) == (1, protobuf.VARINT)), 0)
        elif key == 3 and what == protobuf.VARINT:
            persistent = bool(low)
    if persistent and kind not in _NOT_TENSORS and len(program.parameters) < MAX_ITEMS:
        program.parameters.append(name)


def _operator(wire: protobuf.Wire, start: int, end: int, program: Program) -> None:
    kind = ""
    inputs: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for key, what, low, high in wire.fields(start, end):
        if key == 3 and what == protobuf.BYTES:
            kind = wire.text(low, high, 1 << 12)
        elif key in (1, 2) and what == protobuf.BYTES:
            (inputs if key == 1 else outputs).append((low, high))
    if kind == "feed":
        program.inputs += _arguments(wire, outputs)
    elif kind == "fetch":
        program.outputs += _arguments(wire, inputs)
    else:
        program.operators[kind] += 1


def _arguments(wire: protobuf.Wire, places: list[tuple[int, int]]) -> Iterator[str]:
    for start, end in places:
        for key, what, low, high in wire.fields(start, end):
            if key == 2 and what == protobuf.BYTES:
                yield wire.text(low, high, 1 << 12)


def _pir(file: File) -> Program:
    program = Program()
    said = read_json(file, limit=MAX_JSON).get("program")
    for op in _ops(said, 0):
        kind = op.get("#")
        attributes = _list(op, "A")
        if kind == "p":
            name = attributes[-1] if attributes else None
            if not isinstance(name, str):
                raise InvalidFile(f"{file.name}: a parameter without a name")
            program.parameters.append(name)
        elif isinstance(kind, str) and kind.endswith((".data", ".fetch")):
            name = next((item.get("AT") for item in attributes if isinstance(item, dict) and item.get("N") == "name"), None)
            text = name.get("D") if isinstance(name, dict) else None
            (program.inputs if kind.endswith(".data") else program.outputs).append(str(text)[:200])
        elif isinstance(kind, str):
            program.operators[kind.partition(".")[2] or kind] += 1
    return program


def _list(node: Any, key: str) -> list[Any]:
    """The list under ``key``; nothing where there is none."""
    found = node.get(key) if isinstance(node, dict) else None
    return found if isinstance(found, list) else []


def _ops(node: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Every op of every region and block, those inside of ops as well."""
    if depth > _MAX_DEPTH:
        return
    for region in _list(node, "regions"):
        for block in _list(region, "blocks"):
            for op in _list(block, "ops"):
                if isinstance(op, dict):
                    yield op
                    yield from _ops(op, depth + 1)

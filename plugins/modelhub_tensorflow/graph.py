"""Graphs (``GraphDef``) with their library of functions, and what wraps them (``MetaGraphDef``, ``SavedModel``): operators,
constants, signatures. Constants are told by their place; none is read.

Facts: TensorFlow ``core/framework/{graph,node_def,function,attr_value,op_def}.proto`` and
``core/protobuf/{meta_graph,saved_model}.proto``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

from modelhub import File, FileProblem, Finding, InvalidFile, Tensor, dtypes, protobuf

from modelhub_tensorflow import elements, known, reach, sorted_table
from modelhub_tensorflow.elements import Shape

SAFETY = "tensorflow-operators"
MAX_NAME = 1 << 14
MAX_FINDINGS = 50
MAX_SIGNATURES = 100
MAX_INTERFACE = 200
SMALL = 256
"""Constants of fewer bytes are the graph's arithmetic, but for floats: of these two are enough to be a weight."""
_DEFAULT, _INITIALISER = "serving_default", "__saved_model_init_op"
_OPERATOR = re.compile(rb"[A-Z_a-z][A-Za-z0-9_.>]*")


@dataclass(slots=True)
class Signature:
    """Inputs and outputs by name: a type and a shape in words."""

    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    method: str = ""

    def words(self) -> str:
        """As people write a function: ``(x float32[?, 10]) -> (y float32[?, 2])``."""
        taken, given = (
            ", ".join(f"{name} {kind}" for name, kind in sorted(side.items())) for side in (self.inputs, self.outputs)
        )
        return f"({taken}) -> ({given})"


@dataclass(slots=True)
class Graph:
    """What a graph, or all of a SavedModel's, hold. ``constants``: those that may be weights; ``small``: how many others."""

    operators: Counter[str] = field(default_factory=Counter)
    constants: list[Tensor] = field(default_factory=list)
    small: int = 0
    functions: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    tags: list[list[str]] = field(default_factory=list)
    version: str = ""
    signatures: dict[str, Signature] = field(default_factory=dict)
    collections: list[str] = field(default_factory=list)
    has_graph: bool = False

    @property
    def custom(self) -> dict[str, int]:
        """Operators that neither TensorFlow nor the model's own functions are, with their counts."""
        return {name: count for name, count in self.operators.items() if name not in known.NAMES and name not in self.functions}


def looks_like_one(file: File) -> bool:
    """Whether a file begins as a ``GraphDef`` does: with a node that has a name and an operator's, or a library of functions."""
    wire = protobuf.Wire(file)
    try:
        if file.head.startswith(b"\x0a"):  # by itself, for what follows may be cut
            length, at = sorted_table.varint(file.head, 1, len(file.head), file.name)
            if at + length <= len(file.head):
                return _is_node(protobuf.Wire(file.head[: at + length]), at, at + length)
        for number, kind, a, b in wire.fields():
            if kind == protobuf.BYTES and number == 1:
                return _is_node(wire, a, b)
            if number not in (2, 3, 4) or kind != (protobuf.VARINT if number == 3 else protobuf.BYTES):
                return False
    except FileProblem:
        return False
    return False


def _is_node(wire: protobuf.Wire, start: int, end: int) -> bool:
    texts: dict[int, bytes] = {}
    for number, kind, a, b in wire.fields(start, end):
        if kind != protobuf.BYTES or number > 7:
            return False
        if number <= 2:
            if b - a > MAX_NAME:
                return False
            texts[number] = wire.data(a, b)
        elif 2 in texts:
            break
    return bool(texts.get(1)) and _OPERATOR.fullmatch(texts.get(2, b"")) is not None


def looks_like_meta(file: File) -> bool:
    """Whether a file begins as a ``MetaGraphDef`` does: with information on itself, in which operators are listed."""
    wire = protobuf.Wire(file)
    try:
        for number, kind, a, b in wire.fields():
            if kind != protobuf.BYTES or number > 7:
                return False
            if number == 1:
                return all(inner <= 8 for inner, _, _, _ in wire.fields(a, b)) and b > a
            return number == 2 and looks_inside(wire, a, b)
    except FileProblem:
        return False
    return False


def looks_inside(wire: protobuf.Wire, start: int, end: int) -> bool:
    return any(number == 1 and _is_node(wire, a, b) for number, _, a, b in wire.fields(start, end))


# --- messages -------------------------------------------------------------------------------------------------------


def of_graph(file: File) -> Graph:
    walk = _Walk(file)
    walk.graph_def(0, file.size)
    return walk.finish()


def of_meta(file: File) -> Graph:
    walk = _Walk(file)
    walk.meta_graph(0, file.size)
    return walk.finish()


def of_saved_model(file: File) -> Graph:
    """All graphs of a SavedModel: as a rule one, for TPUs or training several."""
    walk = _Walk(file)
    for number, kind, a, b in walk.wire.fields():
        if number == 2 and kind == protobuf.BYTES:
            walk.meta_graph(a, b)
    if not walk.graph.has_graph:
        raise InvalidFile(f"{file.name} holds no graph: it is no SavedModel, or an empty one")
    return walk.finish()


class _Walk:
    def __init__(self, file: File) -> None:
        self.file, self.wire, self.graph = file, protobuf.Wire(file), Graph()
        self._names: set[str] = set()

    def finish(self) -> Graph:
        graph = self.graph
        left = sum(graph.reached.values()) - len(graph.findings)
        if left > 0:
            graph.findings.append(
                Finding(SAFETY, "unsafe", f"and {left} more operators that reach out of the model", file=self.file.name)
            )
        return graph

    def meta_graph(self, start: int, end: int) -> None:
        wire, graph = self.wire, self.graph
        for number, kind, a, b in wire.fields(start, end):
            if kind != protobuf.BYTES:
                continue
            if number == 1:
                self._information(a, b)
            elif number == 2:
                self.graph_def(a, b)
            elif number == 4 and len(graph.collections) < MAX_SIGNATURES:
                graph.collections.append(self._map_key(a, b)[0])
            elif number == 5 and len(graph.signatures) < MAX_SIGNATURES:
                key, place = self._map_key(a, b)
                graph.signatures.setdefault(key, self._signature(*place) if place else Signature())

    def _information(self, start: int, end: int) -> None:
        tags: list[str] = []
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 4 and kind == protobuf.BYTES and len(tags) < MAX_SIGNATURES:
                tags.append(self.wire.text(a, b, MAX_NAME))
            elif number == 5 and kind == protobuf.BYTES:
                self.graph.version = self.wire.text(a, b, MAX_NAME)
        if tags:
            self.graph.tags.append(tags)

    def _map_key(self, start: int, end: int) -> tuple[str, tuple[int, int] | None]:
        """Key and place of the value of a map's entry."""
        key, place = "", None
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                key = self.wire.text(a, b, MAX_NAME)
            elif number == 2 and kind == protobuf.BYTES:
                place = (a, b)
        return key, place

    def _signature(self, start: int, end: int) -> Signature:
        found = Signature()
        for number, kind, a, b in self.wire.fields(start, end):
            if number in (1, 2) and kind == protobuf.BYTES:
                named = found.inputs if number == 1 else found.outputs
                if len(named) < MAX_INTERFACE:
                    key, place = self._map_key(a, b)
                    named[key] = self._info(*place) if place else "?"
            elif number == 3 and kind == protobuf.BYTES:
                found.method = self.wire.text(a, b, MAX_NAME)
        return found

    def _info(self, start: int, end: int) -> str:
        """A ``TensorInfo`` as people write it: ``float32[?, 10]``."""
        number_of_type, sides = 0, Shape()
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 2 and kind == protobuf.VARINT:
                number_of_type = a
            elif number == 3 and kind == protobuf.BYTES:
                sides = elements.shape(self.wire, a, b)
        shown = "..." if sides.unknown else ", ".join("?" if side < 0 else str(side) for side in sides.sides)
        return f"{elements.word(number_of_type)}[{shown}]"

    # --- the graph --------------------------------------------------------------------------------------------------

    def graph_def(self, start: int, end: int) -> None:
        self.graph.has_graph = True
        for number, kind, a, b in self.wire.fields(start, end):
            if kind != protobuf.BYTES:
                if number != 3:
                    raise InvalidFile(f"{self.file.name}: field {number} is no field of a graph")
            elif number == 1:
                self._node(a, b, "")
            elif number == 2:
                for inner, inner_kind, c, d in self.wire.fields(a, b):
                    if inner == 1 and inner_kind == protobuf.BYTES:
                        self._function(c, d)

    def _function(self, start: int, end: int) -> None:
        name, nodes = "", []
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                for inner, inner_kind, c, d in self.wire.fields(a, b):
                    if inner == 1 and inner_kind == protobuf.BYTES:
                        name = self.wire.text(c, d, MAX_NAME)
            elif number == 3 and kind == protobuf.BYTES:
                nodes.append((a, b))
        self.graph.functions.add(name)
        for a, b in nodes:
            self._node(a, b, name)

    def _node(self, start: int, end: int, function: str) -> None:
        wire = self.wire
        name = operator = ""
        attributes: list[tuple[int, int]] = []
        for number, kind, a, b in wire.fields(start, end):
            if kind != protobuf.BYTES:
                continue
            if number == 1:
                name = wire.text(a, b, MAX_NAME)
            elif number == 2:
                operator = wire.text(a, b, MAX_NAME)
            elif number == 5:
                attributes.append((a, b))
        self.graph.operators[operator] += 1
        where = f"{function}/{name}" if function else name
        if operator == "Const":
            self._constant(where, attributes)
        elif operator in reach.OPERATORS:
            self._unsafe(operator, reach.OPERATORS[operator], where)
        elif operator in reach.BY_ATTRIBUTE:
            attribute, starts = reach.BY_ATTRIBUTE[operator]
            texts = [text for a, b in attributes for text in self._texts(attribute, a, b)]
            if any(text.startswith(starts) for text in texts):
                self._unsafe(operator, f"reaches {texts[0][:100].decode('utf-8', 'replace')!r}", where)
        elif operator in reach.SAVERS and function and reach.SAVING not in function:
            self._unsafe(operator, f"{reach.WRITES}, in a function that is not TensorFlow's own for saving", where)

    def _texts(self, wanted: str, start: int, end: int) -> list[bytes]:
        """The text of an attribute called ``wanted``, or its list of them."""
        key, place = self._map_key(start, end)
        found: list[bytes] = []
        if key != wanted or place is None:
            return found
        for number, kind, a, b in self.wire.fields(*place):
            if kind == protobuf.BYTES and number == 2:
                found.append(self.wire.data(a, min(b, a + MAX_NAME)))
            elif kind == protobuf.BYTES and number == 1:
                found += [self.wire.data(c, min(d, c + MAX_NAME)) for inner, _, c, d in self.wire.fields(a, b) if inner == 2]
        return found

    def _unsafe(self, operator: str, what: str, where: str) -> None:
        graph = self.graph
        graph.reached[operator] += 1
        if len(graph.findings) < MAX_FINDINGS:
            message = f"operator {operator} ({where[:200]}) {what} when the model is run"
            graph.findings.append(Finding(SAFETY, "unsafe", message, file=self.file.name))

    def _constant(self, where: str, attributes: list[tuple[int, int]]) -> None:
        for start, end in attributes:
            key, place = self._map_key(start, end)
            if key != "value" or place is None:
                continue
            for number, kind, a, b in self.wire.fields(*place):
                if number == 8 and kind == protobuf.BYTES:
                    raw = elements.parse(self.wire, a, b)
                    if _may_be_weight(raw):
                        self._add(elements.tensor(raw, where, self.file.path, self.file.name, self.wire))
                    else:
                        self.graph.small += 1

    def _add(self, tensor: Tensor) -> None:
        """Names are unique in a graph, but a SavedModel may hold several graphs."""
        name, number = tensor.name, 1
        while name in self._names:
            number += 1
            name = f"{tensor.name}#{number}"
        self._names.add(name)
        self.graph.constants.append(tensor._replace(name=name))


def _may_be_weight(raw: elements.Raw) -> bool:
    dtype = dtypes.find(elements.DTYPES.get(raw.number, ""))
    if dtype is None:
        return False
    count = prod(raw.sides)
    return count * dtype.block_bytes >= SMALL or (count > 1 and dtype.kind in ("float", "complex"))


def own_signatures(graph: Graph) -> dict[str, Signature]:
    """Those that are for users of the model."""
    return {name: signature for name, signature in graph.signatures.items() if name != _INITIALISER}


def first_signature(graph: Graph) -> Signature:
    """What the model takes and gives where nobody asks for another."""
    named = own_signatures(graph)
    return named.get(_DEFAULT) or next(iter(named.values()), Signature())


def describe(graph: Graph) -> dict[str, Any]:
    """What ``show`` says of a graph."""
    named, first = own_signatures(graph), first_signature(graph)
    values: dict[str, Any] = {
        "tensorflow_version": graph.version,
        "tags": [", ".join(tags) for tags in graph.tags[:20]],
        "inputs": first.inputs,
        "outputs": first.outputs,
        "signatures": {name: signature.words() for name, signature in sorted(named.items())},
        "nodes": sum(graph.operators.values()),
        "operators": dict(graph.operators.most_common(24)),
        "functions": len(graph.functions),
        "small_constants": graph.small,
        "custom_operators": dict(sorted(graph.custom.items())[:100]),
    }
    return {key: value for key, value in values.items() if value}

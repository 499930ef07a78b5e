"""Walks a model (``ModelProto``) and keeps what is asked of it: tensors and where they lie, operators, inputs and outputs.

Tensors are looked for wherever the format may hold one: initializers of the graph, of graphs inside nodes (branches, loops), of
functions and of training graphs; constants and other attributes of nodes. Names inside those are scoped:
``NODE.ATTRIBUTE/NAME``. Numbers of fields are those of onnx ``onnx.proto``. No weight is read.
"""

from __future__ import annotations

from collections import Counter

from modelhub import File, InvalidFile, Tensor, dtypes, protobuf
from modelhub.protobuf import BYTES, VARINT, Wire

from modelhub_onnx import constants, elements, tensors
from modelhub_onnx.external import Externals
from modelhub_onnx.model import Model, Use
from modelhub_onnx.skim import MAX_REMEMBERED, MAX_SMALL, SMALL_CONSTANT, Skim
from modelhub_onnx.values import value_info

MAX_TEXTS = 10_000
MAX_VALUES = 10_000
TRACKED = frozenset(
    b"QuantizeLinear DequantizeLinear DynamicQuantizeLinear MatMulInteger ConvInteger QLinearConv QLinearMatMul QGemm QAttention "
    b"DynamicQuantizeMatMul DynamicQuantizeLSTM MatMulIntegerToFloat QLinearAdd MatMulNBits MatMulBnb4 GatherBlockQuantized "
    b"QMoE FakeQuant".split()
)
"""Operators whose inputs say how the model is quantized."""

_TEXTS = {2: "producer", 3: "producer_version", 4: "domain", 6: "documentation"}


def parse(file: File) -> Model:
    """The model in ``file``. `InvalidFile` or `IncompleteFile` where it is none, or where its external data may not be opened."""
    if not file.size:
        raise InvalidFile(f"{file.name} is empty: there is no model in it")
    walk = _Walk(file)
    walk.model_message()
    if walk.model.uses:
        walk.model.small = constants.find(file, walk.model)
    return walk.model


def looks_like_one(file: File) -> bool:
    """Whether the outermost fields are those of a model: ir_version, a graph, opset_import, each of its own wire type."""
    seen = set()
    for count, (number, kind, _, _) in enumerate(Wire(file).fields()):
        wanted = VARINT if number in (1, 5) else BYTES
        if kind != wanted or count > 1000 or not (number <= 8 or number in (14, 20, 25, 26)):
            return False
        seen.add(number)
        if {1, 7, 8} <= seen:
            return True
    return False


_plain: dict[bytes, int] = {}
_ends: dict[bytes, tuple[bytes, bytes, int]] = {}
"""See `modelhub_onnx.skim.Skim`: models have much of it in common."""


def _remembered() -> tuple[dict[bytes, int], dict[bytes, tuple[bytes, bytes, int]]]:
    for known in (_plain, _ends):
        if len(known) >= MAX_REMEMBERED:
            known.clear()
    return _plain, _ends


class _Walk:
    def __init__(self, file: File) -> None:
        self.file = file
        self.wire = Wire(file)
        self.model = Model(Externals(file))
        self._scoped: Counter[str] = Counter()
        self._skim = Skim(self.model, TRACKED, *_remembered())
        self._plain = self._skim.plain
        self._operators = self._skim.operators
        self._initializers: set[str] = set()

    # --- the model --------------------------------------------------------------------------------------------------

    def model_message(self) -> None:
        wire, model = self.wire, self.model
        graphs: list[tuple[int, int]] = []
        for number, kind, a, b in wire.fields():
            if kind == VARINT:
                if number == 1:
                    model.ir_version = a
                elif number == 5:
                    model.model_version = protobuf.signed(a)
                continue
            if kind != BYTES:
                raise InvalidFile(f"{wire.name}: field {number} is no field of an ONNX model")
            if number == 7:
                graphs.append((a, b))
                if len(graphs) > 1:
                    raise InvalidFile(f"{wire.name} has two graphs: readers would differ in what they take")
                model.has_graph = True
                self.graph(a, b, "", main=True)
            elif number == 8:
                self.opset(a, b)
            elif number in _TEXTS:
                model.texts[_TEXTS[number]] = wire.text(a, b)
            elif number == 14:
                self.property(a, b)
            elif number == 20:
                self.training(a, b)
            elif number == 25:
                self.function(a, b)
        if not model.has_graph:
            raise InvalidFile(f"{wire.name} has no graph: it is no ONNX model")
        if not model.opsets and not self._functions_only():
            raise InvalidFile(f"{wire.name} names no operator set (opset_import): it is no ONNX model, or it was cut short")
        try:
            for (name, domain), count in self._skim.operators.items():
                model.operators[("" if domain == b"ai.onnx" else domain.decode(), name.decode())] += count
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{wire.name}: an operator's name is not UTF-8: {error.reason}") from error

    def _functions_only(self) -> bool:
        """Models before version 3 of the format named no operator sets."""
        return 0 < self.model.ir_version < 3

    def opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                domain = self.wire.text(a, b, 4096)
            elif number == 2 and kind == VARINT:
                version = protobuf.signed(a)
        if len(self.model.opsets) >= MAX_TEXTS:
            raise InvalidFile(f"{self.wire.name}: more than {MAX_TEXTS} operator sets")
        self.model.opsets["" if domain == "ai.onnx" else domain] = version

    def property(self, start: int, end: int) -> None:
        key = value = ""
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                key = self.wire.text(a, b)
            elif number == 2 and kind == BYTES:
                value = self.wire.text(a, b)
        if len(self.model.properties) >= MAX_TEXTS:
            raise InvalidFile(f"{self.wire.name}: more than {MAX_TEXTS} metadata_props")
        self.model.properties[key] = value

    def training(self, start: int, end: int) -> None:
        scope = f"training_info[{self.model.training}]"
        self.model.training += 1
        for number, kind, a, b in self.wire.fields(start, end):
            if number in (1, 2) and kind == BYTES:
                self.graph(a, b, f"{scope}.{'initialization' if number == 1 else 'algorithm'}/")

    def function(self, start: int, end: int) -> None:
        wire, name, domain, nodes = self.wire, b"", b"", []
        for number, kind, a, b in wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                name = wire.data(a, b)
            elif number == 10:
                domain = wire.data(a, b)
            elif number == 7:
                nodes.append((a, b))
            elif number == 11:
                self.attribute(a, b, f"{name.decode(errors='replace')}/", "default")
        scope = f"{name.decode(errors='replace')}/"
        self.model.functions.add((domain.decode(errors="replace"), name.decode(errors="replace")))
        for a, b in nodes:
            self.node(a, b, scope)

    # --- graphs -----------------------------------------------------------------------------------------------------

    def graph(self, start: int, end: int, scope: str, *, main: bool = False) -> None:
        values: list[tuple[int, int, int]] = []
        for number, kind, a, b in self.wire.fields(start, end, skim=self._skim.items if main else self._skim.nodes):
            if kind != BYTES:
                raise InvalidFile(f"{self.wire.name}: field {number} is no field of a graph")
            if number == 1:
                self.node(a, b, scope)
            elif number == 5:
                self.initializer(a, b, scope)
            elif number == 15:
                self.sparse(a, b, scope, "")
            elif main and number in (11, 12):
                if len(values) >= MAX_VALUES:
                    raise InvalidFile(f"{self.wire.name}: more than {MAX_VALUES} inputs and outputs")
                values.append((number, a, b))
            elif main and number in (2, 10):
                self.model.texts["graph" if number == 2 else "graph_documentation"] = self.wire.text(a, b)
        initializers = {*self._initializers, *self.model.names} if values else set()
        for number, a, b in values:
            value = value_info(self.wire, a, b)
            if number == 12:
                self.model.outputs.append(value)
            elif value["name"] not in initializers:  # the first versions listed initializers as inputs
                self.model.inputs.append(value)
        self.model.subgraphs += not main

    def node(self, start: int, end: int, scope: str) -> None:
        wire = self.wire
        operator = domain = b""
        name = output = (0, 0)
        inputs: list[tuple[int, int]] = []
        attributes: list[tuple[int, int]] = []
        for number, kind, a, b in wire.fields(start, end):
            if number == 1:
                inputs.append((a, b))
            elif number == 5 and kind == BYTES:
                attributes.append((a, b))
            elif number == 4 and kind == BYTES:
                operator = wire.data(a, b)
            elif number == 3 and kind == BYTES:
                name = (a, b)
            elif number == 2 and output == (0, 0) and kind == BYTES:
                output = (a, b)
            elif number == 7 and kind == BYTES:
                domain = wire.data(a, b)
        if len(operator) > 4096 or len(domain) > 4096:
            raise InvalidFile(f"{wire.name}: an operator's name of {len(operator)} bytes at offset {start}")
        if not operator:
            raise InvalidFile(f"{wire.name}: the node at offset {start} has no operator")
        self._operators[operator, domain] = self._operators.get((operator, domain), 0) + 1
        for a, b in attributes:
            if b - a <= MAX_SMALL:
                known = self._plain.get(wire.data(a, b))
                if known is not None:
                    self.model.constants += known
                    continue
            self._attribute_of(a, b, scope, operator, name, output)
        if operator in TRACKED and len(self.model.uses) < MAX_VALUES:
            texts = tuple(wire.text(a, b, tensors.MAX_NAME) for a, b in inputs[:16])
            numbers = dict(self._whole_number(a, b) for a, b in attributes[:32])
            self.model.uses.append(Use(operator.decode(), texts, numbers))

    def _attribute_of(
        self, start: int, end: int, scope: str, operator: bytes, name: tuple[int, int], output: tuple[int, int]
    ) -> None:
        """Look into a node's attribute; one that is short and holds nothing to list is remembered."""
        model = self.model
        before, listed, graphs = model.constants, len(model.tensors), model.subgraphs
        text = self.wire.text(*name, tensors.MAX_NAME) if name[1] else ""
        owner = text or f"{operator.decode(errors='replace')}_{sum(self._operators.values()) - 1}"
        constant = self.wire.text(*output, tensors.MAX_NAME) if operator == b"Constant" and output[1] else ""
        self.attribute(start, end, scope, owner, constant)
        plain = len(model.tensors) == listed and model.subgraphs == graphs and end - start <= MAX_SMALL
        if plain and len(self._plain) < MAX_REMEMBERED and not model.externals.files and not model.externals.missing:
            self._plain[self.wire.data(start, end)] = model.constants - before

    def attribute(self, start: int, end: int, scope: str, owner: str, constant: str = "") -> None:
        """Tensors and graphs in an attribute, whatever type it says it has: other readers go by what is there, too."""
        wire, name = self.wire, ""
        for number, kind, a, b in wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                name = wire.text(a, b, tensors.MAX_NAME)
            elif number in (5, 10):
                self.constant(a, b, scope, constant or f"{owner}.{name}")
            elif number in (6, 11):
                self.graph(a, b, f"{scope}{owner}.{name}/")
            elif number in (22, 23):
                self.sparse(a, b, scope, constant or f"{owner}.{name}")

    def _whole_number(self, start: int, end: int) -> tuple[str, int]:
        name, value = "", 0
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                name = self.wire.text(a, b, tensors.MAX_NAME)
            elif number == 3 and kind == VARINT:
                value = protobuf.signed(a)
        return name, value

    # --- tensors ----------------------------------------------------------------------------------------------------

    def initializer(self, start: int, end: int, scope: str) -> None:
        raw = tensors.parse(self.wire, start, end)
        if not raw.name:
            raise InvalidFile(f"{self.wire.name}: the initializer at offset {start} has no name")
        if not scope:
            self._initializers.add(raw.name)
        self._add(raw, raw.name if not scope else self._unique(scope + raw.name))

    def constant(self, start: int, end: int, scope: str, label: str) -> None:
        """A tensor in an attribute: listed where it may be a weight."""
        raw = tensors.parse(self.wire, start, end)
        if not _weighty(raw):
            self.model.constants += 1
            tensors.tensor(raw, label, self.file, self.model.externals, listed=False)
            return
        self._add(raw, self._unique(scope + label))

    def _add(self, raw: tensors.Raw, name: str) -> None:
        self.model.tensors.append(tensors.tensor(raw, name, self.file, self.model.externals))

    def _unique(self, name: str) -> str:
        """Names of nodes need not differ: the second of a name gets a number."""
        self._scoped[name] += 1
        count = self._scoped[name]
        return name if count == 1 else f"{name}#{count}"

    def sparse(self, start: int, end: int, scope: str, label: str) -> None:
        """A ``SparseTensorProto``: listed, with the shape that it stands for; its two parts are checked like other tensors."""
        dims: list[int] = []
        values = None
        for number, kind, a, b in self.wire.fields(start, end):
            if number == 3:
                dims += [a] if kind == VARINT else self.wire.varints(a, b, tensors.MAX_RANK)
            elif number in (1, 2) and kind == BYTES:
                raw = tensors.parse(self.wire, a, b)
                tensors.tensor(raw, raw.name, self.file, self.model.externals, listed=False)
                values = raw if number == 1 else values
        if values is None or len(dims) > tensors.MAX_RANK or any(side >> 63 for side in dims):
            raise InvalidFile(f"{self.wire.name}: the sparse tensor at offset {start} has no values, or no shape")
        element = elements.ELEMENTS.get(values.data_type)
        name = label or values.name
        if not label and not scope:
            self._initializers.add(name)
        self.model.tensors.append(
            Tensor(
                scope + name if not scope else self._unique(scope + name),
                element.dtype if element else elements.label(values.data_type).upper(),
                tuple(dims),
                None,
                unsupported="sparse COO tensor",
            )
        )


def _weighty(raw: tensors.Raw) -> bool:
    """Whether a constant may be a weight: a run of two floats or more, or anything that takes some room."""
    element = elements.ELEMENTS.get(raw.data_type)
    if element is None:
        return False
    count = 1
    for side in raw.dims:
        count *= side
    dtype = dtypes.get(element.dtype)
    return (count > 1 and dtype.kind == "float") or count * dtype.bits >= 8 * SMALL_CONSTANT

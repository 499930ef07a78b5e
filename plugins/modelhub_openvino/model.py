"""The XML of an IR, read piece by piece: layers, their types and operation sets, constants and where their bytes lie.

No document type, no entities, no nesting deeper than graphs in graphs need; lengths and numbers are bounded. (OpenVINO
documentation, "OpenVINO IR format"; ``src/core/xml_util`` and ``src/frontends/ir`` write and read it.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from modelhub import File, InvalidFile, UnsupportedFile

MAX_XML = 512 << 20
MAX_DEPTH = 200
MAX_LAYERS = 2_000_000
MAX_SIDES = 64
MAX_TEXT = 1 << 16
CHUNK = 256 << 10
VERSIONS = (10, 11)


@dataclass(slots=True)
class Constant:
    """A `Const` layer. ``kind``: OpenVINO's word for the type of its elements; ``offset``, ``nbytes``: in the `.bin`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(slots=True)
class Port:
    """What goes in or comes out: ``shape`` as the IR writes it, "?" for a side that is open."""

    name: str
    kind: str
    shape: str


STEPS = frozenset(("Const", "Convert", "Subtract", "Multiply", "Reshape", "Gather", "Result"))
"""Layers that weights may go through before they are used; and where a model ends."""


@dataclass(slots=True)
class Step:
    """One of those layers. ``constant``: of a `Const`; ``shape``: what comes out, as far as its sides are fixed; ``inputs``: the
    ids of the layers that it takes, by port; ``kind``: what a `Convert` makes of its elements."""

    name: str
    type: str
    constant: Constant | None = None
    shape: tuple[int, ...] = ()
    inputs: dict[int, str] = field(default_factory=dict)
    kind: str = ""


Graph = dict[str, Step]
"""The steps of one graph, by their layers' ids."""


@dataclass(slots=True)
class Model:
    """All that is kept. ``graphs``: the outer one and those inside of layers. ``operators``: (operation set, type) -> layers,
    those of inner graphs too. ``notes``: what `rt_info` says, by the path of names."""

    name: str = ""
    version: int = 0
    constants: list[Constant] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class _Layer:
    name: str
    type: str
    opset: str
    given: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    names: str = ""
    precision: str = ""
    sides: list[str] = field(default_factory=list)
    id: str = ""
    made: list[str] = field(default_factory=list)


def parse(file: File) -> Model:
    """The whole model. `InvalidFile` where it is none, `UnsupportedFile` for an IR of another version."""
    if file.size > MAX_XML:
        raise InvalidFile(f"{file.name} is {file.size} bytes of XML; at most {MAX_XML} are read")
    walk = _Walk(file.name)
    parser = expat.ParserCreate()
    parser.StartElementHandler = walk.start
    parser.EndElementHandler = walk.end
    parser.CharacterDataHandler = walk.text
    parser.StartDoctypeDeclHandler = walk.refuse_doctype
    parser.buffer_text = True
    try:
        for at in range(0, file.size, CHUNK):
            parser.Parse(file.read(at, min(CHUNK, file.size - at)))
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise InvalidFile(f"{file.name}: {error}") from None
    return walk.model


class _Walk:
    """What happens at each tag. ``path``: the open tags; ``layers``: the open layers, the innermost last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = Model()
        self.path: list[str] = []
        self.layers: list[_Layer] = []
        self.notes: list[str] = []
        self.written: list[str] = []
        self.length = 0
        self.count = 0
        self.seen: set[str] = set()
        self.graphs: list[tuple[int, Graph]] = []
        self.begin: Mapping[tuple[str, str], Callable[[dict[str, str]], None]] = {
            ("layers", "layer"): self._layer,
            ("layer", "data"): self._data,
            ("output", "port"): self._output,
            ("input", "port"): self._input,
            ("edges", "edge"): self._edge,
        }

    def refuse_doctype(self, *said: object) -> None:
        raise InvalidFile(f"{self.name}: a document type, which no IR has")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.path) >= MAX_DEPTH:
            raise InvalidFile(f"{self.name}: tags nest deeper than {MAX_DEPTH}")
        if not self.path:
            self._root(tag, attributes)
        parent = self.path[-1] if self.path else ""
        if tag == "layers":
            self.graphs.append((len(self.path), {}))
        self.path.append(tag)
        self.written, self.length = [], 0
        begin = self.begin.get((parent, tag))
        if begin:
            begin(attributes)
        elif len(self.path) > 2 and self.path[1] == "rt_info":
            self._note(tag, attributes)

    def end(self, tag: str) -> None:
        self.path.pop()
        while self.graphs and self.graphs[-1][0] > len(self.path):
            self.model.graphs.append(self.graphs.pop()[1])
        if tag == "dim" and self.path[-3:] == ["layer", "output", "port"] and self.layers and self.layers[-1].type in STEPS:
            if len(self.layers[-1].made) < MAX_SIDES:
                self.layers[-1].made.append("".join(self.written).strip()[:20])
        elif tag == "dim" and self.path[-3:] == ["layer", "input", "port"] and self.layers and self.layers[-1].type == "Result":
            side = "".join(self.written).strip()
            if len(self.layers[-1].sides) < MAX_SIDES:
                self.layers[-1].sides.append("?" if side.startswith("-") else side[:20])
        elif tag == "layer" and self.layers:
            self._finish(self.layers.pop())

    def text(self, data: str) -> None:
        self.length += len(data)
        if self.length <= MAX_TEXT:
            self.written.append(data)

    # --- what is looked at ----------------------------------------------------------------------------------------

    def _root(self, tag: str, attributes: dict[str, str]) -> None:
        if tag != "net":
            raise InvalidFile(f"{self.name}: the root is <{tag[:40]}>, an IR's is <net>")
        self.model.name = attributes.get("name", "")[:1000]
        self.model.version = self._number(attributes.get("version", ""), "the IR's version")
        if self.model.version not in VERSIONS:
            raise UnsupportedFile(
                f"{self.name}: IR version {self.model.version}; {VERSIONS[0]} and {VERSIONS[1]} are read",
                "convert the model it was made from with a later OpenVINO",
            )

    def _layer(self, attributes: dict[str, str]) -> None:
        self.count += 1
        if self.count > MAX_LAYERS:
            raise InvalidFile(f"{self.name}: more than {MAX_LAYERS} layers")
        name, given = attributes.get("name", ""), attributes.get("output_names", "")
        self.layers.append(_Layer(name, attributes.get("type", ""), attributes.get("version", ""), given))
        self.layers[-1].id = attributes.get("id", "")

    def _edge(self, attributes: dict[str, str]) -> None:
        step = self.graphs[-1][1].get(attributes.get("to-layer", "")) if self.graphs else None
        if step and len(step.inputs) < MAX_SIDES:
            step.inputs[self._number(attributes.get("to-port", ""), "a port")] = attributes.get("from-layer", "")

    def _data(self, attributes: dict[str, str]) -> None:
        if self.layers:
            self.layers[-1].data = attributes

    def _output(self, attributes: dict[str, str]) -> None:
        if self.layers:
            self.layers[-1].names = attributes.get("names", "")

    def _input(self, attributes: dict[str, str]) -> None:
        if self.layers:
            self.layers[-1].precision, self.layers[-1].sides = attributes.get("precision", ""), []

    def _note(self, tag: str, attributes: dict[str, str]) -> None:
        key, value = attributes.get("name", tag), attributes.get("value")
        depth = len(self.path) - 3
        self.notes[depth:] = [key]
        if value is not None and len(self.model.notes) < 1000:
            self.model.notes["/".join(self.notes)[:200]] = value[:1000]

    def _finish(self, layer: _Layer) -> None:
        model = self.model
        model.operators[layer.opset, layer.type] += 1
        inner = bool(self.layers)
        scope = "/".join([outer.name for outer in self.layers] + [layer.name])
        constant = self._constant(scope, layer.data) if layer.type == "Const" else None
        if layer.type in STEPS and self.graphs and layer.id:
            fixed = all(side.isascii() and side.isdigit() for side in layer.made)
            sides = tuple(int(side) for side in layer.made) if fixed else ()
            self.graphs[-1][1][layer.id] = Step(scope, layer.type, constant, sides, kind=layer.data.get("destination_type", ""))
        if constant:
            model.constants.append(constant)
        elif layer.type == "Parameter" and not inner:
            shape = re.sub(r"\s*,\s*", ", ", layer.data.get("shape", "").strip())[:400]
            model.inputs.append(Port(layer.names.split(",")[0] or layer.name, layer.data.get("element_type", ""), shape))
        elif layer.type == "Result" and not inner:
            kind = layer.precision.lower().replace("fp", "f", 1)
            model.outputs.append(Port(layer.given.split(",")[0] or layer.name, kind, ", ".join(layer.sides)))

    def _constant(self, name: str, data: Mapping[str, str]) -> Constant:
        what = f"constant {name!r:.200}"
        sides = [side.strip() for side in data.get("shape", "").split(",") if side.strip()]
        if len(sides) > MAX_SIDES:
            raise InvalidFile(f"{self.name}: {what} has {len(sides)} dimensions")
        shape = tuple(self._number(side, f"a side of {what}") for side in sides)
        offset, nbytes = (self._number(data.get(key, ""), f"the {key} of {what}") for key in ("offset", "size"))
        unique, again = name, 1
        while unique in self.seen:  # names of layers need not differ
            again += 1
            unique = f"{name}#{again}"
        self.seen.add(unique)
        return Constant(unique, data.get("element_type", ""), shape, offset, nbytes)

    def _number(self, text: str, what: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII):
            raise InvalidFile(f"{self.name}: {what} is {text[:40]!r}, a number was expected")
        return int(text)

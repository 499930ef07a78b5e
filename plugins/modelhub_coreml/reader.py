"""Reads a model: its description (``Model.proto``, ``FeatureTypes.proto``), and the weights of ML programs, neural networks and
pipelines of such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from modelhub import Checkpoint, Finding, IncompleteFile, InvalidFile, Metadata, Tensor, protobuf

from modelhub_coreml.network import Network
from modelhub_coreml.program import Program, Reader

MAX_SHOWN = 300
OPERATORS_SHOWN = 24
MAX_NOTES = 1000
MAX_DEPTH = 8
MAX_MODELS = 100
PROGRAM, CUSTOM = 502, 555
NETWORKS, PIPELINES = (303, 403, 500), (200, 201, 202)
BARE = (601, 602, 603, 606, 607, 609, 610, 900, 600, 604)
"""Those that change features and have no parameters to speak of."""
KINDS = {
    200: "pipeline classifier", 201: "pipeline regressor", 202: "pipeline", 300: "linear regressor",
    301: "support vector regressor", 302: "tree ensemble regressor", 303: "neural network regressor",
    304: "Bayesian probit regressor", 400: "linear classifier",
    401: "support vector classifier", 402: "tree ensemble classifier", 403: "neural network classifier",
    404: "nearest neighbours classifier", 500: "neural network", 501: "item similarity recommender", PROGRAM: "ML program",
    CUSTOM: "custom model", 556: "linked model", 560: "class confidence thresholding", 600: "one-hot encoder", 601: "imputer",
    602: "feature vectorizer", 603: "dictionary vectorizer", 604: "scaler", 606: "categorical mapping", 607: "normalizer",
    609: "array feature extractor", 610: "non-maximum suppression", 900: "identity", 2000: "text classifier", 2001: "word tagger",
    2002: "vision feature print", 2003: "sound analysis preprocessing", 2004: "gazetteer", 2005: "word embedding",
    2006: "audio feature print", 3000: "serialized model",
}  # fmt: skip
"""The fields of ``Model.Type``."""
_ARRAYS = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_COLOURS = {10: "grayscale", 20: "RGB", 30: "BGR", 40: "grayscale float16"}
_PLAIN = {1: "int64", 2: "float64", 3: "string", 6: "dictionary", 7: "sequence"}
_CARD = {1: "description", 2: "model_version", 3: "author", 4: "license"}


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Weights in their order, then what the model says of itself."""
    if checkpoint.files[0].endswith("/Manifest.json"):
        raise IncompleteFile(f"missing: {', '.join(checkpoint.missing[:3])}")
    wire = protobuf.Wire(checkpoint.primary)
    values: dict[str, Any] = {}
    stored: dict[str, str] = {}
    kind, place = 0, (0, 0)
    for number, wire_type, low, high in wire.fields():
        if number == 1 and wire_type == protobuf.VARINT:
            values["specification_version"] = low
        elif number == 2 and wire_type == protobuf.BYTES:
            _describe(wire, low, high, values, stored)
        elif number == 10 and wire_type == protobuf.VARINT and low:
            values["updatable"] = True
        elif number >= 200 and wire_type == protobuf.BYTES:
            kind, place = number, (low, high)
    if not kind:
        raise InvalidFile(f"{wire.name}: it says of no kind of model what it is")
    values["model_type"] = KINDS.get(kind, f"type {kind}")
    said = _Said()
    yield from _parameters(wire, checkpoint, kind, place, said)
    values |= said.values
    yield Metadata(values={key: value for key, value in values.items() if value}, stored=stored, precision=said.precision)


@dataclass(slots=True)
class _Said:
    """What the parameters of a model, or of several in a pipeline, add up to. ``compressed``: how weights are -> elements;
    ``plain``: elements that are not."""

    values: dict[str, Any] = field(default_factory=dict)
    compressed: Counter[str] = field(default_factory=Counter)
    plain: int = 0

    @property
    def precision(self) -> str:
        """How most of the weights are compressed; "" where most are not, or are merely sparse."""
        label, _ = self.compressed.most_common(1)[0] if self.compressed else ("", 0)
        return label if sum(self.compressed.values()) >= self.plain else ""


def _parameters(
    wire: protobuf.Wire, checkpoint: Checkpoint, kind: int, place: tuple[int, int], said: _Said, prefix: str = "", depth: int = 0
) -> Iterator[Tensor | Finding]:
    """The parameters of a model of ``kind``, whose message is at ``place``."""
    what = KINDS.get(kind, f"type {kind}")
    if kind == PROGRAM:
        reader = Reader(wire, checkpoint)
        for tensor in reader.tensors(*place):
            said.plain += prod(tensor.shape) if tensor.view == "both" else 0
            yield tensor._replace(name=prefix + tensor.name)
        said.compressed += reader.program.weights
        said.values |= _program(reader.program)
    elif kind in NETWORKS:
        network = Network(wire, checkpoint.files[0])
        yield from network.tensors(*place, prefix)
        said.compressed += network.bits
        said.plain += network.plain
        said.values |= _network(network)
    elif kind in PIPELINES:
        if depth >= MAX_DEPTH:
            raise InvalidFile(f"{wire.name}: pipelines nest deeper than {MAX_DEPTH} at offset {place[0]}")
        components: list[str] = []
        for name, inner, low, high in _models(wire, kind, *place):
            components.append(f"{name}: {KINDS.get(inner, f'type {inner}')}"[:MAX_SHOWN])
            yield from _parameters(wire, checkpoint, inner, (low, high), said, f"{prefix}{name}/", depth + 1)
        said.values["components"] = components
    elif kind not in BARE:
        where = f" ({prefix.rstrip('/')})" if prefix else ""
        yield Finding("coreml", "info", f"the parameters of a {what}{where} are not listed; those of networks and programs are")
    if kind == CUSTOM:
        yield Finding("coreml", "warning", "a custom model: running it takes native code from whoever made it")
    if said.compressed:
        said.values["compressed_parameters"] = {label or "sparse": count for label, count in said.compressed.most_common()}


def _models(wire: protobuf.Wire, kind: int, start: int, end: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, kind, where its message lies) of each model in a pipeline."""
    names: list[str] = []
    found: list[tuple[int, int, int]] = []
    for low, high in [(start, end)] if kind == PIPELINES[-1] else _inside(wire, 1, start, end):
        for number, wire_type, first, last in wire.fields(low, high):
            if number == 2 and wire_type == protobuf.BYTES:
                names.append(wire.text(first, last)[:MAX_SHOWN])
            elif number == 1 and wire_type == protobuf.BYTES:
                inner = [one for one in wire.fields(first, last) if one[0] >= 200 and one[1] == protobuf.BYTES]
                found.append((inner[-1][0], *inner[-1][2:]) if inner else (0, first, first))
            if len(found) > MAX_MODELS or len(names) > MAX_MODELS:
                raise InvalidFile(f"{wire.name}: a pipeline of more than {MAX_MODELS} models at offset {low}")
    for position, (inner_kind, low, high) in enumerate(found):
        yield names[position] if position < len(names) and names[position] else f"model{position}", inner_kind, low, high


def _inside(wire: protobuf.Wire, at: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    for number, kind, low, high in wire.fields(start, end):
        if number == at and kind == protobuf.BYTES:
            yield low, high


def _network(network: Network) -> dict[str, Any]:
    return {
        "nodes": sum(network.kinds.values()),
        "operators": {name[:80]: count for name, count in network.kinds.most_common(OPERATORS_SHOWN)},
    }


def _program(program: Program) -> dict[str, Any]:
    return {
        "functions": [name[:MAX_SHOWN] for name in program.functions[:MAX_SHOWN]] if len(program.functions) > 1 else [],
        "opsets": sorted(name[:80] for name in program.opsets)[:MAX_SHOWN],
        "nodes": sum(program.operators.values()),
        "operators": {name[:80]: count for name, count in program.operators.most_common(OPERATORS_SHOWN) if name != "const"},
        "constants": program.constants,
    }


def _describe(wire: protobuf.Wire, start: int, end: int, values: dict[str, Any], stored: dict[str, str]) -> None:
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for number, kind, low, high in wire.fields(start, end):
        if kind != protobuf.BYTES:
            continue
        if number in (1, 10):
            into = inputs if number == 1 else outputs
            if len(into) < MAX_SHOWN:
                name, text = _feature(wire, low, high)
                into[name] = text
        elif number == 100:
            _card(wire, low, high, values, stored)
    values |= {"inputs": inputs, "outputs": outputs}


def _card(wire: protobuf.Wire, start: int, end: int, values: dict[str, Any], stored: dict[str, str]) -> None:
    """What the author wrote, and notes of any kind."""
    for number, kind, low, high in wire.fields(start, end):
        if kind != protobuf.BYTES:
            continue
        if number in _CARD:
            values[_CARD[number]] = wire.text(low, high)[:MAX_SHOWN]
        elif number == 100 and len(stored) < MAX_NOTES:
            pair = {inner: wire.text(at, stop) for inner, one, at, stop in wire.fields(low, high) if one == protobuf.BYTES}
            stored[pair.get(1, "")] = pair.get(2, "")


def _feature(wire: protobuf.Wire, start: int, end: int) -> tuple[str, str]:
    """(name, type as people write it)."""
    name, text = "", ""
    for number, kind, low, high in wire.fields(start, end):
        if number == 1 and kind == protobuf.BYTES:
            name = wire.text(low, high)[:MAX_SHOWN]
        elif number == 3 and kind == protobuf.BYTES:
            for inner, inner_kind, at, stop in wire.fields(low, high):
                if inner_kind == protobuf.BYTES:
                    text = _typed(wire, inner, at, stop)
    return name, text


def _typed(wire: protobuf.Wire, number: int, start: int, end: int) -> str:
    if number == 4:
        image = {field: value for field, kind, value, _ in wire.fields(start, end) if kind == protobuf.VARINT}
        return f"image[{image.get(1, 0)}x{image.get(2, 0)}] {_COLOURS.get(image.get(3, 0), '')}".strip()
    if number == 8:
        inner = next(((low, high) for field, kind, low, high in wire.fields(start, end) if (field, kind) == (1, 2)), None)
        return f"state {_typed(wire, 5, *inner)}" if inner else "state"
    if number != 5:
        return _PLAIN.get(number, f"type {number}")
    sides: list[int] = []
    dtype = 0
    for number, kind, low, high in wire.fields(start, end):
        if number == 1 and kind == protobuf.BYTES:
            sides += wire.varints(low, high, 64)
        elif number == 1 and kind == protobuf.VARINT:
            sides.append(low)
        elif number == 2 and kind == protobuf.VARINT:
            dtype = low
    shape = ", ".join("?" if protobuf.signed(side) < 0 else str(side) for side in sides[:64])
    return f"{_ARRAYS.get(dtype, f'type {dtype}')}[{shape}]"

"""Reads a model: its description (``Model.proto``, ``FeatureTypes.proto``), and the weights of an ML program."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from modelhub import Checkpoint, Finding, IncompleteFile, InvalidFile, Metadata, Tensor, protobuf

from modelhub_coreml.program import Program, Reader

MAX_SHOWN = 300
OPERATORS_SHOWN = 24
MAX_NOTES = 1000
PROGRAM, CUSTOM = 502, 555
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
    """Weights in the order of the program, then what the model says of itself."""
    if checkpoint.files[0].endswith("/Manifest.json"):
        raise IncompleteFile(f"missing: {', '.join(checkpoint.missing[:3])}")
    wire = protobuf.Wire(checkpoint.primary)
    values: dict[str, Any] = {}
    stored: dict[str, str] = {}
    kind, place, precision = 0, (0, 0), ""
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
    if kind == PROGRAM:
        reader = Reader(wire, checkpoint)
        plain = 0
        for tensor in reader.tensors(*place):
            plain += prod(tensor.shape) if tensor.view == "both" else 0
            yield tensor
        values |= _program(reader.program)
        precision = _precision(reader.program, plain)
    else:
        yield Finding("coreml", "info", f"the parameters of a {values['model_type']} are not listed; those of ML programs are")
    if kind == CUSTOM:
        yield Finding("coreml", "warning", "a custom model: running it takes native code from whoever made it")
    yield Metadata(values={key: value for key, value in values.items() if value}, stored=stored, precision=precision)


def _program(program: Program) -> dict[str, Any]:
    return {
        "functions": [name[:MAX_SHOWN] for name in program.functions[:MAX_SHOWN]] if len(program.functions) > 1 else [],
        "opsets": sorted(name[:80] for name in program.opsets)[:MAX_SHOWN],
        "nodes": sum(program.operators.values()),
        "operators": {name[:80]: count for name, count in program.operators.most_common(OPERATORS_SHOWN) if name != "const"},
        "constants": program.constants,
        "compressed_parameters": {label or "sparse": count for label, count in program.weights.most_common()},
    }


def _precision(program: Program, plain: int) -> str:
    """How most of the weights are compressed; "" where most are not, or are merely sparse. ``plain``: elements that are not."""
    label, _ = program.weights.most_common(1)[0] if program.weights else ("", 0)
    return label if sum(program.weights.values()) >= plain else ""


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
    for field, kind, low, high in wire.fields(start, end):
        if field == 1 and kind == protobuf.BYTES:
            sides += wire.varints(low, high, 64)
        elif field == 1 and kind == protobuf.VARINT:
            sides.append(low)
        elif field == 2 and kind == protobuf.VARINT:
            dtype = low
    shape = ", ".join("?" if protobuf.signed(side) < 0 else str(side) for side in sides[:64])
    return f"{_ARRAYS.get(dtype, f'type {dtype}')}[{shape}]"

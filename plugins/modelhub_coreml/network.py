"""Neural networks: the weights of their layers, in the order of the layers, under ``LAYER/WEIGHT``.

What a layer's fields mean, and the shapes of its weights, is a table; weights whose number does not fit the shape are flat, and
those of a layer that is not in it are not listed. Quantized weights are read by their own scales or tables. (coremltools
``mlmodel/format/NeuralNetwork.proto``: ``NeuralNetworkLayer``, ``WeightParams``, ``QuantizationParams``.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from modelhub import Extent, InvalidFile, Node, Tensor, dtypes, ops, protobuf

from modelhub_coreml import compressed
from modelhub_coreml.kinds import KINDS
from modelhub_coreml.names import unique

MAX_NAME = 10_000
MAX_DEPTH = 20
MAX_NUMBERS = 64
CUSTOM = 500

Numbers = Mapping[int, Sequence[int]]
"""The integers of a layer's parameters, by field."""
Shape = Callable[[Numbers], Sequence[int]]


class Layer(NamedTuple):
    """What a layer of a kind holds: field -> (name of the weight, its shape)."""

    kind: str
    weights: Mapping[int, tuple[str, Shape]]
    inner: Mapping[int, str] = {}


def _one(numbers: Numbers, at: int, default: int = 1) -> int:
    return numbers[at][0] if numbers.get(at) else default


def _of(*fields: int) -> Shape:
    return lambda numbers: [_one(numbers, at) for at in fields]


def _listed(at: int) -> Shape:
    return lambda numbers: numbers.get(at, ())


def _kernel(numbers: Numbers) -> Sequence[int]:
    """Of a convolution: (out, in of a group, height, width); deconvolutions have the first two the other way round."""
    out, inside, sides = _one(numbers, 1), _one(numbers, 2), numbers.get(20) or (3, 3)
    return (inside, max(1, out // _one(numbers, 10)), *sides) if _one(numbers, 60, 0) else (out, inside, *sides)


def _kernel3(numbers: Numbers) -> Sequence[int]:
    out, inside, groups = _one(numbers, 1), _one(numbers, 2), _one(numbers, 10)
    sides = [_one(numbers, at) for at in (20, 21, 22)]
    return (inside, max(1, out // groups), *sides) if _one(numbers, 86, 0) else (out, max(1, inside // groups), *sides)


_GATES = ("inputGate", "forgetGate", "blockInput", "outputGate")
LSTM: dict[int, tuple[str, Shape]] = {
    **{1 + number: (f"{gate}WeightMatrix", _of(2, 1)) for number, gate in enumerate(_GATES)},
    **{20 + number: (f"{gate}RecursionMatrix", _of(2, 2)) for number, gate in enumerate(_GATES)},
    **{40 + number: (f"{gate}BiasVector", _of(2)) for number, gate in enumerate(_GATES)},
    **{60 + number: (f"{gate}PeepholeVector", _of(2)) for number, gate in enumerate(("inputGate", "forgetGate", "outputGate"))},
}
_GRU = ("updateGate", "resetGate", "outputGate")
LAYERS: dict[int, Layer] = {
    100: Layer("convolution", {90: ("weights", _kernel), 91: ("bias", _of(1))}),
    140: Layer("innerProduct", {20: ("weights", _of(2, 1)), 21: ("bias", _of(2))}),
    150: Layer("embedding", {20: ("weights", _of(2, 1)), 21: ("bias", _of(2))}),
    160: Layer("batchnorm", {15: ("gamma", _of(1)), 16: ("beta", _of(1)), 17: ("mean", _of(1)), 18: ("variance", _of(1))}),
    245: Layer("scale", {2: ("scale", _listed(1)), 5: ("bias", _listed(4))}),
    250: Layer("bias", {2: ("bias", _listed(1))}),
    290: Layer("loadConstant", {2: ("data", _listed(1))}),
    400: Layer(
        "simpleRecurrent", {30: ("weightMatrix", _of(2, 1)), 31: ("recursionMatrix", _of(2, 2)), 32: ("biasVector", _of(2))}
    ),
    410: Layer(
        "gru",
        {
            **{30 + number: (f"{gate}WeightMatrix", _of(2, 1)) for number, gate in enumerate(_GRU)},
            **{50 + number: (f"{gate}RecursionMatrix", _of(2, 2)) for number, gate in enumerate(_GRU)},
            **{70 + number: (f"{gate}BiasVector", _of(2)) for number, gate in enumerate(_GRU)},
        },
    ),
    420: Layer("uniDirectionalLSTM", {}),
    430: Layer("biDirectionalLSTM", {}),
    500: Layer("custom", {20: ("weights", _listed(-1))}),
    605: Layer("branch", {}, {1: "ifBranch", 2: "elseBranch"}),
    615: Layer("loop", {}, {3: "conditionNetwork", 4: "bodyNetwork"}),
    1040: Layer("embeddingND", {20: ("weights", _of(2, 1)), 21: ("bias", _of(2))}),
    1045: Layer("batchedMatmul", {8: ("weights", _of(6, 5)), 9: ("bias", _of(6))}),
    1070: Layer("loadConstantND", {2: ("data", _listed(1))}),
    1350: Layer("layerNormalization", {3: ("gamma", _listed(1)), 4: ("beta", _listed(1))}),
    1471: Layer("convolution3d", {60: ("weights", _kernel3), 61: ("bias", _of(1))}),
}
_LSTMS = (420, 430)
_PRELU = {130: 25}
_TURNED = {100: 60, 1471: 86}
"""Layers that are deconvolutions where this field says so."""


@dataclass(slots=True)
class Network:
    """One walk over the networks of a model. ``kinds``: layers by what they are; ``bits``: of quantized weights -> elements."""

    wire: protobuf.Wire
    path: str
    kinds: Counter[str] = field(default_factory=Counter)
    bits: Counter[str] = field(default_factory=Counter)
    plain: int = 0
    seen: set[str] = field(default_factory=set)

    def tensors(self, start: int, end: int, prefix: str = "", depth: int = 0) -> Iterator[Tensor]:
        """The weights of the network at ``start``..``end``."""
        if depth > MAX_DEPTH:
            raise InvalidFile(f"{self.wire.name}: networks nest deeper than {MAX_DEPTH} at offset {start}")
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                yield from self._layer(low, high, prefix, depth)

    def _layer(self, start: int, end: int, prefix: str, depth: int) -> Iterator[Tensor]:
        name, what, place = "", 0, (0, 0)
        for number, kind, low, high in self.wire.fields(start, end):
            if number == 1 and kind == protobuf.BYTES:
                name = self.wire.text(low, high, MAX_NAME)
            elif number >= 100 and kind == protobuf.BYTES:
                what, place = number, (low, high)
        layer = LAYERS.get(what)
        self.kinds[layer.kind if layer else KINDS.get(what, f"layer {what}")] += 1
        scope = f"{prefix}{name or what}"
        if what in _PRELU:
            yield from self._inside(*place, _PRELU[what], {1: ("alpha", _listed(-1))}, scope, {})
        if layer is None:
            return
        numbers = self._numbers(*place)
        directions = 0
        for number, kind, low, high in self.wire.fields(*place):
            if kind != protobuf.BYTES:
                continue
            if number in layer.weights:
                label, shape = layer.weights[number]
                turned = what in _TURNED and label == "weights" and _one(numbers, _TURNED[what], 0) != 0
                yield from self._weight(low, high, f"{scope}/{label}", shape(numbers), axis=int(turned))
            elif number in layer.inner:
                yield from self.tensors(low, high, f"{scope}.{layer.inner[number]}/", depth + 1)
            elif what in _LSTMS and number == 20:
                direction = "" if what == _LSTMS[0] else ("forward/", "backward/")[min(directions, 1)]
                directions += 1
                for inner, inner_kind, first, last in self.wire.fields(low, high):
                    if inner in LSTM and inner_kind == protobuf.BYTES:
                        label, shape = LSTM[inner]
                        yield from self._weight(first, last, f"{scope}/{direction}{label}", shape(numbers))

    def _inside(
        self, start: int, end: int, at: int, weights: Mapping[int, tuple[str, Shape]], scope: str, numbers: Numbers
    ) -> Iterator[Tensor]:
        for number, kind, low, high in self.wire.fields(start, end):
            if number == at and kind == protobuf.BYTES:
                for inner, inner_kind, first, last in self.wire.fields(low, high):
                    if inner in weights and inner_kind == protobuf.BYTES:
                        yield from self._weight(first, last, f"{scope}/{weights[inner][0]}", ())

    def _numbers(self, start: int, end: int) -> Numbers:
        """Integers, one by one or packed; runs that are no such are not looked at."""
        found: dict[int, list[int]] = {}
        for number, kind, low, high in self.wire.fields(start, end):
            run = found.setdefault(number, [])
            if kind == protobuf.VARINT and len(run) < MAX_NUMBERS:
                run.append(low)
            elif kind == protobuf.BYTES and number in (1, 4, 20) and high - low <= MAX_NUMBERS:
                try:
                    run += self.wire.varints(low, high, MAX_NUMBERS)
                except InvalidFile:
                    continue
        return found

    # --- one weight -----------------------------------------------------------------------------------------------

    def _weight(self, start: int, end: int, name: str, shape: Sequence[int], axis: int = 0) -> Iterator[Tensor]:
        """A ``WeightParams``: floats, half floats, or packed numbers with scales (along ``axis``) or a table."""
        data: tuple[int, int, int] = (0, 0, 0)
        quantization: tuple[int, int] | None = None
        for number, kind, low, high in self.wire.fields(start, end):
            if kind == protobuf.BYTES and number in (1, 2, 30, 31) and high > low:
                data = (number, low, high)
            elif kind == protobuf.BYTES and number == 40:
                quantization = (low, high)
        number, low, high = data
        if not number:
            return
        extent = Extent(self.path, low, high - low)
        if number in (1, 2):
            dtype = "F32" if number == 1 else "F16"
            count, odd = divmod(extent.nbytes, dtypes.get(dtype).block_bytes)
            if odd:
                raise InvalidFile(f"{self.wire.name}: {name!r:.200}: {extent.nbytes} bytes of {dtype} at offset {low}")
            self.plain += count
            yield Tensor(unique(name, self.seen), dtype, _fitting(shape, count), extent)
            return
        called = unique(name, self.seen)
        bits, made = self._quantized(extent, quantization, shape, signed=number == 31, axis=axis)
        if made is None:
            yield Tensor(called, "U8", (extent.nbytes,), extent)
            return
        self.bits[bits] += prod(made.shape)
        yield Tensor(called, "U8", (extent.nbytes,), extent, view="stored")
        yield Tensor(called, "F32", made.shape, made, view="logical")

    def _quantized(
        self, extent: Extent, quantization: tuple[int, int] | None, shape: Sequence[int], *, signed: bool, axis: int
    ) -> tuple[str, Node | None]:
        """(how it is quantized, the floats that are meant); None where that is not understood."""
        if quantization is None or not shape or min(shape) < 1:
            return "", None
        bits, runs = 0, dict[str, Extent]()
        for number, kind, low, high in self.wire.fields(*quantization):
            if number == 1 and kind == protobuf.VARINT:
                bits = low
            elif number in (101, 102) and kind == protobuf.BYTES:
                for inner, inner_kind, first, last in self.wire.fields(low, high):
                    key = ("scale", "bias")[inner - 1] if number == 101 and inner in (1, 2) else "table" if inner == 1 else ""
                    if key and inner_kind == protobuf.BYTES and last > first:
                        runs[key] = Extent(self.path, first, last - first)
                    elif key and inner_kind == protobuf.FIXED32:  # a single number may stand by itself
                        runs.setdefault(key, Extent(self.path, first, 4))
        try:
            return self._made(extent, bits, runs, tuple(shape), signed=signed, axis=axis)
        except ValueError:
            return "", None

    def _made(
        self, extent: Extent, bits: int, runs: Mapping[str, Extent], shape: tuple[int, ...], *, signed: bool, axis: int
    ) -> tuple[str, Node | None]:
        if bits not in range(1, 9) or extent.nbytes != -(-prod(shape) * bits // 8):
            return "", None
        codes = compressed.unpacked(extent, bits, shape, signed=signed, order="big")
        if "table" in runs:
            table = ops.typed(runs["table"], "F32", (runs["table"].nbytes // 4,))
            tables = ops.reshape(table, "F32", (*([1] * len(shape)), *table.shape, 1))
            return f"LUT{bits}", ops.node("coreml.lookup", codes, tables)
        if "scale" not in runs:
            return "", None
        parts = []
        for run in (runs[key] for key in ("scale", "bias") if key in runs):
            count = run.nbytes // 4
            sides = [1] * len(shape)
            sides[axis if len(shape) > 1 else 0] = count
            parts.append(ops.typed(run, "F32", tuple(sides)))
        return f"INT{bits}", ops.dequant("coreml_linear", codes, *parts)


def _fitting(shape: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(shape) if shape and prod(shape) == count else (count,)

"""What compressed weights stand for: constants that a graph decompresses before they are used, as one F32 tensor each.

What is understood: integers, small floats (FP8, FP4, NF4) or entries of a table, minus zero points, times scales, in the shape
that a `Reshape` behind gives them. That is what NNCF's ``compress_weights`` and ``quantize`` leave in an IR. (OpenVINO
``common/transformations``, ``mark_dequantization_subgraph``; NNCF ``quantization/algorithms/weight_compression``.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from modelhub import Extent, InvalidFile, Node, Op, Tensor, bits, dtypes, ops

from modelhub_openvino.model import Constant, Graph, Model, Step

MAX_STEPS = 4
"""Conversions between a constant and what is done with it."""
MAX_TABLE = 256
BITS = {"u8": 8, "i8": 8, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "f8e4m3": 8, "f8e5m2": 8}
_LABELS = {
    "u8": "INT8",
    "i8": "INT8",
    "u4": "INT4",
    "i4": "INT4",
    "nf4": "NF4",
    "f4e2m1": "F4",
    "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2",
}
_FLOATS = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2",
    "f8e8m0": "F8_E8M0",
    "f4e2m1": "F4",
}
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""(``openvino/core/type/nf4.hpp``; QLoRA, arXiv 2305.14314, appendix E.)"""


class Whole(NamedTuple):
    """A weight: its parts in the graph, the shape that is used, and the layer that it comes out of. ``table``: floats that
    ``weight`` counts in. ``outer``: one number that all scales are multiplied by first; ``half``: and are half precision then."""

    name: str
    shape: tuple[int, ...]
    weight: Constant
    scale: Constant
    zero: Constant | None
    table: Constant | None
    outer: Constant | None = None
    half: bool = False

    @property
    def label(self) -> str:
        """As people say it."""
        if self.table:
            return f"LUT{BITS[self.weight.kind]}"
        if self.outer and (self.weight.kind, self.scale.kind) == ("f4e2m1", "f8e4m3"):
            return "NVFP4"
        mx = self.scale.kind == "f8e8m0"
        return {"f4e2m1": "MXFP4", "f8e4m3": "MXFP8"}.get(self.weight.kind, "") * mx or _LABELS[self.weight.kind]

    @property
    def group(self) -> int:
        """Elements that share a scale."""
        return prod(self.weight.shape) // max(1, prod(self.scale.shape))


def wholes(model: Model) -> Iterator[Whole]:
    """Every compressed weight, once."""
    seen: set[str] = set()
    for graph in model.graphs:
        shapes = {step.inputs.get(0, ""): step.shape for step in graph.values() if step.type == "Reshape" and step.shape}
        every = [(number, found) for number, step in graph.items() if step.type == "Multiply" and (found := _whole(graph, step))]
        scales = {found.scale.name for _, found in every if found.outer}
        for number, found in every:
            if found.weight.name not in seen and found.weight.name not in scales:
                seen.add(found.weight.name)
                shape = shapes.get(number, found.shape)
                yield found._replace(shape=shape if prod(shape) == prod(found.shape) else found.shape)


def _whole(graph: Graph, step: Step) -> Whole | None:
    """(weight - zero point) x scale, whichever side of the product the scale is on."""
    for side, other in ((0, 1), (1, 0)):
        scale, outer = _scale(graph, step.inputs.get(other, ""))
        taken = graph.get(step.inputs.get(side, ""))
        if scale is None or taken is None or scale.kind not in _FLOATS:
            continue
        zero = None
        if taken.type == "Subtract":
            zero = _constant(graph, taken.inputs.get(1, ""))
            if zero is None:
                continue
            taken = graph.get(taken.inputs.get(0, ""), taken)
        table = _constant(graph, taken.inputs.get(0, "")) if taken.type == "Gather" else None
        weight = _constant(graph, taken.inputs.get(1, "")) if table else _behind(graph, taken)
        if weight is None or not _fits(weight, scale, zero, table):
            continue
        name = weight.name.removesuffix("_nncf_codebook_idxs")
        named = name if not re.fullmatch(r"(.*/)?Constant_\d+", name) else step.name
        half = outer is not None and graph[step.inputs[other]].kind == "f16"
        return Whole(named, weight.shape, weight, scale, zero, table, outer, half)
    return None


def _scale(graph: Graph, number: str) -> tuple[Constant | None, Constant | None]:
    """The scales that a layer is, and the one number that they are multiplied by, if there is one (NVFP4)."""
    step = _unconverted(graph, graph[number]) if number in graph else None
    if step is None or step.type != "Multiply":
        return _constant(graph, number), None
    first, second = (_constant(graph, step.inputs.get(side, "")) for side in (0, 1))
    if first is not None and second is not None and second.kind in _FLOATS and prod(second.shape) == 1:
        return first, second
    return None, None


def _constant(graph: Graph, number: str) -> Constant | None:
    """The constant that a layer is, or converts."""
    return _behind(graph, graph[number]) if number in graph else None


def _behind(graph: Graph, step: Step) -> Constant | None:
    return _unconverted(graph, step).constant


def _unconverted(graph: Graph, step: Step) -> Step:
    for _ in range(MAX_STEPS):
        if step.type != "Convert" or step.inputs.get(0, "") not in graph:
            break
        step = graph[step.inputs[0]]
    return step


def _fits(weight: Constant, scale: Constant, zero: Constant | None, table: Constant | None) -> bool:
    if weight.kind not in BITS or prod(weight.shape) < 2 or not _broadcasts(scale.shape, weight.shape):
        return False
    if zero and not (zero.kind in ("u8", "i8", "u4", "i4", *_FLOATS) and _broadcasts(zero.shape, weight.shape)):
        return False
    if table:
        return weight.kind in ("u4", "u8") and table.kind in _FLOATS and len(table.shape) == 1 and table.shape[0] <= MAX_TABLE
    return True


def _broadcasts(small: Sequence[int], whole: Sequence[int]) -> bool:
    aligned = (1,) * (len(whole) - len(small)) + tuple(small)
    return len(aligned) == len(whole) and all(side in (1, other) for side, other in zip(aligned, whole, strict=True))


def halved(model: Model) -> dict[str, str]:
    """Constants that were stored in half precision -> the names that they had before: those of the conversions behind them
    (``ov::pass::CompressFloatConstants``)."""
    taken = {constant.name for constant in model.constants}
    found: dict[str, str] = {}
    for graph in model.graphs:
        for step in graph.values():
            source = graph.get(step.inputs.get(0, "")) if step.type == "Convert" else None
            constant = source.constant if source else None
            if constant and constant.name == f"{step.name}_compressed" and step.name not in taken:
                found[constant.name] = step.name
                taken.add(step.name)
    return found


def logical(model: Model, path: str) -> tuple[list[Tensor], set[str]]:
    """(the weights that are meant, the names of the constants that they are made of). Weights whose parts do not have the bytes
    that their shapes take stay as they are, for the core to say so."""
    found: list[Tensor] = []
    used: set[str] = set()
    for whole in wholes(model):
        parts = [part for part in (whole.weight, whole.scale, whole.zero, whole.table, whole.outer) if part]
        if any(part.kind == "nf4" and part is not whole.weight for part in parts) or not _sound(parts):
            continue
        value = _value(whole, path)
        found.append(Tensor(whole.name, "F32", whole.shape, value, view="logical"))
        used.update(part.name for part in parts)
    return found, used


def _sound(parts: Sequence[Constant]) -> bool:
    return all(part.nbytes == -(-prod(part.shape) * _bits(part) // 8) for part in parts)


def _bits(part: Constant) -> int:
    return BITS.get(part.kind) or int(dtypes.get(_FLOATS[part.kind]).bits)


def _value(whole: Whole, path: str) -> Node:
    weight = numbers(whole.weight, path)
    if whole.table:
        weight = ops.node("openvino.lookup", weight, numbers(whole.table, path))
    rank = len(whole.weight.shape)
    parts = [numbers(part, path, rank) for part in (whole.scale, whole.zero) if part]
    if whole.outer:
        scale = ops.dequant("openvino", parts[0], numbers(whole.outer, path, rank))
        parts[0] = ops.cast(ops.cast(scale, "F32", scale.shape, "F16"), "F16", scale.shape, "F32") if whole.half else scale
    made = ops.dequant("openvino", weight, *parts)
    return made if made.shape == whole.shape else ops.reshape(made, "F32", whole.shape)


def numbers(constant: Constant, path: str, rank: int = 0) -> Node:
    """A constant's elements, one by one: small integers as I8 or U8, floats as F32; with ``rank`` sides at the least."""
    shape = (1,) * (rank - len(constant.shape)) + constant.shape
    extent = Extent(path, constant.offset, constant.nbytes)
    if constant.kind in ("u8", "i8"):
        return ops.typed(extent, constant.kind.upper(), shape)
    if constant.kind in ("u4", "i4", "nf4"):
        return ops.node("openvino.unpack", extent, kind=constant.kind, shape=list(shape))
    dtype = _FLOATS[constant.kind]
    value = ops.typed(extent, dtype, shape)
    return value if dtype == "F32" else ops.cast(value, dtype, shape, "F32")


def described(model: Model) -> tuple[dict[str, Any], str]:
    """(how the weights are compressed, the label of the precision); two empty ones where none are, and no label where they are
    the smaller part."""
    every = list(wholes(model))
    if not every:
        return {}, ""
    count: Counter[str] = Counter()
    for whole in every:
        count[whole.label] += prod(whole.shape)
    parts = {part.name for whole in every for part in (whole.weight, whole.scale, whole.zero, whole.table) if part}
    floats = sum(prod(one.shape) for one in model.constants if one.kind in _FLOATS and one.name not in parts)
    main = count.most_common(1)[0][0]
    groups = Counter(whole.group for whole in every if whole.label == main)
    activations = any(name == "FakeQuantize" for _, name in model.operators)
    said = {
        "weights": main,
        "quantized_parameters": sum(count.values()),
        "group_size": groups.most_common(1)[0][0],
        "symmetric": not any(whole.zero for whole in every if whole.label == main),
        **({"activations": "FakeQuantize"} if activations else {}),
    }
    return said, main if sum(count.values()) >= floats else ""


# --- the ops ------------------------------------------------------------------------------------------------------

Specs = Sequence[tuple[str, tuple[int, ...]]]


def _unpack_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    kind, shape = args["kind"], tuple(args["shape"])
    if kind not in ("u4", "i4", "nf4") or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"openvino.unpack: {kind!r}, {list(shape)}")
    if len(inputs) != 1 or inputs[0] != ("U8", (-(-prod(shape) // 2),)):
        raise ValueError(f"openvino.unpack: {list(shape)} of 4 bits do not fit {list(inputs)}")
    return {"u4": "U8", "i4": "I8", "nf4": "F32"}[kind], shape


def _unpack_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """The first of a byte's two elements stands in its low half; they follow each other over the ends of rows."""
    import numpy as np

    shape = tuple(args["shape"])
    row = prod(shape[1:])
    first, last = start * row, stop * row
    values = bits.unpack(sources[0], 4, first, last, signed=args["kind"] == "i4")
    if args["kind"] == "nf4":
        values = np.asarray(NF4, np.float16).astype(np.float32)[values]  # the graph converts them to half precision first
    return values.reshape((stop - start, *shape[1:]) if shape else ())


def _unpack_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    row = prod(args["shape"][1:])
    return [(start * row // 2, -(-stop * row // 2))]


def _lookup_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    if len(inputs) != 2 or inputs[0][0] != "U8" or inputs[1][0] != "F32" or len(inputs[1][1]) != 1:
        raise ValueError(f"openvino.lookup takes U8 and a table of F32, not {list(inputs)}")
    return "F32", inputs[0][1]


def _lookup_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    table, places = sources[1].read(0, sources[1].shape[0]), sources[0].read(start, stop)
    if places.size and places.max() >= len(table):
        raise InvalidFile(f"a weight is entry {places.max()} of a table of {len(table)}")
    return np.asarray(table, np.float32)[places]


def _dequant_infer(inputs: Specs, args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    kinds, shapes = [one[0] for one in inputs], [one[1] for one in inputs]
    if len(inputs) not in (2, 3) or kinds[1] != "F32" or any(kind not in ("F32", "U8", "I8") for kind in kinds):
        raise ValueError(f"dequant.openvino takes numbers, scales and perhaps zero points, not {kinds}")
    if not shapes[0] or any(len(shape) != len(shapes[0]) or not _broadcasts(shape, shapes[0]) for shape in shapes[1:]):
        raise ValueError(f"dequant.openvino: {[list(shape) for shape in shapes[1:]]} do not fit {list(shapes[0])}")
    return "F32", shapes[0]


def _dequant_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """(weight - zero point) x scale in single precision; the graph itself may do it in half."""
    import numpy as np

    shares = _dequant_needs([(one.dtype, one.shape) for one in sources], args, start, stop)
    parts = [
        np.asarray(one.read(*share)).reshape(share[1] - share[0], *one.shape[1:]).astype(np.float32)
        for one, share in zip(sources, shares, strict=True)
    ]
    with np.errstate(all="ignore"):
        values = parts[0] - parts[2] if len(parts) > 2 else parts[0]
        return np.ascontiguousarray(values * parts[1], np.float32)


def _dequant_needs(inputs: Specs, args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop) if shape[0] == inputs[0][1][0] else (0, 1) for _, shape in inputs]


OPS = (
    Op(name="openvino.unpack", rows=_unpack_rows, infer=_unpack_infer, needs=_unpack_needs),
    Op(
        name="openvino.lookup",
        rows=_lookup_rows,
        infer=_lookup_infer,
        needs=lambda inputs, args, start, stop: [(start, stop), (0, inputs[1][1][0])],
    ),
    Op(name="dequant.openvino", rows=_dequant_rows, infer=_dequant_infer, needs=_dequant_needs),
)

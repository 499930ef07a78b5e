"""The constants of a model as tensors: what stands in the file, and the floats that quantized ones stand for.

A quantized constant is `stored` as the integers that it is, and `logical` as (integer - zero point) x scale under the same name
(LiteRT ``docs/models/post_training_quantization``, "Quantization specification"). Integers of less than a byte are
taken apart first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import prod
from typing import Any

from modelhub import Extent, File, Inline, InvalidFile, Node, Tensor, bits, dtypes, ops

from modelhub_tflite import schema, sparse
from modelhub_tflite.model import Entry, Model, Scales

_BITS = {"I4": (4, True), "U4": (4, False), "I2": (2, True)}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "I64", *_BITS)


def constants(model: Model) -> Iterator[tuple[str, Entry]]:
    """(name, tensor) of every tensor that has a value in the file. A name that several have is told apart by its graph, and by
    its place there."""
    taken: set[str] = set()
    for number, entries in enumerate(model.tensors):
        for entry in entries:
            if entry.place is None and not entry.external:
                continue
            name = entry.name or f"tensor_{entry.number}"
            if name in taken:
                name = f"{model.graphs[number] or number}/{name}"
            if name in taken:
                name = f"{name}#{entry.number}"
            while name in taken:
                name += "'"
            taken.add(name)
            yield name, entry


def tensors(model: Model, file: File) -> Iterator[Tensor]:
    """All constants, in the order of their graphs."""
    for name, entry in constants(model):
        yield from _tensor(name, entry, model, file)


def _tensor(name: str, entry: Entry, model: Model, file: File) -> Iterator[Tensor]:
    dtype = schema.dtype_of(entry.type)
    who = f"{file.name}: tensor {name[:200]!r}"
    why = ""
    if entry.external:
        why = "tensor kept in another file"
    elif dtype == "STRING":
        why = "string tensor"
    elif entry.type not in schema.TYPES:
        why = f"tensor of TensorFlow Lite's type {entry.type}, which is newer than this"
    if why or entry.place is None:
        yield Tensor(name, dtype, entry.shape, None, unsupported=why)
        return
    start, end = entry.place
    place = Extent(file.path, start, end - start)
    extent: Extent | Node = place
    if entry.sparse is not None:
        whole, why = sparse.densified(entry.sparse, place, dtype, entry.shape, file, who)
        if whole is None:
            yield Tensor(name, dtype, entry.shape, None, unsupported=why)
            return
        extent, end = whole, start + dtypes.get(dtype).nbytes(entry.shape)
    known = dtypes.get(dtype)
    expected = -(-prod(entry.shape) // known.block) * known.block_bytes
    if expected != end - start:
        what = f"{schema.LABELS[dtype]} {list(entry.shape)} takes {expected} bytes"
        raise InvalidFile(f"{who}: {what}, its buffer has {end - start} at offset {start}")
    value: Extent | Inline | Node = extent if expected else Inline(b"")
    kept = dtype
    if prod(entry.shape) % known.block:  # the last byte is not full: no dtype says how many of its elements count
        kept, value = "I8" if _BITS[dtype][1] else "U8", unpacked(extent, dtype, entry.shape)
    made = _dequantized(extent, dtype, entry, model, file, who) if entry.scales and dtype in _INTEGERS else None
    yield Tensor(name, kept, entry.shape, value, view="stored" if made else "both")
    if made:
        yield Tensor(name, "F32", entry.shape, made, view="logical")


def unpacked(extent: Extent | Node, dtype: str, shape: tuple[int, ...]) -> Node:
    """Integers of less than a byte as one byte each."""
    width, signed = _BITS[dtype]
    return ops.node("tflite.unpack", extent, bits=width, signed=signed, shape=list(shape))


def _dequantized(extent: Extent | Node, dtype: str, entry: Entry, model: Model, file: File, who: str) -> Node | None:
    """The floats that a quantized tensor stands for; None where its scheme is not one that is known to the bit."""
    scales = entry.scales
    if scales is None or not prod(entry.shape):
        return None
    whole = unpacked(extent, dtype, entry.shape) if dtype in _BITS else ops.typed(extent, dtype, entry.shape)
    if scales.details:
        return _blocks(whole, entry, scales, model, file, who) if scales.details == schema.BLOCKWISE else None
    count = scales.scales[1]
    if scales.zeros[1] not in (0, 1, count):
        raise InvalidFile(f"{who}: {count} scales and {scales.zeros[1]} zero points")
    if count == 1:
        scale = float(_number(file, scales.scales[0], "f"))
        zero = int(_number(file, scales.zeros[0], "q")) if scales.zeros[1] else 0
        return ops.dequant("affine", whole, scale=scale, zero_point=zero) if math.isfinite(scale) else None
    axis = scales.axis
    if not 0 <= axis < len(entry.shape) or entry.shape[axis] != count:
        raise InvalidFile(f"{who}: {count} scales along dimension {axis} of {list(entry.shape)}")
    factors = ops.typed(Extent(file.path, scales.scales[0], 4 * count), "F32", (count,))
    return ops.dequant("affine", whole, factors, _zeros(file, scales, count), axis=axis)


def _zeros(file: File, scales: Scales, count: int) -> Node:
    """As many zero points as scales: the file's, or one for all."""
    if scales.zeros[1] == count:
        return ops.typed(Extent(file.path, scales.zeros[0], 8 * count), "I64", (count,))
    one: Extent | Inline = Extent(file.path, scales.zeros[0], 8) if scales.zeros[1] else Inline(bytes(8))
    return ops.strided(one, "I64", (count,), (0,))


def _blocks(whole: Node, entry: Entry, scales: Scales, model: Model, file: File, who: str) -> Node | None:
    """Rows in blocks, each with a scale of its own in a tensor of (rows, blocks); no zero points but zero are known."""
    if scales.table is None or len(entry.shape) != 2:
        return None
    at, zeros, block = (int(scales.table.number(field, "i")) for field in range(3))
    graph = model.tensors[entry.graph]
    rows, columns = entry.shape
    if not 0 <= at < len(graph) or block < 1 or columns % block:
        raise InvalidFile(f"{who}: blocks of {block} with scales in tensor {at}: that does not fit {list(entry.shape)}")
    factor, place, dtype = graph[at], graph[at].place, schema.dtype_of(graph[at].type)
    count = rows * (columns // block)
    if zeros > 0 or place is None or dtype not in ("F32", "F16") or prod(factor.shape) != count:
        return None
    if place[1] - place[0] != dtypes.get(dtype).nbytes((count,)):
        return None
    flat = ops.typed(whole, whole.dtype, (count, block))
    factors = ops.typed(Extent(file.path, place[0], place[1] - place[0]), dtype, (count,))
    blank = ops.strided(Inline(bytes(8)), "I64", (count,), (0,))
    return ops.reshape(ops.dequant("affine", flat, factors, blank, axis=0), "F32", entry.shape)


def _number(file: File, start: int, kind: str) -> Any:
    import struct

    return struct.unpack(f"<{kind}", file.read(start, struct.calcsize(kind)))[0]


OPS = (bits.unpack_op("tflite.unpack"), *sparse.OPS)

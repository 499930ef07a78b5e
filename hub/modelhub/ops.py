"""Ops: the nodes of tensor expressions, and the functions that build them.

An op is registered by name, with plain serialisable arguments, so that an expression can be shown, stored as provenance and
sent to another process. Its contract (`modelhub.declared.Op`):

- ``infer(inputs, args)``: the output's (dtype, shape), given those of its inputs. Raises ValueError where they do not fit.
- ``rows(sources, args, start, stop)``: rows ``start``..``stop`` of the output as a NumPy array of *stored units*
  (``DType.numpy``; ``uint8`` where one unit is not one element). A row is an index of the first dimension; a scalar is one row.
  Each source has ``dtype``, ``shape``, ``seekable``, ``read(start, stop)`` (rows, as an array) and ``spooled()`` (the same,
  seekable).
- ``needs(inputs, args, start, stop)``: which rows of each input those rows take (default: all).
- ``memory(inputs, args, rows)``: peak bytes beyond the output for so many rows (default: the size of what it needs).
- ``tile``: bytes of the output that are best asked for at a time, where it computes and what it works on should stay in the
  processor's cache (0: as many as the engine likes).
- ``seekable``: False where rows come cheap only in order (a compressed stream); the engine then spools if it must jump.

A bare `Extent` or `Inline` as an input is a run of bytes: dtype ``U8``, shape ``(nbytes,)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from modelhub.declared import Op
from modelhub.types import Extent, Inline, Node, Value

type_and_shape = tuple[str, tuple[int, ...]]

_REGISTRY: dict[str, Op] = {}
MAX_DEPTH = 64
"""Expressions nest no deeper; one that does was not built by an honest plugin."""


def register(op: Op) -> None:
    """Add ``op``. The same record twice is fine; another record under a taken name is a ValueError."""
    if _REGISTRY.setdefault(op.name, op) is not op:
        raise ValueError(f"op {op.name} is registered already")


def _registry() -> dict[str, Op]:
    if "reshape" not in _REGISTRY:  # the core's own ops, registered on first use: they import nothing heavy
        from modelhub import storage_ops, value_ops

        for op in (*storage_ops.OPS, *value_ops.OPS):
            register(op)
    return _REGISTRY


def get(name: str) -> Op:
    """The op called ``name``; KeyError where there is none."""
    return _registry()[name]


def all_ops() -> Iterator[Op]:
    yield from _registry().values()


def spec(value: Value) -> type_and_shape:
    """(dtype, shape) of a value; bare bytes are U8."""
    match value:
        case Node():
            return value.dtype, value.shape
        case Extent():
            return "U8", (value.nbytes,)
        case Inline():
            return "U8", (len(value.data),)


def node(name: str, *inputs: Value, **args: Any) -> Node:
    """Apply the op called ``name``; its output's dtype and shape are inferred. ValueError where the inputs do not fit."""
    dtype, shape = get(name).infer([spec(value) for value in inputs], args)
    return Node(name, inputs, args, dtype, tuple(shape))


def leaves(value: Value | None) -> Iterator[Extent | Inline]:
    """The runs of bytes that a value is made of."""
    if isinstance(value, Node):
        for inner in value.inputs:
            yield from leaves(inner)
    elif value is not None:
        yield value


# --- the storage ops ----------------------------------------------------------------------------------------------


def inflate(value: Value, *, nbytes: int, skip: int = 0, method: str = "deflate") -> Node:
    """The ``nbytes`` bytes after the first ``skip`` of a compressed run. ``method``: deflate (raw, as in zip), zlib, or gzip."""
    return node("inflate", value, nbytes=nbytes, skip=skip, method=method)


def byteswap(value: Value, dtype: str, shape: Sequence[int]) -> Node:
    """Big-endian bytes as little-endian elements of ``dtype``."""
    return node("byteswap", value, dtype=dtype, shape=list(shape))


def reshape(value: Value, dtype: str, shape: Sequence[int]) -> Node:
    """The same bytes, seen as ``dtype`` elements of ``shape`` in C order."""
    return node("reshape", value, dtype=dtype, shape=list(shape))


def strided(value: Value, dtype: str, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Node:
    """Elements gathered from a run of ``dtype`` elements: element ``(i, j, ...)`` is number ``offset + i*strides[0] +
    j*strides[1] + ...``. ``strides`` and ``offset`` count elements, none negative; the last element reached must lie inside the
    run."""
    return node("strided", value, dtype=dtype, shape=list(shape), strides=list(strides), offset=offset)


def place(parts: Sequence[Value], boxes: Sequence[Sequence[Sequence[int]]], dtype: str, shape: Sequence[int]) -> Node:
    """A whole put together from boxes: ``boxes[k]`` is one ``[start, length]`` a dimension for ``parts[k]``, whose bytes are
    the box's elements in C order. The boxes must cover the whole exactly once."""
    return node("place", *parts, dtype=dtype, shape=list(shape), boxes=[[list(side) for side in box] for box in boxes])


def varints(value: Value, dtype: str, shape: Sequence[int]) -> Node:
    """Protobuf base-128 varints, decoded to ``dtype`` elements (an integer or BOOL dtype)."""
    return node("varints", value, dtype=dtype, shape=list(shape))


# --- the value ops ------------------------------------------------------------------------------------------------


def dequant(scheme: str, *parts: Value, **args: Any) -> Node:
    """Several stored tensors that make one logical F32 tensor, by a named scheme (a registered op ``dequant.SCHEME``)."""
    return node(f"dequant.{scheme}", *parts, **args)


def cast(value: Value, source: str, shape: Sequence[int], dtype: str, importance: Value | None = None) -> Node:
    """A tensor of ``source`` elements encoded as ``dtype`` by their codecs, rounded to nearest. ``importance``: F32 weights of
    its columns, (columns,) or (matrices, columns) for a stack of matrices; the codecs of rows can use them."""
    inputs = (value,) if importance is None else (value, importance)
    return node("cast", *inputs, source=source, shape=list(shape), dtype=dtype)


def typed(value: Value, dtype: str, shape: Sequence[int]) -> Node:
    """``value`` as elements of ``dtype`` and ``shape``: what the ops below take. Bare bytes get a `reshape`; a node that is so
    already is returned as it is."""
    if isinstance(value, Node) and (value.dtype, value.shape) == (dtype, tuple(shape)):
        return value
    return reshape(value, dtype, shape)


def permute(value: Node, dims: Sequence[int], axes: Sequence[int]) -> Node:
    """Rows in another order: their number is split into ``dims``, and these are put in the order ``axes``. With ``dims=(heads, 2,
    n)`` and ``axes=(0, 2, 1)``, each head's two halves are interleaved. Whole rows move, whatever their dtype."""
    return node("permute", value, dims=list(dims), axes=list(axes))


def transpose(value: Node, axes: Sequence[int] | None = None) -> Node:
    """The axes in the order ``axes`` (default: reversed). Not for dtypes that pack several elements together: cast them to floats
    first."""
    dtype, shape = value.dtype, value.shape
    under = value.inputs[0] if value.op == "reshape" else value  # from a bare run, pieces of rows can be read
    order = list(axes) if axes is not None else list(range(len(shape)))[::-1]
    return node("transpose", under, dtype=dtype, shape=list(shape), axes=order)


def concat(parts: Sequence[Node], axis: int = 0) -> Node:
    """Parts of one dtype joined along ``axis``; all their other sides are equal."""
    return node("concat", *parts, axis=axis)


def stack(parts: Sequence[Node]) -> Node:
    """Parts of one dtype and shape along a new first axis: their rows one after another, seen as ``(len(parts), *shape)``."""
    if any((part.dtype, part.shape) != (parts[0].dtype, parts[0].shape) for part in parts) or not parts:
        raise ValueError(f"stack takes parts of one dtype and shape, not {[(p.dtype, list(p.shape)) for p in parts][:4]}")
    dtype, shape = parts[0].dtype, parts[0].shape
    rows = [part if shape else reshape(part, dtype, (1,)) for part in parts]
    return reshape(concat(rows), dtype, (len(parts), *shape))


def slice_(value: Node, start: int, stop: int, axis: int = 0) -> Node:
    """Elements ``start``..``stop`` along ``axis``."""
    return node("slice", value, start=start, stop=stop, axis=axis)


def add(*values: Node) -> Node:
    """The sum of tensors of one shape, in float32."""
    return node("add", *values)


def affine(value: Node, scale: float = 1.0, offset: float = 0.0) -> Node:
    """``value * scale + offset``, in float32."""
    return node("affine", value, scale=scale, offset=offset)


def matmul(left: Node, right: Node) -> Node:
    """``left @ right`` of two matrices, in float32. ``right`` is held in memory: put the smaller one there."""
    return node("matmul", left, right)


# --- serialisation ------------------------------------------------------------------------------------------------


def to_json(value: Value) -> Any:
    """A value as plain JSON data: ``["file", offset, nbytes]``, ``{"inline": hex}`` or ``{"op", "version", "args", "inputs",
    ...}``."""
    match value:
        case Extent():
            return [value.file, value.offset, value.nbytes]
        case Inline():
            return {"inline": value.data.hex()}
        case Node():
            return {
                "op": value.op,
                "version": get(value.op).version,
                "args": dict(value.args),
                "inputs": [to_json(item) for item in value.inputs],
                "dtype": value.dtype,
                "shape": list(value.shape),
            }


def _is_known(name: str) -> bool:
    """Whether there is such an op. Those of plugins are there once these are loaded, which a command that shows has not done."""
    if name not in _registry():
        from modelhub import plugins

        plugins.get()
    return name in _registry()


def from_json(data: Any, depth: int = 0) -> Value:
    """The inverse of `to_json`. ValueError for anything else, an unknown op, or a version newer than ours."""
    if depth > MAX_DEPTH:
        raise ValueError(f"an expression nests deeper than {MAX_DEPTH}")
    match data:
        case [str(file), int(offset), int(nbytes)]:
            return Extent(file, offset, nbytes)
        case {"inline": str(text)}:
            return Inline(bytes.fromhex(text))
        case {
            "op": str(name),
            "version": int(version),
            "args": dict(args),
            "inputs": list(inputs),
            "dtype": str(dtype),
            "shape": list(shape),
        }:
            if not _is_known(name) or version > get(name).version:
                raise ValueError(f"op {name} version {version} is not known here: its plugin is missing or older")
            return Node(name, tuple(from_json(item, depth + 1) for item in inputs), args, dtype, tuple(shape))
    raise ValueError(f"not an expression: {json.dumps(data)[:80]}")


def extents(value: Value) -> Iterator[Extent]:
    """Every extent that a value rests on."""
    stack: list[Value] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Extent):
            yield item
        elif isinstance(item, Node):
            stack.extend(reversed(item.inputs))

"""Reads Paddle's checkpoints and inference models: names, shapes and places; no weights, and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from modelhub import Checkpoint, File, Finding, InvalidFile, Metadata, Tensor, ops, pickles

from modelhub_paddle import arrays, parameters, program
from modelhub_paddle.checks import findings
from modelhub_paddle.detect import PARAMS, PICKLES
from modelhub_paddle.directories import COMBINED

NAMES, CUT = "StructuredToParameterName@@", "UnpackBigParamInfor@@"
"""Keys of Paddle's own in a checkpoint (``framework/io_utils.py``)."""
MAX_DEPTH = 32
VALUES, MAX_VALUES = 10_000, 4_000_000
"""Values that are looked at in any pickle, beyond one for each of its bytes; and in one of any length."""
_SHOWN = 64


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    if checkpoint.primary.name.lower().endswith(PICKLES):
        yield from _pickled(checkpoint.primary)
    else:
        yield from _inference(checkpoint)


def _inference(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    values: dict[str, Any] = {}
    names: list[str] = []
    for file in checkpoint:
        if program.is_one(file):
            said = program.read(file)
            names = said.parameters
            values["operators"] = dict(sorted(said.operators.most_common(_SHOWN)))
            values.update({key: found for key, found in (("inputs", said.inputs), ("outputs", said.outputs)) if found})
    single = False
    for file in checkpoint:
        if program.is_one(file) or file.name.endswith(".info"):
            continue
        if not file.name.lower().endswith((PARAMS, *COMBINED)):  # a variable, which its file is called after
            single = True
            yield from parameters.read(file, [file.name])
            continue
        if not names:
            yield Finding("paddle-names", "info", "no program is beside it: its tensors have numbers, not names", file=file.path)
        yield from parameters.read(file, names)
    yield Metadata(values=values, container="variables" if single else "inference")


def _pickled(file: File) -> Iterator[Tensor | Metadata | Finding]:
    """Arrays by the keys that lead to them, joined by dots, as Paddle's layers are called. What is no array is metadata."""
    found = pickles.read(file)
    yield from findings(found.names, file)
    values: dict[str, Any] = {}
    root = found.value
    if isinstance(root, dict) and isinstance(root.get(CUT), dict):
        cut = root.pop(CUT)
        for name, how in cut.items():
            yield _joined(str(name), how, root, file)
    for name, value in _leaves(root, file.name, VALUES + found.end):
        record = arrays.tensor(name, value, file)
        if record is not None:
            yield record
        elif isinstance(value, str | int | float) and len(values) < _SHOWN and len(name) < 200 and len(str(value)) < 1000:
            values[name or "value"] = value
    optimizer = file.name.lower().endswith(PICKLES[1])
    yield Metadata(values={"values": values} if values else {}, container="optimizer" if optimizer else "checkpoint")


def _joined(name: str, how: Any, root: dict[Any, Any], file: File) -> Tensor:
    """An array that was cut into flat slices of a gigabyte, for protocols that hold no more; they are taken out of ``root``."""
    where = f"{file.name}: {name!r:.200}"
    match how:
        case {"OriginShape": tuple(shape), "slices": [*slices]} if slices and all(isinstance(key, str) for key in slices):
            parts = [arrays.tensor(key, root.pop(key, None), file) for key in slices]
        case _:
            raise InvalidFile(f"{where} is cut, and how is not said")
    nodes = [ops.typed(part.value, part.dtype, part.shape) for part in parts if part is not None and part.value is not None]
    total = sum(prod(node.shape) for node in nodes)
    if len(nodes) != len(slices) or any(len(node.shape) != 1 or node.dtype != nodes[0].dtype for node in nodes):
        raise InvalidFile(f"{where}: its {len(slices)} slices are not all arrays of one kind")
    if prod(arrays.sides(shape, where)) != total:
        raise InvalidFile(f"{where} has the shape {list(shape)!r:.80}, its slices have {total} elements")
    whole = ops.concat(nodes)
    return Tensor(name, whole.dtype, shape, ops.reshape(whole, whole.dtype, shape))


def _leaves(root: Any, who: str, most: int) -> Iterator[tuple[str, Any]]:
    """Everything that is no container, in order. A tensor outside of a state dict is ``tuple((name, array))``. `InvalidFile`
    from ``most`` steps on: a container that stands in itself, or in another twice, and so on, has no end."""
    stack: list[tuple[str, Any, int]] = [("", root, 0)]
    steps = 0
    while stack:
        if (steps := steps + 1) > min(most, MAX_VALUES):
            raise InvalidFile(f"{who}: what it holds is there again and again, in {steps:,} places and more")
        name, value, depth = stack.pop()
        if isinstance(value, pickles.Call) and value.function in (("builtins", "tuple"), ("__builtin__", "tuple")):
            match value.args:
                case ((str(), pickles.Call() as array),):
                    value = array
        if isinstance(value, pickles.Call) and value.function == ("collections", "OrderedDict"):
            value = dict(value.items)
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, dict) and depth < MAX_DEPTH:
            inner = [(key, below) for key, below in value.items() if key != NAMES and not isinstance(key, pickles.Opaque)]
        elif isinstance(value, list | tuple) and not isinstance(value, pickles.Global | pickles.Run) and depth < MAX_DEPTH:
            inner = list(enumerate(value))
        else:
            yield name, value
        stack.extend((f"{name}.{key}" if name else str(key), below, depth + 1) for key, below in reversed(inner))

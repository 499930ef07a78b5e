"""Reads the table of a Flax checkpoint: arrays by the path of keys that leads to them.

An array is an extension of type 1: msgpack of (shape, dtype, bytes); 3 is a scalar of NumPy's, 2 a complex number. Arrays of more
than a gigabyte are cut: a map with ``__msgpack_chunked_array__``, ``shape`` and ``chunks`` (flax ``serialization.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from modelhub import Checkpoint, Detection, Extent, File, Finding, InvalidFile, Metadata, Node, Tensor, dtypes, ops

from modelhub_flax.scanner import Item, Scanner

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
    "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
MAGICS = tuple(
    bytes([0x80 + entries, 0xA0 + len(key)]) + key
    for entries in range(1, 9)
    for key in (b"step", b"params", b"opt_state", b"optimizer", b"target", b"model")
)
"""How a train state begins: files of ``flax.training.checkpoints`` (``checkpoint_100``) have no suffix."""
MAX_DEPTH = 64
MAX_VALUES = 4_000_000
MAX_SIDES = 32
_STATE = re.compile(r"(.*/)?(opt_state|optimizer_state|param_states)/.*|optimizer/state/.*", re.DOTALL)
"""What an optimizer keeps: of optax in a ``TrainState``, of ``flax.optim``."""


def detect(file: File) -> Detection | None:
    """A map of texts, in a file called so. Others keep other things in msgpack: an array must be in its first kilobytes."""
    head = file.head
    if not head or not (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return None
    named = any(name.encode() in head for name in DTYPES) or CHUNKED.encode() in head
    return Detection([file.path], confidence=80) if named else None


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Every array; keys are joined by ``/``. What is no array (a step's number) is metadata; an optimizer's arrays beside a
    model's are only stored."""
    values: dict[str, object] = {}
    found = list(_arrays(Scanner(checkpoint.primary), values))
    state = {tensor.name for tensor in found if _STATE.fullmatch(tensor.name)}
    said: dict[str, object] = {"values": values} if values else {}
    if 0 < len(state) < len(found):
        said["optimizer_tensors"] = len(state)
        found = [tensor._replace(view="stored") if tensor.name in state else tensor for tensor in found]
    yield from found
    yield Metadata(values=said)


def _arrays(scanner: Scanner, values: dict[str, object]) -> Iterator[Tensor]:
    """Every array; ``values`` gets what is none."""
    chunks: dict[str, dict[str, object]] = {}
    for path, item in walk(scanner):
        name = "/".join(path)
        inside = next((depth for depth in range(len(path)) if "/".join(path[:depth]) in chunks), None)
        if len(path) > 0 and path[-1] == CHUNKED:
            chunks["/".join(path[:-1])] = {}
        elif inside is not None:
            whole = chunks["/".join(path[:inside])]
            whole["/".join(path[inside:])] = array(scanner, item, name) if item.kind == "ext" else item.value
        elif item.kind == "ext" and item.code in (ARRAY, SCALAR):
            yield array(scanner, item, name)
        elif item.kind == "ext":
            yield Tensor(name, "C128" if item.code == COMPLEX else f"extension {item.code}", (), None, unsupported="no array")
        elif item.kind == "scalar" and isinstance(item.value, (int, float)) and len(values) < 64 and len(name) < 200:
            values[name] = item.value
        elif item.kind in ("str", "bin") and item.size < 1000 and len(values) < 64 and len(name) < 200:
            values[name] = scanner.text(item) if item.kind == "str" else f"{item.size} bytes"
    for name, parts in chunks.items():
        yield joined(scanner.file, name, parts)
    if scanner.position != scanner.file.size:
        left = scanner.file.size - scanner.position
        raise InvalidFile(f"{scanner.file.name}: {left} bytes after the end of the value, at offset {scanner.position}")


def walk(scanner: Scanner) -> Iterator[tuple[tuple[str, ...], Item]]:
    """Every value that is neither map nor list, with the keys that lead to it. The scanner stands at its contents, and goes
    past them afterwards."""
    stack: list[tuple[tuple[str, ...], int, bool, int]] = []  # path, entries left, whether a map, entries in all
    seen = 0
    path: tuple[str, ...] = ()
    while True:
        item = scanner.head()
        seen += 1
        if seen > MAX_VALUES:
            raise InvalidFile(f"{scanner.file.name}: more than {MAX_VALUES} values")
        if item.kind in ("map", "array") and item.size:
            if len(stack) >= MAX_DEPTH:
                raise InvalidFile(f"{scanner.file.name}: nested more than {MAX_DEPTH} deep at offset {item.start}")
            stack.append((path, item.size, item.kind == "map", item.size))
        elif item.kind not in ("map", "array"):
            yield path, item
            scanner.skip(item)
        while stack and stack[-1][1] == 0:
            stack.pop()
        if not stack:
            return
        above, left, is_map, size = stack[-1]
        stack[-1] = (above, left - 1, is_map, size)
        key = str(size - left)
        if is_map:
            head = scanner.head()
            key = str(head.value) if head.kind == "scalar" else scanner.text(head)
        path = (*above, key)


def array(scanner: Scanner, item: Item, name: str) -> Tensor:
    """An extension as a tensor: msgpack of (shape, dtype, bytes) inside of it."""
    outer = scanner.head()
    sides = scanner.head() if outer.kind == "array" and outer.size == 3 else outer
    if outer.kind != "array" or outer.size != 3 or sides.kind != "array" or sides.size > MAX_SIDES:
        raise InvalidFile(f"{scanner.file.name}: {name!r:.200} at offset {item.start} is no (shape, dtype, bytes)")
    shape = tuple(_side(scanner, name) for _ in range(sides.size))
    kind = scanner.text(scanner.head())
    data = scanner.head()
    if data.kind != "bin" or data.start + data.size != item.start + item.size:
        raise InvalidFile(f"{scanner.file.name}: the bytes of {name!r:.200} at offset {data.start} do not end where it does")
    dtype = DTYPES.get(kind.removeprefix("<"), "")
    if not dtype:
        return Tensor(name, kind[:40], shape, None, unsupported=f"array of dtype {kind:.40}")
    if dtypes.get(dtype).nbytes(shape) != data.size:
        wanted = dtypes.get(dtype).nbytes(shape)
        raise InvalidFile(f"{scanner.file.name}: {name!r:.200}: {dtype} {list(shape)} takes {wanted} bytes, found {data.size}")
    return Tensor(name, dtype, shape, Extent(scanner.file.path, data.start, data.size))


def _side(scanner: Scanner, name: str) -> int:
    value = scanner.head().value
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise InvalidFile(f"{scanner.file.name}: {name!r:.200} has a side of {value!r:.40}")
    return value


def joined(file: File, name: str, parts: dict[str, object]) -> Tensor:
    """An array that was cut: ``shape`` and ``chunks`` are maps by number, the chunks flat and in order."""
    shape: list[int] = []
    pieces: list[Tensor] = []
    while type(side := parts.get(f"shape/{len(shape)}")) is int and len(shape) < MAX_SIDES:
        shape.append(side)
    while isinstance(piece := parts.get(f"chunks/{len(pieces)}"), Tensor):
        pieces.append(piece)
    kinds = {piece.dtype for piece in pieces}
    total = sum(prod(piece.shape) for piece in pieces)
    if len(kinds) != 1 or total != prod(shape) or any(len(piece.shape) != 1 or piece.value is None for piece in pieces):
        raise InvalidFile(f"{file.name}: the {len(pieces)} chunks of {name!r:.200} are no array of {shape}")
    dtype, values, boxes, at = kinds.pop(), [], [], 0
    for piece in pieces:
        assert piece.value is not None
        values.append(piece.value)
        boxes.append([[at, piece.shape[0]]])
        at += piece.shape[0]
    value: Node = ops.place(values, boxes, dtype, (total,))
    return Tensor(name, dtype, tuple(shape), ops.reshape(value, dtype, shape))

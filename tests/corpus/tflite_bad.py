"""TensorFlow Lite models that are wrong, each in one way. `BAD` maps a name to (its bytes, the state it must get, a text that its
reason must hold)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.plugins.keras.tflite_files import Made

F32, I8 = 0, 9


def good() -> Made:
    made = Made()
    made.tensor("w", (4, 4), F32, bytes(64))
    made.tensor("q", (4, 4), I8, bytes(16), scale=[1.0] * 4, zeroPoint=[0] * 4, quantizedDimension=1)
    made.tensor("x", (1,), F32)
    made.operator(0, [0, 2], [2])
    made.graph.inputs, made.graph.outputs = [2], [2]
    return made


def changed(change: Callable[[Made], Any]) -> bytes:
    """A good model after ``change``."""
    made = good()
    change(made)
    return made.bytes()


def with_field(value: Any, *path: Any) -> bytes:
    """A good model with one field at ``path`` of the model set."""

    def change(made: Made) -> None:
        target: Any = made.model
        for step in path[:-1]:
            target = target[step] if isinstance(step, int) else getattr(target, step)
        setattr(target, path[-1], value)

    return changed(change)


def quantized(**fields: Any) -> bytes:
    """A good model whose quantized tensor has other ``fields``."""

    def change(made: Made) -> None:
        for name, value in fields.items():
            setattr(made.graph.tensors[1].quantization, name, value)

    return changed(change)


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value & 0xFFFFFFFF) + data[at + 4 :]


DATA = good().bytes()
ROOT = struct.unpack_from("<I", DATA)[0]
VTABLE = ROOT - struct.unpack_from("<i", DATA, ROOT)[0]


def root_field(number: int) -> int:
    """Where the offset in the root's field stands."""
    return ROOT + int(struct.unpack_from("<H", DATA, VTABLE + 4 + 2 * number)[0])


TENSOR = ("subgraphs", 0, "tensors")
BAD: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "incomplete", "0 bytes"),
    "short": (DATA[:7], "incomplete", "7 bytes"),
    "half": (DATA[: len(DATA) // 2], "incomplete", "expected"),
    "not_one": (b"\x1c\0\0\0TFL2" + DATA[8:], "invalid", "expected b'TFL3'"),
    "text": (b"404: not found", "invalid", "expected b'TFL3'"),
    "page": (b"<html>not found</html>", "invalid", "is a web page"),
    "version": (with_field(4, "version"), "invalid", "version 4"),
    "no_graph": (with_field([], "subgraphs"), "invalid", "without a graph"),
    "root_at_itself": (patched(DATA, 0, 0), "invalid", "points at itself"),
    "root_past_the_end": (patched(DATA, 0, 0xFFFFFFF0), "incomplete", "the root table"),
    "vtable_before_the_start": (patched(DATA, ROOT, 0x7FFFFFFF), "invalid", "vtable"),
    "vtable_past_the_end": (patched(DATA, ROOT, -0x7FFFFFF0), "incomplete", "vtable"),
    "vtable_at_itself": (patched(DATA, ROOT, 0), "invalid", "vtable"),
    "buffers_of_4_billion": (
        patched(DATA, root_field(4) + struct.unpack_from("<I", DATA, root_field(4))[0], 0xFFFFFFFF), "incomplete", "elements"),
    "graphs_of_4_billion": (
        patched(DATA, root_field(2) + struct.unpack_from("<I", DATA, root_field(2))[0], 0x3FFFFFFF), "incomplete", "elements"),
    "buffer_of_a_tensor": (with_field(99, *TENSOR, 0, "buffer"), "invalid", "buffer 99"),
    "shape_and_bytes": (with_field([4, 5], *TENSOR, 0, "shape"), "invalid", "takes 80 bytes, its buffer has 64"),
    "negative_side": (with_field([-4, -4], *TENSOR, 0, "shape"), "invalid", "shape [-4, -4]"),
    "huge_shape": (with_field([2**31 - 1] * 4, *TENSOR, 0, "shape"), "invalid", "takes"),
    "rank": (with_field([1] * 100, *TENSOR, 0, "shape"), "invalid", "100 numbers"),
    "scales": (quantized(scale=[1.0] * 3), "invalid", "zero points"),
    "axis": (quantized(quantizedDimension=7), "invalid", "dimension 7"),
    "negative_axis": (quantized(quantizedDimension=-1), "invalid", "dimension -1"),
    "operator": (with_field(5, "subgraphs", 0, "operators", 0, "opcodeIndex"), "invalid", "is of kind 5"),
    "operator_takes": (with_field([77], "subgraphs", 0, "operators", 0, "inputs"), "invalid", "tensor 77"),
    "operator_gives": (with_field([-2], "subgraphs", 0, "operators", 0, "outputs"), "invalid", "tensor -2"),
    "graph_takes": (with_field([77], "subgraphs", 0, "inputs"), "invalid", "tensor 77"),
    "outside": (with_field(1 << 40, "buffers", 1, "offset"), "ready", ""),  # no size: the offset means nothing
}  # fmt: skip


def _placed(offset: int, size: int, *, data: bool = False) -> bytes:
    def change(made: Made) -> None:
        buffer = made.model.buffers[1]
        buffer.offset, buffer.size = offset, size
        if not data:
            buffer.data = None

    return changed(change)


BAD["past_the_end"] = (_placed(1 << 40, 64), "incomplete", "the file ends at")
BAD["offset_overflows"] = (_placed(2**64 - 32, 64), "incomplete", "the file ends at")
BAD["data_twice"] = (_placed(64, 64, data=True), "invalid", "twice")

"""Small TensorFlow Lite models, made with the classes that LiteRT generated from its schema, packed by FlatBuffers' library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

TYPES = {
    "float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "complex64": 8, "int8": 9,
    "float64": 10, "complex128": 11, "uint64": 12, "uint32": 15, "uint16": 16,
}  # fmt: skip


class Made:
    """A model under construction."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "made for tests"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.model.metadata = []
        self.model.signatureDefs = []
        self.graph = self.add_graph("main")

    def add_graph(self, name: str) -> Any:
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.inputs, graph.outputs, graph.operators = name, [], [], [], []
        self.model.subgraphs = [*(self.model.subgraphs or []), graph]
        return graph

    def buffer(self, data: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int,
        data: bytes | None = None,
        *,
        graph: Any = None,
        at: int | None = None,
        **more: Any,
    ) -> Any:
        """Add a tensor; with ``data`` it is a constant. ``more``: fields of its quantization."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), kind
        tensor.buffer = at if at is not None else self.buffer(data) if data is not None else 0
        if more:
            tensor.quantization = schema.QuantizationParametersT()
            for key, value in more.items():
                setattr(tensor.quantization, key, value)
        (graph or self.graph).tensors.append(tensor)
        return tensor

    def operator(self, code: int, inputs: Sequence[int], outputs: Sequence[int], custom: str = "") -> None:
        kind = schema.OperatorCodeT()
        kind.builtinCode, kind.deprecatedBuiltinCode, kind.customCode = code, min(code, 127), custom or None
        self.model.operatorCodes.append(kind)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        self.graph.operators.append(operator)

    def bytes(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def weights(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A model of nothing but constants."""
    made = Made()
    for name, array in arrays.items():
        made.tensor(name, array.shape, TYPES[array.dtype.name], np.ascontiguousarray(array).tobytes())
    return made.bytes()


def packed(values: NDArray[Any], bits: int) -> bytes:
    """Integers of less than a byte, the first in the low bits."""
    each = 8 // bits
    flat = np.zeros(-(-values.size // each) * each, np.uint8)
    flat[: values.size] = values.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    return bytes(sum(int(part) << (bits * at) for at, part in enumerate(row)) for row in flat.reshape(-1, each))

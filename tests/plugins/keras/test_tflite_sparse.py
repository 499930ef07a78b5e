"""Sparse constants of TensorFlow Lite: rows and blocks of rows that list what is not zero, as LiteRT takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from safetensors.numpy import load_file

from tests.conftest import Modelhub
from tests.plugins.keras.tflite_files import Made

DENSIFY = 124
LISTS = {
    1: (schema.Int32VectorT, np.int32),
    2: (schema.Uint16VectorT, np.uint16),
    3: (schema.Uint8VectorT, np.uint8),
}


def level(size: int = 0, segments: list[int] | None = None, indices: list[int] | None = None, kind: int = 1) -> Any:
    made = schema.DimensionMetadataT()
    made.format, made.denseSize = int(segments is not None), size
    if segments is not None:
        for name, numbers in (("Segments", segments), ("Indices", indices)):
            record, dtype = LISTS[kind]
            vector = record()
            vector.values = np.array(numbers, dtype)
            setattr(made, f"array{name}", vector)
            setattr(made, f"array{name}Type", kind)
    return made


def model(path: Path, values: Any, shape: tuple[int, ...], order: list[int], blocks: list[int], levels: list[Any]) -> Path:
    made = Made()
    values = np.asarray(values, np.float32)
    sparsity = made.tensor("w", shape, 0, values.tobytes()).sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder, sparsity.blockMap, sparsity.dimMetadata = order, blocks, levels
    made.tensor("dense", shape, 0)
    made.operator(DENSIFY, [0], [1])
    made.graph.outputs = [1]
    path.write_bytes(made.bytes())
    return path


@pytest.mark.parametrize("kind", LISTS)
def test_rows_and_blocks(tmp_path: Path, modelhub: Modelhub, kind: int) -> None:
    whole = np.zeros((4, 6), np.float32)
    whole[0, 1], whole[0, 5], whole[2, 0], whole[3, 3] = 1, 2, 3, 4
    rows = [level(4), level(0, [0, 2, 2, 3, 4], [1, 5, 0, 3], kind)]
    found = {"rows": model(tmp_path / "rows.tflite", [1, 2, 3, 4], (4, 6), [0, 1], [], rows)}
    assert np.array_equal(run(found["rows"]), whole)
    columns = [level(6), level(0, [0, 1, 2, 2, 3, 3, 4], [2, 0, 3, 0], kind)]
    found["columns"] = model(tmp_path / "columns.tflite", [3, 1, 4, 2], (4, 6), [1, 0], [], columns)
    # Blocks of 2 x 3: the first row has its second, the second row both.
    pieces = np.zeros((4, 6), np.float32)
    pieces[0:2, 3:6], pieces[2:4, 0:3], pieces[2:4, 3:6] = (np.arange(6).reshape(2, 3) + at for at in (1, 10, 20))
    values = [*range(1, 7), *range(10, 16), *range(20, 26)]
    blocked = [level(2), level(0, [0, 1, 3], [1, 0, 1], kind), level(2), level(3)]
    found["blocks"] = model(tmp_path / "blocks.tflite", values, (4, 6), [0, 1, 2, 3], [0, 1], blocked)
    assert np.array_equal(run(found["blocks"]), pieces)
    for name, path in found.items():
        modelhub("convert", path, "--to", "safetensors", "-o", tmp_path / f"{name}.safetensors")
        np.testing.assert_array_equal(load_file(tmp_path / f"{name}.safetensors")["w"], pieces if name == "blocks" else whole)


def run(path: Path) -> Any:
    """What LiteRT makes of the constant."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    interpreter.invoke()
    return interpreter.get_tensor(1)


BAD = {
    "index": ([1, 2], [level(4), level(0, [0, 1, 1, 2, 2], [1, 6])], "index of 1 or 6"),
    "order": ([1, 2], [level(4), level(0, [0, 2, 1, 2, 2], [1, 5])], "not in order"),
    "parents": ([1, 2], [level(4), level(0, [0, 1, 2], [1, 5])], "3 segments for 4 parents"),
    "values": ([1, 2, 3], [level(4), level(0, [0, 1, 1, 2, 2], [1, 5])], "3 values for 2 places"),
    "dense": ([1, 2], [level(9), level(0, [0, 1, 1, 2, 2], [1, 5])], "a level of 9, 4 expected"),
}


@pytest.mark.parametrize("bad", BAD)
def test_lists_that_do_not_fit(tmp_path: Path, modelhub: Modelhub, bad: str) -> None:
    values, levels, words = BAD[bad]
    path = model(tmp_path / "bad.tflite", values, (4, 6), [0, 1], [], levels)
    answer = modelhub("convert", path, "--to", "safetensors", "-o", tmp_path / "out.safetensors", status=3)
    assert words in answer.stderr
    assert not (tmp_path / "out.safetensors").exists()

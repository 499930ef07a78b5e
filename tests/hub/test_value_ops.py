"""Ops that derive values from values, read through the engine in pieces, against NumPy."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import Extent, Inline, Tensor, dtypes, ops
from modelhub.engine import Handles, tensor_chunks
from modelhub.engine.values import open_value
from modelhub.types import Node

BLOCK = dtypes.register(dtypes.DType("TEST_ROWS", 5, block=4, kind="quantized", rowwise=True))
"""Four elements in five bytes, row by row."""


def f32(array: np.ndarray) -> Node:
    return ops.typed(Inline(np.ascontiguousarray(array, "<f4").tobytes()), "F32", array.shape)


def value_of(node: Node, limit: int = 24) -> np.ndarray:
    """The node's bytes as the engine reads them, a few at a time, as float32 or bytes."""
    with Handles() as handles:
        parts = list(tensor_chunks(Tensor("t", node.dtype, node.shape, node), handles, limit))
    raw = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return raw.view("<f4").reshape(node.shape) if node.dtype == "F32" else raw


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("<f4")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_permuted_rows_are_those_of_numpy(data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.permutations(range(len(dims))))
    array = random(int(np.prod(dims)), 3)
    want = array.reshape(*dims, 3).transpose(*axes, len(dims)).reshape(array.shape)
    assert np.array_equal(value_of(ops.permute(f32(array), dims, axes), data.draw(st.integers(1, 60))), want)


def test_rows_far_apart_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelhub import value_ops

    monkeypatch.setattr(value_ops, "SPAN", 8)
    array = random(64, 2)
    node = ops.permute(f32(array), (2, 32), (1, 0))
    assert np.array_equal(value_of(node, 16), array.reshape(2, 32, 2).swapaxes(0, 1).reshape(64, 2))


def test_blocks_of_quantized_rows_move_whole() -> None:
    raw = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10)
    node = ops.typed(Inline(raw.tobytes()), BLOCK.name, (6, 8))
    assert value_of(ops.permute(node, (2, 3), (1, 0))).tobytes() == raw.reshape(2, 3, 10).swapaxes(0, 1).tobytes()
    assert value_of(ops.concat([node, ops.slice_(node, 4, 6)])).tobytes() == np.concatenate([raw, raw[4:]]).tobytes()
    assert value_of(ops.slice_(node, 4, 8, axis=1)).tobytes() == raw[:, 5:].tobytes()
    assert value_of(ops.concat([node, node], axis=1)).tobytes() == np.concatenate([raw, raw], 1).tobytes()
    assert value_of(ops.stack([node, node])).tobytes() == raw.tobytes() * 2
    with pytest.raises(ValueError, match="packs 4 elements"):
        ops.slice_(node, 2, 8, axis=1)
    with pytest.raises(ValueError, match="cannot be transposed"):
        ops.transpose(node)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_transposed_axes_are_those_of_numpy(data: st.DataObject) -> None:
    from modelhub import value_ops

    shape = data.draw(st.lists(st.integers(0, 5), min_size=0, max_size=4))
    axes = data.draw(st.permutations(range(len(shape))))
    array = random(*shape)
    source = f32(array) if data.draw(st.booleans()) else ops.affine(f32(array))  # a bare run, or an expression
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_ops, "PANEL", data.draw(st.sampled_from([1, 40, 1 << 20])))
        patch.setattr(value_ops, "SPAN", data.draw(st.sampled_from([1, 1 << 20])))
        assert np.array_equal(value_of(ops.transpose(source, axes), data.draw(st.integers(1, 60))), array.transpose(axes))


def test_a_large_matrix_is_transposed_in_bounded_memory_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelhub import value_ops
    from modelhub.engine.values import RunSource

    array = np.arange(3000 * 1000, dtype="<f4").reshape(3000, 1000)
    path = tmp_path / "matrix"
    array.tofile(path)
    monkeypatch.setattr(value_ops, "PANEL", 1 << 20)
    bytes_read = 0
    read = RunSource.read

    def counted(self: RunSource, start: int, stop: int) -> np.ndarray:
        nonlocal bytes_read
        bytes_read += stop - start
        return read(self, start, stop)

    monkeypatch.setattr(RunSource, "read", counted)
    node = ops.transpose(ops.typed(Extent(str(path), 0, array.nbytes), "F32", array.shape))
    tracemalloc.start()
    with Handles() as handles:
        rows = 0
        for chunk in tensor_chunks(Tensor("t", "F32", node.shape, node), handles, 256 << 10):
            part = chunk.view("<f4").reshape(-1, 3000)
            assert np.array_equal(part, array[:, rows : rows + len(part)].T)
            rows += len(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 1000
    assert bytes_read == array.nbytes
    assert peak < 5 << 20  # of 12 MB


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parts_are_joined_and_cut_as_numpy_does(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    parts = []
    for number, length in enumerate(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))):
        parts.append(random(*shape[:axis], length, *shape[axis + 1 :]) + number)
    whole = np.concatenate(parts, axis)
    node = ops.concat([f32(part) for part in parts], axis)
    limit = data.draw(st.integers(1, 80))
    assert np.array_equal(value_of(node, limit), whole)
    start = data.draw(st.integers(0, whole.shape[axis]))
    stop = data.draw(st.integers(start, whole.shape[axis]))
    assert np.array_equal(value_of(ops.slice_(node, start, stop, axis), limit), whole.take(range(start, stop), axis))


def test_a_stack_keeps_its_rows_fine() -> None:
    parts = [random(6, 4) + number for number in range(3)]
    node = ops.stack([f32(part) for part in parts])
    assert node.shape == (3, 6, 4)
    assert np.array_equal(value_of(node), np.stack(parts))
    assert np.array_equal(value_of(ops.stack([f32(np.float32(3)), f32(np.float32(4))])), [3, 4])
    with pytest.raises(ValueError, match="one dtype and shape"):
        ops.stack([f32(parts[0]), f32(parts[0][:5])])


def test_a_reshape_of_an_expression_reads_the_rows_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    array = random(40, 4)
    node = ops.reshape(ops.affine(f32(array), 2.0), "F32", (20, 8))
    with Handles() as handles:
        source = open_value(node, handles)
        asked: list[tuple[int, int]] = []
        inner = source.inputs[0]  # type: ignore[attr-defined]
        read = inner.read
        monkeypatch.setattr(inner, "read", lambda start, stop: asked.append((start, stop)) or read(start, stop))
        assert np.array_equal(source.read(3, 5), (array * 2).reshape(20, 8)[3:5])
    assert asked == [(6, 10)]


def test_sums_and_products_are_float32s_own() -> None:
    a, b = random(5, 7), random(7, 3)
    assert np.array_equal(value_of(ops.affine(f32(a), 0.5, 1.0)), a * np.float32(0.5) + np.float32(1))
    assert np.array_equal(value_of(ops.add(f32(a), ops.affine(f32(a), -1.0))), a - a)
    assert np.allclose(value_of(ops.matmul(f32(a), f32(b))), a @ b, atol=1e-6)
    half = ops.typed(Inline(a.astype("<f2").tobytes()), "F16", a.shape)
    assert np.array_equal(value_of(ops.add(half, f32(a))), a.astype("<f2").astype("<f4") + a)
    lora = ops.add(f32(random(5, 3)), ops.affine(ops.matmul(f32(a), f32(b)), 0.25))
    assert np.allclose(value_of(lora), random(5, 3) + 0.25 * (a @ b), atol=1e-6)
    assert ops.from_json(ops.to_json(lora)) == lora


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ops.permute(f32(random(6, 2)), (4, 2), (1, 0)), "not a way to split the 6 rows"),
        (lambda: ops.permute(f32(random(6, 2)), (3, 2), (1, 1)), "no order of 2 axes"),
        (lambda: ops.transpose(f32(random(2, 3)), (0, 2)), "no order of the axes"),
        (lambda: ops.concat([f32(random(2, 3)), f32(random(2, 4))]), "does not fit"),
        (lambda: ops.concat([]), "at least one"),
        (lambda: ops.slice_(f32(random(2, 3)), 1, 3), "which has 2"),
        (lambda: ops.slice_(f32(random(2, 3)), 0, 1, axis=2), "axis 2"),
        (lambda: ops.add(f32(random(2, 3)), f32(random(3, 2))), "one shape"),
        (lambda: ops.matmul(f32(random(2, 3)), f32(random(2, 3))), r"\(m, k\) and \(k, n\)"),
        (lambda: ops.affine(ops.typed(Inline(b"\1"), "BOOL", (1,))), "which BOOL does not fit"),
        (lambda: ops.typed(Inline(b"1234"), "F32", (2,)), "takes 8 bytes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_when_it_is_built(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]

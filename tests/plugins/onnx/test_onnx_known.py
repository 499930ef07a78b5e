"""Models that are laid out like one that was read before: what is taken over is what parsing would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from modelhub import File, FileProblem
from modelhub_onnx import known
from modelhub_onnx.graph import parse
from modelhub_onnx.model import Model
from onnx import helper, numpy_helper

from tests.plugins.onnx_files import external, model_of, save


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_known", [])
    monkeypatch.setattr(known, "_parsed", {})


def made(rows: int, value: float = 0.0) -> onnx.ModelProto:
    """A branch with a constant of its own, an initializer, small constants, text and a shape with a name."""
    constant = numpy_helper.from_array(np.full((4, 8), value, np.float32), "c")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=constant)], "branch", [], [helper.make_tensor_value_info("c", 1, (4, 8))]
    )
    nodes = [
        helper.make_node("If", ["which"], ["a"], name="if", then_branch=branch, else_branch=branch),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="gemm", alpha=0.5, transB=1),
    ]
    tensors = [
        numpy_helper.from_array(np.full((rows, 8), value, np.float32), "w"),
        numpy_helper.from_array(np.array([3, 4], np.int64), "shape"),
    ]
    return model_of(nodes, tensors, {"x": ["batch", 8]}, {"y": ["batch", rows]}, doc_string="a model")


def outcome(path: Path, read=known.model_in) -> tuple[object, ...]:
    with File(str(path)) as file:
        try:
            model: Model = read(file)
        except FileProblem as problem:
            return problem.state, str(problem)
        said = {name: getattr(model, name) for name in Model.__slots__ if name not in ("externals", "frozen", "described")}
        columns = model.columns
        assert columns.file == str(path)
        return said, [list(map(list if name == "shapes" else str, getattr(columns, name))) for name in columns._fields[1:6]]


def learn(*paths: Path) -> None:
    known._known.clear()
    known._parsed.clear()
    for path in paths:
        outcome(path)
    assert len(known._known) == 1


def test_each_byte_counts_but_for_those_of_weights(tmp_path: Path) -> None:
    first, second, other = save(made(6, 1.0), tmp_path / "a.onnx"), save(made(6, 2.0), tmp_path / "b.onnx"), tmp_path / "c.onnx"
    data = first.read_bytes()
    expected = outcome(first, parse)
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        other.write_bytes(changed)
        if at % 24 == 0:
            learn(first, second)
        assert outcome(other) == outcome(other, parse), at
    learn(first, second)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "parse", calls.append)
        other.write_bytes(second.read_bytes())
        said, columns = outcome(other)
    assert not calls
    assert columns == expected[1]
    assert [tensor.value.file for tensor in said["tensors"]] == [str(other)] * 2
    assert said["operators"] == expected[0]["operators"]


@pytest.mark.parametrize("where", ["doc", "w", "branch"])
def test_models_longer_than_a_window(tmp_path: Path, where: str) -> None:
    """Only what was read is compared: here a few kilobytes around 256 KB of weights."""
    first, second = save(made(8000, 1.0), tmp_path / "a.onnx"), save(made(8000, 2.0), tmp_path / "b.onnx")
    learn(first, second)
    assert sum(read.nbytes for read in known._known[0].reads) < 100_000
    model = made(8000, 3.0)
    if where == "doc":
        model.doc_string = "b model"
    elif where == "w":
        model.graph.initializer[0].name = "v"
    else:
        model.graph.node[0].attribute[1].g.node[0].output[0] = "d"
    third = save(model, tmp_path / "c.onnx")
    assert third.stat().st_size == first.stat().st_size
    assert outcome(third) == outcome(third, parse)
    assert outcome(second) == outcome(second, parse)


def test_many_of_one_size_that_are_all_different_are_not_all_kept(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        model = made(6)
        model.doc_string = f"{number:07}"
        paths.append(save(model, tmp_path / f"{number}.onnx"))
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "_remember", lambda file, model: calls.append(file.name))
        outcomes = [outcome(path) for path in paths]
    assert calls == ["1.onnx", "3.onnx", "7.onnx", "15.onnx", "31.onnx"]
    assert outcomes[39] == outcome(paths[39], parse)


def test_what_lies_in_other_files_is_looked_for_each_time(tmp_path: Path) -> None:
    tensor = external(numpy_helper.from_array(np.ones(16, np.float32), "w"), "w.data")
    paths = [save(model_of(initializers=[tensor]), tmp_path / name / "m.onnx") for name in "abc"]
    (tmp_path / "c" / "w.data").write_bytes(bytes(64))
    assert [outcome(path)[0]["tensors"][0].value is None for path in paths] == [True, True, False]
    assert not known._known

"""ONNX models that are wrong, each in one way. `BAD` maps a name to (what makes it in a directory, the state it must get, a text
that its reason must hold); the model is called ``model.onnx``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.plugins.onnx_files import external, model_of, perceptron, save, weights

Maker = Callable[[Path], object]
W = numpy_helper.from_array(np.arange(16, dtype=np.float32), "w")


def elsewhere(location: str, offset: object = None, length: object = None, *, data: str = "", nbytes: int = 64) -> Maker:
    """A model with one tensor in ``location``; the file ``data`` is there."""

    def make(directory: Path) -> None:
        if data:
            (directory / data).parent.mkdir(parents=True, exist_ok=True)
            (directory / data).write_bytes(bytes(nbytes))
        save(model_of(initializers=[external(W, location, offset, length)]), directory / "model.onnx")

    return make


def linked(link: Callable[[Path, Path], object]) -> Maker:
    """The data file is a link to one outside of the model's directory."""

    def make(directory: Path) -> None:
        outside = directory.parent / f"outside-{directory.name}"
        outside.write_bytes(bytes(64))
        link(outside, directory / "w.bin")
        elsewhere("w.bin")(directory)

    return make


def through_a_directory(directory: Path) -> None:
    outside = directory.parent / f"folder-{directory.name}"
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(64))
    (directory / "sub").symlink_to(outside)
    elsewhere("sub/w.bin")(directory)


def itself_by_a_link(directory: Path) -> None:
    elsewhere("w.bin")(directory)
    (directory / "w.bin").symlink_to("model.onnx")


def training(directory: Path) -> None:
    model = perceptron()
    graph = helper.make_graph([], "update", [], [], [external(W, "../secret.bin")])
    model.training_info.add().algorithm.CopyFrom(graph)
    save(model, directory / "model.onnx")


def in_an_attribute(directory: Path) -> None:
    """In a constant of a branch, under an attribute whose type says that it is a number."""
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external(W, "/etc/passwd"))], "b", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    node.attribute[0].type = onnx.AttributeProto.INT
    save(model_of([node]), directory / "model.onnx")


def in_a_function(directory: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external(W, "a/../../x"))
    function = helper.make_function("mine", "F", [], ["c"], [constant], [helper.make_opsetid("", 21)])
    save(model_of([helper.make_node("F", [], ["y"], domain="mine")], functions=[function]), directory / "model.onnx")


def in_a_sparse_tensor(directory: Path) -> None:
    model = model_of()
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external(W, "../x"))
    sparse.dims.append(100)
    save(model, directory / "model.onnx")


def raw(data: bytes) -> Maker:
    return lambda directory: (directory / "model.onnx").write_bytes(data)


def changed(change: Callable[[onnx.ModelProto], object]) -> Maker:
    def make(directory: Path) -> None:
        model = weights({"w": np.arange(16, dtype=np.float32), "b": np.ones(3, np.int64)})
        change(model)
        save(model, directory / "model.onnx")

    return make


def _typed(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int64_data.extend(range(16))


def _numbers(count: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.int64_data.extend(range(count))

    return change


def _cut(directory: Path) -> None:
    data = perceptron().SerializeToString()
    (directory / "model.onnx").write_bytes(data[: len(data) // 2])


def _deep(directory: Path) -> None:
    """A branch in a branch in a branch: graph.node.attribute.g.node ..., 180 messages deep. No library writes or reads that."""
    inside = b""
    for _ in range(60):
        inside = _field(1, _field(4, b"If") + _field(5, _field(6, inside)))  # a graph of one node of one attribute
    raw(b"\x08\x0a" + _field(7, inside) + b"\x42\x02\x10\x15")(directory)


def _field(number: int, content: bytes) -> bytes:
    length, parts = len(content), []
    while length > 127:
        parts.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *parts, length]) + content


TWO_GRAPHS = perceptron().SerializeToString() + model_of().SerializeToString()

BAD: dict[str, tuple[Maker, str, str]] = {
    # 37: where external data may not lie
    "external dots": (elsewhere("a/../../x"), "invalid", "out of the model's directory"),
    "external dots that come back": (elsewhere("a/../w.bin", data="w.bin"), "invalid", "out of the model's directory"),
    "external dots with backslashes": (elsewhere("a\\..\\..\\x"), "invalid", "out of the model's directory"),
    "external absolute": (elsewhere("/etc/passwd"), "invalid", "an absolute path is not followed"),
    "external drive letter": (elsewhere("C:\\weights.bin"), "invalid", "an absolute path is not followed"),
    "external empty": (elsewhere(""), "invalid", "no name of a file"),
    "external NUL": (elsewhere("w\0.bin"), "invalid", "no name of a file"),
    "external directory": (lambda directory: elsewhere("sub", data="sub/x")(directory), "invalid", "not a regular file"),
    "external itself": (elsewhere("model.onnx"), "invalid", "the model itself"),
    "external itself by a link": (itself_by_a_link, "invalid", "the model itself"),
    "external symlink": (linked(lambda outside, link: link.symlink_to(outside)), "invalid", "a link to"),
    "external symlink to nothing": (linked(lambda outside, link: link.symlink_to("/no/such")), "invalid", "a link to /no/such"),
    "external symlinked directory": (through_a_directory, "invalid", "a link to"),
    "external hardlink": (linked(os.link), "invalid", "a hard link"),
    # 38: past the end
    "external offset past the end": (elsewhere("w.bin", 65, 64, data="w.bin"), "invalid", "at offset 65 expected"),
    "external offset far past the end": (elsewhere("w.bin", 1 << 62, data="w.bin"), "invalid", "ends at 64"),
    "external offset at the end": (elsewhere("w.bin", 64, data="w.bin"), "invalid", "ends at 64"),
    "external data cut short": (elsewhere("w.bin", 0, 64, data="w.bin", nbytes=63), "incomplete", "ends at 63"),
    "external offset negative": (elsewhere("w.bin", -4, data="w.bin"), "invalid", "no number of bytes"),
    "external offset no number": (elsewhere("w.bin", "0x10", data="w.bin"), "invalid", "no number of bytes"),
    "external length not the shape's": (elsewhere("w.bin", 0, 60, data="w.bin"), "invalid", "takes 64 bytes"),
    "external not there": (elsewhere("w.bin"), "incomplete", "missing: w.bin"),
    # 39: wherever a tensor may stand
    "training_info external": (training, "invalid", "out of the model's directory"),
    "attribute external": (in_an_attribute, "invalid", "an absolute path"),
    "function external": (in_a_function, "invalid", "out of the model's directory"),
    "sparse external": (in_a_sparse_tensor, "invalid", "out of the model's directory"),
    # 40 and its like
    "empty file": (raw(b""), "invalid", "is empty"),
    "zeros": (raw(bytes(500)), "invalid", "field number 0"),
    "text": (raw(b"not a model, but a letter\n" * 10), "invalid", ""),
    "a tensor alone": (raw(W.SerializeToString()), "invalid", ""),
    "no graph": (raw(b"\x08\x0a\x42\x02\x10\x15"), "invalid", "no graph"),
    "no operator sets": (changed(lambda model: model.ClearField("opset_import")), "invalid", "opset_import"),
    "two graphs": (raw(TWO_GRAPHS), "invalid", "two graphs"),
    "cut in the middle": (_cut, "incomplete", "the file at"),
    "branches in branches": (_deep, "invalid", "deeper than 100"),
    # tensors that contradict themselves
    "too few bytes": (changed(lambda model: setattr(model.graph.initializer[0], "raw_data", bytes(63))), "invalid", "has 63"),
    "no data": (changed(lambda model: model.graph.initializer[0].ClearField("raw_data")), "invalid", "has no data"),
    "no type": (changed(lambda model: model.graph.initializer[0].ClearField("data_type")), "invalid", "has no type"),
    "no name": (changed(lambda model: model.graph.initializer[0].ClearField("name")), "invalid", "has no name"),
    "data twice": (changed(lambda model: model.graph.initializer[0].float_data.extend([1.0])), "invalid", "its data twice"),
    "data of another type": (changed(_typed), "invalid", "in field 7, expected 4"),
    "too few numbers": (changed(_numbers(2)), "invalid", "3 numbers expected, 2 bytes found"),
    "negative side": (changed(lambda model: model.graph.initializer[0].dims.append(-1)), "invalid", "[16, -1]"),
    "huge shape": (changed(lambda model: model.graph.initializer[0].dims.extend([1 << 62] * 3)), "invalid", "takes"),
    "a name twice": (changed(lambda model: setattr(model.graph.initializer[1], "name", "w")), "invalid", "w"),
}

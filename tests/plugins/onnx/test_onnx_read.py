"""What the onnx library writes is read as it is, wherever in a model a tensor may stand; and what ``show`` says of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.engine import read_tensor
from modelhub.files import list_directory
from modelhub.found import Found
from modelhub.protobuf import Wire
from modelhub.testing import FormatConformance
from modelhub_onnx.model import Model
from modelhub_onnx.skim import Skim
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Modelhub
from tests.plugins.onnx_files import external, model_of, perceptron, save, weights


def look(path: Path) -> Found:
    found = inspect_path(str(path), plugins.get().formats)
    assert found.state == "ready", found.reason
    return found


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in look(path).load_table().tensors}


class TestOnnx(FormatConformance):
    format = "onnx"

    def write(self, path: Path, arrays: dict[str, Any]) -> None:
        save(weights({name: np.ascontiguousarray(array) if array.ndim else array for name, array in arrays.items()}), path)


class TestOnnxWithExternalData(FormatConformance):
    format = "onnx"
    library_dtypes = ("F32", "F16", "I64")

    def write(self, path: Path, arrays: dict[str, Any]) -> None:
        model = weights({name: np.ascontiguousarray(array) if array.ndim else array for name, array in arrays.items()})
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


TYPED = {
    TensorProto.FLOAT: ("F32", np.float32), TensorProto.DOUBLE: ("F64", np.float64), TensorProto.INT64: ("I64", np.int64),
    TensorProto.INT32: ("I32", np.int32), TensorProto.INT16: ("I16", np.int16), TensorProto.INT8: ("I8", np.int8),
    TensorProto.UINT64: ("U64", np.uint64), TensorProto.UINT32: ("U32", np.uint32), TensorProto.UINT16: ("U16", np.uint16),
    TensorProto.UINT8: ("U8", np.uint8), TensorProto.BOOL: ("BOOL", np.bool_), TensorProto.FLOAT16: ("F16", np.float16),
    TensorProto.BFLOAT16: ("BF16", ml_dtypes.bfloat16), TensorProto.FLOAT8E4M3FN: ("F8_E4M3", ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: ("F8_E5M2", ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz), TensorProto.COMPLEX64: ("C64", np.complex64),
    TensorProto.COMPLEX128: ("C128", np.complex128), TensorProto.FLOAT8E8M0: ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
PACKED = {
    TensorProto.INT4: ("I4", ml_dtypes.int4), TensorProto.UINT4: ("U4", ml_dtypes.uint4),
    TensorProto.FLOAT4E2M1: ("F4", ml_dtypes.float4_e2m1fn), TensorProto.INT2: ("I2", ml_dtypes.int2),
    TensorProto.UINT2: ("U2", ml_dtypes.uint2),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: TensorProto.DataType.Name(kind))
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_every_type(tmp_path: Path, kind: int, raw: bool) -> None:
    dtype, numpy = TYPED[kind]
    values = np.array([0, 1, 1, 0, 2, 100, 1, -3 if np.dtype(numpy).kind in "ifc" else 3], np.float64)
    array = (
        (values > 0 if numpy is np.bool_ else np.abs(values) + 1 if dtype == "F8_E8M0" else values).astype(numpy).reshape(2, 4)
    )
    flat = array.tobytes() if raw else array.reshape(-1)
    tensor = helper.make_tensor("t", kind, [2, 4], flat, raw=raw)
    assert tensor.HasField("raw_data") == raw
    found = tensors(save(model_of(initializers=[tensor]), tmp_path / "m.onnx"))["t"]
    assert (found.dtype, found.shape) == (dtype, (2, 4))
    assert read_tensor(found).tobytes() == array.tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: TensorProto.DataType.Name(kind))
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_every_packed_type(tmp_path: Path, kind: int, raw: bool) -> None:
    dtype, numpy = PACKED[kind]
    array = np.array([0, 1, 1, 0, 1, 1, 0, 1] * 2).astype(numpy)
    tensor = numpy_helper.from_array(array, "t")
    packed = tensor.raw_data
    if not raw:
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(packed)
    found = tensors(save(model_of(initializers=[tensor]), tmp_path / "m.onnx"))["t"]
    assert (found.dtype, found.shape) == (dtype, (16,))
    assert read_tensor(found).tobytes() == packed


def test_what_has_no_value_here_is_listed_with_the_reason(tmp_path: Path) -> None:
    model = model_of(
        initializers=[
            helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]),
            numpy_helper.from_array(np.array([1, 2, 3]).astype(ml_dtypes.float4_e2m1fn), "odd"),
        ]
    )
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "thin"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([[0, 1], [5, 3]]), ""))
    sparse.dims.extend([100, 30])
    found = tensors(save(model, tmp_path / "m.onnx"))
    assert {name: tensor.unsupported for name, tensor in found.items()} == {
        "words": "string tensor",
        "odd": "F4 tensor of 3 elements, which do not fill its last byte",
        "thin": "sparse COO tensor",
    }
    assert (found["thin"].dtype, found["thin"].shape) == ("F32", (100, 30))


def test_numbers_that_stand_one_by_one(tmp_path: Path) -> None:
    """Any reader must take typed data that is not packed; libraries write it no more, so it is written by hand."""
    loose = b"\x08\x04\x10\x07" + b"".join(b"\x38" + bytes([value]) for value in (1, 2, 3, 127)) + b"\x42\x01t"
    floats = b"\x08\x02\x10\x01" + b"".join(b"\x25" + np.float32(value).tobytes() for value in (1.5, -2)) + b"\x42\x01f"
    model = model_of(initializers=[TensorProto.FromString(loose)]).SerializeToString()
    graph = b"".join(b"\x2a" + bytes([len(data)]) + data for data in (loose, floats))
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x15")
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0] == onnx.ModelProto.FromString(model).graph.initializer[0]
    found = tensors(tmp_path / "m.onnx")
    assert read_tensor(found["t"]).view("<i8").tolist() == [1, 2, 3, 127]
    assert read_tensor(found["f"]).view("<f4").tolist() == [1.5, -2]


def test_tensors_wherever_the_format_may_hold_one(tmp_path: Path) -> None:
    def constant(name: str, values: Any) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values), name="ignored"))

    w = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    branch = helper.make_graph(
        [constant("c", np.ones(3, np.float32))], "b", [], [helper.make_tensor_value_info("c", 1, [3])], [w]
    )
    nodes = [
        constant("bias", np.arange(4, dtype=np.float32)),
        constant("shape", np.array([1, 2])),  # the graph's arithmetic: counted, not listed
        constant("axis", np.float32(1)),
        constant("table", np.arange(64)),  # large enough to be a weight
        helper.make_node("If", ["x"], ["y"], name="choice", then_branch=branch, else_branch=branch),
        helper.make_node("If", ["x"], ["z"], name="choice", then_branch=branch, else_branch=branch),
    ]
    function = helper.make_function("m", "F", [], ["o"], [constant("k", np.ones(5, np.float32))], [helper.make_opsetid("", 21)])
    model = model_of(nodes, [w], functions=[function])
    model.training_info.add().algorithm.CopyFrom(helper.make_graph([], "t", [], [], [w]))
    path = save(model, tmp_path / "m.onnx")
    assert {tensor.name: tensor.shape for tensor in look(path).load_table().tensors} == {
        "bias": (4,), "table": (64,), "choice.then_branch/c": (3,), "choice.then_branch/w": (2, 2),
        "choice.else_branch/c": (3,), "choice.else_branch/w": (2, 2), "choice.then_branch/c#2": (3,),
        "choice.then_branch/w#2": (2, 2), "choice.else_branch/c#2": (3,), "choice.else_branch/w#2": (2, 2), "w": (2, 2),
        "training_info[0].algorithm/w": (2, 2), "F/k": (5,),
    }  # fmt: skip
    said = look(path).metadata
    assert (said["constants"], said["subgraphs"], said["functions"], said["training_graphs"]) == (2, 5, 1, 1)
    assert (said["nodes"], said["operators"]["Constant"]) == (11, 9)


def test_external_data_belongs_to_the_checkpoint(tmp_path: Path, modelhub: Modelhub) -> None:
    onnx.save(perceptron(), tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    far = external(numpy_helper.from_array(np.arange(4, dtype=np.float32), "far"), "parts/a.bin", 16, 16)
    save(model_of(initializers=[far]), tmp_path / "n.onnx")
    found = {item.name: item for item in inspect_listing(list_directory(str(tmp_path)), plugins.get().formats).found}
    assert [os.path.basename(name) for name in found["m"].files] == ["m.onnx", "m.onnx.data"]
    assert found["n"].files[1] == str(tmp_path / "parts" / "a.bin")
    assert read_tensor(found["n"].load_table().by_name["far"]).view("<f4").tolist() == [4, 5, 6, 7]
    weight = found["m"].load_table().by_name["layers.1.weight"]
    assert read_tensor(weight).tobytes() == perceptron().graph.initializer[2].raw_data
    modelhub("scan", tmp_path)
    (listed,) = [item for item in modelhub("ls", "--json").json if item["name"] == "m"]
    assert len(listed["files"]) == 2
    (tmp_path / "m.onnx.data").rename(tmp_path / "gone")
    modelhub("scan", tmp_path)
    (listed,) = [item for item in modelhub("ls", "--json").json if item["name"] == "m"]
    assert (listed["state"], listed["reason"]) == ("incomplete", "missing: m.onnx.data")
    (tmp_path / "gone").rename(tmp_path / "m.onnx.data")
    modelhub("scan", tmp_path)
    (listed,) = [item for item in modelhub("ls", "--json").json if item["name"] == "m"]
    assert listed["state"] == "ready"


def test_a_model_of_more_than_two_gigabytes(tmp_path: Path, modelhub: Modelhub) -> None:
    """5 GB of external data, and 3 GB of raw data inside of a model, which protobuf's own readers refuse: both are holes."""
    big = external(onnx.TensorProto(name="big", data_type=1, dims=[1250, 1000, 1000]), "big.data", 0, 5_000_000_000)
    save(model_of(initializers=[big]), tmp_path / "far.onnx")
    with open(tmp_path / "big.data", "wb") as file:
        file.truncate(5_000_000_000)
    nbytes = 3 << 30
    head = onnx.TensorProto(name="huge", data_type=1, dims=[nbytes // 4]).SerializeToString() + b"\x4a" + _varint(nbytes)
    graph = b"\x2a" + _varint(len(head) + nbytes) + head
    with open(tmp_path / "near.onnx", "wb") as file:
        file.write(b"\x08\x0a\x3a" + _varint(len(graph) + nbytes) + graph)
        file.seek(nbytes, os.SEEK_CUR)
        file.write(b"\x42\x02\x10\x15")
    before = _read_so_far()
    assert look(tmp_path / "far.onnx").parameters == 1_250_000_000
    found = tensors(tmp_path / "near.onnx")["huge"]
    assert _read_so_far() - before < 1_000_000
    assert (found.value.nbytes, found.value.offset + nbytes + 4) == (nbytes, (tmp_path / "near.onnx").stat().st_size)


_NUMBERS = {"F32": TensorProto.FLOAT, "I8": TensorProto.INT8, "F16": TensorProto.FLOAT16}


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _read_so_far() -> int:
    with open("/proc/self/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])


def test_real_models(sample_drive: Path) -> None:
    """What onnx says of every model of the drive, we say."""
    paths = sorted(sample_drive.rglob("*.onnx"))
    assert len(paths) >= 7
    for path in paths:
        model = onnx.load(path)
        found = {tensor.name: tensor for tensor in look(path).load_table().tensors}
        for tensor in model.graph.initializer:
            assert read_tensor(found[tensor.name]).tobytes() == numpy_helper.to_array(tensor).tobytes()
        large = [tensor for tensor in _all_tensors(model.graph) if len(tensor.raw_data) >= 256]
        assert len(found) >= len(large)
        assert {read_tensor(tensor).tobytes() for tensor in found.values()} >= {tensor.raw_data for tensor in large}
        assert look(path).metadata["nodes"] == _nodes(model.graph)


def _all_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += _all_tensors(attribute.g) if attribute.HasField("g") else []
    return found


def _nodes(graph: onnx.GraphProto) -> int:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(_nodes, inner))


def test_others_that_end_in_pb_are_left_alone(tmp_path: Path) -> None:
    """TensorFlow's graphs and ONNX's own test data have that suffix too."""
    tensor = numpy_helper.from_array(np.arange(6), "name")
    tensor.ClearField("raw_data")
    tensor.int64_data.extend(range(6))
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    (tmp_path / "frozen.pb").write_bytes(b"\x0a\x0a\x0a\x01x\x12\x05Const")
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x04\x0a\x02\x0a\x00")
    save(perceptron(), tmp_path / "model.pb")
    inspection = inspect_listing(list_directory(str(tmp_path)), plugins.get().formats)
    assert [os.path.basename(found.path) for found in inspection.found if found.format == "onnx"] == ["model.pb"]


def test_plain_tensors_are_copied_to_safetensors(tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.numpy import load_file

    model = perceptron()
    onnx.helper.set_model_props(model, {"license": "mit"})
    path = save(model, tmp_path / "m.onnx")
    report = modelhub("convert", path, "--to", "safetensors", "--json").json
    loaded = load_file(report["output"])
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        tensor.name: tensor.raw_data for tensor in model.graph.initializer
    }
    assert modelhub("diff", path, report["output"], "--json").json["equal"]


@pytest.mark.parametrize("seed", range(40))
def test_the_short_way_and_the_long_way_agree(seed: int) -> None:
    """Nodes and tensors of every make, and broken ones: what the short way answers is what a walk over the fields finds."""
    random = np.random.default_rng(seed)
    dims = random.choice([0, 1, 2, 127, 128, 300], random.integers(0, 3)).tolist()
    array = np.zeros(dims, random.choice([np.float32, np.int8, np.float16]))
    name = "n" * int(random.integers(1, 300))
    attribute = helper.make_attribute("axis", int(random.integers(3)))
    node = helper.make_node("Softmax", [name, "b"], ["c"], name=name, domain=random.choice(["", "mine"]), doc_string="d" * seed)
    node.attribute.append(attribute)
    for message, short in ((numpy_helper.from_array(array, name), _short_tensor), (node, _short_node)):
        data = bytearray(b"junk" + message.SerializeToString())
        answer = short(bytes(data), attribute)
        if answer is None:
            assert message is not node
            assert not array.size  # nothing in it: left to the long way
        else:
            assert answer == _long(bytes(data[4:]), type(message), attribute)
        for _ in range(50):
            broken = bytearray(data)
            broken[4 + int(random.integers(min(len(data) - 4, 400)))] = int(random.integers(256))
            answer = short(bytes(broken), attribute)
            try:
                again = type(message).FromString(bytes(broken[4:]))
            except Exception:  # noqa: BLE001 - no message at all: then the long way says so
                assert answer is None or answer == _long(bytes(broken[4:]), type(message), attribute)
                continue
            if answer is not None and not again.ListFields()[-1][0].number > 14:
                assert answer == _long(bytes(broken[4:]), type(message), attribute)


def _skim(data: bytes, key: bytes, attribute: onnx.AttributeProto) -> Skim | None:
    """What the short way makes of a message that is field ``key`` of a graph; None where it leaves it to the long one."""
    graph = key + _varint(len(data)) + data
    model = Model(None)  # type: ignore[arg-type] - no external file in it
    short = Skim(model, frozenset(), {attribute.SerializeToString(): 0})
    after, taken = short.items(b"junk" + graph, 0, 4, 4 + len(graph))
    assert (after, taken) in ((4, 0), (4 + len(graph), 1))
    return short if taken else None


_NUMBERS = {"F32": TensorProto.FLOAT, "I8": TensorProto.INT8, "F16": TensorProto.FLOAT16}


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _short_tensor(data: bytes, attribute: onnx.AttributeProto) -> Any:
    known = _skim(data[4:], b"\x2a", attribute)
    if known is None:
        return None
    ((name,), (offset,), (nbytes,)) = known.model.names, known.model.offsets, known.model.nbytes
    shift = offset - (4 + 1 + len(_varint(len(data) - 4)))
    return known.model.shapes[0], _NUMBERS[known.model.dtypes[0]], name.encode(), data[4:][shift : shift + nbytes]


def _short_node(data: bytes, attribute: onnx.AttributeProto) -> Any:
    known = _skim(data[4:], b"\x0a", attribute)
    return known and next(iter(known.operators))


def _long(data: bytes, kind: type, attribute: onnx.AttributeProto) -> Any:
    """The last of each field, as any reader takes it; all of the dims."""
    wire = Wire(data)
    found: dict[int, Any] = {}
    dims = []
    for number, wire_type, start, end in wire.fields():
        if number == 1 and wire_type == 0:
            dims.append(start)
        found[number] = start if wire_type == 0 else data[start:end]
    if kind is onnx.TensorProto:
        return (dims, found.get(2, 0), found.get(8, b""), found.get(9, b""))
    return found.get(4, b""), found.get(7, b"")

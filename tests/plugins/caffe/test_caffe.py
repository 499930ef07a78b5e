"""Caffe's networks, written by protobuf's own library from Caffe's description of them, and damaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.errors import ModelhubError
from modelhub.testing import FormatConformance

from tests.conftest import Modelhub

Field = descriptor_pb2.FieldDescriptorProto
MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
    "BlobShape": [("dim", 1, Field.TYPE_INT64, True)],
    "BlobProto": [
        ("num", 1, Field.TYPE_INT32, False), ("channels", 2, Field.TYPE_INT32, False), ("height", 3, Field.TYPE_INT32, False),
        ("width", 4, Field.TYPE_INT32, False), ("data", 5, Field.TYPE_FLOAT, True), ("shape", 7, "BlobShape", False),
        ("double_data", 8, Field.TYPE_DOUBLE, True),
    ],
    "V1LayerParameter": [
        ("name", 4, Field.TYPE_STRING, False), ("type", 5, Field.TYPE_INT32, False), ("blobs", 6, "BlobProto", True),
    ],
    "LayerParameter": [
        ("name", 1, Field.TYPE_STRING, False), ("type", 2, Field.TYPE_STRING, False), ("blobs", 7, "BlobProto", True),
    ],
    "NetParameter": [
        ("name", 1, Field.TYPE_STRING, False), ("layers", 2, "V1LayerParameter", True), ("input", 3, Field.TYPE_STRING, True),
        ("layer", 100, "LayerParameter", True),
    ],
}  # fmt: skip


def _schema() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in MESSAGES.items():
        entry = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            made = entry.field.add(name=name, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                made.type, made.type_name = Field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                made.type = kind
                made.options.packed = repeated and kind != Field.TYPE_STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


NetParameter = _schema()
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.standard_normal((8, 3, 3, 3)).astype(np.float32)
BIAS = RANDOM.standard_normal(8).astype(np.float32)


def network(*, old: bool = False) -> Any:
    net = NetParameter(name="tiny", input=["data"])
    layers = net.layers if old else net.layer
    layers.add(name="relu1", type=18 if old else "ReLU")
    layer = layers.add(name="conv1", type=4 if old else "Convolution")
    for array in (KERNEL, BIAS):
        blob = layer.blobs.add(data=array.reshape(-1).tolist())
        if old:
            blob.num, blob.channels, blob.height, blob.width = (*(1,) * (4 - array.ndim), *array.shape)
        else:
            blob.shape.dim.extend(array.shape)
    return net


def saved(path: Path, net: Any) -> Path:
    path.write_bytes(net.SerializeToString())
    return path


class TestConformance(FormatConformance):
    format = "caffe"

    def named(self, name: str) -> str:
        return f"{name}.0"

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        net = NetParameter(name="kit")
        for name, array in tensors.items():
            blob = net.layer.add(name=name, type="Parameter").blobs.add()
            blob.shape.dim.extend(array.shape)
            (blob.data if array.dtype == np.float32 else blob.double_data).extend(array.reshape(-1).tolist())
        path.write_bytes(net.SerializeToString())


@pytest.mark.parametrize("old", [False, True])
def test_blobs_are_those_that_were_written(old: bool, tmp_path: Path, modelhub: Modelhub) -> None:
    path = saved(tmp_path / "net.caffemodel", network(old=old))
    modelhub("convert", path, "--to", "npz", "-o", tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as found:
        assert found["conv1.0"].tobytes() == KERNEL.tobytes()
        assert found["conv1.1"].shape == ((1, 1, 1, 8) if old else (8,))
        assert found["conv1.1"].tobytes() == BIAS.tobytes()
    shown = modelhub("show", path, "--json").json
    assert shown["metadata"]["layer_types"] == {"ReLU": 1, "Convolution": 1}
    assert shown["parameters"] == KERNEL.size + BIAS.size


def test_doubles(tmp_path: Path, modelhub: Modelhub) -> None:
    net = network()
    blob = net.layer[1].blobs[1]
    del blob.data[:]
    blob.double_data.extend([1.5] * 8)
    modelhub("convert", saved(tmp_path / "net.caffemodel", net), "--to", "npz", "-o", tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as found:
        assert found["conv1.1"].tolist() == [1.5] * 8
        assert found["conv1.1"].dtype == np.float64


def _state(path: Path, modelhub: Modelhub) -> tuple[str, str]:
    shown = modelhub("show", path, "--json", status=None).json
    return shown["state"], shown["reason"]


def test_a_shape_that_is_not_that_of_the_data(tmp_path: Path, modelhub: Modelhub) -> None:
    net = network()
    net.layer[1].blobs[1].shape.dim[0] = 1 << 40
    state, reason = _state(saved(tmp_path / "net.caffemodel", net), modelhub)
    assert state == "invalid"
    assert "blob 'conv1.1': F32 [1099511627776] takes 4398046511104 bytes, its data has 32" in reason


def test_two_layers_of_one_name(tmp_path: Path, modelhub: Modelhub) -> None:
    net = network()
    net.layer.add().CopyFrom(net.layer[1])
    assert "two layers are called 'conv1'" in _state(saved(tmp_path / "net.caffemodel", net), modelhub)[1]


def test_a_file_that_was_cut(tmp_path: Path, modelhub: Modelhub) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network().SerializeToString()[:-20])
    assert _state(path, modelhub)[0] in ("incomplete", "invalid")


def test_the_description_beside_it_belongs_to_it(tmp_path: Path, modelhub: Modelhub) -> None:
    path = saved(tmp_path / "net.caffemodel", network())
    (tmp_path / "net.prototxt").write_text('name: "tiny"\n')
    assert [Path(one).name for one in modelhub("show", path, "--json").json["files"]] == ["net.caffemodel", "net.prototxt"]


@pytest.mark.parametrize("seed", range(5))
def test_changed_bytes_are_no_fault_of_the_plugin(seed: int, tmp_path: Path) -> None:
    random, data = np.random.default_rng(seed), network(old=bool(seed % 2)).SerializeToString()
    path = tmp_path / "net.caffemodel"
    for _ in range(60):
        broken = bytearray(data)
        for at in random.integers(0, min(len(data), 120), 2):
            broken[at] = int(random.integers(256))
        path.write_bytes(broken)
        try:
            found = inspect_path(str(path), plugins.get().formats)
        except ModelhubError:
            continue  # it is taken for something else
        assert "failed" not in found.reason

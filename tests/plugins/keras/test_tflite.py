"""TensorFlow Lite models, made by TensorFlow's converter and by hand: constants are what the interpreter says, to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from modelhub import dtypes, plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from modelhub.found import Found
from modelhub.testing import FormatConformance
from modelhub.types import Tensor
from numpy.typing import NDArray

from tests.conftest import Modelhub
from tests.plugins.keras.tflite_files import TYPES, Made, packed, weights

CONVERTED = ("float", "large", "f16", "dynamic", "int8", "int16x8")
CUSTOM = 32


class TestTflite(FormatConformance):
    format = "tflite"
    library_dtypes = ("F32", "F64", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "C128")

    def write(self, path: Path, tensors: dict[str, NDArray[Any]]) -> None:
        path.write_bytes(weights(tensors))


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def array_of(tensor: Tensor) -> NDArray[Any]:
    return np.frombuffer(read_tensor(tensor).tobytes(), dtypes.get(tensor.dtype).numpy).reshape(tensor.shape)


@pytest.mark.parametrize("name", CONVERTED)
def test_constants_are_what_the_interpreter_says(made: Path, name: str) -> None:
    table = look(made / f"{name}.tflite").load_table()
    stored = {tensor.name: tensor for tensor in table.stored}
    with np.load(made / f"{name}.npz") as said:
        constants = {key.removesuffix("|value") for key in said.files if key.endswith("|value")}
        assert set(stored) <= constants
        weighty = 0
        for key, tensor in stored.items():
            want = said[f"{key}|value"]
            np.testing.assert_array_equal(array_of(tensor), want)
            scales = said[f"{key}|scales"]
            if not scales.size:
                assert tensor.view == "both"
                continue
            axis, shape = int(said[f"{key}|quantized_dimension"]), [1] * want.ndim
            if scales.size > 1:
                shape[axis] = -1
            zeros = said[f"{key}|zero_points"].reshape(shape if want.ndim else ()).astype(np.int64)
            floats = (want.astype(np.int64) - zeros).astype("f4") * scales.reshape(shape if want.ndim else ()).astype("f8")
            whole = table.by_name[key]
            assert (whole.dtype, whole.view) == ("F32", "logical")
            np.testing.assert_array_equal(array_of(whole), floats.astype("f4"))
            weighty += 1
        assert bool(weighty) == (name in ("dynamic", "int8", "int16x8"))


@pytest.mark.parametrize(
    ("name", "precision", "scheme", "activations"),
    [
        ("float", "F32", None, None),
        ("large", "F32", None, None),
        ("f16", "F16", "float16 weights", None),
        ("dynamic", "INT8", "dynamic range", None),
        ("int8", "INT8", "full integer", "INT8"),
        ("int16x8", "INT8", "full integer", "INT16"),
    ],
)
def test_how_it_is_quantized_is_said(
    made: Path, modelhub: Modelhub, name: str, precision: str, scheme: str | None, activations: str | None
) -> None:
    shown = modelhub("show", made / f"{name}.tflite", "--json").json
    said = shown["metadata"].get("quantization", {})
    assert (shown["precision"], said.get("scheme"), said.get("activations")) == (precision, scheme, activations)


def test_what_it_takes_gives_and_does(made: Path, modelhub: Modelhub) -> None:
    said = modelhub("show", made / "float.tflite", "--json").json["metadata"]
    assert list(said["inputs"].values()) == ["float32[?, 12, 12, 1]"]
    assert list(said["outputs"].values()) == ["float32[?, 10]"]
    assert said["operators"]["FULLY_CONNECTED"] == 2
    assert said["signatures"] == ["serving_default"]
    assert said["min_runtime_version"].count(".") == 2
    assert said["description"] == "MLIR Converted."
    integers = modelhub("show", made / "int8.tflite", "--json").json["metadata"]
    assert list(integers["inputs"].values()) == ["int8[?, 12, 12, 1]"]


def test_it_is_converted_and_compared(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.numpy import load_file

    output = tmp_path / "f.safetensors"
    modelhub("convert", made / "dynamic.tflite", "--to", "safetensors", "-o", output)
    got = load_file(output)
    table = look(made / "dynamic.tflite").load_table().by_name
    assert set(got) == set(table)
    assert all(np.array_equal(got[name], array_of(tensor)) for name, tensor in table.items())
    assert {array.dtype.name for array in got.values()} == {"float32", "int32"}
    assert modelhub("diff", made / "float.tflite", made / "large.tflite", "--json").json["equal"] is True


def test_the_runtime_runs_it(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    for name in ("float", "int8"):
        result = modelhub("verify", made / f"{name}.tflite", "--level", "runnable")
        assert "LiteRT runs it on" in result.stdout
    model = Made()
    model.tensor("x", (1, 4), 0)
    model.tensor("y", (1, 5), 0)
    model.operator(0, [0, 0], [7 % 2])
    model.graph.operators[0].inputs = [0, -1]
    model.graph.inputs, model.graph.outputs = [0], [1]
    (tmp_path / "bad.tflite").write_bytes(model.bytes())
    result = modelhub("verify", tmp_path / "bad.tflite", "--level", "runnable", status=1)
    assert "LiteRT does not load it" in result.stdout


def test_a_real_model_of_somebody_s(sample_drive: Path, modelhub: Modelhub) -> None:
    found = list(sample_drive.glob("basic-pitch/**/nmp.tflite"))
    if not found:
        pytest.skip("the sample drive has none")
    shown = modelhub("show", found[0], "--tensors", "--json").json
    assert (shown["state"], shown["precision"], len(shown["tensors"])) == ("ready", "F32", 67)
    assert modelhub("verify", found[0]).lines[0].startswith("ok")


# --- made by hand -------------------------------------------------------------------------------------------------


def test_integers_of_less_than_a_byte(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    made, whole = Made(), {}
    for bits, kind, signed in ((4, 17, True), (4, 20, False), (2, 19, True)):
        for shape in ((5, 7), (4, 8), (3,), (2, 3, 5)):
            low = -(1 << (bits - 1)) if signed else 0
            values = random.integers(low, low + (1 << bits), shape)
            scales = random.random(shape[0]).astype("f4")
            name = f"{bits}{signed}{shape}"
            made.tensor(name, shape, kind, packed(values, bits), scale=scales, zeroPoint=[1] * shape[0], quantizedDimension=0)
            lead = (-1, *[1] * (len(shape) - 1))
            whole[name] = ((values - 1).astype("f4") * scales.astype("f8").reshape(lead)).astype("f4")
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    found = look(tmp_path / "m.tflite")
    assert found.state == "ready", found.reason
    table = found.load_table()
    assert set(table.by_name) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(array_of(table.by_name[name]), values, err_msg=name)


def test_scales_of_every_kind(tmp_path: Path) -> None:
    made = Made()
    data = np.arange(-12, 12, dtype="i1").reshape(2, 3, 4)
    made.tensor("last", (2, 3, 4), 9, data.tobytes(), scale=[1.0, 2, 3, 4], zeroPoint=[3], quantizedDimension=2)
    made.tensor("none", (2, 3, 4), 9, data.tobytes(), scale=[0.5] * 3, quantizedDimension=1)
    made.tensor("one", (2, 3, 4), 9, data.tobytes(), scale=[0.25], zeroPoint=[-1])
    made.tensor("nan", (2, 3, 4), 9, data.tobytes(), scale=[float("nan")])
    made.tensor("range", (2, 3, 4), 9, data.tobytes(), min=[0.0], max=[1.0])
    made.tensor("floats", (2,), 0, bytes(8), scale=[1.0])
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    table = look(tmp_path / "m.tflite").load_table()
    got = {name: array_of(tensor) for name, tensor in table.by_name.items()}
    wide = data.astype("f4")
    np.testing.assert_array_equal(got["last"], (wide - 3) * np.array([1, 2, 3, 4], "f4"))
    np.testing.assert_array_equal(got["none"], wide / 2)
    np.testing.assert_array_equal(got["one"], (wide + 1) / 4)
    assert {name: table.by_name[name].dtype for name in ("nan", "range", "floats")} == {
        "nan": "I8",
        "range": "I8",
        "floats": "F32",
    }


def test_blocks_with_scales_in_a_tensor_of_their_own(tmp_path: Path) -> None:
    made = Made()
    values = np.random.default_rng(0).integers(-8, 8, (3, 64))
    scales = np.random.default_rng(1).random((3, 2)).astype("f2")
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = 1, 0, 32
    made.tensor("w", (3, 64), 17, packed(values, 4), detailsType=2, details=details)
    made.tensor("w_scales", (3, 2), 1, scales.tobytes())
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    found = look(tmp_path / "m.tflite")
    whole = array_of(found.load_table().by_name["w"])
    np.testing.assert_array_equal(whole, (values.reshape(3, 2, 32) * scales.astype("f4")[:, :, None]).reshape(3, 64))
    assert found.metadata["quantization"]["details"] == ["blockwise"]
    assert found.precision == "INT4"


def test_what_is_no_number_and_what_lies_elsewhere(tmp_path: Path) -> None:
    made = Made()
    made.tensor("texts", (2,), 5, b"\2\0\0\0\x10\0\0\0\x11\0\0\0\x12\0\0\0ab")
    made.tensor("sparse", (4, 4), 0, bytes(16)).sparsity = schema.SparsityParametersT()
    made.tensor("new", (2,), 99, bytes(16))
    made.tensor("outside", (2,), 0).externalBuffer = 1
    made.tensor("good", (2,), 0, bytes(8))
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    found = {tensor.name: tensor.unsupported for tensor in look(tmp_path / "m.tflite").load_table().logical}
    words = {"texts": "string", "sparse": "sparse", "new": "type 99", "outside": "another file", "good": ""}
    assert set(found) == set(words)
    assert all(word in found[name] for name, word in words.items())


def test_names_that_several_have(tmp_path: Path) -> None:
    made = Made()
    other = made.add_graph("loop")
    for graph in (made.graph, other):
        for number in range(2):
            made.tensor("w", (2,), 0, np.full(2, number + 2 * (graph is other), "f4").tobytes(), graph=graph)
    shared = made.buffer(bytes(8))
    made.tensor("", (2,), 0, at=shared)
    made.tensor("again", (2,), 0, at=shared)
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    found = look(tmp_path / "m.tflite")
    table = found.load_table().by_name
    assert [float(array_of(table[name])[0]) for name in ("w", "main/w", "loop/w", "loop/w#1")] == [0, 1, 2, 3]
    assert {"tensor_2", "again"} <= set(table)
    assert found.parameters == 10  # the shared one counts once


def test_operators_of_somebody_s_own(tmp_path: Path, modelhub: Modelhub) -> None:
    made = Made()
    made.tensor("x", (1,), 0)
    made.operator(CUSTOM, [0], [0], "TFLite_Detection_PostProcess")
    made.operator(CUSTOM, [0], [0], "FlexErf")
    made.operator(150, [0], [0])
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    result = modelhub("verify", tmp_path / "m.tflite", "--json").json[0]
    said = {item["severity"]: item["message"] for item in result["findings"] if item["check"] == "tflite-operators"}
    assert "TFLite_Detection_PostProcess" in said["warning"]
    assert "FlexErf" in said["info"]
    metadata = modelhub("show", tmp_path / "m.tflite", "--json").json["metadata"]
    assert metadata["custom_operators"] == ["FlexErf", "TFLite_Detection_PostProcess"]
    assert metadata["operators"]["GELU"] == 1


def test_what_the_author_wrote(tmp_path: Path, modelhub: Modelhub) -> None:
    import flatbuffers

    builder = flatbuffers.Builder(64)
    texts = {0: "Bird classifier", 1: "Tells 964 birds", 2: "v1", 4: "Somebody", 5: "Apache-2.0"}
    offsets = {field: builder.CreateString(text) for field, text in texts.items()}
    builder.StartObject(8)
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    builder.Finish(builder.EndObject(), b"M001")
    made = Made()
    made.tensor("x", (1,), 0)
    note = schema.MetadataT()
    note.name, note.buffer = "TFLITE_METADATA", made.buffer(bytes(builder.Output()))
    made.model.metadata.append(note)
    (tmp_path / "m.tflite").write_bytes(made.bytes())
    said = modelhub("show", tmp_path / "m.tflite", "--json").json["metadata"]
    assert (said["title"], said["author"], said["license"]) == ("Bird classifier", "Somebody", "Apache-2.0")
    assert said["description"] == "made for tests"


def test_a_model_of_gigabytes_is_indexed_at_once(tmp_path: Path) -> None:
    """Above 2 GB the converter puts weights behind all tables; here they are a hole in a sparse file."""
    made = Made()
    made.tensor("w", (1 << 20, 768), 0, b"x").buffer = 1
    size = 4 * 768 << 20
    made.model.buffers[1].data, made.model.buffers[1].offset, made.model.buffers[1].size = None, 1 << 16, size
    data = made.bytes()
    with open(tmp_path / "m.tflite", "wb") as file:
        file.write(data)
        file.truncate((1 << 16) + size)
    found = look(tmp_path / "m.tflite")
    (tensor,) = found.load_table().logical
    assert (tensor.dtype, tensor.value) == ("F32", (str(tmp_path / "m.tflite"), 1 << 16, size))
    os.truncate(tmp_path / "m.tflite", (1 << 16) + size - 1)
    assert look(tmp_path / "m.tflite").state in ("incomplete", "invalid")


def test_types_have_the_numbers_of_the_schema() -> None:
    from modelhub_tflite import schema as ours

    numbers = {name: number for name, number in vars(schema.TensorType).items() if name.isupper()}
    for number, dtype in ours.TYPES.items():
        label = next(name for name, value in numbers.items() if value == number)
        kind = dtypes.get(dtype)
        assert label.rstrip("0123456789_EMFN").startswith({"uint": "U", "int": "I", "float": ("F", "B")}.get(kind.kind, "")), (
            label
        )
    builtin = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    assert [builtin[number] for number in range(len(ours.OPERATORS))] == list(ours.OPERATORS)
    assert set(TYPES.values()) <= set(ours.TYPES)

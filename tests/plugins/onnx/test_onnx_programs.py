"""Smaller models by onnxruntime's tools, and exports: each is run beside its source, and what differs too much is thrown away."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import EncodeError
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.files import Checkpoint
from modelhub_onnx import smaller
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from tests.conftest import Modelhub
from tests.plugins.onnx_files import model_of, perceptron, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(perceptron(2, 64), tmp_path / "model.onnx")


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    place = tmp_path / "samples"
    place.mkdir()
    random = np.random.default_rng(1)
    for number in range(5):
        np.savez(place / f"{number}.npz", x=random.standard_normal((3, 64)).astype(np.float32))
    return place


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"x": x})[0]


EXPECTED = {  # label, share of the source's bytes at the most, cosine at the least, scheme
    "fp16": ("F16", 0.6, 0.999999, None),
    "int8": ("INT8", 0.45, 0.9995, "dynamic"),
    "int8-static": ("INT8", 0.55, 0.999, "QDQ"),
    "int4": ("INT4", 0.32, 0.98, "MatMulNBits"),
    "int8-weights": ("INT8", 0.45, 0.9995, "MatMulNBits"),
}


@pytest.mark.parametrize("recipe", EXPECTED)
def test_a_smaller_model_computes_nearly_the_same(source: Path, calibration: Path, modelhub: Modelhub, recipe: str) -> None:
    label, share, cosine, scheme = EXPECTED[recipe]
    extra = ("--calibration", calibration) if recipe == "int8-static" else ()
    report = modelhub("convert", source, "--to", f"onnx:{recipe}", *extra, "--json").json
    output = Path(report["output"])
    assert output.name == f"model.{recipe}.onnx"
    assert sorted(os.listdir(source.parent)) == sorted(["model.onnx", output.name, "samples"])
    assert report["size"] == output.stat().st_size < share * source.stat().st_size
    (row,) = report["compared"]
    assert (row["name"], row["values"]) == ("y", (3 * 5 if recipe == "int8-static" else 4 * 1) * 64)
    assert row["cosine"] > cosine
    x = np.random.default_rng(7).standard_normal((9, 64)).astype(np.float32)
    a, b = outputs(source, x), outputs(output, x)
    assert np.dot(a.ravel(), b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b) > cosine - 0.002
    shown = modelhub("show", output, "--json").json
    assert shown["precision"] == label
    said = shown["metadata"].get("quantization")
    assert (said and said["scheme"]) == scheme
    if said:
        assert (said["made"], said["weights"], said["quantized_parameters"]) == ("post-training", label, 2 * 64 * 64)


def test_an_output_that_is_too_far_off_ends_with_status_1(source: Path, modelhub: Modelhub) -> None:
    done = modelhub("convert", source, "--to", "onnx:int4", "--atol", "1e-4", "--rtol", "0", "--json", status=1)
    assert done.json["error"]["code"] == "outputs_differ"
    assert "output 'y':" in done.json["error"]["message"]
    assert os.listdir(source.parent) == ["model.onnx"]
    modelhub("convert", source, "--to", "onnx:int4", "--atol", "3")


@pytest.mark.parametrize(
    ("recipe", "words", "status", "said"),
    [
        ("int8-static", (), 2, "needs inputs to calibrate with"),
        ("int8", ("--calibration", "empty"), 2, "holds no .npz"),
        ("int8", ("--calibration", "names.npz"), 2, "has z, the model takes x"),
        ("int8", ("--calibration", "words.npz"), 2, "the model takes tensor(float)"),
        ("int8", ("--calibration", "flat.npz"), 2, "x has the shape [64], the model takes [batch, 64]"),
        ("int8", ("--calibration", "many.npz"), 2, "each file is one set of inputs"),
        ("int8-static", ("--calibration", "nan.npz"), 2, "nan.npz: x has NaN or infinite values"),
        ("int8-static", ("--calibration", "none.npz"), 2, "the source gives no numbers on 1 set of inputs"),
        ("int8", ("--calibration", "no.npz"), 2, "is no file of NumPy's"),
        ("int8", ("--calibration", "pickled.npz"), 2, "cannot be read"),
        ("fp16", ("--set", "a=b"), 2, "no options of recipes"),
    ],
)
def test_what_cannot_be_done_is_said(
    source: Path, modelhub: Modelhub, recipe: str, words: tuple[str, ...], status: int, said: str
) -> None:
    place = source.parent
    (place / "empty").mkdir()
    np.savez(place / "names.npz", z=np.zeros((1, 64), np.float32))
    np.savez(place / "words.npz", x=np.array(["a"]))
    np.savez(place / "flat.npz", x=np.zeros(64, np.float32))
    np.savez(place / "many.npz", x=np.zeros((5, 1, 64), np.float32))
    np.savez(place / "nan.npz", x=np.full((1, 64), np.nan, np.float32))
    np.savez(place / "none.npz", x=np.zeros((0, 64), np.float32))
    (place / "no.npz").write_text("hello")
    np.savez(place / "pickled.npz", x=np.array([{}], object))
    before = sorted(os.listdir(place))
    done = modelhub("convert", source, "--to", f"onnx:{recipe}", *words, cwd=place, status=status)
    assert said in done.stderr
    assert sorted(os.listdir(place)) == before


def test_a_model_with_nothing_to_quantize_is_not_copied(tmp_path: Path, modelhub: Modelhub) -> None:
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    model = model_of([helper.make_node("Add", ["x", "b"], ["y"])], [bias], {"x": [4]}, {"y": [4]})
    path = save(model, tmp_path / "m.onnx")
    assert "nothing in this model could be quantized" in modelhub("convert", path, "--to", "onnx:int8", status=3).stderr
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_what_hardly_gets_smaller_is_said(tmp_path: Path, modelhub: Modelhub) -> None:
    """A convolution keeps its weights, and nearly all weights are its own."""
    random = np.random.default_rng(0)
    weights = {"k": random.standard_normal((32, 32, 3, 3)), "w": random.standard_normal((32, 4))}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    path = save(model_of(nodes, tensors, {"x": [1, 32, 8, 8]}, {"y": [1, 4]}), tmp_path / "m.onnx")
    notes = modelhub("convert", path, "--to", "onnx:int8", "--json").json["notes"]
    (note,) = [note for note in notes if "hardly smaller" in note]
    assert note.endswith("int8-static --calibration quantizes convolutions too")


def test_weights_too_large_for_half_precision_stay_as_they_are(tmp_path: Path, modelhub: Modelhub) -> None:
    """A variance of some millions, in a node of its own, as Paddle's exporter writes it: clipped, it would ruin the model."""
    random = np.random.default_rng(0)
    parts = {
        "k": random.standard_normal((4, 3, 3, 3)),
        "scale": np.ones(4),
        "b": np.zeros(4),
        "mean": np.zeros(4),
        "variance": np.full(4, 5e6),
    }
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array.astype(np.float32), name))
        for name, array in parts.items()
    ]
    limit = numpy_helper.from_array(np.array(1e9, np.float32), "limit")
    nodes = [
        *constants,
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "b", "mean", "variance"], ["n"], name="norm"),
        helper.make_node("Clip", ["n", "", "limit"], ["y"]),
    ]
    model = model_of(nodes, [limit], {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]})
    report = modelhub("convert", save(model, tmp_path / "m.onnx"), "--to", "onnx:fp16", "--json").json
    assert report["compared"][0]["cosine"] > 0.99999
    assert "1 node keeps single precision, with weights too large for half: norm" in report["notes"]
    assert "1 constant is too large for half precision and clipped, the first limit" in report["notes"]
    shown = {item["name"]: item["dtype"] for item in modelhub("show", report["output"], "--tensors", "--json").json["tensors"]}
    assert (shown["k"], shown["variance"]) == ("F16", "F32")


def test_what_is_quantized_already_is_not_made_again(source: Path, modelhub: Modelhub) -> None:
    small = modelhub("convert", source, "--to", "onnx:int8", "--json").json["output"]
    done = modelhub("convert", small, "--to", "onnx:int8", "-o", source.parent / "again.onnx", status=3)
    assert "is quantized already" in done.stderr
    assert "dequantized" not in done.stderr + done.stdout
    modelhub("convert", small, "--to", "onnx:fp16", "-o", source.parent / "half.onnx")  # its other operators can be halved


def test_old_operator_sets_are_quantized_by_channel(tmp_path: Path, modelhub: Modelhub) -> None:
    """Before set 13 a tensor has one scale: the model is brought to it first."""
    random = np.random.default_rng(0)
    kernel = numpy_helper.from_array(random.standard_normal((8, 3, 3, 3)).astype(np.float32), "k")
    bias = numpy_helper.from_array(random.standard_normal(8).astype(np.float32), "b")
    model = model_of([helper.make_node("Conv", ["x", "k", "b"], ["y"])], [kernel, bias], {"x": ["n", 3, "h", "w"]}, {"y": None})
    model.opset_import[0].version = 11
    np.savez(tmp_path / "c.npz", x=random.standard_normal((2, 3, 16, 16)))
    report = modelhub(
        "convert", save(model, tmp_path / "m.onnx"), "--to", "onnx:int8-static", "--calibration", tmp_path / "c.npz", "--json"
    ).json
    assert report["notes"][0] == "brought from operator set 11 to 13"
    assert report["compared"][0]["cosine"] > 0.999
    assert modelhub("show", report["output"], "--json").json["metadata"]["quantization"]["per_channel"]


def test_products_in_functions_are_quantized(tmp_path: Path, modelhub: Modelhub) -> None:
    body = helper.make_function(
        "local", "Linear", ["a", "b"], ["c"], [helper.make_node("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 21)]
    )
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "w")
    nodes = [helper.make_node("Linear", ["x", "w"], ["y"], domain="local")]
    model = model_of(nodes, [weight], {"x": ["n", 64]}, {"y": ["n", 64]})
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    report = modelhub("convert", save(model, tmp_path / "f.onnx"), "--to", "onnx:int4", "--json").json
    assert report["compared"][0]["cosine"] > 0.98
    assert modelhub("show", report["output"], "--json").json["precision"] == "INT4"


def test_operators_of_others_are_said_to_be_why_it_is_not_run(tmp_path: Path, modelhub: Modelhub) -> None:
    model = model_of([helper.make_node("MyOp", ["x"], ["y"], domain="acme.ops")], inputs={"x": [4]}, outputs={"y": [4]})
    model.opset_import.append(helper.make_opsetid("acme.ops", 1))
    (report,) = modelhub("verify", save(model, tmp_path / "m.onnx"), "--level", "runnable", "--json").json
    assert "not run: its operators of 'acme.ops' take a library of native code" in report["findings"][0]["message"]


def test_inputs_are_made_up_that_tell_models_apart(tmp_path: Path, modelhub: Modelhub) -> None:
    """Images in batches of any size, and a model that gives zeros for what is short."""
    kernel = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "k")
    images = model_of(
        [helper.make_node("Conv", ["x", "k"], ["y"])], [kernel], {"x": ["a", 3, "b", "c"]}, {"y": ["a", 4, "d", "e"]}
    )
    (report,) = modelhub("verify", save(images, tmp_path / "i.onnx"), "--level", "runnable", "--json").json
    assert "x[1, 3, 64, 64]" in report["findings"][-1]["message"]
    start = numpy_helper.from_array(np.array([100], np.int64), "start")
    end = numpy_helper.from_array(np.array([1 << 40], np.int64), "end")
    audio = model_of([helper.make_node("Slice", ["x", "start", "end"], ["y"])], [start, end], {"x": ["n"]}, {"y": ["m"]})
    (report,) = modelhub("verify", save(audio, tmp_path / "a.onnx"), "--level", "runnable", "--json").json
    assert "x[512]" in report["findings"][-1]["message"]


def test_the_plan_says_what_it_takes(source: Path, modelhub: Modelhub) -> None:
    plan = modelhub("convert", source, "--to", "onnx:int8", "--dry-run", "--json").json
    assert plan["program"] == "onnxruntime-int8"
    assert plan["memory"] > 500 << 20
    assert "may take" in modelhub("convert", source, "--to", "onnx:int8", "--dry-run").stdout
    assert os.listdir(source.parent) == ["model.onnx"]


def test_nothing_is_left_beside_a_source_with_external_data(tmp_path: Path, modelhub: Modelhub) -> None:
    place = tmp_path / "in"
    place.mkdir()
    onnx.save(perceptron(2, 64), place / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    os.chmod(place, 0o555)
    report = modelhub("convert", place / "m.onnx", "--to", "onnx:int8", "-o", tmp_path / "out.onnx", "--json").json
    os.chmod(place, 0o755)
    assert sorted(os.listdir(place)) == ["m.onnx", "m.onnx.data"]
    assert report["compared"][0]["cosine"] > 0.9995


def test_real_models_are_halved_and_quantized(sample_drive: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    """A model of audio whose weights stand in branches, and one of bytes: both as they come from PyPI."""
    vad = modelhub(
        "convert", sample_drive / "silero-vad/data/silero_vad.onnx", "--to", "onnx:fp16", "-o", tmp_path / "a.onnx", "--json"
    ).json
    assert min(row["cosine"] for row in vad["compared"]) > 0.999
    magika = next(sample_drive.glob("magika/models/*/model.onnx"))
    small = modelhub("convert", magika, "--to", "onnx:int8", "-o", tmp_path / "b.onnx", "--atol", "0.05", "--json").json
    assert small["size"] < magika.stat().st_size
    assert small["compared"][0]["max_error"] <= 0.05


@pytest.mark.parametrize("path", ["silero-vad/data/silero_vad.onnx", "magika/models/standard_v3_3/model.onnx"])
def test_real_models_are_sound_and_run(sample_drive: Path, modelhub: Modelhub, path: str) -> None:
    (report,) = modelhub("verify", sample_drive / path, "--level", "all", "--json").json
    assert report["ok"]
    assert any("onnxruntime runs it on" in finding["message"] for finding in report["findings"])


def test_a_model_that_onnx_refuses_fails_its_verification(tmp_path: Path, modelhub: Modelhub) -> None:
    """Known to the format, and no sense to it: an operator that is not in the standard, a value that nothing makes."""
    path = save(model_of([helper.make_node("Reluu", ["x"], ["y"])], inputs={"x": [4]}, outputs={"y": [4]}), tmp_path / "m.onnx")
    (report,) = modelhub("verify", path, "--json", status=1).json
    assert any("onnx refuses it" in finding["message"] for finding in report["findings"])
    (report,) = modelhub("verify", path, "--level", "runnable", "--json", status=1).json
    assert any("does not load it" in finding["message"] for finding in report["findings"])


@pytest.mark.parametrize("recipe", EXPECTED)
def test_models_too_large_for_one_message_get_external_data(
    source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """The way of models past 2 GiB, walked by a small one."""
    monkeypatch.setattr(smaller, "INLINE_LIMIT", 1000)
    place = tmp_path / "out"
    place.mkdir()
    program = next(one for one in smaller.programs() if one.recipe == recipe)
    extra = {"calibration": str(calibration)} if recipe == "int8-static" else {}
    result = program.run(Checkpoint(str(source), [str(source)]), str(place / "m.onnx"), extra)
    assert sorted(os.listdir(place)) == ["m.onnx", "m.onnx.data"]
    assert result
    assert result.compared[0]["cosine"] > EXPECTED[recipe][2]
    found = inspect_path(str(place / "m.onnx"), plugins.get().formats)
    assert (found.state, len(found.files), found.precision) == ("ready", 2, EXPECTED[recipe][0])


def test_past_2_gib_protobuf_does_not_say_how_large_a_message_is() -> None:
    class Past2GiB:
        def ByteSize(self) -> int:
            raise EncodeError("Failed to serialize proto")

    assert smaller._is_large(Past2GiB())


@pytest.mark.parametrize("recipe", [name for name in EXPECTED if name != "fp16"])
def test_quantized_weights_are_read_by_their_own_scales(source: Path, calibration: Path, modelhub: Modelhub, recipe: str) -> None:
    """What onnxruntime computes with a quantized matrix is what the tensor that we read of it gives."""
    extra = ("--calibration", calibration) if recipe == "int8-static" else ()
    output = Path(modelhub("convert", source, "--to", f"onnx:{recipe}", *extra, "--json").json["output"])
    shown = modelhub("show", output, "--json").json
    assert shown["parameters"] >= 2 * (64 * 64 + 64)
    report = modelhub("convert", output, "--to", "safetensors", "--json").json
    made = load_file(report["output"])
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    for name in ("layers.0.weight", "layers.1.weight"):
        assert made[name].shape == (64, 64)
        error = np.abs(made[name] - before[name]).max()
        step = {"int4": 0.06, "int8": 0.005, "int8-static": 0.005, "int8-weights": 0.003}[recipe]
        assert 0 < error < step, f"{name} is {error} off"
    if recipe in ("int4", "int8-weights"):
        plain = onnx.load(source)
        for tensor in plain.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(made[tensor.name], tensor.name))
        x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
        np.testing.assert_allclose(outputs(save(plain, source.parent / "plain.onnx"), x), outputs(output, x), atol=1e-4)

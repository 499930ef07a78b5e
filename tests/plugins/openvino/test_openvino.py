"""OpenVINO's IR, written by OpenVINO: tensors and their values, what `show` says, and files that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub.testing import FormatConformance
from numpy.typing import NDArray

BUILD = """
import sys
import numpy as np
import openvino as ov
from openvino import opset13 as op

image = op.parameter([-1, 3, 8, 8], np.float32, name="image")
weight = op.constant(np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3), name="conv/weight")
convolved = op.convolution(image, weight, [1, 1], [1, 1], [1, 1], [1, 1], name="conv")
added = op.add(convolved, op.convert(op.constant(np.full((1, 4, 1, 1), 0.5, np.float16), name="bias"), "f32"), name="add")
packed = op.constant(ov.Tensor(np.array([0x21, 0xF3], np.uint8), [2, 2], ov.Type.i4), name="packed")
shape = op.constant(np.array([-1, 4], np.int64), name="shape")
out = op.result(op.reshape(added, shape, False), name="out")
numbers = op.result(op.convert(packed, "f32"), name="numbers")
model = ov.Model([out, numbers], [image], "tiny")
ov.save_model(model, sys.argv[1], compress_to_fp16=False)
"""


COMPRESSED = """
import sys
import numpy as np
import openvino as ov
from openvino import opset13 as op

random = np.random.default_rng(0)
x = op.parameter([-1, 32], np.float32, name="x")


def bits4(kind, shape):
    data = random.integers(0, 256, int(np.prod(shape)) // 2, dtype=np.uint8)
    return ov.Tensor(data, shape, kind)


def bytes8(kind, shape):
    data = random.integers(0, 256, shape, dtype=np.uint8)
    return data.view(kind) if not isinstance(kind, ov.Type) else ov.Tensor((data & 0x3f), shape, kind)


def scales(*shape):
    return op.constant((random.random(shape) + 0.1).astype(np.float16), name="scale")


def half(node):
    return op.convert(node, "f16")


def used(name, product, shape=(16, 32)):
    if tuple(product.output(0).shape) != shape:
        product = op.reshape(product, op.constant(np.array(shape)), False)
    made[name] = product
    results.append(op.result(op.matmul(x, op.convert(product, "f32"), False, True), name=name))


made, results = {}, []
weight = op.constant(bytes8(np.uint8, (16, 32)), name="int8")
zeros = op.constant(random.integers(0, 256, (16, 1), dtype=np.uint8), name="int8/zero_point")
used("int8", op.multiply(op.subtract(half(weight), half(zeros)), scales(16, 1)))
grouped = op.constant(bits4(ov.Type.u4, [16, 4, 8]), name="int4")
zeros = op.constant(bits4(ov.Type.u4, [16, 4, 1]), name="int4/zero_point")
used("int4", op.multiply(op.subtract(half(grouped), half(zeros)), scales(16, 4, 1)))
used("symmetric", op.multiply(scales(16, 1), half(op.constant(bits4(ov.Type.i4, [16, 32]), name="symmetric"))))
used("nf4", op.multiply(half(op.constant(bits4(ov.Type.nf4, [16, 2, 16]), name="nf4")), scales(16, 2, 1)))
used("fp8", op.multiply(half(op.constant(bytes8(ov.Type.f8e4m3, [16, 32]), name="fp8")), scales(1, 32)))
table = half(op.constant(np.linspace(-1, 1, 16).astype(np.float16), name="table"))
places = op.convert(op.constant(bits4(ov.Type.u4, [16, 2, 16]), name="codes_nncf_codebook_idxs"), "u8")
used("codes", op.multiply(op.gather(table, places, op.constant(np.int64(0))), scales(16, 2, 1)))
inner = op.convert(op.constant(bytes8(ov.Type.f8e4m3, [16, 2, 1]), name="nvfp4/scale"), "f32")
inner = op.convert(op.multiply(inner, op.constant(np.full((1, 1, 1), 0.37, np.float32), name="nvfp4/outer")), "f16")
used("nvfp4", op.multiply(half(op.constant(bits4(ov.Type.f4e2m1, [16, 2, 16]), name="nvfp4")), inner))
model = ov.Model(results, [x], "compressed")
ov.save_model(model, sys.argv[1] + "/compressed.xml", compress_to_fp16=False)
told = ov.Model([op.result(op.convert(value, "f32"), name=name) for name, value in made.items()], [], "told")
computed = ov.Core().compile_model(told, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})
np.savez(sys.argv[1] + "/told.npz", **{name: value for name, value in zip(made, computed.values())})
"""


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights as NNCF compresses them, and what OpenVINO computes of each."""
    directory = tmp_path_factory.mktemp("compressed")
    done = subprocess.run([sys.executable, "-c", COMPRESSED, directory], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as OpenVINO saves it."""
    directory = tmp_path_factory.mktemp("ir")
    command = [sys.executable, "-c", BUILD, str(directory / "tiny.xml")]
    subprocess.run(command, check=True, timeout=120)
    return directory / "tiny.xml"


def copy(source: Path, directory: Path, change: tuple[str, str] = ("", "")) -> Path:
    """The model again, with a change to its XML."""
    text = source.read_text()
    assert change[0] in text
    (directory / "tiny.xml").write_text(text.replace(*change) if change[0] else text)
    (directory / "tiny.bin").write_bytes(source.with_suffix(".bin").read_bytes())
    return directory / "tiny.xml"


def test_a_model_of_two_files_is_listed_and_shown(tiny: Path, tmp_path: Path, modelhub) -> None:
    path = copy(tiny, tmp_path)
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (1, 0)
    shown = modelhub("show", path, "--tensors", "--json").json
    assert (shown["format"], shown["state"], len(shown["files"])) == ("openvino", "ready", 2)
    tensors = {item["name"]: (item["dtype"], item["shape"]) for item in shown["tensors"]}
    assert tensors == {"conv/weight": ("F32", [4, 3, 3, 3]), "bias": ("F16", [1, 4, 1, 1]), "packed": ("I4", [2, 2])}
    said = shown["metadata"]
    assert (said["inputs"], said["ir_version"], said["constants"]) == ({"image": "f32[?, 3, 8, 8]"}, 11, 1)
    assert said["outputs"]["numbers"] == "f32[2, 2]"
    assert said["openvino_version"].startswith("20")
    assert modelhub("verify", path, "--level", "values", "--json").json[0]["ok"]
    # whichever of the two files is named, it is the same model
    assert Path(modelhub("show", path.with_suffix(".bin"), "--json").json["path"]).name == "tiny.xml"


def test_values_are_those_that_openvino_was_given(tiny: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", copy(tiny, tmp_path), "--to", "npz:f32", "--skip-unsupported", "-o", tmp_path / "tiny.npz")
    with np.load(tmp_path / "tiny.npz") as arrays:
        np.testing.assert_array_equal(arrays["conv/weight"], np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3))
        np.testing.assert_array_equal(arrays["bias"], np.full((1, 4, 1, 1), 0.5, np.float32))
        assert set(arrays) == {"conv/weight", "bias"}


def test_compressed_weights_are_what_openvino_computes(compressed: Path, tmp_path: Path, modelhub) -> None:
    model = compressed / "compressed.xml"
    shown = modelhub("show", model, "--tensors", "--json").json
    assert (shown["precision"], shown["parameters"]) == ("INT4", 7 * 16 * 32)
    said = shown["metadata"]["quantization"]
    assert (said["weights"], said["quantized_parameters"], said["symmetric"]) == ("INT4", 7 * 16 * 32, False)
    wholes = {item["name"]: item["shape"] for item in shown["tensors"] if item.get("view") == "logical"}
    stored = [item["name"] for item in shown["tensors"] if item.get("view") == "stored"]
    assert wholes.keys() == {"int8", "int4", "symmetric", "nf4", "fp8", "codes", "nvfp4"}
    assert {"int4", "int4/zero_point", "scale", "table"} < set(stored)
    done = modelhub("convert", model, "--to", "npz", "-o", tmp_path / "all.npz")
    assert "left behind" not in done.stdout + done.stderr
    with np.load(tmp_path / "all.npz") as arrays, np.load(compressed / "told.npz") as told:
        assert set(arrays) == set(told)
        for name in told:
            assert arrays[name].shape == (16, 32)
            # the graph computes in half precision, then widens
            np.testing.assert_allclose(arrays[name], told[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_weights_in_half_precision_keep_their_names(tmp_path: Path, modelhub) -> None:
    """`save_model` calls them NAME_compressed, and converts them to what they were."""
    program = BUILD.replace("compress_to_fp16=False", "compress_to_fp16=True")
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "half.xml")], check=True, timeout=120)
    assert b"conv/weight_compressed" in (tmp_path / "half.xml").read_bytes()
    shown = modelhub("show", tmp_path / "half.xml", "--tensors", "--json").json
    assert ("conv/weight", "F16") in {(item["name"], item["dtype"]) for item in shown["tensors"]}


def test_compressed_weights_with_damage_stay_as_they_are(compressed: Path, tmp_path: Path, modelhub) -> None:
    text = (compressed / "compressed.xml").read_text()
    (tmp_path / "compressed.bin").write_bytes((compressed / "compressed.bin").read_bytes())
    # a loop of conversions, and scales of another shape
    (tmp_path / "compressed.xml").write_text(text.replace('shape="16, 4, 1"', 'shape="16, 2, 2"', 1))
    shown = modelhub("show", tmp_path / "compressed.xml", "--json", status=None).json
    assert shown["state"] in ("ready", "invalid")
    edge = text.index("<edge ")
    looped = text[:edge] + "".join(
        f'<edge from-layer="{number}" from-port="0" to-layer="{number}" to-port="0" />' for number in range(60)
    )
    (tmp_path / "compressed.xml").write_text(looped + text[text.index("</edges>") :])
    assert modelhub("show", tmp_path / "compressed.xml", "--json").json["state"] == "ready"


def test_without_its_weights_it_is_incomplete(tiny: Path, tmp_path: Path, modelhub) -> None:
    path = copy(tiny, tmp_path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:100])
    short = modelhub("show", path, "--json", status=None).json
    assert short["state"] == "incomplete"
    weights.unlink()
    shown = modelhub("show", path, "--json", status=None).json
    assert (shown["state"], shown["reason"]) == ("incomplete", "missing: tiny.bin")


def test_a_directory_of_optimum_is_one_checkpoint(compressed: Path, tiny: Path, tmp_path: Path, modelhub) -> None:
    place = tmp_path / "drive" / "llama-ov"
    place.mkdir(parents=True)
    for name, source in {"model": compressed / "compressed.xml", "tokenizer": tiny}.items():
        (place / f"openvino_{name}.xml").write_bytes(source.read_bytes())
        (place / f"openvino_{name}.bin").write_bytes(source.with_suffix(".bin").read_bytes())
    (place / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 7}')
    (place / "tokenizer.json").write_text("{}")
    modelhub("scan", tmp_path / "drive")
    (listed,) = modelhub("ls", "--json").json
    assert (listed["name"], listed["format"], listed["architecture"], listed["precision"]) == (
        "llama-ov", "openvino", "llama", "INT4",
    )  # fmt: skip
    shown = modelhub("show", place, "--json").json
    assert (len(shown["files"]), shown["parameters"], shown["metadata"]["vocab_size"]) == (6, 7 * 16 * 32, 7)
    (place / "openvino_decoder_model.xml").write_bytes(tiny.read_bytes())
    modelhub("scan")
    (listed,) = modelhub("ls", "--json").json
    assert (listed["state"], "openvino_decoder_model.bin" in listed["reason"]) == ("incomplete", True)
    (place / "openvino_decoder_model.bin").write_bytes(tiny.with_suffix(".bin").read_bytes())
    tensors = {item["name"] for item in modelhub("show", place, "--tensors", "--json").json["tensors"]}
    assert {"decoder/bias", "model/int4", "decoder/conv/weight"} <= tensors


def test_it_is_run(compressed: Path, tiny: Path, tmp_path: Path, modelhub) -> None:
    (report,) = modelhub("verify", compressed / "compressed.xml", "--level", "runnable", "--json").json
    assert "OpenVINO runs it on x[1, 32]" in report["findings"][-1]["message"]
    old = 'name="conv" type="Convolution" version="opset1"'
    path = copy(tiny, tmp_path, (old, 'name="conv" type="MyConv" version="my_extension"'))
    (report,) = modelhub("verify", path, "--level", "runnable", "--json").json
    assert any("not run: its layers of 'my_extension'" in finding["message"] for finding in report["findings"])
    path = copy(tiny, tmp_path, (old, 'name="conv" type="Convolutionn" version="opset1"'))
    (report,) = modelhub("verify", path, "--level", "runnable", "--json", status=1).json
    assert any("OpenVINO does not load it" in finding["message"] for finding in report["findings"])


def test_custom_operators_are_reported(tiny: Path, tmp_path: Path, modelhub) -> None:
    old = 'name="conv" type="Convolution" version="opset1"'
    path = copy(tiny, tmp_path, (old, 'name="conv" type="MyConv" version="my_extension"'))
    assert modelhub("show", path, "--json").json["metadata"]["custom_operators"] == ["my_extension.MyConv"]
    (verified,) = modelhub("verify", path, "--json", status=None).json
    assert any("native code" in item["message"] for item in verified["findings"])


BAD = {
    "document type": ("<net ", '<!DOCTYPE net [<!ENTITY a "b">]>\n<net ', "document type"),
    "older": ('version="11"', 'version="7"', "IR version 7"),
    "negative": ('offset="2"', 'offset="-2"', "a number was expected"),
    "huge": ('offset="2"', 'offset="' + "9" * 30 + '"', "a number was expected"),
    "past the end": ('offset="2"', 'offset="99999"', "99999"),
    "another size": ('size="432"', 'size="436"', "432"),
    "cut": ("</layers>", "<layers>", "mismatched tag"),
    "deep": ("<edges>", "<a>" * 300 + "<edges>", "nest deeper"),
    "not numbers": ('shape="4, 3, 3, 3"', 'shape="4, 3, 3, three"', "a number was expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str, tiny: Path, tmp_path: Path, modelhub) -> None:
    old, new, reason = BAD[name]
    shown = modelhub("show", copy(tiny, tmp_path, (old, new)), "--json", status=None).json
    assert shown["state"] in ("invalid", "unsupported", "incomplete")
    assert reason in shown["reason"]


def test_other_xml_is_left_alone(tmp_path: Path, modelhub) -> None:
    (tmp_path / "page.xml").write_text("<?xml version='1.0'?>\n<html><layers/></html>")
    (tmp_path / "net.xml").write_text("<net version='1'><stations/></net>")
    (tmp_path / "page.bin").write_bytes(bytes(100))
    assert modelhub("scan", tmp_path, "--json").json["found"] == 0


class TestConformance(FormatConformance):
    """Constants that a model gives as they are: OpenVINO itself writes them."""

    format = "openvino"
    library_dtypes = ("F32", "F64", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")

    def write(self, path: Path, tensors: dict[str, NDArray[Any]]) -> None:
        import openvino as ov
        from openvino import opset13

        constants = [opset13.constant(np.array(array, order="C"), name=name) for name, array in tensors.items()]
        ov.save_model(ov.Model([opset13.result(one) for one in constants], [], "weights"), path, compress_to_fp16=False)

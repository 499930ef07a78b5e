"""Keras's files, made by Keras: names and values are the model's own, code in them is named and never run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from modelhub import Extent, dtypes, plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from modelhub.found import Found
from modelhub.table import Table
from modelhub.testing import FormatConformance

from tests.conftest import Modelhub
from tests.corpus.hdf5_bad import archive

KINDS = (".keras", ".h5", ".weights.h5")


class TestKeras(FormatConformance):
    """Weights that belong to the model itself and to no layer, which have the names that they are given."""

    format = "keras"
    library_dtypes = ("F32", "F64", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "C128")

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        if any(".." in name for name in tensors):
            raise ValueError("h5py takes this for a name like any other, and others do not")
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.asarray([], "S1")
            group = file.create_group("top_level_model_weights")
            group.attrs["weight_names"] = np.asarray([name.encode() for name in tensors])
            for name, array in tensors.items():
                group.create_dataset(name, data=array)


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def values(table: Table) -> dict[str, Any]:
    """The model's weights as float32 arrays."""
    found = {}
    for tensor in table.logical:
        data = np.frombuffer(read_tensor(tensor).tobytes(), dtypes.get(tensor.dtype).numpy)
        if tensor.dtype == "BF16":
            data = (data.astype("<u4") << 16).view("<f4")
        found[tensor.name] = data.astype("f4").reshape(tensor.shape)
    return found


def expected(path: Path) -> dict[str, Any]:
    """What Keras itself says, under the names that people see: from the layer on, with what it is wrapped in."""
    with np.load(path) as said:
        names = {name: re.sub(r"^(digits|halves)/", "", name) for name in said.files}
        names |= {name: f"towers/{name}" for name in said.files if name.startswith("tower/")}
        return {names[name]: said[name] for name in said.files}


@pytest.mark.parametrize("model", ["digits", "tagger", "halves"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_values_are_the_models_own(made: Path, model: str, kind: str) -> None:
    found = look(made / f"{model}{kind}")
    assert (found.state, found.format) == ("ready", "keras")
    got, want = values(found.load_table()), expected(made / f"{model}.npz")
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_whole_models_say_what_they_are(made: Path, modelhub: Modelhub) -> None:
    for kind in (".keras", ".h5"):
        shown = modelhub("show", made / f"digits{kind}", "--json").json
        said = shown["metadata"]
        assert shown["architecture"] == "Sequential"
        assert said["input_shape"] == "[?, 12, 12, 1]"
        assert said["layers"]["Dense"] == 2
        assert said["keras_version"].startswith("3.")
        assert said["optimizer_state"] is True
        assert not shown["findings"]
    assert modelhub("show", made / "digits.h5", "--json").json["metadata"]["backend"] == "tensorflow"
    assert modelhub("show", made / "tagger.keras", "--json").json["metadata"]["layers"]["LSTM"] >= 1


def test_the_same_weights_in_all_three_files(made: Path, modelhub: Modelhub) -> None:
    for kind in KINDS[1:]:
        assert modelhub("diff", made / "digits.keras", made / f"digits{kind}", "--json").json["equal"] is True


def test_conversion_is_equal_to_what_h5py_reads(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.numpy import load_file

    output = tmp_path / "digits.safetensors"
    modelhub("convert", made / "digits.h5", "--to", "safetensors", "-o", output)
    got = load_file(output)
    with h5py.File(made / "digits.h5") as file:
        root = file["model_weights"]
        listed = [(layer, name) for layer in root.attrs["layer_names"] for name in root[layer].attrs["weight_names"]]
        assert len(listed) == len(got)  # and none of the optimiser's
        for layer, name in listed:
            want = root[layer][name][()]
            assert got[str(name).removeprefix("digits/")].tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("name", "precision"), [("int8", "INT8"), ("int4-groups", "INT4"), ("int4-channels", "INT4"), ("float8", "F32")]
)
def test_weights_quantized_by_keras_are_the_floats_that_it_computes_with(made: Path, name: str, precision: str) -> None:
    found = look(made / f"quantized-{name}.keras")
    assert found.precision == precision
    table = found.load_table()
    assert {tensor.dtype for tensor in table.logical} == {"F32"}
    assert found.parameters == 4683 - 10  # one layer has no bias
    layers = ("attention/query", "attention/key", "attention/value", "attention/attention_output", "einsum", "odd", "last")
    assert {f"{layer}/kernel" for layer in layers} | {"words/embeddings"} <= set(table.by_name)
    with np.load(made / f"quantized-{name}.npz") as said:
        assert len(said.files) == (0 if name == "float8" else 8)
        for key in said.files:
            tensor = table.by_name[key]
            np.testing.assert_array_equal(np.frombuffer(read_tensor(tensor), "f4"), said[key].reshape(-1), err_msg=key)


# --- other ages and other writers ---------------------------------------------------------------------------------


def old_weights(path: Path, layers: Mapping[str, Mapping[str, Any]], *, split: int = 0, version: str = "2.1.5") -> None:
    """As Keras 1 and 2, tf-keras and transformers wrote weights: names as attributes, split where they are too long for one."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = version.encode(), b"tensorflow"
        attribute(file, "layer_names", list(layers), split)
        for layer, weights in layers.items():
            group = file.create_group(layer)
            attribute(group, "weight_names", list(weights), split)
            for name, array in weights.items():
                group[name] = array


def attribute(group: Any, name: str, texts: list[str], split: int) -> None:
    data = np.asarray([text.encode() for text in texts])
    if split and len(data) > split:
        for number, part in enumerate(np.array_split(data, -(-len(data) // split))):
            group.attrs[f"{name}{number}"] = part
    else:
        group.attrs[name] = data


@pytest.mark.parametrize("split", [0, 3])
def test_weights_of_older_kerases_in_their_order(tmp_path: Path, split: int) -> None:
    layers = {
        f"layer_{number}": {f"layer_{number}/{name}:0": np.full((2, number + 1), number, "f4") for name in ("kernel", "bias")}
        for number in (10, 9, 2, 1)
    }
    old_weights(tmp_path / "w.h5", {**layers, "flatten": {}}, split=split)
    found = look(tmp_path / "w.h5")
    assert [tensor.name for tensor in found.load_table().logical] == [
        f"layer_{number}/{name}" for number in (10, 9, 2, 1) for name in ("kernel", "bias")
    ]
    assert found.metadata["keras_version"] == "2.1.5"


def test_names_of_transformers_and_of_models_inside(tmp_path: Path) -> None:
    one = np.ones(3, "f4")
    old_weights(
        tmp_path / "tf_model.h5",
        {
            "bert": {"tf_bert_model/bert/embeddings/word_embeddings/weight:0": one},
            "tower": {"a/kernel:0": one * 2},
            "top_level_model_weights": {"scale:0": one * 3},
            "x": {"m/x/w:0": one * 4, "n/x/w:0": one * 5},
        },
    )
    table = look(tmp_path / "tf_model.h5").load_table().by_name
    assert set(table) == {"bert/embeddings/word_embeddings/weight", "tower/a/kernel", "scale", "x/m/x/w:0", "x/n/x/w:0"}


def test_a_listed_weight_that_is_not_there_is_an_error(tmp_path: Path, modelhub: Modelhub) -> None:
    old_weights(tmp_path / "w.h5", {"d": {"d/kernel:0": np.ones(3, "f4")}})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        file["d"].attrs["weight_names"] = np.asarray([b"d/kernel:0", b"d/bias:0"])
    result = modelhub("verify", tmp_path / "w.h5", status=1)
    assert "'d/d/bias:0'" in result.stdout


def test_plain_hdf5_is_not_taken_for_keras(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["experiment/run_1/weights"] = np.ones(3, "f4")
    found = look(tmp_path / "a.h5")
    assert found.format == "hdf5"
    assert set(found.load_table().by_name) == {"experiment/run_1/weights"}


def test_a_name_without_a_suffix_is_enough_for_keras(made: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes((made / "digits.h5").read_bytes())
    assert look(tmp_path / "checkpoint").format == "keras"


def test_weights_in_several_files_are_one_checkpoint(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    parts = sorted(made.glob("wide*"))
    assert len(parts) > 3
    for part in parts:
        (tmp_path / part.name).write_bytes(part.read_bytes())
    modelhub("scan", tmp_path)
    (found,) = modelhub("ls", "--json").json
    assert (found["name"], found["state"], len(found["files"]), found["parameters"]) == ("wide", "ready", len(parts), 5 * 65 * 64)
    whole = values(look(made / "whole.weights.h5").load_table())
    assert set(whole) == {f"{layer}/{name}" for layer in "abcde" for name in ("kernel", "bias")}
    for part in (parts[0], parts[-1]):
        got = values(look(part).load_table())
        # Keras writes no name beside a layer that begins a file: it goes by its class and number there.
        order = {f"dense{f'_{number}' if number else ''}": layer for number, layer in enumerate("abcde")}
        renamed = {
            "/".join((order.get(layer, layer), name)): got[f"{layer}/{name}"] for layer, name in (key.split("/") for key in got)
        }
        assert set(renamed) == set(whole)
        assert all(np.array_equal(renamed[name], array) for name, array in whole.items())
    assert modelhub("verify", parts[0]).lines[0].startswith("ok")
    (tmp_path / parts[1].name).unlink()
    assert look(tmp_path / parts[0].name).state == "incomplete"


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "a/b.weights.h5", 7, None])
def test_an_index_names_files_beside_it_alone(made: Path, tmp_path: Path, target: Any) -> None:
    shard = next(made.glob("wide_*"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "wide.weights.json").write_text(json.dumps({"weight_map": {"/layers/dense/vars": [shard.name, target]}}))
    found = look(tmp_path / "wide.weights.json")
    assert found.state == "invalid"
    assert "beside it" in found.reason


def test_a_document_of_somebody_else_s_is_no_index(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    shard = next(made.glob("wide_*"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "wide.weights.json").write_text('{"epochs": 3}')
    (tmp_path / "other.weights.json").write_text("not JSON")
    modelhub("scan", tmp_path)
    states = {item["path"]: item["state"] for item in modelhub("ls", "--json").json}
    assert states.pop(shard.name) == "ready"
    assert "wide.weights.json" not in states


@pytest.mark.parametrize("model", ["digits", "tagger"])
def test_archives_that_note_no_names_have_them_by_the_configuration(made: Path, tmp_path: Path, model: str) -> None:
    """As tf-keras and the first of Keras 3 wrote them."""
    path, inner = tmp_path / "m.keras", tmp_path / "model.weights.h5"
    with zipfile.ZipFile(made / f"{model}.keras") as source:
        inner.write_bytes(source.read("model.weights.h5"))
        config = source.read("config.json")
    with h5py.File(inner, "a") as file:
        bare = []
        file.visititems(lambda name, one: bare.append(name) if "name" in one.attrs else None)
        for name in bare:
            del file[name].attrs["name"]
    archive(path, {"metadata.json": b"{}", "config.json": config, "model.weights.h5": inner.read_bytes()})
    told_apart = ("attn/", "stack/")  # parts whose names the configuration does not have
    names = {name for name in look(made / f"{model}.keras").load_table().by_name if not name.startswith(told_apart)}
    got = {name for name in look(path).load_table().by_name if not name.startswith(told_apart)}
    assert got == {re.sub("/(lstm|gru)_cell/", "/cell/", name) for name in names}


def test_an_archive_that_somebody_compressed(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    path = tmp_path / "packed.keras"
    with zipfile.ZipFile(made / "tagger.keras") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert modelhub("diff", made / "tagger.keras", path, "--json").json["equal"] is True


def test_neither_keras_nor_h5py_is_imported(made: Path) -> None:
    program = f"""
import sys
for name in ("h5py", "keras", "tensorflow"):
    sys.modules[name] = None
from modelhub import plugins
from modelhub.detect import inspect_path
for name in {[str(made / f"digits{kind}") for kind in KINDS]!r}:
    print(inspect_path(name, plugins.get().formats).state)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["ready"] * len(KINDS)


# --- code in a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".keras", ".h5"])
def test_a_lambda_inside_of_wrappers_is_unsafe(made: Path, modelhub: Modelhub, kind: str) -> None:
    found = modelhub("show", made / f"code{kind}", "--json").json["findings"]
    (unsafe,) = [item for item in found if item["severity"] == "unsafe"]
    assert "'tagger/each/twice'" in unsafe["message"]
    assert "Lambda" in unsafe["message"]
    assert modelhub("verify", made / f"code{kind}", status=1).lines[0].startswith("failed")


def with_config(made: Path, path: Path, config: Any) -> Path:
    """A ``.keras`` of real weights with another configuration."""
    with zipfile.ZipFile(made / "digits.keras") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            text = config if isinstance(config, (str, bytes)) else json.dumps(config)
            target.writestr(name, text if name == "config.json" else source.read(name))
    return path


def layer(kind: str, name: str = "bad", module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def model(*layers: Any, name: str = "m") -> dict[str, Any]:
    return layer("Functional", name, "keras", layers=list(layers))


MARSHALLED = "4wEAAAAAAAAAAAAAAAEAAAADAAAA8wQAAACXAHwAUwApAU6pACkB2gF4cwEAAAAg"
UNSAFE = {
    "nested": (model(model(layer("TimeDistributed", "t", layer=layer("Lambda")), name="in")), "'m/in/t/bad'"),
    "legacy": (model(layer("Lambda", function=[MARSHALLED, None, None], function_type="lambda", module="x")), "'m/bad'"),
    "function of its own": (
        model(layer("Dense", activation={"class_name": "__lambda__", "config": {"code": MARSHALLED}})), "marshalled"),
    "registered": (model(layer("lab>Lambda", module=None)), "Lambda"),
    "any module": (model({"module": "os", "class_name": "function", "config": "system", "registered_name": "f"}), "os.function"),
    "builtins": (model({"module": "builtins", "class_name": "eval", "config": {}, "registered_name": "x"}), "builtins.eval"),
    "subprocess": (model(layer("Popen", module="subprocess", args="touch /tmp/x")), "subprocess.Popen"),
    "torch": (model(layer("TorchModuleWrapper", module_pickled="gASV")), "pickle"),
    "vocabulary": (model(layer("StringLookup", vocabulary="/etc/passwd")), "'/etc/passwd'"),
    "tensorflow": (model(layer("TFOpLambda", function="io.write_file", module="tensorflow")), "io.write_file"),
    "saved model": (model(layer("TFSMLayer", filepath="../other")), "'../other'"),
    "deep": (json.loads('{"class_name":"A","config":' * 300 + json.dumps(layer("Lambda")) + "}" * 300), "Lambda"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSAFE)
def test_code_is_found_wherever_it_hides(made: Path, tmp_path: Path, what: str) -> None:
    config, word = UNSAFE[what]
    found = look(with_config(made, tmp_path / "m.keras", config))
    assert found.state == "ready", found.reason
    unsafe = [item.message for item in found.findings if item.severity == "unsafe"]
    assert len(unsafe) == 1, unsafe
    assert word in unsafe[0]


def test_a_thousand_lambdas_are_told_in_bounds(made: Path, tmp_path: Path) -> None:
    found = look(with_config(made, tmp_path / "m.keras", model(*(layer("Lambda", f"l{n}") for n in range(5000)))))
    assert 100 <= len(found.findings) <= 1000


def test_what_is_keras_s_own_is_not_suspected(made: Path) -> None:
    for name in ("digits", "tagger", "halves"):
        for kind in (".keras", ".h5"):
            found = look(made / f"{name}{kind}")
            assert not found.findings
            assert "custom_objects" not in found.metadata
    assert not look(made / "int8.keras").findings


def test_custom_objects_are_a_warning(made: Path, modelhub: Modelhub) -> None:
    result = modelhub("verify", made / "custom.keras")
    assert "lab>Mine" in result.stdout
    assert "warning" in result.stdout


def test_a_flipped_bit_in_an_archive_is_found_by_its_checksum(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    data = bytearray((made / "digits.keras").read_bytes())
    place = look(made / "digits.keras").load_table().by_name["hidden/kernel"].value
    assert isinstance(place, Extent)
    data[place.offset + 100] ^= 1
    (tmp_path / "m.keras").write_bytes(data)
    assert modelhub("verify", made / "digits.keras", "--level", "values").lines[0].startswith("ok")
    result = modelhub("verify", tmp_path / "m.keras", "--level", "values", status=1)
    assert "model.weights.h5 is corrupt" in result.stdout


def test_models_of_older_kerases_say_what_is_somebody_s_own(tmp_path: Path, modelhub: Modelhub) -> None:
    """As tf-keras writes them: no modules, and wrappers where training was aware of quantization."""
    inner = {"class_name": "Dense", "config": {"name": "d", "kernel_initializer": {"class_name": "GlorotUniform", "config": {}}}}
    wrapped = {"class_name": "QuantizeWrapperV2", "config": {"name": "quant_d", "layer": inner}}
    config = {"class_name": "Functional", "config": {"name": "m", "layers": [
        {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 4], "name": "in"}},
        wrapped,
        {"class_name": "AttentionWeightedAverage", "config": {"name": "attention"}},
    ]}}  # fmt: skip
    old_weights(tmp_path / "m.h5", {"quant_d": {"quant_d/kernel:0": np.ones((4, 2), "f4")}}, version="2.15.0")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    said = modelhub("show", tmp_path / "m.h5", "--json").json["metadata"]
    assert said["quantization"] == "quantization-aware training"
    assert said["custom_objects"] == ["AttentionWeightedAverage"]
    assert said["input_shape"] == "[?, 4]"
    assert said["layers"]["Dense"] == 1
    assert "AttentionWeightedAverage (m/attention)" in modelhub("verify", tmp_path / "m.h5").stdout


def test_nothing_in_it_is_ever_run(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    """A function that would leave a file behind, in each of the places where Keras would call it."""
    import base64
    import marshal

    trace = tmp_path / "trace"
    code = base64.b64encode(marshal.dumps(compile(f"open({str(trace)!r}, 'w')", "x", "exec"))).decode()
    config = model(layer("Lambda", function={"class_name": "__lambda__", "config": {"code": code}}))
    path = with_config(made, tmp_path / "m.keras", config)
    modelhub("scan", tmp_path)
    modelhub("verify", path, "--level", "all", status=1)
    modelhub("convert", path, "--to", "safetensors", "-o", tmp_path / "o.safetensors")
    assert os.path.exists(tmp_path / "o.safetensors")
    assert not trace.exists()

"""Files that PaddlePaddle 3.3 wrote (``files``: a net of two linear layers with a batch norm between, saved in every way; ``old``
is one that was not trained), and files that nobody honest wrote."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.files import list_directory
from modelhub.testing import FormatConformance

FILES = Path(__file__).with_name("files")
PARAMETERS = {
    "batch_norm1d_0.b_0": "2.bias", "batch_norm1d_0.w_0": "2.weight", "batch_norm1d_0.w_1": "2._mean",
    "batch_norm1d_0.w_2": "2._variance", "linear_0.b_0": "0.bias", "linear_0.w_0": "0.weight", "linear_1.b_0": "3.bias",
    "linear_1.w_0": "3.weight",
}  # fmt: skip
"""What Paddle calls a parameter in a program, and in a state dict."""


class TestPaddle(FormatConformance):
    format = "paddle"
    library_dtypes = ("F32", "F64", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "C128")

    def place(self, directory: Path, name: str = "sample") -> Path:
        return super().place(directory, name).with_suffix(".pdparams")

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        path.write_bytes(pickle.dumps(tensors, protocol=4))  # which is what paddle.save does with a state dict


def converted(modelhub: Any, source: Path, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    modelhub("convert", source, "--to", "npz", "-o", out)
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


def test_a_state_dict_in_every_protocol_is_the_same(tmp_path: Path, modelhub) -> None:
    new = converted(modelhub, FILES / "net.pdparams", tmp_path / "new.npz")
    old = converted(modelhub, FILES / "p2.pdparams", tmp_path / "old.npz")
    assert list(new) == ["0.weight", "0.bias", "2.weight", "2.bias", "2._mean", "2._variance", "3.weight", "3.bias"]
    with open(FILES / "net.pdparams", "rb") as file:
        truth = pickle.load(file)  # our own file: arrays alone
    for name, array in new.items():
        assert array.tobytes() == truth[name].tobytes() == old[name].tobytes(), name


@pytest.mark.parametrize("program", ["infer.json", "old.pdmodel"])
def test_an_inference_model_has_its_programs_names(program: str, tmp_path: Path, modelhub) -> None:
    for name in os.listdir(FILES):
        if name.split(".")[0] == program.split(".")[0]:
            shutil.copy(FILES / name, tmp_path / name)
    assert modelhub("scan", tmp_path, "--json").json["found"] == 1
    shown = modelhub("show", tmp_path / program, "--json").json
    assert shown["state"] == "ready"
    assert shown["metadata"]["inputs"] == ["input"]
    assert sum(shown["metadata"]["operators"].values()) == 6
    found = converted(modelhub, tmp_path / program, tmp_path / "out.npz")
    state = converted(modelhub, FILES / "net.pdparams", tmp_path / "state.npz")
    assert sorted(found) == sorted(PARAMETERS)
    for name, array in found.items():
        assert array.shape == state[PARAMETERS[name]].shape
        assert program == "old.pdmodel" or array.tobytes() == state[PARAMETERS[name]].tobytes(), name
    assert program == "infer.json" or (found["batch_norm1d_0.w_0"] == 1).all()
    (tmp_path / f"{program.split('.')[0]}.pdiparams").unlink()
    shown = modelhub("show", tmp_path / program, "--json", status=None).json
    assert shown["state"] in ("incomplete", "invalid")
    assert ".pdiparams" in shown["reason"]


def test_parameters_without_a_program_have_numbers(tmp_path: Path, modelhub) -> None:
    shutil.copy(FILES / "infer.pdiparams", tmp_path / "alone.pdiparams")
    shown = modelhub("show", tmp_path / "alone.pdiparams", "--tensors", "--json").json
    assert [item["name"] for item in shown["tensors"]][:2] == ["tensor_0", "tensor_1"]
    assert "no program is beside it" in shown["findings"][0]["message"]


def test_tensors_that_stand_outside_of_a_state_dict(tmp_path: Path, modelhub) -> None:
    shown = modelhub("show", FILES / "misc.pdparams", "--tensors", "--json").json
    tensors = {item["name"]: (item["dtype"], item["shape"]) for item in shown["tensors"]}
    assert tensors["w"] == ("BF16", [2, 3])
    assert tensors["s"] == ("F32", [])
    assert tensors["nested.a.0"] == ("F32", [2])
    assert shown["metadata"]["values"] == {"epoch": 3}


def test_large_arrays_as_text(tmp_path: Path, modelhub) -> None:
    array = np.frombuffer(np.random.default_rng(0).bytes(3 << 20), "<f4").reshape(-1, 256)
    (tmp_path / "big.pdparams").write_bytes(pickle.dumps({"w": array, "f": np.asfortranarray(array[:9])}, protocol=2))
    found = converted(modelhub, tmp_path / "big.pdparams", tmp_path / "out.npz")
    assert found["w"].tobytes() == array.tobytes()
    assert found["f"].tobytes() == array[:9].tobytes()


def test_an_array_that_was_cut_is_whole(tmp_path: Path, modelhub) -> None:
    array = np.arange(1200, dtype="f4")
    cut = {"w": {"OriginShape": (30, 40), "slices": ["w@@.0", "w@@.1"]}}  # as Paddle does it from a gigabyte on
    state = {"b": array[:3], "w@@.0": array[:700], "w@@.1": array[700:], "UnpackBigParamInfor@@": cut}
    (tmp_path / "cut.pdparams").write_bytes(pickle.dumps(state, protocol=2))
    found = converted(modelhub, tmp_path / "cut.pdparams", tmp_path / "out.npz")
    assert sorted(found) == ["b", "w"]
    assert (found["w"] == array.reshape(30, 40)).all()
    del state["w@@.1"]
    (tmp_path / "lost.pdparams").write_bytes(pickle.dumps(state, protocol=2))
    assert "slices" in modelhub("show", tmp_path / "lost.pdparams", "--json", status=None).json["reason"]


class Nasty:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/pwned-by-paddle",)


def test_nothing_is_run(tmp_path: Path, modelhub) -> None:
    mark = Path("/tmp/pwned-by-paddle")
    mark.unlink(missing_ok=True)
    (tmp_path / "bad.pdparams").write_bytes(pickle.dumps({"w": np.ones(3, "f4"), "x": Nasty()}, protocol=4))
    verified = modelhub("verify", tmp_path / "bad.pdparams", "--json", status=1).json[0]
    assert any(item["severity"] == "unsafe" and "system" in item["message"] for item in verified["findings"])
    assert not mark.exists()


BROKEN = (
    b"\x80\x04", b"\x80\x04.", b"\x80\x04}(.", b"\x80\x04\x8e" + b"\xff" * 8, b"\x80\x02r\xff\xff\xff\x7f.",
    b"\x80\x04h\x05.", b"\x80\x04" + b"(" * 100_000, b"\x80\x04" + b"]" * 100_000 + b".",
    b"\x80\x04N" + b"\x85" * 500_000 + b".", b"\x80\x04\x8b\xff\xff\xff\x7f", b"\x80\x02cos\nsystem\n(S'x'\ntR",
    b"\x80\x04\x95" + b"\xff" * 8 + b".", b"\x80\x04\xff.",
)  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_pickles_that_are_broken(data: bytes, tmp_path: Path, modelhub) -> None:
    (tmp_path / "x.pdparams").write_bytes(data)
    shown = modelhub("show", tmp_path / "x.pdparams", "--tensors", "--json", status=None).json
    assert shown["format"] == "paddle"
    assert not (shown["reason"] or "").startswith("the plugin of")
    assert not shown.get("tensors")


WITHOUT_END = {
    "doubled": (b"\x80\x02N" + b"2\x86" * 70 + b".", "again and again"),
    "in itself": (b"\x80\x02]q\0h\0ah\0a.", "again and again"),
    "shape": (
        pickle.dumps({"w": np.ones((50, 2), "f4")}, 2).replace(b"K2K\x02\x86", b"N" + b"2\x86" * 70),
        "a shape that is none",
    ),
    "text": (pickle.dumps({"w": np.ones(1, "f4")}, 4).replace(b"C\x04\0\0\x80?", b"\x8c\x03\xed\xa0\x80"), "takes 4 bytes, 3 is"),
}


@pytest.mark.parametrize("name", WITHOUT_END)
def test_values_without_an_end(name: str, tmp_path: Path) -> None:
    data, words = WITHOUT_END[name]
    (tmp_path / "x.pdparams").write_bytes(data)
    found = inspect_path(str(tmp_path / "x.pdparams"), plugins.get().formats)
    assert (found.state, [finding for finding in found.findings if finding.check == "plugin"]) == ("invalid", [])
    assert words in found.reason


@pytest.mark.parametrize("part", ["regions", "blocks", "ops", "A", "N", "#"])
@pytest.mark.parametrize("wrong", [None, 7, 1.5, True, "x", {}, [[]], [7]], ids=repr)
def test_programs_of_other_things(part: str, wrong: Any, tmp_path: Path) -> None:
    def changed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: wrong if key == part else changed(value) for key, value in node.items()}
        return [changed(value) for value in node] if isinstance(node, list) else node

    shutil.copy(FILES / "infer.pdiparams", tmp_path)
    (tmp_path / "infer.json").write_text(json.dumps(changed(json.loads((FILES / "infer.json").read_text()))))
    for found in inspect_listing(list_directory(str(tmp_path)), plugins.get().formats).found:
        assert not [finding for finding in found.findings if finding.check == "plugin"]


def test_arrays_that_lie(tmp_path: Path, modelhub) -> None:
    good = pickle.dumps({"w": np.ones((50, 2), "f4")}, protocol=4)
    for number, (old, new) in enumerate(
        [(b"K2K\x02\x86", b"K3K\x02\x86"), (b"K2K\x02\x86", b"J\xff\xff\xff\xffK\x02\x86"), (b"f4", b"O8")]
    ):
        assert old in good
        (tmp_path / f"{number}.pdparams").write_bytes(good.replace(old, new, 1))
        shown = modelhub("show", tmp_path / f"{number}.pdparams", "--tensors", "--json", status=None).json
        assert shown["state"] == "invalid" or shown["tensors"][0]["dtype"] == "O8"


def test_parameters_that_lie(tmp_path: Path, modelhub) -> None:
    data = (FILES / "infer.pdiparams").read_bytes()
    huge = data[:16] + b"\x0c\0\0\0\x08\x05\x10" + b"\xff" * 8 + b"\x7f" + data[24:]
    levels = b"\0\0\0\0" + b"\xff" * 8 + data[12:]
    for number, broken in enumerate([data[:-1], data[:21], huge, levels, data[: 32 + 24] * 2 + b"\x01"]):
        path = tmp_path / f"x{number}.pdiparams"
        path.write_bytes(broken)
        shown = modelhub("show", path, "--json", status=None)
        assert shown.returncode or shown.json["state"] != "ready", number


@pytest.mark.parametrize("kind", ["variables", "model", "combined"])
def test_a_directory_with_a_file_for_each_variable_is_one_model(kind: str, tmp_path: Path, modelhub) -> None:
    """As ``save_vars`` writes them, and ``save_inference_model`` did (``files/variables``; their values: ``.npz``)."""
    with np.load(FILES / "variables.npz") as arrays:
        truth = {name: arrays[name] for name in arrays.files}
    place = tmp_path / "drive" / "lexer"
    place.mkdir(parents=True)
    wanted = {"variables": [], "model": ["__model__"], "combined": ["__model__", "__params__"]}[kind]
    for name in (*wanted, *(truth if kind != "combined" else ())):
        shutil.copy(FILES / "variables" / name, place / name)
    assert modelhub("scan", tmp_path / "drive", "--json").json["found"] == 1
    shown = modelhub("show", place, "--json").json
    assert (shown["name"], shown["format"], shown["state"]) == ("lexer", "paddle", "ready")
    assert shown["parameters"] == 8 * 5 + 5 + 5 * 3 + 3
    assert bool(shown["metadata"].get("operators")) == (kind != "variables")
    found = converted(modelhub, place, tmp_path / "out.npz")
    assert {name: array.tobytes() for name, array in found.items()} == {name: array.tobytes() for name, array in truth.items()}
    if kind == "model":
        (place / "fc_1.w_0").unlink()
        shown = modelhub("show", place, "--json").json
        assert (shown["state"], "fc_1.w_0" in shown["reason"]) == ("incomplete", True)
    else:
        last = place / ("fc_1.w_0" if kind == "variables" else "__params__")
        last.write_bytes(last.read_bytes()[:-3])
        assert modelhub("show", place, "--json").json["state"] in ("incomplete", "invalid")

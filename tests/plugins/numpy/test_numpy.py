"""NumPy's files, written by NumPy: archives and single arrays, and those that are none."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub.testing import FormatConformance
from safetensors.numpy import save_file


class TestNpz(FormatConformance):
    format = "npz"

    def write(self, path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        np.savez(path, **tensors)

    def read(self, path: Path) -> dict[str, np.ndarray[Any, Any]]:
        return dict(np.load(path))


ARRAYS = {
    "layer/kernel": np.arange(24, dtype=np.float32).reshape(4, 6),
    "fortran": np.asfortranarray(np.arange(60, dtype=np.float16).reshape(3, 4, 5)),
    "big": np.arange(6, dtype=">f8").reshape(2, 3),
    "big-fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "scalar": np.float64(0.5),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j], np.complex64),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_come_back_from_safetensors(save: Any, tmp_path: Path, modelhub) -> None:
    save(tmp_path / "weights.npz", **ARRAYS)
    modelhub("convert", tmp_path / "weights.npz", "--to", "safetensors", "-o", tmp_path / "a.safetensors")
    modelhub("convert", tmp_path / "a.safetensors", "--to", "npz", "-o", tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        assert set(again) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(again[name], array)
            assert again[name].dtype.kind == np.asarray(array).dtype.kind
    assert modelhub("verify", tmp_path / "weights.npz", "--level", "values", "--json").json[0]["ok"]


def test_objects_and_records_are_listed_and_never_loaded(tmp_path: Path, modelhub) -> None:
    kind = np.dtype([("a", "<f4"), ("b", "<i8", (3,))])
    np.savez(tmp_path / "mixed.npz", w=np.ones((2, 2), "f4"), o=np.array([{}], object), r=np.zeros(2, kind))
    shown = modelhub("show", tmp_path / "mixed.npz", "--tensors", "--json").json
    assert (shown["state"], [item["name"] for item in shown["tensors"]]) == ("ready", ["w", "o", "r"])
    assert [(item["severity"], item["message"][:3]) for item in shown["findings"]] == [("warning", "o: ")]
    refused = modelhub("convert", tmp_path / "mixed.npz", "--to", "safetensors", "-o", tmp_path / "x.safetensors", status=3)
    assert "pickled: never loaded" in refused.stderr


def test_a_file_of_pickles_alone_is_not_ready(tmp_path: Path, modelhub) -> None:
    np.savez(tmp_path / "all.npz", o=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.array([[None]], object), allow_pickle=True)
    for name in ("all.npz", "one.npy"):
        shown = modelhub("show", tmp_path / name, "--json").json
        assert shown["state"] == "unsupported"
        assert "allow_pickle" in shown["reason"]


def test_archives_of_data_are_no_models_and_shown_when_asked_for(tmp_path: Path, modelhub) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((5, 4), np.float32)
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "labels.npz", y=np.arange(9))
    np.savez(tmp_path / "mnist.npz", x_train=image, y_train=np.arange(5), x_test=image, y_test=np.arange(5))
    for number in range(40):
        np.savez(tmp_path / f"samples/{number}.npz", image=image, depth=image)
    np.savez(tmp_path / "vit.npz", **{"embedding/kernel": image, "head/bias": image[0]})
    np.savez(tmp_path / "linear.npz", coef_=image[0], intercept_=np.float64(1))
    np.savez(tmp_path / "unnamed.npz", image, image)
    modelhub("scan", tmp_path)
    assert sorted(row["name"] for row in modelhub("ls", "--json").json) == ["linear", "unnamed", "vit"]
    assert modelhub("show", tmp_path / "labels.npz", "--json").json["parameters"] == 9
    np.save(tmp_path / "ids.npy", np.arange(7))
    assert modelhub("show", tmp_path / "ids.npy", "--json").json["parameters"] == 7


def test_bfloat16_as_ml_dtypes_stores_it(tmp_path: Path, modelhub) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "b.npz", w=values.astype(ml_dtypes.bfloat16))
    modelhub("convert", tmp_path / "b.npz", "--to", "npz:f32", "-o", tmp_path / "f.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "f.npz")["w"], values)


def test_which_single_arrays_are_models(tmp_path: Path, modelhub) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    np.save(tmp_path / "one/matrix.npy", np.ones((3, 4), "f4"))
    np.save(tmp_path / "one/labels.npy", np.arange(9))
    for number in range(40):
        np.save(tmp_path / f"many/{number}.npy", np.ones((3, 4), "f4"))
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (1, 41)
    (listed,) = modelhub("ls", "--json").json
    assert (listed["name"], listed["format"], listed["parameters"]) == ("matrix", "npy", 12)
    shown = modelhub("show", tmp_path / "one/matrix.npy", "--tensors", "--json").json
    assert [(item["name"], item["shape"], item["offset"]) for item in shown["tensors"]] == [("matrix", [3, 4], 128)]


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + data


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n"
BAD = {
    "no array": (b"PK\x03\x04", "starts with"),
    "short": (npy(GOOD, b"\0" * 15), "takes 16 bytes, there are 15"),
    "cut header": (npy(GOOD)[:40], "ends within"),
    "code": (
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }\n"),
        "not what NumPy writes",
    ),
    "deep": (npy(b"{" * 9000), "not what NumPy writes"),
    "huge": (npy(GOOD.replace(b"(2, 2)", b"(99999999999, 99999999999)")), "takes"),
    "version": (npy(GOOD, b"\0" * 16, b"\x09\x00"), "version 9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name: str, tmp_path: Path, modelhub) -> None:
    data, reason = BAD[name]
    (tmp_path / "bad.npy").write_bytes(data)
    shown = modelhub("show", tmp_path / "bad.npy", "--json", status=None).json
    assert shown["state"] in ("invalid", "incomplete", "unsupported")
    assert reason in shown["reason"]


def test_a_member_that_lies_about_its_size(tmp_path: Path, modelhub) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy(GOOD, b"\0" * 12))
        archive.writestr("readme.txt", "hello")
    (tmp_path / "bad.npz").write_bytes(memory.getvalue())
    shown = modelhub("show", tmp_path / "bad.npz", "--json", status=None).json
    assert shown["state"] == "invalid"
    assert "takes 16 bytes, there are 12" in shown["reason"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 70_000])
def test_names_that_no_archive_has_are_refused(name: str, tmp_path: Path, modelhub) -> None:
    save_file({name: np.ones(3, "f4")}, tmp_path / "m.safetensors")
    refused = modelhub("convert", tmp_path / "m.safetensors", "--to", "npz", status=3)
    assert "no member of a zip can be called" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]

"""Pickles that scikit-learn 1.9, joblib 1.6, gensim 4.4 and XGBoost 3.2 wrote (``files``): told and shown, never loaded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).with_name("files")
OBJECTS = {
    "rf.pkl": "sklearn.ensemble._forest.RandomForestClassifier",
    "ridge2.pkl": "sklearn.linear_model._ridge.Ridge",  # protocol 2
    "rf.joblib": "sklearn.ensemble._forest.RandomForestClassifier",
    "rf.z.joblib": "sklearn.ensemble._forest.RandomForestClassifier",
    "d.joblib": "dict",
    "wv.kv": "gensim.models.keyedvectors.KeyedVectors",
    "xgb.pkl": "xgboost.core.Booster",
}


@pytest.mark.parametrize("name", list(OBJECTS))
def test_what_it_is_and_what_it_would_import(name: str, modelhub) -> None:
    shown = modelhub("show", FILES / name, "--json").json
    assert (shown["format"], shown["state"]) == ("pickle", "ready")
    assert shown["metadata"]["object"] == OBJECTS[name]
    assert "numpy.ndarray" in shown["metadata"]["imports"] or name == "xgb.pkl"
    assert {item["severity"] for item in shown["findings"]} == {"info"}
    if name.startswith("rf"):
        assert shown["metadata"]["library_version"] == "1.9.1"
        assert shown["metadata"]["fields"]["n_estimators"] == 5
    assert modelhub("verify", FILES / name, "--json").json[0]["ok"]


class Nasty:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/pwned-by-pickle",)


@pytest.mark.parametrize("pack", [bytes, zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_nothing_is_run(pack: Any, tmp_path: Path, modelhub) -> None:
    mark = Path("/tmp/pwned-by-pickle")
    mark.unlink(missing_ok=True)
    (tmp_path / "bad.joblib").write_bytes(pack(pickle.dumps([1, Nasty()], protocol=4)))
    found = modelhub("verify", tmp_path / "bad.joblib", "--json", status=1).json[0]["findings"]
    assert any(item["severity"] == "unsafe" and "system" in item["message"] for item in found)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    ["numpy.load", "joblib.load", "pandas.eval", "numpy.testing._private.utils.runstring", "builtins.eval", "timeit.timeit"],
)
def test_known_libraries_have_functions_that_run_code(name: str, tmp_path: Path, modelhub) -> None:
    module, _, function = name.rpartition(".")
    (tmp_path / "x.joblib").write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".join(["", ""]).encode().join([b"\x80\x02", b""]))
    found = modelhub("verify", tmp_path / "x.joblib", "--json", status=1).json[0]["findings"]
    assert any(item["severity"] == "unsafe" and name in item["message"] for item in found)


def test_broken_ones_and_bombs(tmp_path: Path, modelhub) -> None:
    data = (FILES / "rf.joblib").read_bytes()
    for number, cut in enumerate((100, len(data) // 2, len(data) - 1)):
        (tmp_path / f"cut{number}.joblib").write_bytes(data[:cut])
    (tmp_path / "bomb.joblib").write_bytes(zlib.compress(b"\x80\x04" + b"N0" * (130 << 19), 1))
    (tmp_path / "half.joblib").write_bytes((FILES / "rf.z.joblib").read_bytes()[:900])
    modelhub("scan", tmp_path)
    listed = modelhub("ls", "--json").json
    assert len(listed) == 5
    for item in listed:
        assert item["format"] == "pickle"
        assert item["state"] in ("invalid", "incomplete"), item
        assert not item["reason"].startswith("the plugin of"), item


def test_pytorchs_pickles_stay_pytorchs(tmp_path: Path, modelhub) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pkl")
    assert modelhub("show", tmp_path / "model.pkl", "--json").json["format"] == "pytorch"

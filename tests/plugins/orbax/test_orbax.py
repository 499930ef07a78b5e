"""Checkpoints that Orbax wrote are read without it, and converted to what it restores, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.made import made_once

CHECKPOINTS = (
    "ocdbt", "zarr", "zarr3", "zarr3-dirs", "chunked-ocdbt", "chunked-zarr", "chunked-zarr3", "chunked-zarr3-dirs", "run/20",
    "many",
)  # fmt: skip


@pytest.fixture(scope="session")
def made() -> Path:
    pytest.importorskip("orbax.checkpoint")
    return made_once(Path(__file__).with_name("orbax_files.py"), "orbax")


def safetensors(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: data[start + item["data_offsets"][0] : start + item["data_offsets"][1]] for name, item in header.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_converted_is_what_orbax_restores(made: Path, name: str, tmp_path: Path, modelhub) -> None:
    out = tmp_path / "out.safetensors"
    modelhub("convert", made / name, "--to", "safetensors", "-o", out)
    with np.load(made / f"{name}.npz") as restored:
        assert safetensors(out) == {key: restored[key].tobytes() for key in restored.files}


def test_names_dtypes_and_what_else_is_said(made: Path, modelhub) -> None:
    shown = modelhub("show", made / "ocdbt", "--tensors", "--json").json
    tensors = {item["name"]: (item["dtype"], item["shape"]) for item in shown["tensors"]}
    assert tensors["params/dense/kernel"] == ("F32", [34, 70])
    assert tensors["params/dense/bias"] == ("BF16", [70])
    assert tensors["averages/1/mu"] == ("I32", [])
    assert tensors["averages/2/0"] == ("F8_E4M3", [1, 4])
    assert tensors["step"] == ("I64", [])
    assert "nothing" not in tensors
    assert shown["metadata"]["name"] == "tiny"
    assert shown["container"] == "zarr in OCDBT"
    run = modelhub("show", made / "run" / "20", "--json").json
    assert (run["metadata"]["step"], run["metadata"]["config"]) == (20, {"layers": 20})
    two = modelhub("show", made / "two" / "1", "--tensors", "--json").json
    assert [item["name"] for item in two["tensors"]] == ["ema/w", "params/w"]


def test_what_an_optimizer_keeps_is_no_part_of_the_model(made: Path, tmp_path: Path, modelhub) -> None:
    shown = modelhub("show", made / "trained", "--tensors", "--json").json
    assert (shown["parameters"], shown["dtypes"], shown["metadata"]["optimizer_tensors"]) == (64 * 32, {"BF16": 64 * 32}, 2)
    assert len(shown["tensors"]) == 3
    modelhub("convert", made / "trained", "--to", "safetensors", "-o", tmp_path / "out.safetensors")
    assert safetensors(tmp_path / "out.safetensors").keys() == {"params/w"}


def test_each_step_is_one_checkpoint(made: Path, tmp_path: Path, modelhub) -> None:
    for name in ("run", "two", "zarr3-dirs"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "run" / "20.npz").unlink()
    step = tmp_path / "two" / "1"
    metadata = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    metadata["item_handlers"]["input"] = "grain.python.PyGrainCheckpointHandler"
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    (step / "input").mkdir()
    (step / "input" / "process_0-of-1.json").write_text("{}")
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (4, 0)
    listed = {item["name"]: item for item in modelhub("ls", "--json").json}
    assert sorted(listed) == ["run-10", "run-20", "two-1", "zarr3-dirs"]
    for name, item in listed.items():
        path = tmp_path / item["path"]
        assert (item["format"], item["state"]) == ("orbax", "ready"), name
        assert item["size"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert modelhub("verify", tmp_path / "run" / "20", "--level", "values", "--json").json[0]["ok"]
    assert modelhub("scan", tmp_path, "--json").json["unchanged"] == 4


@pytest.mark.parametrize("kind", ["ocdbt", "zarr"])
def test_one_that_is_not_whole_yet_is_incomplete(made: Path, kind: str, tmp_path: Path, modelhub) -> None:
    step = tmp_path / "7.orbax-checkpoint-tmp-1700000000000000"
    shutil.copytree(made / kind, step)
    if kind == "ocdbt":  # before the databases of all processes are merged
        shutil.rmtree(step / "d")
        (step / "manifest.ocdbt").unlink()
    for file in step.rglob("*"):  # it is being written now
        file.touch()
    modelhub("scan", tmp_path)
    (item,) = modelhub("ls", "--json").json
    assert (item["format"], item["state"]) == ("orbax", "incomplete")
    assert "Orbax has not finished writing it" in item["reason"]


def test_a_part_that_is_gone(made: Path, tmp_path: Path, modelhub) -> None:
    for kind, gone in {"zarr": "params.dense.kernel/1.1", "zarr3-dirs": "params.emb/c/0/0"}.items():
        shutil.copytree(made / kind, tmp_path / kind)
        (tmp_path / kind / gone).unlink()
        shown = modelhub("show", tmp_path / kind, "--json", status=None).json
        assert shown["state"] in ("incomplete", "invalid")
        assert "is not there" in shown["reason"]
        assert gone.split("/")[0].replace(".", "/") in shown["reason"]
    shutil.copytree(made / "ocdbt", tmp_path / "ocdbt")
    largest = max((tmp_path / "ocdbt" / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    shown = modelhub("show", tmp_path / "ocdbt", "--json", status=None).json
    assert shown["state"] in ("incomplete", "invalid")
    assert largest.name in shown["reason"]


def test_without_zstandard_it_says_what_to_install(made: Path, tmp_path: Path, modelhub) -> None:
    (tmp_path / "zstandard.py").write_text("raise ImportError('not here')\n")
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    shown = modelhub("show", made / "ocdbt", "--json", status=None, **environ).json
    assert (shown["format"], shown["state"]) == ("orbax", "unsupported")
    assert "pip install 'modelhub-registry[orbax]'" in shown["reason"]
    listed = modelhub("show", made / "zarr", "--tensors", "--json", **environ).json
    assert len(listed["tensors"]) == 15  # directories are listed without it
    said = modelhub("convert", made / "zarr", "--to", "safetensors", "-o", tmp_path / "x.safetensors", status=3, **environ).stderr
    assert "pip install 'modelhub-registry[orbax]'" in said

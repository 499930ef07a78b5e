"""Programs that ExecuTorch 1.5 wrote (``files``: two linear layers, whose state dict is ``sd.pt``; plain, with its constants
outside, and lowered to XNNPACK), and what is left of them when they are damaged."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FILES = Path(__file__).with_name("files")


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return {name: value.numpy() for name, value in torch.load(FILES / "sd.pt", weights_only=True).items()}


def converted(modelhub: Any, source: Path, out: Path) -> dict[str, Any]:
    modelhub("convert", source, "--to", "npz", "-o", out)
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


def test_constants_are_the_models_weights(state: dict[str, Any], tmp_path: Path, modelhub) -> None:
    found = list(converted(modelhub, FILES / "plain.pte", tmp_path / "out.npz").values())
    for name, array in zip(("a.weight", "a.bias", "b.weight", "b.bias"), found, strict=False):
        assert array.tobytes() == state[name].tobytes(), name
        assert array.shape == state[name].shape


def test_a_program_and_the_tensors_beside_it_are_one_model(state: dict[str, Any], tmp_path: Path, modelhub) -> None:
    place = tmp_path / "model"
    place.mkdir()
    shutil.copy(FILES / "ext.pte", place / "model.pte")
    shown = modelhub("show", place / "model.pte", "--tensors", "--json").json
    assert all("not beside the program" in item["unsupported"] for item in shown["tensors"])
    shutil.copy(FILES / "ext.ptd", place / "_default_external_constant.ptd")
    assert modelhub("scan", place, "--json").json["found"] == 1
    found = converted(modelhub, place / "model.pte", tmp_path / "out.npz")
    assert sorted(found) == ["a.bias", "a.weight", "b.bias", "b.weight", "steps"]
    for name in ("a.weight", "a.bias", "b.weight", "b.bias"):
        assert found[name].tobytes() == state[name].tobytes(), name
    shutil.copy(FILES / "plain.pte", place / "other.pte")  # whose are the tensors now?
    assert modelhub("scan", place, "--json").json["found"] == 3


def test_methods_operators_and_delegates_are_shown(modelhub) -> None:
    method = modelhub("show", FILES / "plain.pte", "--json").json["metadata"]["methods"]["forward"]
    assert method["inputs"] == ["F32 2x16"]
    assert method["outputs"] == ["F32 2x4"]
    assert method["operators"]["aten::addmm"] == 2
    shown = modelhub("show", FILES / "xnn.pte", "--json").json["metadata"]
    assert shown["methods"]["forward"]["delegates"] == {"XnnpackBackend": 1}
    assert shown["blobs"] == 4


def test_damaged_ones_are_refused_in_words(tmp_path: Path, modelhub) -> None:
    """Programs; files of tensors are damaged by the conformance kit."""
    data = (FILES / "plain.pte").read_bytes()
    for number, cut in enumerate((12, 30, 60, len(data) // 2, len(data) - 17)):
        (tmp_path / f"cut{number}.pte").write_bytes(data[:cut])
    chance = random.Random(1)
    for number in range(60):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 4))):
            broken[chance.randrange(8, len(data))] = chance.choice((0, 0x7F, 0x80, 0xFF))
        (tmp_path / f"bad{number}.pte").write_bytes(broken)
    modelhub("scan", tmp_path)
    listed = modelhub("ls", "--json").json
    assert len(listed) == 65
    for item in listed:
        assert item["format"] == "executorch"
        assert not (item["reason"] or "").startswith("the plugin of"), item
        assert item["state"] != "ready" or not Path(item["path"]).name.startswith("cut"), item


def test_the_name_alone_is_no_claim(tmp_path: Path, modelhub) -> None:
    (tmp_path / "a.pte").write_bytes(b"\x1c\0\0\0TFL9" + bytes(64))
    shutil.copy(FILES / "plain.pte", tmp_path / "model.ptd")
    assert modelhub("scan", tmp_path, "--json").json["found"] == 1

"""Equal weights are found across containers and names; links, constants and trifles are not called copies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Modelhub


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {f"layer.{i}.weight": torch.randn(40, 40) for i in range(3)} | {"scale": torch.ones(2000), "bias": torch.randn(3)}


def groups(modelhub: Modelhub, drive: Path) -> list[dict[str, Any]]:
    modelhub("scan", drive)
    found = modelhub("dupes", "--json").json
    assert isinstance(found, list)
    return found


def names(group: dict[str, Any]) -> set[str]:
    return {os.path.basename(copy["path"]) for copy in group["copies"]}


def test_the_same_weights_in_another_container_and_under_other_names(
    tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub
) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({f"net.{name}": value for name, value in weights.items()}, tmp_path / "b.pt")
    torch.save(weights, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    (group,) = groups(modelhub, tmp_path)
    assert group["same"] == "weights"
    assert names(group) == {"a.safetensors", "b.pt", "c.ckpt"}
    sizes = sorted(os.path.getsize(tmp_path / name) for name in names(group))
    assert group["bytes_to_gain"] == sum(sizes[:-1])
    assert {name for copy in group["copies"] for name in copy["tensors"] if name.startswith("net.")} == {
        f"net.layer.{i}.weight" for i in range(3)
    }


def test_a_copied_file_is_called_a_file(tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    (group,) = groups(modelhub, tmp_path)
    assert group["same"] == "file"
    assert group["bytes_to_gain"] == os.path.getsize(tmp_path / "a.safetensors")


def test_links_are_no_copies(tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    os.link(tmp_path / "a.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to("a.safetensors")
    assert groups(modelhub, tmp_path) == []


def test_a_cache_of_snapshots_holds_one_model_not_two(
    tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub
) -> None:
    repo = tmp_path / "hub" / "models--org--net"
    blobs, snapshots = repo / "blobs", repo / "snapshots"
    blobs.mkdir(parents=True)
    save_file(weights, blobs / ("ab" * 32))
    (blobs / ("c" * 40)).write_text('{"model_type": "bert", "hidden_size": 40}')
    for revision in ("1" * 40, "2" * 40):
        (snapshots / revision).mkdir(parents=True)
        (snapshots / revision / "model.safetensors").symlink_to(f"../../blobs/{'ab' * 32}")
        (snapshots / revision / "config.json").symlink_to(f"../../blobs/{'c' * 40}")
    assert groups(modelhub, tmp_path) == []
    listed = modelhub("ls", "--json").json
    assert {model["format"] for model in listed} == {"huggingface"}
    assert {model["name"] for model in listed} == {"org/net"}


def test_some_tensors_in_common_are_named(tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub) -> None:
    save_file(weights, tmp_path / "base.safetensors")
    tuned = {**weights, "layer.2.weight": weights["layer.2.weight"] + 1}
    save_file(tuned, tmp_path / "tuned.safetensors")
    (group,) = groups(modelhub, tmp_path)
    assert group["same"] == "some tensors"
    assert [copy["tensors"] for copy in group["copies"]] == [["layer.0.weight", "layer.1.weight"]] * 2
    assert group["bytes_to_gain"] == 2 * 40 * 40 * 4


def test_constants_and_trifles_do_not_count(tmp_path: Path, modelhub: Modelhub) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        state = {"ones": torch.ones(5000), "zeros": torch.zeros(300, 300), "tiny": torch.arange(20), "own": torch.randn(50, 50)}
        save_file(state, tmp_path / f"{name}.safetensors")
    assert groups(modelhub, tmp_path) == []


def test_the_same_bytes_in_another_dtype_are_not_the_same(
    tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub
) -> None:
    save_file({"w": weights["layer.0.weight"]}, tmp_path / "a.safetensors")
    save_file({"w": weights["layer.0.weight"].view(torch.int32)}, tmp_path / "b.safetensors")
    assert groups(modelhub, tmp_path) == []


def test_what_was_read_once_is_not_read_again(tmp_path: Path, weights: dict[str, torch.Tensor], modelhub: Modelhub) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    first = groups(modelhub, tmp_path)
    for name in ("a.safetensors", "b.pt"):  # the same stat, other bytes: only a remembered digest still calls them equal
        path = tmp_path / name
        stamp = path.stat()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF if name == "b.pt" else 0
        path.write_bytes(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = modelhub("dupes", "--json").json
    assert [group["same"] for group in again] == [group["same"] for group in first] == ["weights"]


def test_silero_shares_what_torch_says_it_shares(sample_drive: Path, modelhub: Modelhub) -> None:
    """One package ships a model as TorchScript and as safetensors; torch is the judge of which tensors are the same."""
    from safetensors.torch import load_file

    (scripted,) = sample_drive.rglob("silero_vad.jit")
    (plain,) = sample_drive.rglob("silero_vad_16k.safetensors")
    theirs = torch.jit.load(scripted).state_dict()
    wanted = {
        (ours, other)
        for ours, value in load_file(plain).items()
        for other, weight in theirs.items()
        if value.numel() >= 256 and value.shape == weight.shape and torch.equal(value, weight)
    }
    assert wanted, "torch finds nothing in common: another version of the package?"
    modelhub("scan", sample_drive)
    pairs = set()
    for group in modelhub("dupes", "--json").json:
        by_path = {os.path.basename(copy["path"]): copy["tensors"] for copy in group["copies"]}
        if {"silero_vad.jit", "silero_vad_16k.safetensors"} <= set(by_path):
            pairs |= set(zip(by_path["silero_vad_16k.safetensors"], by_path["silero_vad.jit"], strict=True))
    assert pairs == wanted

"""Written PyTorch files open with ``torch.load(weights_only=True)`` and are equal, bit for bit, ties included."""

from __future__ import annotations

import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modelhub import Metadata, ModelhubError, Table
from modelhub.types import Inline, Tensor

from tests.plugins.pytorch_files import NAMES, assert_holds, filled, look, raw, table, write


def load(path: Path, **options: object) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, **options)  # type: ignore[no-any-return, arg-type]


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(got[name]) == raw(tensor), name
        assert got[name].is_contiguous()


def state() -> dict[str, torch.Tensor]:
    found = {str(dtype): filled(dtype, 2, 3) for dtype in NAMES}
    base = torch.randn(4, 5)
    odd = {"": torch.ones(1), "täg\n\u2603\U0001f600": torch.ones(2), "x" * 5000: torch.ones(3), "\ud800": torch.ones(1)}
    many = {f"many.{i}": torch.full((1,), float(i)) for i in range(1200)}
    shapes = {"scalar": torch.tensor(1.5), "empty": torch.zeros(3, 0, 2), "six": torch.randn(1, 2, 1, 2, 1, 300)}
    return {**found, **odd, **many, **shapes, "base": base, "view": base.t(), "part": base[1:3]}


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    expected = state()
    torch.save(expected, tmp_path / "in.pt")
    out = write(table(tmp_path / "in.pt"), tmp_path / "out.pt")
    assert_equal(load(out), expected)
    assert_equal(load(out, mmap=True), expected)
    assert_holds(table(out), expected)


def test_ties_share_their_storage_again(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    torch.save({"a": weight, "b": torch.randn(2), "c": weight}, tmp_path / "in.pt")
    out = write(table(tmp_path / "in.pt"), tmp_path / "out.pt")
    loaded = load(out)
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr()
    assert out.stat().st_size < 50_000
    assert table(out).ties == {"c": "a"}


def test_other_zip_readers_find_it_sound(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000), "e": torch.zeros(0)}, tmp_path / "in.pt")
    out = write(table(tmp_path / "in.pt"), tmp_path / "out.pt")
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert "out/.data/serialization_id" in archive.namelist()
        assert [archive.read(f"out/{name}") for name in ("version", "byteorder", ".format_version")] == [b"3\n", b"little", b"1"]
        theirs = {name.split("/", 1)[1] for name in zipfile.ZipFile(tmp_path / "in.pt").namelist()}
        assert {name.split("/", 1)[1] for name in archive.namelist()} == theirs
    for tensor in table(out).tensors:
        assert tensor.value is not None
        assert tensor.value[1] % 64 == 0  # type: ignore[index]
    if Path("/usr/bin/unzip").exists():
        subprocess.run(["unzip", "-tqq", str(out)], check=True)


def test_the_sources_notes_travel_in_a_place_that_torch_ignores(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "in.pt")
    notes = {"license": "MIT", "täg": "\u2603\nline"}
    out = write(replace(table(tmp_path / "in.pt"), metadata=Metadata(stored=notes)), tmp_path / "out.pt")
    assert_equal(load(out), {"w": torch.ones(2)})
    assert look(out).stored == notes
    module = torch.nn.Linear(2, 2)
    torch.save(module.state_dict(), tmp_path / "in.pt")
    out = write(replace(table(tmp_path / "in.pt"), metadata=Metadata(stored=notes)), tmp_path / "linear.pt")
    torch.nn.Linear(2, 2).load_state_dict(load(out))


def test_shards_and_their_index(tmp_path: Path) -> None:
    tied = torch.randn(10)
    expected = {"a": tied, "b": torch.randn(30), "c": torch.randn(10), "d": tied, "e": torch.randn(10)}
    torch.save(expected, tmp_path / "in.pt")
    (tmp_path / "out").mkdir()
    write(table(tmp_path / "in.pt"), tmp_path / "out" / "model.pt", max_shard_size=120)
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    assert index["metadata"]["total_size"] == 60 * 4
    merged: dict[str, torch.Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        shard = load(tmp_path / "out" / name)
        assert all(index["weight_map"][key] == name for key in shard)
        merged.update(shard)
    assert {name: raw(tensor) for name, tensor in merged.items()} == {name: raw(tensor) for name, tensor in expected.items()}
    assert merged["a"].data_ptr() == merged["d"].data_ptr()
    found = look(tmp_path / "out" / "pytorch_model.bin.index.json")
    assert (found.state, found.findings) == ("ready", ())
    assert_holds(found.load_table(), expected)
    one = write(table(tmp_path / "in.pt"), tmp_path / "one.pt", max_shard_size=10_000)
    assert_equal(load(one), expected)


def test_packed_floats_are_counted_in_pairs(tmp_path: Path) -> None:
    source = Table((Tensor("w", "F4", (2, 6), Inline(bytes(range(6)))),))
    out = write(source, tmp_path / "out.pt")
    loaded = load(out)["w"]
    assert (loaded.dtype, loaded.shape) == (torch.float4_e2m1fn_x2, (2, 3))
    [tensor] = table(out).tensors
    assert (tensor.dtype, tensor.shape) == ("F4", (2, 6))


def test_a_dtype_that_torch_lacks_is_refused_by_name(tmp_path: Path) -> None:
    source = Table((Tensor("w", "I4", (2, 2), Inline(b"12")),))
    with pytest.raises(ModelhubError, match=r"PyTorch has no dtype I4 \(tensor 'w'\)"):
        write(source, tmp_path / "out.pt")


def test_a_converted_batch_norm_still_loads(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "in.pt")
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    fresh.load_state_dict(load(write(table(tmp_path / "in.pt"), tmp_path / "out.pt")))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True))

"""Sharded safetensors: one checkpoint whatever file of it is named, incomplete until every part is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.files import list_directory
from modelhub.found import Found
from safetensors.numpy import save_file

INDEX = "model.safetensors.index.json"


def name(number: int, count: int = 3) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    weight_map = {}
    for number in (1, 2, 3):
        save_file({f"layer.{number}.weight": np.full((4, 4), number, np.float32)}, tmp_path / name(number))
        weight_map[f"layer.{number}.weight"] = name(number)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 192}, "weight_map": weight_map}))
    return tmp_path


def look(directory: Path) -> list[Found]:
    return inspect_listing(list_directory(str(directory)), plugins.get().formats).found


def files(found: Found) -> list[str]:
    return [Path(path).name for path in found.files]


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_checkpoint(sharded: Path, index: bool) -> None:
    if not index:
        (sharded / INDEX).unlink()
    (found,) = look(sharded)
    assert (found.format, found.state, found.name) == ("safetensors", "ready", "model")
    assert files(found) == [name(1), name(2), name(3)] + ([INDEX] if index else [])
    assert found.path == str(sharded / name(1))
    assert found.parameters == 48
    assert found.findings == ()
    assert [t.name for t in found.load_table().tensors] == [f"layer.{n}.weight" for n in (1, 2, 3)]


@pytest.mark.parametrize("named", [name(1), name(3), INDEX])
def test_any_of_its_files_names_the_checkpoint(sharded: Path, named: str) -> None:
    found = inspect_path(str(sharded / named), plugins.get().formats)
    assert found.path == str(sharded / name(1))
    assert found.tensors == 3


def test_a_missing_shard_makes_it_incomplete(sharded: Path) -> None:
    (sharded / name(1)).unlink()
    (found,) = look(sharded)
    assert found.state == "incomplete"
    assert found.missing == (name(1),)
    assert name(1) in found.reason
    assert found.path == str(sharded / name(2))
    assert found.tensors == 2


def test_an_index_alone_is_incomplete(sharded: Path) -> None:
    for number in (1, 2, 3):
        (sharded / name(number)).unlink()
    (found,) = look(sharded)
    assert (found.state, found.name) == ("incomplete", "model")
    assert found.missing == (name(1), name(2), name(3))


def test_a_shard_of_no_size_costs_its_own_checkpoint_only(sharded: Path) -> None:
    (sharded / name(2)).write_bytes(b"")
    save_file({"a": np.zeros(2)}, sharded / "other.safetensors")
    by_name = {found.name: found for found in look(sharded)}
    assert by_name["model"].state == "incomplete"
    assert name(2) in by_name["model"].reason
    assert by_name["other"].state == "ready"


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    save_file({"layer.1.weight": np.zeros(2, np.float32)}, sharded / name(2))
    (found,) = look(sharded)
    assert found.state == "invalid"
    assert "'layer.1.weight' stands in two shards" in found.reason


def test_a_shard_with_a_shape_that_is_none_says_which(sharded: Path) -> None:
    header = '{"w":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}'
    (sharded / name(2)).write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    (found,) = look(sharded)
    assert found.state == "invalid"
    assert found.reason.startswith(f"{name(2)}: tensor 'w': shape [1.5]")


def test_an_index_that_promises_what_is_not_there(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name(3)
    del index["weight_map"]["layer.1.weight"]
    index["weight_map"]["layer.2.weight"] = name(1)
    (sharded / INDEX).write_text(json.dumps(index))
    (found,) = look(sharded)
    assert found.state == "ready"
    lost, unnamed = found.findings
    assert (lost.severity, lost.tensor, lost.file) == ("error", "layer.2.weight", INDEX)
    assert name(2) in lost.message
    assert "1 more" in lost.message
    assert (unnamed.severity, unnamed.tensor) == ("warning", "layer.1.weight")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../model-00001-of-00003.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": ' * 100_000,
    ],
)
def test_a_broken_index_is_said(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    (found,) = look(sharded)
    assert found.state == "invalid"
    assert INDEX in found.reason


def test_an_index_may_name_files_of_any_name(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "front.safetensors")
    save_file({"b": np.zeros(2)}, tmp_path / "back.safetensors")
    save_file({"c": np.zeros(2)}, tmp_path / "apart.safetensors")
    weight_map = {"a": "front.safetensors", "b": "back.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    by_name = {found.name: found for found in look(tmp_path)}
    assert set(by_name) == {"model", "apart"}
    assert files(by_name["model"]) == ["back.safetensors", "front.safetensors", INDEX]


def test_a_leftover_index_is_not_this_splits(sharded: Path) -> None:
    for number in (1, 2):
        save_file({f"x.{number}": np.zeros(2)}, sharded / name(number, 2))
    by_count = {len(found.files): found for found in look(sharded)}
    assert files(by_count[4]) == [name(1), name(2), name(3), INDEX]
    assert files(by_count[2]) == [name(1, 2), name(2, 2)]
    assert all(found.state == "ready" for found in by_count.values())


def test_shards_counted_from_zero_and_wide_counts(tmp_path: Path) -> None:
    for number in range(2):
        save_file({f"x.{number}": np.zeros(2)}, tmp_path / f"zero-{number:05d}-of-00002.safetensors")
        save_file({f"y.{number}": np.zeros(2)}, tmp_path / f"wide-{number + 1:05d}-of-000002.safetensors")
        save_file({f"z.{number}": np.zeros(2)}, tmp_path / f"model-{number + 1:05d}-of-00002.fp16.safetensors")
    by_name = {found.name: found for found in look(tmp_path)}
    assert {key: (found.state, found.tensors) for key, found in by_name.items()} == {
        "zero": ("ready", 2),
        "wide": ("ready", 2),
        "model": ("ready", 2),
    }


def test_a_name_cannot_promise_a_million_shards(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2)}, tmp_path / "m-00001-of-999999.safetensors")
    (found,) = look(tmp_path)
    assert found.state == "ready"
    assert found.missing == ()

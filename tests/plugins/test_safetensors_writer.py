"""Writing safetensors: the library opens what comes out, and finds what went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelhub import Inline, Metadata, ModelhubError, Table, Tensor, WriteOptions, plugins
from modelhub.detect import inspect_path
from modelhub.engine.write import write_checkpoint
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch


def write(table: Table, path: Path, **options: Any) -> list[str]:
    safetensors = plugins.get().formats["safetensors"]
    return write_checkpoint(safetensors, table, str(path), WriteOptions(name=path.stem, **options)).files


def table_of(path: Path) -> Table:
    return inspect_path(str(path), plugins.get().formats).load_table()


def inline(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    return Tensor(name, dtype, shape, Inline(data))


def test_every_dtype_is_what_torch_loads(tmp_path: Path) -> None:
    kinds = [
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    ]  # fmt: skip
    tensors = {str(kind): torch.randint(0, 2, (3, 5)).to(kind) for kind in kinds}
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.zeros(0, 4)
    save_torch(tensors, tmp_path / "source.safetensors", metadata={"format": "pt", "epoch": "3"})
    write(table_of(tmp_path / "source.safetensors"), tmp_path / "copy.safetensors")
    copy = load_file(tmp_path / "copy.safetensors")
    assert copy.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert copy[name].dtype == tensor.dtype
        assert copy[name].shape == tensor.shape
        assert copy[name].contiguous().view(torch.uint8).equal(tensor.view(torch.uint8)) if tensor.dim() else copy[name] == tensor
    with safe_open(tmp_path / "copy.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "epoch": "3"}


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    save_file({"b": np.ones(3), "a": np.zeros(5, np.float16)}, tmp_path / "s.safetensors", metadata={"z": "1", "a": "2"})
    table = table_of(tmp_path / "s.safetensors")
    for name in ("one.safetensors", "two.safetensors"):
        write(table, tmp_path / name)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_elements_are_aligned_and_the_order_is_the_sources(tmp_path: Path) -> None:
    tensors = (
        inline("odd", "U8", (3,), b"abc"),
        inline("z", "F32", (1,), bytes(4)),
        inline("wide", "F64", (2,), bytes(16)),
        inline("half", "BF16", (1,), bytes(2)),
        inline("a", "F32", (1,), bytes(4)),
    )
    path = tmp_path / "mixed.safetensors"
    write(Table(tensors), path)
    table = table_of(path)
    assert [t.name for t in table.tensors] == ["wide", "z", "a", "half", "odd"]
    for tensor in table.tensors:
        size = {"F64": 8, "F32": 4, "BF16": 2, "U8": 1}[tensor.dtype]
        assert tensor.value.offset % size == 0
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_transformers_finds_its_marker_unless_the_source_has_its_own(tmp_path: Path) -> None:
    table = Table((inline("a", "U8", (1,), b"x"),))
    write(table, tmp_path / "a.safetensors")
    write(Table(table.tensors, Metadata(stored={"format": "mlx"})), tmp_path / "b.safetensors")
    assert table_of(tmp_path / "a.safetensors").metadata.stored == {"format": "pt"}
    assert table_of(tmp_path / "b.safetensors").metadata.stored == {"format": "mlx"}


def test_shards_as_transformers_lays_them_out(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full((8, 8), i, np.float32) for i in range(5)} | {"big": np.zeros((40, 8), np.float32)}
    save_file(tensors, tmp_path / "s.safetensors")
    files = write(table_of(tmp_path / "s.safetensors"), tmp_path / "out" / "model.safetensors", max_shard_size=600)
    count = len(files) - 1
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] + ["model.safetensors.index.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    index = json.loads((tmp_path / "out" / files[-1]).read_text())
    assert index["metadata"]["total_size"] == 5 * 256 + 1280
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "out" / shard, framework="np") as opened:
            assert (opened.get_tensor(name) == tensors[name]).all()
    assert index["weight_map"].keys() == tensors.keys()
    sizes = [sum(t.nbytes for n, t in tensors.items() if index["weight_map"][n] == shard) for shard in files[:-1]]
    assert all(size <= 600 or size == 1280 for size in sizes)
    found = inspect_path(str(tmp_path / "out" / files[0]), plugins.get().formats)
    assert (found.state, found.tensors, found.findings) == ("ready", 6, ())


def test_one_shard_is_one_file(tmp_path: Path) -> None:
    assert write(Table((inline("a", "U8", (1,), b"x"),)), tmp_path / "m.safetensors", max_shard_size=100) == ["m.safetensors"]


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write(Table(()), tmp_path / "m.safetensors", max_shard_size=100)
    assert load_file(tmp_path / "m.safetensors") == {}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([inline("__metadata__", "U8", (1,), b"x")], "'__metadata__'"),
        ([inline("c", "C128", (1,), bytes(16))], "cannot store C128 (tensor 'c')"),
        ([inline("a\udc80", "U8", (1,), b"x")], "not valid Unicode"),
        ([inline("a", "U8", (1,), b"x"), inline("a", "U8", (1,), b"y")], "stands twice"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensors: list[Tensor], message: str) -> None:
    with pytest.raises(ModelhubError) as caught:
        write(Table(tuple(tensors)), tmp_path / "x.safetensors")
    assert message in str(caught.value)

"""Reading PyTorch checkpoints that real torch wrote: names, dtypes, shapes and every byte."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelhub.engine import read_tensor
from modelhub.types import Extent, Node

from tests.plugins.pytorch_files import NAMES, assert_holds, filled, look, raw, table

both = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(path: Path, obj: Any, zipped: bool = True, **options: Any) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped, **options)
    return path


@both
def test_every_dtype(tmp_path: Path, zipped: bool) -> None:
    state = {str(dtype): filled(dtype, 3, 4) for dtype in NAMES}
    assert_holds(table(saved(tmp_path / "m.pt", state, zipped)), state)


@both
def test_scalars_empty_tensors_and_parameters(tmp_path: Path, zipped: bool) -> None:
    state = OrderedDict(scalar=torch.tensor(2.5), empty=torch.zeros(0, 7), parameter=torch.nn.Parameter(torch.randn(3)))
    assert_holds(table(saved(tmp_path / "m.pt", state, zipped)), dict(state))


@both
def test_views_are_gathered_from_the_part_of_the_storage_that_they_reach(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    state = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "rows": base[1],
        "columns": base[:, :, 2],
        "steps": base.flatten()[3::7],
        "expanded": base[0, 0].expand(4, 5),
        "ones": base[:, 1:2, :].transpose(0, 1),
        "last": base[2, 3, 4],
    }
    got = table(saved(tmp_path / "m.pt", state, zipped))
    assert_holds(got, state)
    assert isinstance(got.by_name["rows"].value, Extent)
    assert got.by_name["rows"].value.nbytes == 80
    assert isinstance(got.by_name["transposed"].value, Node)


@both
def test_ties_are_one_value(tmp_path: Path, zipped: bool) -> None:
    weight = torch.randn(4, 4)
    got = table(saved(tmp_path / "m.pt", {"wte": weight, "head": weight, "other": weight.clone()}, zipped))
    assert got.ties == {"head": "wte"}
    assert got.parameters == 32


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, zipped: bool, protocol: int) -> None:
    state = {"w": torch.randn(3), "nested": {"x": torch.randn(2)}, "long" * 100: torch.randn(1)}
    expected = {"w": state["w"], "nested.x": state["nested"]["x"], "long" * 100: state["long" * 100]}
    found = look(saved(tmp_path / "m.pt", state, zipped, pickle_protocol=protocol))
    assert found.findings == ()
    assert_holds(found.load_table(), expected)


@both
def test_quantized_tensors_are_integers_as_stored_and_floats_as_meant(tmp_path: Path, zipped: bool) -> None:
    plain = torch.randn(3, 4)
    per_tensor = torch.quantize_per_tensor(plain, 0.05, 10, torch.quint8)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3, 0.7], dtype=torch.float64), torch.tensor([0, 1, -2, 5])
    per_channel = torch.quantize_per_channel(plain, scales, zeros, 1, torch.qint8)
    floats = torch.quantize_per_channel(plain, scales.float(), torch.tensor([0.5, 1.0, 2.25, 5.0]), 1, torch.quint8)
    assert floats.qscheme() == torch.per_channel_affine_float_qparams
    got = table(saved(tmp_path / "m.pt", {"a": per_tensor, "b": per_channel, "c": floats}, zipped))
    stored = {tensor.name: (tensor.dtype, bytes(read_tensor(tensor))) for tensor in got.stored}
    assert stored["a"] == ("U8", raw(per_tensor.int_repr()))
    assert stored["b"] == ("I8", raw(per_channel.int_repr()))
    assert_holds(got, {"a": per_tensor.dequantize(), "b": per_channel.dequantize(), "c": floats.dequantize()})


def test_what_has_no_plain_bytes_is_listed_with_the_reason(tmp_path: Path) -> None:
    state = {
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
        "negative": torch.randn(2, dtype=torch.complex64).conj().imag,
        "meta": torch.empty(3, device="meta"),
        "jagged": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
        "plain": torch.ones(1),
    }
    found = look(saved(tmp_path / "m.pt", state))
    assert found.state == "ready"
    assert {tensor.name: tensor.unsupported for tensor in found.load_table().logical} == {
        "coo": "sparse COO tensor",
        "csr": "sparse CSR tensor",
        "conjugate": "conjugate view",
        "negative": "negative view",
        "meta": "meta tensor: it has no data",
        "jagged": "nested tensor",
        "plain": "",
    }


def names(path: Path) -> tuple[list[str], list[str]]:
    """(logical names, names of what is only stored)"""
    got = table(path)
    return [tensor.name for tensor in got.logical], [tensor.name for tensor in got.tensors if tensor.view == "stored"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "module", "net", "ema"])
def test_a_wrapper_gives_its_tensors_unprefixed(tmp_path: Path, wrapper: str) -> None:
    weights = torch.nn.Linear(2, 2).state_dict()
    path = saved(tmp_path / "m.ckpt", {"epoch": 3, wrapper: weights})
    assert names(path) == (["weight", "bias"], [])
    assert look(path).metadata == {"epoch": 3}


def test_a_training_checkpoint_shows_weights_and_keeps_the_rest_apart(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = saved(
        tmp_path / "m.ckpt",
        {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 0.1, "name": "tiny", "betas": (0.9, 0.95)},
            "best": np.float64(0.5),
            "history": np.arange(3),
            "seen": defaultdict(int, a=1),
            "dtype": torch.float32,
            "state_dict": model.state_dict(),
            "ema": {"weight": torch.zeros(2, 2)},
            "optimizer_states": [optimizer.state_dict()],
            "cuda_rng_state": torch.zeros(4, dtype=torch.uint8),
        },
    )
    logical, stored = names(path)
    assert logical == ["weight", "bias", "ema.weight"]
    assert "optimizer_states.0.state.0.exp_avg" in stored
    assert "cuda_rng_state" in stored
    found = look(path)
    assert found.findings == ()
    assert found.metadata == {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 0.1, "name": "tiny"},
    }


def test_an_optimizer_by_itself_has_no_weights(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    path = saved(tmp_path / "optimizer.pt", optimizer.state_dict())
    assert names(path) == ([], ["state.0.momentum_buffer"])
    assert look(path).metadata["kind"] == "optimizer"


def test_lists_tuples_and_collisions_get_names(tmp_path: Path) -> None:
    one = torch.ones(1)
    path = saved(tmp_path / "m.pt", {"a.b": one, "a": {"b": one.clone()}, "c": [one.clone(), (one.clone(),)], 7: one.clone()})
    assert names(path)[0] == ["a.b", "a.b#2", "c.0", "c.1.0", "7"]
    assert names(saved(tmp_path / "l.pt", [one, one.clone()]))[0] == ["0", "1"]
    assert names(saved(tmp_path / "t.pt", one))[0] == ["tensor"]


@both
def test_a_pickled_module_gives_the_names_of_its_state_dict(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    found = look(saved(tmp_path / "m.pt", model, zipped))
    assert_holds(found.load_table(), dict(model.state_dict()))
    assert found.metadata["class"] == "torch.nn.modules.container.Sequential"
    messages = [finding.message for finding in found.findings]
    assert any("torch.nn.modules.linear.Linear is called (NEWOBJ, BUILD)" in message for message in messages)


class Tagged(torch.Tensor):
    """A subclass as libraries make them."""


def test_a_tensor_subclass_is_read_and_its_class_is_named(tmp_path: Path) -> None:
    plain = torch.randn(3)
    found = look(saved(tmp_path / "m.pt", {"w": plain.as_subclass(Tagged)}))
    assert_holds(found.load_table(), {"w": plain})
    assert "Tagged is named, not called" in found.findings[0].message


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
        self.register_buffer("mean", torch.randn(2))
        self.sizes = [1, 2, 3]
        self.table = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self.mean + self.table


def test_torchscript_gives_parameters_buffers_and_constants(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    model = Scripted()
    constant = torch.tensor([1.5, 2.5])
    traced = torch.jit.trace(lambda x: x + constant, torch.zeros(2))
    torch.jit.save(torch.jit.script(model), path)
    assert_holds(table(path), {**model.state_dict(), "table": model.table})
    found = look(path)
    assert (found.metadata["kind"], found.findings) == ("torchscript", ())
    torch.jit.save(traced, str(path))
    assert_holds(table(path), {"constants.0": constant})


def test_shards_and_their_index_are_one_checkpoint(tmp_path: Path) -> None:
    state = {name: torch.randn(2) for name in "abc"}
    for number, held in ((1, "ab"), (2, "c")):
        saved(tmp_path / f"pytorch_model-0000{number}-of-00002.bin", {name: state[name] for name in held})
    weight_map = {name: f"pytorch_model-0000{1 if name < 'c' else 2}-of-00002.bin" for name in state}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    first = tmp_path / "pytorch_model-00001-of-00002.bin"
    for path in (first, index):
        found = look(path)
        assert (found.state, found.name, len(found.files)) == ("ready", "pytorch_model", 3)
        assert_holds(found.load_table(), state)
        assert found.findings == ()
    index.write_text(json.dumps({"weight_map": {**weight_map, "lost": "pytorch_model-00002-of-00002.bin"}}))
    assert [finding.severity for finding in look(index).findings] == ["error"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "up": "../../x.bin"}}))
    assert look(first).state in ("ready", "invalid")
    assert look(index).state == "invalid"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    found = look(first)
    assert (found.state, found.missing) == ("incomplete", ("pytorch_model-00002-of-00002.bin",))


def test_silero_in_both_containers_agrees(sample_drive: Path) -> None:
    from safetensors.torch import load_file

    [jit] = sample_drive.rglob("silero_vad.jit")
    [plain] = sample_drive.rglob("silero_vad_16k.safetensors")
    expected = dict(torch.jit.load(jit).state_dict())
    got = table(jit)
    for name, tensor in expected.items():
        assert bytes(read_tensor(got.by_name[name])) == raw(tensor), name
    shared = {raw(tensor) for tensor in load_file(plain).values()} & {raw(tensor) for tensor in expected.values()}
    assert shared
    assert shared <= {bytes(read_tensor(tensor)) for tensor in got.logical}


def test_lpips_in_the_legacy_format_of_python_2(sample_drive: Path) -> None:
    files = sorted(sample_drive.rglob("*.pth"))
    assert files
    for path in files:
        assert_holds(table(path), dict(torch.load(path, weights_only=True, map_location="cpu")))


def test_torch_is_not_needed(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = saved(tmp_path / "m.pt", {"w": torch.ones(2)})
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['pickle'] = None\n"
        "from modelhub.files import Checkpoint, File; from modelhub_pytorch import modelhub_formats; [f] = modelhub_formats()\n"
        "print(f.detect(File(sys.argv[1])).confidence, len(list(f.read(Checkpoint(sys.argv[1], [sys.argv[1]])))))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "95 2\n"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights", "model.safetensors", "model.h5", "model.old"])
def test_a_renamed_checkpoint_is_known_all_the_same(name: str, zipped: bool, tmp_path: Path, modelhub) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with zipfile.ZipFile(tmp_path / "letter.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    modelhub("scan", tmp_path)
    (row,) = modelhub("ls", "--json").json
    assert (row["format"], row["state"], row["parameters"]) == ("pytorch", "ready", 6)


def test_a_path_file_of_python_is_nobodys_checkpoint(tmp_path: Path) -> None:
    from modelhub import plugins
    from modelhub.detect import inspect_listing
    from modelhub.files import list_directory

    (tmp_path / "distutils-precedence.pth").write_text("import os; var = 'SETUPTOOLS_USE_DISTUTILS'\n")
    (tmp_path / "editable.pth").write_text("code/lib\nother\n")
    seen = inspect_listing(list_directory(str(tmp_path)), plugins.get().formats)
    assert (seen.found, seen.unknown) == ([], ["distutils-precedence.pth", "editable.pth"])


def test_random_states_are_no_weights(tmp_path: Path) -> None:
    import random

    path = saved(tmp_path / "rng_state.pth", {"python": random.getstate(), "numpy": np.arange(3), "cpu": torch.get_rng_state()})
    assert names(path) == ([], ["cpu"])
    assert look(path).findings == ()

"""State dicts of quantization-aware training and of converted models, as real torch makes them: recognised, and the weights that
are meant are on the grids that the training had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.ao import quantization

from tests.plugins.pytorch_files import look, table

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(288, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x)))).flatten(1)
        out: torch.Tensor = self.dequant(self.fc2(self.fc1(x)))
        return out


def trained(backend: str = "x86", weight: Any = None, steps: int = 4) -> Net:
    torch.manual_seed(7)
    net = Net().train()
    config = quantization.get_default_qat_qconfig(backend)
    net.qconfig = quantization.QConfig(config.activation, weight) if weight else config
    net = quantization.fuse_modules_qat(net, [["conv", "bn", "relu"]])
    quantization.prepare_qat(net, inplace=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).pow(2).mean().backward()
        optimizer.step()
    return net


def on_grid(weight: torch.Tensor, grid: Any) -> torch.Tensor:
    """The rounding of torch itself by the grid's own scale, without its observer."""
    low, high = grid.activation_post_process.quant_min, grid.activation_post_process.quant_max
    if grid.scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(weight, float(grid.scale), int(grid.zero_point), low, high)
    return torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point.int(), grid.ch_axis, low, high)


def observer(bits: int, channels: bool, symmetric: bool = True, low: int | None = None) -> Any:
    kind = f"per_{'channel' if channels else 'tensor'}_{'symmetric' if symmetric else 'affine'}"
    watch = quantization.MovingAveragePerChannelMinMaxObserver if channels else quantization.MovingAverageMinMaxObserver
    half = 1 << (bits - 1)
    signed = low is None or low < 0
    return quantization.FakeQuantize.with_args(
        observer=watch,
        quant_min=-half if low is None else low,
        quant_max=half - 1 if signed else 2 * half - 1,
        dtype=torch.qint8 if signed else torch.quint8,
        qscheme=getattr(torch, kind),
    )


GRIDS = {
    "x86": ("x86", None, "QAT-INT8 per-channel"),
    "qnnpack": ("qnnpack", None, "QAT-INT8 per-tensor"),
    "4 bits": ("x86", observer(4, True), "QAT-INT4 per-channel"),
    "4 bits, one scale": ("x86", observer(4, False), "QAT-INT4 per-tensor"),
    "affine": ("x86", observer(8, True, symmetric=False), "QAT-INT8 per-channel"),
    "unsigned": ("x86", observer(8, False, symmetric=False, low=0), "QAT-INT8 per-tensor"),
    "narrow": ("x86", observer(8, False, low=-127), "QAT-INT8 per-tensor"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_weights_in_training_are_those_on_their_own_grid(tmp_path: Path, modelhub: Any, name: str) -> None:
    backend, weight, label = GRIDS[name]
    net = trained(backend, weight)
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "m.pt")
    shown = modelhub("show", tmp_path / "m.pt", "--json").json
    plain = {key: value for key, value in net.state_dict().items() if "fake_quant" not in key and "post_process" not in key}
    assert shown["precision"] == label
    assert shown["parameters"] == sum(value.numel() for value in plain.values())
    assert shown["metadata"]["quantization"]["weights"] == label.removeprefix("QAT-")

    modelhub("convert", tmp_path / "m.pt", "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    got = load_file(tmp_path / "m.safetensors")
    assert set(got) == set(plain)
    assert torch.equal(got["fc1.weight"], on_grid(net.fc1.weight, net.fc1.weight_fake_quant))
    assert torch.equal(got["fc2.weight"], on_grid(net.fc2.weight, net.fc2.weight_fake_quant))
    assert not torch.equal(got["fc1.weight"], net.fc1.weight)
    # Fused with a batch norm, the folded weight is what is on the grid.
    conv = net.conv
    spread = (conv.bn.running_var + conv.bn.eps).double().sqrt().float()  # in single precision torch's is not always the nearest
    factor = (conv.bn.weight / spread).reshape(-1, 1, 1, 1)
    assert torch.equal(got["conv.weight"], on_grid(conv.weight * factor, conv.weight_fake_quant) / factor)
    for key in ("conv.bias", "fc1.bias", "conv.bn.running_mean"):
        assert torch.equal(got[key], plain[key])


def test_the_converted_weights_are_what_the_trained_network_computes_with(tmp_path: Path, modelhub: Any) -> None:
    net = trained().eval()
    net.apply(quantization.disable_observer)
    torch.save(net.state_dict(), tmp_path / "m.pt")
    modelhub("convert", tmp_path / "m.pt", "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    plain = quantization.fuse_modules_qat(Net().train(), [["conv", "bn", "relu"]])
    plain.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(plain, inplace=True)
    plain.load_state_dict({**net.state_dict(), **load_file(tmp_path / "m.safetensors")})
    plain.apply(quantization.disable_observer).eval()
    for layer in (plain.conv, plain.fc1, plain.fc2):
        layer.weight_fake_quant.disable_fake_quant()
    data = torch.randn(16, 3, 8, 8)
    assert torch.allclose(plain(data), net(data), atol=1e-6)


def test_weights_that_are_not_rounded_yet_are_as_trained(tmp_path: Path) -> None:
    fresh = trained(steps=0)
    torch.save(fresh.state_dict(), tmp_path / "fresh.pt")
    net = trained()
    net.fc1.weight_fake_quant.disable_fake_quant()
    torch.save(net.state_dict(), tmp_path / "m.pt")
    assert table(tmp_path / "fresh.pt").by_name["fc1.weight"].view == "both"
    assert look(tmp_path / "fresh.pt").precision == "F32"
    found = look(tmp_path / "m.pt")
    assert found.load_table().by_name["fc1.weight"].view == "both"
    assert found.load_table().by_name["fc2.weight"].view == "logical"
    assert [finding.tensor for finding in found.findings if "fake_quant_enabled is 0" in finding.message] == ["fc1.weight"]


def test_observers_are_no_parameters(tmp_path: Path) -> None:
    net = Net().eval()
    net.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(net, inplace=True)
    net(torch.randn(4, 3, 8, 8))
    torch.save(net.state_dict(), tmp_path / "m.pt")
    found = look(tmp_path / "m.pt")
    assert found.precision == "F32"
    assert found.parameters == sum(value.numel() for value in Net().state_dict().values())
    assert found.load_table().metadata.values["quantization"]["method"] == "observers"


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_a_converted_model_has_its_layers_weights_by_their_own_scales(tmp_path: Path, modelhub: Any, backend: str) -> None:
    net = quantization.convert(trained(backend).eval())
    torch.save(net.state_dict(), tmp_path / "m.pt")
    shown = modelhub("show", tmp_path / "m.pt", "--json").json
    assert shown["precision"] == f"INT8 per-{'tensor' if backend == 'qnnpack' else 'channel'}"
    modelhub("convert", tmp_path / "m.pt", "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    got = load_file(tmp_path / "m.safetensors")
    expected = {
        "conv.weight": net.conv.weight().dequantize(),
        "conv.bias": net.conv.bias(),
        "fc1.weight": net.fc1.weight().dequantize(),
        "fc1.bias": net.fc1.bias(),
        "fc2.weight": net.fc2.weight().dequantize(),
        "fc2.bias": net.fc2.bias(),
    }
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert torch.equal(got[name], values), name
    assert shown["parameters"] == sum(values.numel() for values in expected.values())


def test_zero_points_that_are_no_whole_numbers(tmp_path: Path, modelhub: Any) -> None:
    """Of an embedding's rows: torch subtracts them in double precision."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Embedding(40, 96))
    net.qconfig = quantization.default_embedding_qat_qconfig
    quantization.prepare_qat(net.train(), mapping={nn.Embedding: torch.ao.nn.qat.Embedding}, inplace=True)
    net(torch.arange(40))
    torch.save(net.state_dict(), tmp_path / "m.pt")
    modelhub("convert", tmp_path / "m.pt", "--to", "safetensors", "-o", tmp_path / "m.safetensors")
    grid = net[0].weight_fake_quant
    wanted = torch.fake_quantize_per_channel_affine(net[0].weight, grid.scale, grid.zero_point, 0, 0, 255)
    assert grid.zero_point.is_floating_point()
    assert torch.equal(load_file(tmp_path / "m.safetensors")["0.weight"], wanted)


def test_grids_that_fit_nothing_leave_the_weight_as_it_is(tmp_path: Path) -> None:
    state = trained().state_dict()
    grid = "fc1.weight_fake_quant."
    for name, values in {
        "scale": torch.ones(5),
        "zero_point": torch.zeros(3, dtype=torch.int32),
        "activation_post_process.min_val": torch.full((16,), float("nan")),
    }.items():
        torch.save({**state, grid + name: values}, tmp_path / "m.pt")
        found = look(tmp_path / "m.pt")
        assert found.load_table().by_name["fc1.weight"].view == "both"
        assert [one.severity for one in found.findings if one.tensor == "fc1.weight"] == ["info"]
    for number in (0.0, float("nan"), float("inf")):
        torch.save({**state, f"{grid}scale": torch.full((16,), number)}, tmp_path / "m.pt")
        assert table(tmp_path / "m.pt").by_name["fc1.weight"].view == "both"
    torch.save({**state, f"{grid}zero_point": torch.full((16,), 2**31 - 1).int()}, tmp_path / "m.pt")
    assert look(tmp_path / "m.pt").state == "ready"

"""torchao's plain tensors in the layout of torchao 0.18 and transformers 5: names, texts and pickles as recorded from them.

torchao itself is no test dependency; its files (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
Float8WeightOnlyConfig, IntxWeightOnlyConfig of 4 and 2 bits, Int8DynamicActivationIntxWeightConfig; safetensors and ``.bin``)
were converted once beside it, and every value was equal to its ``dequantize()``."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.plugins.packed.models import llama

BF16 = {"_type": "torch.dtype", "_data": "bfloat16"}
INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": None}}
FP8 = {
    "_type": "Float8WeightOnlyConfig",
    "_version": 2,
    "_data": {"weight_dtype": {"_data": "float8_e4m3fn", "_type": "torch.dtype"}},
}
INT4 = {
    "_type": "IntxWeightOnlyConfig", "_version": 2,
    "_data": {
        "granularity": {"_data": {"group_size": 32}, "_type": "PerGroup", "_version": 1},
        "weight_dtype": {"_data": "int4", "_type": "torch.dtype"},
    },
}  # fmt: skip


def int8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 127.5
    zero = torch.zeros(scale.shape, dtype=torch.int8)
    return {
        "qdata": torch.clamp(torch.round(weight.float() / scale), -128, 127).to(torch.int8),
        "scale": scale,
        "zero_point": zero,
    }


def fp8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return {"qdata": (weight.float() / scale).to(torch.float8_e4m3fn), "scale": scale}


def int4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = weight.reshape(len(weight), -1, 32)
    scale = (groups.amax(2) - groups.amin(2)) / 15
    zero = torch.clamp(torch.round(-8 - groups.amin(2) / scale), -8, 7)
    qdata = torch.clamp(torch.round(groups / scale[:, :, None]) + zero[:, :, None], -8, 7).to(torch.int8)
    return {"qdata": qdata.reshape(weight.shape), "scale": scale, "zero_point": zero.to(torch.int8)}


def meant(parts: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The steps of torchao's ``dequantize_affine`` and ``_dequantize_affine_float8``."""
    qdata, scale = parts["qdata"], parts["scale"]
    count = scale.shape[1]
    if qdata.dtype is torch.float8_e4m3fn:
        return (qdata.to(torch.float32) * scale).to(dtype)
    values = qdata.reshape(len(qdata), count, -1).to(dtype) - parts["zero_point"].reshape(len(qdata), count, 1).to(dtype)
    return (values * scale.reshape(len(qdata), count, 1)).reshape(qdata.shape).to(dtype)


KINDS: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "int8": (int8, "Int8Tensor", INT8, "TORCHAO-INT8"),
    "fp8": (fp8, "Float8Tensor", FP8, "TORCHAO-FP8"),
    "int4": (int4, "IntxUnpackedToInt8Tensor", INT4, "TORCHAO-INT4 g32"),
}


def quantized(
    directory: Path, how: Any, config: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """A Llama whose ``config.json`` says torchao: (its plain tensors, its projections in parts)."""
    model = llama(directory, torch.bfloat16)
    path = directory / "config.json"
    said = {"quant_method": "torchao", "quant_type": {"default": config}, "modules_to_not_convert": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    packed = {name: how(tensor) for name, tensor in state.items() if name.endswith("_proj.weight")}
    return {name: tensor for name, tensor in state.items() if name not in packed}, packed


def check(directory: Path, plain: Any, packed: Any, label: str, modelhub: Any, output: Path) -> None:
    shown = modelhub("show", directory, "--json").json
    assert shown["precision"] == label
    assert shown["parameters"] == sum(t.numel() for t in plain.values()) + sum(
        parts["qdata"].numel() for parts in packed.values()
    )
    assert not shown["findings"]
    modelhub("convert", directory, "--to", "huggingface", "-o", output)
    got = load_file(output / "model.safetensors")
    assert set(got) == {*plain, *packed}
    for name, parts in packed.items():
        assert torch.equal(got[name], meant(parts, torch.bfloat16)), name
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    assert b"qdata" not in (output / "model.safetensors").read_bytes()[:20000]


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors(tmp_path: Path, modelhub: Any, kind: str) -> None:
    how, name, config, label = KINDS[kind]
    directory = tmp_path / "m"
    plain, packed = quantized(directory, how, config)
    texts = {key: json.dumps({"_type": "Tensor"}) for key in plain}
    tensors = dict(plain)
    for key, parts in packed.items():
        said = {"block_size": [1, 32], "dtype": BF16}
        texts[key] = json.dumps({"_type": name, "_data": said, "_tensor_data_names": [*parts]})
        tensors.update({f"{key.removesuffix('.weight')}._weight_{part}": value for part, value in parts.items()})
    save_file(tensors, directory / "model.safetensors", {**texts, "format": "pt", "tensor_names": json.dumps([*texts])})
    check(directory, plain, packed, label, modelhub, tmp_path / "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_pickles(tmp_path: Path, modelhub: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how, name, config, label = KINDS[kind]
    directory = tmp_path / "m"
    plain, packed = quantized(directory, how, config)
    (directory / "model.safetensors").unlink()

    class Subclass(torch.Tensor):
        """What torchao's tensors are to ``torch.save``."""

        @staticmethod
        def __new__(cls, parts: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
            made = torch.Tensor._make_wrapper_subclass(cls, parts["qdata"].shape, dtype=dtype)  # type: ignore[attr-defined]
            made.__dict__.update(parts)
            return made

        @classmethod
        def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0]

    Subclass.__name__ = Subclass.__qualname__ = name
    Subclass.__module__ = "torchao.quantization"
    for module in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(sys.modules["torchao.quantization"], name, Subclass, raising=False)
    monkeypatch.setattr(sys.modules["torchao"], "quantization", sys.modules["torchao.quantization"], raising=False)
    torch.save(
        {**plain, **{key: Subclass(parts, torch.bfloat16) for key, parts in packed.items()}}, directory / "pytorch_model.bin"
    )
    check(directory, plain, packed, label, modelhub, tmp_path / "plain")


def test_tensors_that_are_packed_for_a_kernel_stay(tmp_path: Path, modelhub: Any) -> None:
    directory = tmp_path / "m"
    plain, packed = quantized(directory, int8, {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}})
    tensors, texts = dict(plain), {}
    for key, parts in packed.items():
        texts[key] = json.dumps({"_type": "Int4TilePackedTo4dTensor", "_data": {}, "_tensor_data_names": [*parts]})
        tensors.update({f"{key.removesuffix('.weight')}._weight_{part}": value for part, value in parts.items()})
    save_file(tensors, directory / "model.safetensors", texts)
    shown = modelhub("show", directory, "--json").json
    assert shown["precision"] == "TORCHAO-INT4 g128"
    (finding,) = shown["findings"]
    assert finding["tensor"].endswith("_weight_qdata")
    assert "Int4TilePackedTo4dTensor" in finding["message"]

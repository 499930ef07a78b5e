"""compressed-tensors, FP8 and FP4: packed by the makers' own libraries where they run here, else by the published steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.plugins.packed.models import llama, pack, tensors_of

Wanted = dict[str, np.ndarray[Any, Any]]
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def arguments(**said: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(**said)


def compressed(wanted: Wanted, kind: str, **said: Any) -> Any:
    """By the library: its own scales and zero points, its own rounding, its own packing, and its own way back."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = arguments(**said)

    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        size = args.group_size if args.strategy == "group" else weight.shape[1]
        parts = weight.reshape(len(weight), -1, size)
        scale, zero = calculate_qparams(parts.amin(2), parts.amax(2), args)
        numbers = quantize(weight, scale, zero, args, dtype=args.pytorch_dtype())
        wanted[f"{module}.weight"] = dequantize(numbers, scale, zero, args).to(weight.dtype).float().numpy()
        found = {"weight_scale": scale.to(weight.dtype)}
        if not args.symmetric:
            packed = pack_to_int32(zero.to(torch.int8), args.num_bits, packed_dim=0) if kind == "pack" else zero.to(torch.int8)
            found["weight_zero_point"] = packed
        if kind == "pack":
            found["weight_packed"] = pack_to_int32(numbers, args.num_bits)
            found["weight_shape"] = torch.tensor(weight.shape)
        else:
            found["weight"] = numbers
        return found

    return how


def in_blocks(wanted: Wanted) -> Any:
    """DeepSeek's FP8: one F32 scale for 128 x 128, the last blocks cut off by the edge."""

    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
        padded[:rows, :columns] = weight.float()
        blocks = padded.reshape(len(padded) // 128, 128, -1, 128)
        scale = blocks.abs().amax((1, 3)).clamp(min=1e-8) / 448
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        numbers = (weight.float() / spread).to(torch.float8_e4m3fn)
        wanted[f"{module}.weight"] = (numbers.float() * spread).to(weight.dtype).float().numpy()
        return {"weight": numbers, "weight_scale_inv": scale}

    return how


def one_scale(wanted: Wanted, per_row: bool) -> Any:
    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        top = weight.float().abs().amax(1, keepdim=True) if per_row else weight.float().abs().max()
        numbers = (weight.float() / (top / 448)).to(torch.float8_e4m3fn)
        wanted[f"{module}.weight"] = (numbers.float() * (top / 448)).to(weight.dtype).float().numpy()
        return {"weight": numbers, "weight_scale": top / 448, "input_scale": torch.tensor(0.5)}

    return how


def fp4(wanted: Wanted, size: int, kind: str) -> Any:
    """NVFP4 of both makers and compressed-tensors' MXFP4, nibble by nibble."""

    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = weight.float().reshape(len(weight), -1, size)
        top = parts.abs().amax(2)
        outer = torch.ones(1)
        if kind == "mx":
            power = torch.floor(torch.log2(top.clamp(min=1e-30))) - 2
            scale, stored = 2.0**power, (power + 127).to(torch.uint8)
        else:
            outer = top.max().reshape(1) / (6 * 448)
            stored = (top / 6 / outer).to(torch.float8_e4m3fn)
            scale = stored.float() * outer
        near = (parts / scale[..., None]).clamp(-6, 6)
        codes = (near.abs()[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
        values = FP4[codes.long()] * torch.sign(near)
        codes |= (near < 0).to(torch.uint8) << 3
        wanted[f"{module}.weight"] = (values * scale[..., None]).reshape(weight.shape).to(weight.dtype).float().numpy()
        flat = codes.reshape(len(weight), -1)
        found = {"weight_packed": flat[:, ::2] | flat[:, 1::2] << 4, "weight_scale": stored}
        if kind == "compressed":
            return {**found, "weight_global_scale": 1 / outer}
        if kind == "modelopt":
            return {"weight": found["weight_packed"], "weight_scale": stored, "weight_scale_2": outer.reshape(())}
        return found

    return how


def group(kind: str, bits: int, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, **weights}}},
        "ignore": ["lm_head"],
    }


CASES: dict[str, tuple[Callable[[Wanted], Any], dict[str, Any], str]] = {
    "w4a16": (
        lambda wanted: compressed(wanted, "pack", num_bits=4, type="int", symmetric=True, strategy="group", group_size=32),
        group("pack-quantized", 4, type="int", group_size=32, strategy="group"),
        "INT4 g32",
    ),
    "w4a16-asymmetric": (
        lambda wanted: compressed(wanted, "pack", num_bits=4, type="int", symmetric=False, strategy="group", group_size=64),
        group("pack-quantized", 4, type="int", group_size=64, strategy="group", symmetric=False),
        "INT4 g64",
    ),
    "w8a16": (
        lambda wanted: compressed(wanted, "pack", num_bits=8, type="int", symmetric=True, strategy="channel"),
        group("pack-quantized", 8, type="int", strategy="channel"),
        "INT8",
    ),
    "w8a8": (
        lambda wanted: compressed(wanted, "int", num_bits=8, type="int", symmetric=True, strategy="channel"),
        group("int-quantized", 8, type="int", strategy="channel"),
        "INT8",
    ),
    "fp8-channel": (
        lambda wanted: compressed(wanted, "float", num_bits=8, type="float", symmetric=True, strategy="channel"),
        group("float-quantized", 8, type="float", strategy="channel"),
        "FP8",
    ),
    "fp8-blocks": (in_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
    "fp8-tensor": (lambda wanted: one_scale(wanted, False), {"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8"),
    "fbgemm": (lambda wanted: one_scale(wanted, True), {"quant_method": "fbgemm_fp8"}, "FP8"),
    "nvfp4": (
        lambda wanted: fp4(wanted, 16, "compressed"),
        group("nvfp4-pack-quantized", 4, type="float", group_size=16),
        "NVFP4",
    ),
    "nvfp4-modelopt": (
        lambda wanted: fp4(wanted, 16, "modelopt"),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "NVFP4",
    ),
    "mxfp4": (lambda wanted: fp4(wanted, 32, "mx"), group("mxfp4-pack-quantized", 4, type="float", group_size=32), "MXFP4"),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_beside_their_scales(name: str, tmp_path: Path, modelhub) -> None:
    how, said, label = CASES[name]
    model = llama(tmp_path / "llama", torch.bfloat16)
    wanted: Wanted = {}
    pack(tmp_path / "llama", model, how(wanted), said)
    shown = modelhub("show", tmp_path / "llama", "--json").json
    assert not [finding for finding in shown["findings"] if finding["check"] == "packed"], shown["findings"]
    assert (shown["state"], shown["precision"]) == ("ready", label)
    assert wanted
    modelhub("convert", tmp_path / "llama", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    found = tensors_of(tmp_path / "plain.safetensors")
    for tensor, values in wanted.items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)
    extra = {tensor for tensor in found if tensor.endswith("input_scale")}
    assert set(found) - extra == set(model.state_dict())
    assert shown["parameters"] == sum(weight.numel() for weight in model.parameters()) + len(extra)


def test_gpt_oss_experts(tmp_path: Path, modelhub) -> None:
    """As transformers unpacks them: ``convert_moe_packed_tensors``, which is the outside truth here."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 130, (3, 8, 2), dtype=torch.uint8)
    (tmp_path / "oss").mkdir()
    save_file({"model.layers.0.mlp.experts.down_proj_blocks": blocks, "model.layers.0.mlp.experts.down_proj_scales": scales},
              tmp_path / "oss/model.safetensors")  # fmt: skip
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "oss/config.json").write_text(json.dumps(config))
    modelhub("convert", tmp_path / "oss", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    found = load_file(tmp_path / "plain.safetensors")
    assert list(found) == ["model.layers.0.mlp.experts.down_proj"]
    expected = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(found["model.layers.0.mlp.experts.down_proj"], expected)


@pytest.mark.parametrize("name", ["w4a16", "fp8-blocks"])
def test_straight_into_gguf(name: str, tmp_path: Path, modelhub) -> None:
    how, said, _ = CASES[name]
    pack(tmp_path / "llama", llama(tmp_path / "llama", torch.bfloat16), how({}), said)
    modelhub("convert", tmp_path / "llama", "--to", "huggingface", "-o", tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    for source in ("llama", "plain"):
        modelhub("convert", tmp_path / source, "--to", "gguf:q8_0", "-o", tmp_path / f"{source}.gguf")
    assert modelhub("diff", tmp_path / "llama.gguf", tmp_path / "plain.gguf", "--json").json["equal"]


@pytest.mark.parametrize("lost", ["weight_scale", "weight_shape"])
def test_parts_that_do_not_fit(lost: str, tmp_path: Path, modelhub) -> None:
    how, said, _ = CASES["w4a16"]
    pack(tmp_path / "llama", llama(tmp_path / "llama", torch.bfloat16), how({}), said)
    tensors = load_file(tmp_path / "llama/model.safetensors")
    name = f"model.layers.1.mlp.down_proj.{lost}"
    tensors[name] = tensors[name][:1].clone() if lost == "weight_scale" else torch.tensor([128, 5000])
    save_file(tensors, tmp_path / "llama/model.safetensors", {"format": "pt"})
    shown = modelhub("show", tmp_path / "llama", "--json").json
    (finding,) = [finding for finding in shown["findings"] if finding["check"] == "packed"]
    assert finding["tensor"] == "model.layers.1.mlp.down_proj.weight_packed"

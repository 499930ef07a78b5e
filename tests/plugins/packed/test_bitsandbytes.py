"""bitsandbytes: quantized and dequantized by the library itself, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.plugins.packed.models import llama, pack, tensors_of

Wanted = dict[str, np.ndarray[Any, Any]]


def four_bits(wanted: Wanted, kind: str, nested: bool, block: int = 64) -> Any:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=block)
        wanted[f"{module}.weight"] = dequantize_4bit(packed, state).float().numpy()
        return {"weight": packed, **{f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}

    return how


def eight_bits(wanted: Wanted) -> Any:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        numbers, scale, _ = int8_vectorwise_quant(weight.to(torch.float16))
        wanted[f"{module}.weight"] = int8_vectorwise_dequant(numbers, scale).to(weight.dtype).float().numpy()
        return {"weight": numbers, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    return how


CASES = {
    "nf4": (lambda wanted: four_bits(wanted, "nf4", False), "BNB-NF4"),
    "nf4-nested": (lambda wanted: four_bits(wanted, "nf4", True), "BNB-NF4"),
    "fp4-nested": (lambda wanted: four_bits(wanted, "fp4", True, 128), "BNB-FP4"),
    "int8": (eight_bits, "BNB-INT8"),
}


def settings(label: str) -> dict[str, Any]:
    if label == "BNB-INT8":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": label[-3:].lower()}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_the_library_computes_with(name: str, tmp_path: Path, modelhub) -> None:
    how, label = CASES[name]
    model = llama(tmp_path / "llama", torch.bfloat16)
    wanted: Wanted = {}
    pack(tmp_path / "llama", model, how(wanted), settings(label))
    shown = modelhub("show", tmp_path / "llama", "--json").json
    assert not [finding for finding in shown["findings"] if finding["check"] == "packed"], shown["findings"]
    assert (shown["precision"], shown["parameters"]) == (label, sum(weight.numel() for weight in model.parameters()))
    modelhub("convert", tmp_path / "llama", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    found = tensors_of(tmp_path / "plain.safetensors")
    assert set(found) == set(model.state_dict())
    for tensor, values in wanted.items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)


def test_parameters_that_are_no_weights_of_layers(tmp_path: Path, modelhub) -> None:
    """Fused experts, as the library replaces a parameter and saves it."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = torch.nn.Module()
    model.experts = torch.nn.Module()
    torch.manual_seed(3)
    model.experts.gate_up_proj = torch.nn.Parameter(torch.randn(3, 32, 64).bfloat16())
    replace_parameter_4bit(model.experts, "gate_up_proj", compress_statistics=True, quant_type="nf4")
    (tmp_path / "m").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "m/model.safetensors")
    config = {"model_type": "qwen3_moe", "quantization_config": settings("BNB-NF4")}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    modelhub("convert", tmp_path / "m", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    found = load_file(tmp_path / "plain.safetensors")
    assert set(found) == {"experts.gate_up_proj"}
    assert torch.equal(found["experts.gate_up_proj"], model.experts.gate_up_proj)


def test_a_state_that_says_nothing(tmp_path: Path, modelhub) -> None:
    pack(tmp_path / "llama", llama(tmp_path / "llama", torch.bfloat16), four_bits({}, "nf4", True), settings("BNB-NF4"))
    tensors = load_file(tmp_path / "llama/model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, tmp_path / "llama/model.safetensors", {"format": "pt"})
    shown = modelhub("show", tmp_path / "llama", "--json").json
    (finding,) = [finding for finding in shown["findings"] if finding["check"] == "packed"]
    assert "does not say shape, dtype and blocks" in finding["message"]

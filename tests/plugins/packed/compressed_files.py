"""A small Llama packed by compressed-tensors itself, scheme by scheme: ``python compressed_files.py DIRECTORY``. Beside each
stands what that library computes with (``fake_quantize``; ``NAME.safetensors``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.quantization.utils.helpers import generate_gparam
from safetensors.torch import save_file

PRESETS = (
    "W2A16", "W3A16", "W4A16", "W4A16_ASYM", "W5A16", "W6A16", "W7A16", "W8A16", "W4A8", "W8A8", "FP8", "FP8_DYNAMIC", "NVFP4",
    "NVFP4A16", "MXFP4", "MXFP6A16", "MXFP8A16",
)  # fmt: skip


def scheme(targets: list[str], **weights: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=targets, weights=QuantizationArgs(**weights))


OWN = {
    "block": {"group_0": scheme(["Linear"], num_bits=8, type="float", strategy="block", block_structure=[64, 64])},
    "channel": {"group_0": scheme(["Linear"], num_bits=4, strategy="channel", symmetric=False)},
    "mixed": {
        "group_0": scheme(["re:.*down_proj"], num_bits=8, strategy="channel"),
        "group_1": scheme(["re:.*(up|gate)_proj", "re:.*[qkvo]_proj"], num_bits=4, strategy="group", group_size=64),
    },
}


def ranges(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest of all that share a scale."""
    rows, columns = weight.shape
    match str(getattr(args.strategy, "value", args.strategy)):
        case "tensor":
            return weight.amin().reshape(1), weight.amax().reshape(1)
        case "channel":
            return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        case "block":
            high, wide = args.block_structure
            parts = weight.reshape(rows // high, high, columns // wide, wide)
            return parts.amin((1, 3)), parts.amax((1, 3))
    parts = weight.reshape(rows, -1, args.group_size)
    return parts.amin(2), parts.amax(2)


def write(root: Path, name: str, groups: dict[str, QuantizationScheme]) -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    meant = {}
    for module_name, module in model.named_modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        given = {}
        if hasattr(module, "weight_global_scale"):
            given["global_scale"] = generate_gparam(module.weight.data.amin(), module.weight.data.amax()).reshape(1)
            module.weight_global_scale.data = given["global_scale"].to(module.weight_global_scale.dtype)
        for part, value in zip(
            ("scale", "zero_point"), calculate_qparams(*ranges(module.weight.data.float(), args), args, **given), strict=True
        ):
            old = getattr(module, f"weight_{part}", None)
            if old is not None:
                old.data = value.reshape(old.shape).to(old.dtype)
        zero = getattr(module, "weight_zero_point", None)
        meant[f"{module_name}.weight"] = fake_quantize(module.weight.data, module.weight_scale, zero, args, **given).contiguous()
    meant |= {
        key: tensor.clone()
        for key, tensor in model.state_dict().items()
        if key in ("lm_head.weight", "model.embed_tokens.weight")
    }
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    directory = root / name
    directory.mkdir()
    save_file({key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}, directory / "model.safetensors")
    model.config.save_pretrained(directory)
    compressor.update_config(str(directory))
    save_file(meant, root / f"{name}.safetensors")


def main(root: Path) -> None:
    for name in PRESETS:
        write(root, name, {"group_0": preset_name_to_scheme(name, ["Linear"])})
    for name, groups in OWN.items():
        write(root, name, groups)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

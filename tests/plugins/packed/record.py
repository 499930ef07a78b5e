"""What libraries that are no test dependencies pack, recorded once: ``python record.py DIRECTORY LIBRARY...``.

Each file holds one module as its library wrote it. Its metadata says how the directory's configuration calls the method, what
people call the precision, and the dtype and SHA-256 of the weight as the library itself dequantizes it (or, where that takes a
GPU, as the numbers were that it was given to pack). The libraries run on the CPU, without their kernels.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

MODULE = "model.layers.0.mlp.up_proj"


class Case(NamedTuple):
    """``parts`` of the module as stored, what ``quantization_config`` says, the ``label``, the weight that is meant, which is
    called ``whole``, and ``texts`` that its library keeps beside the tensors."""

    name: str
    parts: dict[str, torch.Tensor]
    said: dict[str, Any]
    label: str
    wanted: torch.Tensor
    whole: str = "weight"
    texts: dict[str, str] = {}  # noqa: RUF012 - of a tuple


def linear(columns: int, rows: int, dtype: torch.dtype = torch.float16) -> torch.nn.Linear:
    torch.manual_seed(columns + rows)
    return torch.nn.Linear(columns, rows, bias=True).to(dtype)


def affine(
    weight: torch.Tensor, bits: int, group: int, *, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers (N, K), zero points (N, G) and scales (N, G) by rounding to nearest."""
    top = (1 << bits) - 1
    parts = weight.float().reshape(len(weight), -1, group)
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / top).half()
    zeros = torch.full_like(low, (top + 1) // 2) if symmetric else torch.round(-low / scales.float()).clamp(1, top)
    numbers = torch.clamp(torch.round(parts / scales.float()[..., None]) + zeros[..., None], 0, top)
    return numbers, zeros, scales


def meant(numbers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return ((numbers - zeros[..., None]) * scales.float()[..., None]).reshape(len(numbers), -1).half()


def gptqmodel() -> Iterator[Case]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import FORMAT

    for bits, group, acts in ((3, 32, False), (5, 32, True), (6, -1, False), (7, 64, True)):
        given = linear(128, 64)
        numbers, zeros, scales = affine(given.weight.data, bits, group if group > 0 else 128)
        index = torch.arange(128) // (group if group > 0 else 128)
        given.weight.data = meant(numbers, zeros, scales)
        if acts:  # columns in another order, each with its group
            order = torch.randperm(128)
            index, given.weight.data = index[order], given.weight.data[:, order]
        made = TorchLinear(
            bits=bits, group_size=group, sym=False, desc_act=acts, in_features=128, out_features=64, bias=True,
            format=FORMAT.GPTQ_P, register_buffers=True,
        )  # fmt: skip
        made.pack_block(given, scales.float(), zeros, index.to(torch.int32))
        parts = {name: part.clone() for name, part in made.state_dict().items()}
        made.post_init()
        said = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": acts, "checkpoint_format": "gptq_p"}
        label = f"GPTQ-INT{bits}" + (f" g{group}" if group > 0 else "")
        yield Case(f"gptq_p-{bits}", parts, said, label, made.dequantize_weight().T)


def autoawq() -> Iterator[Case]:
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.modules.linear.gemv_fast import WQLinear_GEMVFast

    for version, group, kind in (
        ("gemv", 64, WQLinear_GEMV),
        ("gemv", 128, WQLinear_GEMV),
        ("gemv_fast", 64, WQLinear_GEMVFast),
        ("llm-awq", 128, WQLinear_GEMVFast),
    ):
        given = linear(256, 24)
        numbers, zeros, scales = affine(given.weight.data, 4, group)
        given.weight.data = meant(numbers, zeros, scales)
        parts = kind.from_linear(given, 4, group, False, scales, zeros.half()).state_dict()
        wanted = given.weight.data
        if kind is WQLinear_GEMVFast:  # adds what it stores of scale x zero point
            shift = (-(scales.float() * zeros)).half().float()
            wanted = (numbers * scales.float()[..., None] + shift[..., None]).reshape(24, 256).half()
        if version == "llm-awq":
            parts["scaled_zeros"] = parts.pop("qzeros")
        said = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version, "zero_point": True}
        yield Case(f"awq-{version}-{group}", parts, said, f"AWQ-INT4 g{group}", wanted)


def autogptq() -> Iterator[Case]:
    from auto_gptq.nn_modules.qlinear.qlinear_marlin import QuantLinear

    for group, flag in ((128, {"checkpoint_format": "marlin"}), (256, {"is_marlin_format": True})):
        given = linear(256, 256)
        numbers, zeros, scales = affine(given.weight.data, 4, group, symmetric=True)
        given.weight.data = meant(numbers, zeros, scales)
        made = QuantLinear(4, group, 256, 256, True)
        made.pack(given, scales)
        size = group if group == 128 else -1
        said = {"quant_method": "gptq", "bits": 4, "group_size": size, **flag}
        yield Case(f"marlin-{size}", made.state_dict(), said, "GPTQ-INT4" + (" g128" if size > 0 else ""), given.weight.data)


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    parts = weight.reshape(-1, 4)
    kept = torch.zeros_like(parts, dtype=torch.bool).scatter_(1, parts.abs().topk(2, 1).indices, True)
    return (parts * kept).reshape(weight.shape)


def compressed_tensors() -> Iterator[Case]:
    """Of version 0.11: later ones neither write nor read these layouts."""
    from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor
    from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskTensor
    from compressed_tensors.compressors.sparse_quantized_compressors.marlin_24 import Marlin24Compressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    for bits, group in ((4, 128), (8, None)):
        weight = two_of_four(linear(512, 64).weight.data)
        args = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group" if group else "channel", group_size=group)
        top = weight.float().reshape(64, -1, group or 512).abs().amax(2)
        scale = (top / ((1 << (bits - 1)) - 0.5)).half()
        zero = torch.zeros_like(scale, dtype=torch.int8)
        given = {"m.weight": weight, "m.weight_scale": scale, "m.weight_zero_point": zero}
        made = Marlin24Compressor().compress(given, {"m": QuantizationScheme(targets=["Linear"], weights=args)})
        groups = {"group_0": {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}}
        said = {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": groups}
        wanted = (
            dequantize(quantize(x=weight, scale=scale, zero_point=zero, args=args), scale, zero, args).half() + 0
        )  # integers have no -0
        parts = {name.removeprefix("m."): part for name, part in made.items()}
        yield Case(f"marlin-24-{bits}", parts, said, f"INT{bits}" + (f" g{group}" if group else ""), wanted)
    for kind in ("sparse-24-bitmask", "sparse-bitmask"):
        weight = linear(100, 24, torch.bfloat16).weight.data
        weight = two_of_four(weight) if "24" in kind else weight * (torch.rand(weight.shape) < 0.3)
        made = (Sparse24BitMaskTensor if "24" in kind else BitmaskTensor).from_dense(weight)
        parts = {name.rpartition(".")[2]: part for name, part in made.dict("m.weight").items()}
        said = {"quant_method": "compressed-tensors", "sparsity_config": {"format": kind}}
        yield Case(kind, parts, said, "BF16", made.decompress())
    weight = two_of_four(linear(128, 24, torch.bfloat16).weight.data).float()
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    numbers = (weight / scale.float()).to(torch.float8_e4m3fn)
    made = Sparse24BitMaskTensor.from_dense(numbers)
    parts = {name.rpartition(".")[2]: part for name, part in made.dict("m.weight").items()}
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}
    said = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}, "config_groups": groups}
    wanted = (made.decompress().float() * scale.float()).bfloat16()
    yield Case("sparse-24-fp8", {**parts, "weight_scale": scale}, said, "FP8", wanted)


def hqq() -> Iterator[Case]:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, group, axis, dtype, floats in (
        (8, 64, 1, torch.float16, False), (4, 64, 1, torch.bfloat16, False), (4, 32, 0, torch.float16, False),
        (3, 64, 1, torch.float16, False), (3, 24, 0, torch.bfloat16, False), (2, 16, 1, torch.bfloat16, False),
        (1, 64, 0, torch.float32, False), (4, 64, 1, torch.float16, True), (4, None, 1, torch.float16, False),
    ):  # fmt: skip
        settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis, view_as_float=floats)
        made = HQQLinear(linear(96, 32, dtype), json.loads(json.dumps(settings)), compute_dtype=dtype, device="cpu")
        parts = {name: part for name, part in made.state_dict().items() if part is not None}
        name = f"hqq-{bits}-{group}-axis{axis}" + ("-floats" if floats else "")
        label = f"HQQ-INT{bits}" + (f" g{group}" if group else "")
        yield Case(name, parts, {"quant_method": "hqq", "quant_config": settings}, label, made.dequantize())


def autoround() -> Iterator[Case]:
    from auto_round_extension.torch.qlinear_torch import QuantLinear
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as QuantLinearZP

    for bits, group, packing in (
        (2, 32, "auto_round"), (3, 64, "auto_round"), (4, 64, "auto_round:auto_gptq"), (4, 32, "auto_round:gptqmodel"),
        (5, 64, "auto_round"), (6, 32, "auto_round:auto_gptq"), (7, 128, "auto_round"), (8, 128, "auto_round"),
    ):  # fmt: skip
        given = linear(128, 64)
        numbers, zeros, scales = affine(given.weight.data, bits, group)
        given.weight.data = meant(numbers, zeros, scales)
        made = (QuantLinearZP if packing.endswith("auto_gptq") else QuantLinear)(bits, group, 128, 64, True)
        made.device = "cpu"
        made.pack(given, scales, zeros, None, device="cpu")
        parts = {name: part for name, part in made.state_dict().items() if name != "g_idx"}
        made.bias = None
        wanted = made(torch.eye(128).half()).half().T
        said = {"quant_method": "auto-round", "bits": bits, "group_size": group, "packing_format": packing, "sym": False}
        name = f"autoround-{bits}-{packing.rpartition(':')[2]}"
        yield Case(name, parts, said, f"AUTOROUND-INT{bits} g{group}", wanted)


def transformers() -> Iterator[Case]:
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    for kind in ("bitlinear", "autobitlinear"):
        given = linear(64, 32, torch.bfloat16)
        scale = given.weight.data.abs().mean().reshape(1)
        packed = pack_weights((given.weight.data / scale).round().clamp(-1, 1).to(torch.int8))
        numbers = unpack_weights(packed, torch.bfloat16)
        parts = {"weight": packed, "weight_scale": scale if "auto" in kind else 1 / scale}
        said = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline"}
        wanted = numbers * parts["weight_scale"] if "auto" in kind else numbers / parts["weight_scale"]
        yield Case(kind, parts, said, "BITNET", wanted)
    yield from transformers_fp8()
    yield from transformers_gemma()


def transformers_gemma() -> Iterator[Case]:
    from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

    torch.manual_seed(6)
    said = {"quant_method": "gemma", "num_bits": 4, "module_quant_configs": {r"layers\.\d+\.self_attn": {"num_bits": 2}}}
    for bits in (2, 4, 8):
        made = QuantizedLinear(128, 24, num_bits=bits)
        kind = torch.int8 if bits == 8 else torch.uint8
        made.weight.data = torch.randint(-128 if bits == 8 else 0, 128 if bits == 8 else 256, made.weight.shape).to(kind)
        made.weight_scale.data = torch.rand(24, 1)
        own = {**said["module_quant_configs"], "mlp": {"num_bits": bits}}
        settings = {**said, "module_quant_configs": own}
        wanted = made._dequantize_weights(torch.bfloat16)
        yield Case(f"gemma-{bits}", dict(made.state_dict()), settings, "GEMMA-INT4", wanted)
    table = QuantizedEmbedding(40, 64, torch.bfloat16, num_bits=4)
    table.embedding_quantized.data = torch.randint(0, 256, table.embedding_quantized.shape).to(torch.uint8)
    table.embedding_scale.data = torch.rand(40, 2)
    yield Case("gemma-embedding", dict(table.state_dict()), said, "GEMMA-INT4", table.weight)


def transformers_fp8() -> Iterator[Case]:
    """Under the names that makers give scales, in the grids that these have; dequantized as it is loaded."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    computed = Fp8Dequantize(None)._dequantize_one
    torch.manual_seed(5)
    weight, blocks = torch.randn(96, 128), torch.rand(3, 2) + 0.5
    e5m2, e4m3 = weight.to(torch.float8_e5m2), weight.to(torch.float8_e4m3fn)
    grid = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    parts = {"weight": e5m2, "weight_scale_inv": blocks}
    yield Case("fp8-e5m2", parts, grid, "FP8", computed(e5m2, blocks, torch.bfloat16))
    powers = torch.randint(120, 130, (96, 4), dtype=torch.uint8)
    packed = torch.randint(-128, 128, (96, 64), dtype=torch.int8)
    parts = {"weight": packed, "scale": powers.view(torch.float8_e8m0fnu)}
    yield Case("fp8-experts-of-fp4", parts, grid, "FP8", computed(packed, parts["scale"], torch.bfloat16))
    parts = {"weight": e4m3, "weight_scale_inv": powers}
    said = {"quant_method": "mxfp8", "scale_fmt": "ue8m0", "weight_block_size": [1, 32]}
    yield Case("mxfp8", parts, said, "MXFP8", computed(e4m3, powers, torch.bfloat16))
    one = torch.tensor(0.37)
    parts = {"weight": e4m3, "qscale_weight": one, "qscale_act": torch.tensor(2.0)}
    yield Case("fp8-qscale", parts, {"quant_method": "fp8"}, "FP8", computed(e4m3, one, torch.bfloat16))
    experts, scales = torch.randn(2, 96, 128).to(torch.float8_e4m3fn), torch.rand(2, 3, 2) + 0.5
    parts = {"gate_up_proj": experts, "gate_up_proj_scale_inv": scales}
    yield Case("fp8-fused", parts, grid, "FP8", computed(experts, scales, torch.bfloat16), "gate_up_proj")
    scales = torch.rand(2, 1, 128) + 0.5
    parts = {"down_proj": experts, "down_proj_scale": scales}
    wanted = (experts.float() * scales).bfloat16()
    yield Case("fp8-fused-columns", parts, {"quant_method": "fbgemm_fp8"}, "FP8", wanted, "down_proj")


def torchao() -> Iterator[Case]:
    from torchao.core.config import config_to_dict
    from torchao.prototype.mx_formats.inference_workflow import MXDynamicActivationMXWeightConfig, NVFP4WeightOnlyConfig
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    small = {"activation_dtype": torch.float4_e2m1fn_x2, "weight_dtype": torch.float4_e2m1fn_x2}
    for name, label, config in (
        ("nvfp4", "NVFP4", NVFP4WeightOnlyConfig()),
        ("mxfp8", "MXFP8", MXDynamicActivationMXWeightConfig()),
        ("mxfp4", "MXFP4", MXDynamicActivationMXWeightConfig(**small)),
        ("e5m2", "FP8", Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2)),
    ):
        model = torch.nn.Sequential(linear(96, 144, torch.bfloat16))
        quantize_(model, config)
        state = {f"{MODULE}.{key.removeprefix('0.')}": tensor for key, tensor in model.state_dict().items()}
        flat, texts = flatten_tensor_state_dict(state)
        parts = {key.removeprefix(f"{MODULE}."): tensor for key, tensor in flat.items()}
        said = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(config)}}
        wanted = state[f"{MODULE}.weight"].dequantize()
        yield Case(f"torchao-{name}", parts, said, f"TORCHAO-{label}", wanted, texts=texts)


def quark() -> Iterator[Case]:
    from quark.torch.utils.pack import create_pack_method

    for kind, reorder in (("uint4", True), ("uint4", False), ("int4", True)):
        numbers, zeros, scales = affine(linear(128, 24).weight.data, 4, 32)
        wanted = meant(numbers, zeros, scales)
        if kind == "int4":
            numbers, zeros = numbers - 8, zeros - 8
        packer = create_pack_method("per_group", kind)
        parts = {
            "weight": packer.pack(numbers.reshape(24, 128).to(torch.int32), reorder),
            "weight_scale": scales.T,
            "weight_zero_point": packer.pack(zeros.to(torch.int32), reorder),
        }
        weight = {"dtype": kind, "qscheme": "per_group", "group_size": 32, "ch_axis": 1}
        method = "reorder" if reorder else "order"
        said = {"quant_method": "quark", "global_quant_config": {"weight": weight}, "export": {"pack_method": method}}
        assert torch.equal(packer.unpack(parts["weight"], reorder).float(), numbers.reshape(24, 128).float())
        yield Case(f"quark-{kind}-{method}", parts, said, "QUARK-INT4 g32", wanted)
    weight = torch.randn(32, 64)
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[torch.randint(0, 8, (32, 64))] * weight.sign()
    powers = torch.randint(120, 130, (32, 2), dtype=torch.uint8)
    parts = {"weight": create_pack_method("per_group", "fp4").pack(numbers, False), "weight_scale": powers}
    weight = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
    said = {"quant_method": "quark", "global_quant_config": {"weight": weight}}
    wanted = (numbers.reshape(32, 2, 32) * torch.exp2(powers.float() - 127)[..., None]).reshape(32, 64).bfloat16()
    yield Case("quark-fp4", parts, said, "QUARK-FP4", wanted)


def quanto() -> Iterator[Case]:
    from optimum.quanto import freeze, qfloat8_e4m3fn, qint8, quantize

    for kind, label in ((qint8, "INT8"), (qfloat8_e4m3fn, "FP8")):
        model = torch.nn.Sequential(linear(96, 24))
        quantize(model, weights=kind)
        freeze(model)
        parts = {key.removeprefix("0."): tensor for key, tensor in model.state_dict().items()}
        said = {"quant_method": "quanto", MODULE: {"weights": kind.name, "activations": "none"}}
        yield Case(f"quanto-{kind.name}", parts, said, f"QUANTO-{label}", model[0].weight.dequantize())


LIBRARIES: dict[str, Callable[[], Iterator[Case]]] = {
    "gptqmodel": gptqmodel, "autoawq": autoawq, "autogptq": autogptq, "compressed_tensors": compressed_tensors, "hqq": hqq,
    "autoround": autoround, "transformers": transformers, "torchao": torchao, "quark": quark,
    "quanto": quanto,
}  # fmt: skip


def digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def write(directory: Path, case: Case) -> None:
    said = {
        "quantization_config": json.dumps(case.said), "label": case.label, "whole": case.whole, "dtype": str(case.wanted.dtype),
        "shape": json.dumps(list(case.wanted.shape)), "sha256": digest(case.wanted),
    }  # fmt: skip
    parts = {f"{MODULE}.{name}": part.detach().contiguous().clone() for name, part in case.parts.items()}
    save_file(parts, directory / f"{case.name}.safetensors", {**case.texts, **said})


if __name__ == "__main__":
    for library in sys.argv[2:]:
        for found in LIBRARIES[library]():
            write(Path(sys.argv[1]), found)
            print(found.name, found.label, found.wanted.dtype, sep="\t")

"""GPTQ, AWQ and MLX: packed here by the steps that their authors published, one number at a time, and put together by modelhub.

The packers below keep the numbers, zero points and scales that they packed: what they stand for is known without unpacking.

GPTQModel needs more than tests should install. Run once beside it (7.7.0, on the CPU): what it wrote was read bit for bit as it
dequantizes it (2, 3, 4 and 8 bits, ``desc_act`` without symmetry, ``gptq_v2``, ``dynamic`` with modules of 8 bits and left out, a
packed ``lm_head``; AWQ gemm), and it opened what ``gptq-int4`` and ``gptq-int8`` wrote, with weights equal to those that modelhub
reads.
"""

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

Arrays = dict[str, np.ndarray[Any, Any]]


def quantize(weight: torch.Tensor, bits: int, groups: np.ndarray[Any, Any], symmetric: bool) -> tuple[Any, Any, Any]:
    """Round to nearest: numbers (K, N), zero points (G, N), scales (G, N) of F16. ``groups``: of each input column."""
    values = weight.float().numpy().T  # (K, N)
    top = (1 << bits) - 1
    count = int(groups.max()) + 1
    scales = np.zeros((count, values.shape[1]), np.float16)
    zeros = np.zeros((count, values.shape[1]), np.int64)
    numbers = np.zeros(values.shape, np.int64)
    for group in range(count):
        part = values[groups == group]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[group] = ((high - low) / top).astype(np.float16)
        zero = np.full_like(low, (top + 1) // 2) if symmetric else np.round(-low / scales[group].astype(np.float32))
        zeros[group] = zero.clip(1, top)  # the first layout has no room for 0
        numbers[groups == group] = np.clip(np.round(part / scales[group].astype(np.float32)) + zeros[group], 0, top)
    return numbers, zeros, scales


def meant(numbers: Any, zeros: Any, scales: Any, groups: Any) -> np.ndarray[Any, Any]:
    """scale x (number - zero), in F16 as the libraries compute it: (N, K)."""
    return ((numbers - zeros[groups]).astype(np.float16) * scales[groups]).T.astype(np.float32)


def bits_down(numbers: Any, bits: int) -> np.ndarray[Any, Any]:
    """(K, N) numbers as (K x bits / 32, N) words, the lowest bits first, bit by bit."""
    stream = np.stack([numbers >> bit & 1 for bit in range(bits)], 1).reshape(-1, 32, numbers.shape[1])
    return (stream.astype(np.uint64) << np.arange(32, dtype=np.uint64)[None, :, None]).sum(1).astype(np.uint32).view(np.int32)


def gptq(wanted: Arrays, bits: int, size: int, *, act_order: bool = False, symmetric: bool = True, version: int = 1) -> Any:
    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        inner = weight.shape[1]
        groups = np.arange(inner) // (size if size > 0 else inner)
        if act_order:
            groups = np.random.default_rng(len(module)).permutation(groups)
        numbers, zeros, scales = quantize(weight, bits, groups, symmetric)
        wanted[f"{module}.weight"] = meant(numbers, zeros, scales, groups)
        return {
            "qweight": torch.from_numpy(bits_down(numbers, bits)),
            "qzeros": torch.from_numpy(bits_down((zeros - (2 - version)).T, bits).T.copy()),
            "scales": torch.from_numpy(scales),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
        }

    return how


def awq(wanted: Arrays, size: int) -> Any:
    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        groups = np.arange(weight.shape[1]) // size
        numbers, zeros, scales = quantize(weight, 4, groups, False)
        wanted[f"{module}.weight"] = meant(numbers, zeros, scales, groups)

        def across(rows: Any) -> torch.Tensor:
            words = np.zeros((len(rows), rows.shape[1] // 8), np.uint32)
            for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words |= rows[:, column::8].astype(np.uint32) << np.uint32(4 * place)
            return torch.from_numpy(words.view(np.int32))

        return {"qweight": across(numbers), "qzeros": across(zeros), "scales": torch.from_numpy(scales)}

    return how


def mlx(wanted: Arrays, bits: int, size: int) -> Any:
    def how(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        values = weight.float().numpy()
        parts = values.reshape(len(values), -1, size)
        low, high = parts.min(2), parts.max(2)
        scales = ((high - low) / ((1 << bits) - 1)).astype(np.float16)
        biases = low.astype(np.float16)
        numbers = np.round((parts - biases[..., None]) / scales[..., None].astype(np.float32))
        numbers = numbers.clip(0, (1 << bits) - 1).astype(np.int64)
        exact = numbers * scales.astype(np.float64)[..., None] + biases.astype(np.float64)[..., None]
        wanted[f"{module}.weight"] = exact.astype(np.float16).astype(np.float32).reshape(values.shape)
        words = bits_down(numbers.reshape(values.shape).T, bits).T.copy()
        return {
            "weight": torch.from_numpy(words.view(np.uint32)),
            "scales": torch.from_numpy(scales),
            "biases": torch.from_numpy(biases),
        }

    return how


CASES: dict[str, tuple[Callable[[Arrays], Any], dict[str, Any], str, str]] = {
    "gptq-4": (lambda wanted: gptq(wanted, 4, 64), {"quant_method": "gptq", "bits": 4, "group_size": 64}, "", "GPTQ-INT4 g64"),
    "gptq-8": (lambda wanted: gptq(wanted, 8, -1), {"quant_method": "gptq", "bits": 8, "group_size": -1}, "", "GPTQ-INT8"),
    "gptq-3": (
        lambda wanted: gptq(wanted, 3, 32, symmetric=False),
        {"quant_method": "gptq", "bits": 3, "group_size": 32},
        "",
        "GPTQ-INT3 g32",
    ),
    "gptq-2-v2": (
        lambda wanted: gptq(wanted, 2, 32, symmetric=False, version=2),
        {"quant_method": "gptq", "bits": 2, "group_size": 32, "checkpoint_format": "gptq_v2"},
        "",
        "GPTQ-INT2 g32",
    ),
    "gptq-act-order": (
        lambda wanted: gptq(wanted, 4, 32, act_order=True, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        "",
        "GPTQ-INT4 g32",
    ),
    "awq": (
        lambda wanted: awq(wanted, 64),
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        "",
        "AWQ-INT4 g64",
    ),
    "mlx-4": (lambda wanted: mlx(wanted, 4, 64), {"bits": 4, "group_size": 64}, "quantization", "MLX-INT4 g64"),
    "mlx-6": (lambda wanted: mlx(wanted, 6, 32), {"bits": 6, "group_size": 32}, "quantization", "MLX-INT6 g32"),
    "mlx-3": (lambda wanted: mlx(wanted, 3, 32), {"bits": 3, "group_size": 32}, "quantization", "MLX-INT3 g32"),
}


def prepared(directory: Path, name: str) -> tuple[Any, Arrays]:
    """The model and what its packed weights stand for."""
    how, said, key, _ = CASES[name]
    model = llama(directory)
    wanted: Arrays = {}
    pack(directory, model, how(wanted), said, key or "quantization_config")
    return model, wanted


@pytest.mark.parametrize("name", CASES)
def test_packed_words_are_the_weights_that_they_stand_for(name: str, tmp_path: Path, modelhub) -> None:
    model, wanted = prepared(tmp_path / "llama", name)
    shown = modelhub("show", tmp_path / "llama", "--json").json
    assert (shown["state"], shown["precision"]) == ("ready", CASES[name][3])
    assert shown["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert not [finding for finding in shown["findings"] if finding["check"] == "packed"]

    modelhub("convert", tmp_path / "llama", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    found = tensors_of(tmp_path / "plain.safetensors")
    assert set(found) == set(model.state_dict())
    for tensor, values in wanted.items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)


@pytest.mark.parametrize("name", ["gptq-act-order", "mlx-4"])
def test_a_plain_directory_opens_in_transformers(name: str, tmp_path: Path, modelhub) -> None:
    import transformers

    _, wanted = prepared(tmp_path / "llama", name)
    modelhub("convert", tmp_path / "llama", "--to", "huggingface", "-o", tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert not {"quantization_config", "quantization"} & set(config)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert loaded.dtype == torch.float16
    state = loaded.state_dict()
    assert all(np.array_equal(state[tensor].float().numpy(), values) for tensor, values in wanted.items())


@pytest.mark.parametrize("name", ["gptq-4", "awq"])
def test_straight_into_gguf(name: str, tmp_path: Path, modelhub) -> None:
    """The blocks are those of the plain model: what the weights stand for is all that counts."""
    prepared(tmp_path / "llama", name)
    modelhub("convert", tmp_path / "llama", "--to", "huggingface", "-o", tmp_path / "plain")
    for source in ("llama", "plain"):
        modelhub("convert", tmp_path / source, "--to", "gguf:q8_0", "-o", tmp_path / f"{source}.gguf")
    assert modelhub("diff", tmp_path / "llama.gguf", tmp_path / "plain.gguf", "--json").json["equal"]


def one_matrix(directory: Path, columns: int, rows: int, bits: int, size: int, *, index: bool, said: int | None = None) -> Any:
    """A directory with one GPTQ matrix of (columns, rows), and what it stands for."""
    directory.mkdir()
    wanted: Arrays = {}
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((columns, rows)).astype(np.float32))
    parts = gptq(wanted, bits, size, symmetric=False)("lm_head", weight)
    kept = {f"lm_head.{name}": tensor.contiguous() for name, tensor in parts.items() if index or name != "g_idx"}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    config = {"quant_method": "gptq", "bits": said or bits, "group_size": size}
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return wanted["lm_head.weight"]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    ("columns", "rows", "bits", "size"), [(8, 64, 4, 32), (16, 64, 4, 32), (32, 96, 3, 32), (32, 128, 4, 96)]
)
def test_narrow_matrices_and_a_short_last_group(
    columns: int, rows: int, bits: int, size: int, index: bool, tmp_path: Path, modelhub
) -> None:
    """What the settings say decides where shapes fit several numbers of bits, or do not tell the size of a group."""
    wanted = one_matrix(tmp_path / "m", columns, rows, bits, size, index=index)
    modelhub("convert", tmp_path / "m", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    np.testing.assert_array_equal(tensors_of(tmp_path / "plain.safetensors")["lm_head.weight"], wanted)


def test_a_module_with_bits_of_its_own(tmp_path: Path, modelhub) -> None:
    wanted = one_matrix(tmp_path / "m", 64, 64, 8, 32, index=True, said=4)
    modelhub("convert", tmp_path / "m", "--to", "safetensors", "-o", tmp_path / "plain.safetensors")
    np.testing.assert_array_equal(tensors_of(tmp_path / "plain.safetensors")["lm_head.weight"], wanted)


def test_groups_that_nothing_tells(tmp_path: Path, modelhub) -> None:
    one_matrix(tmp_path / "m", 32, 128, 4, 96, index=False)
    config = json.loads((tmp_path / "m/config.json").read_text())
    del config["quantization_config"]["group_size"]
    config["quantization_config"]["bits"] = 4
    # Two groups of 128 columns would be taken for 64 each: with three they divide nothing evenly.
    tensors = load_file(tmp_path / "m/model.safetensors")
    for part in ("qzeros", "scales"):
        tensors[f"lm_head.{part}"] = torch.cat([tensors[f"lm_head.{part}"], tensors[f"lm_head.{part}"][:1]])
    save_file(tensors, tmp_path / "m/model.safetensors", {"format": "pt"})
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    shown = modelhub("show", tmp_path / "m", "--json").json
    (finding,) = [finding for finding in shown["findings"] if finding["check"] == "packed"]
    assert "3 groups of 128 columns do not fit" in finding["message"]


def broken(directory: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str = "gptq-4") -> None:
    prepared(directory, name)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


MODULE = "model.layers.0.mlp.up_proj"


def test_what_does_not_fit_stays_packed_and_says_why(tmp_path: Path, modelhub) -> None:
    broken(tmp_path / "llama", lambda tensors: tensors.pop(f"{MODULE}.qzeros"))
    shown = modelhub("show", tmp_path / "llama", "--json").json
    (finding,) = [finding for finding in shown["findings"] if finding["check"] == "packed"]
    assert finding["tensor"] == f"{MODULE}.qweight"
    assert f"there is no {MODULE}.qzeros" in finding["message"]
    refused = modelhub("convert", tmp_path / "llama", "--to", "gguf:f16", "-o", tmp_path / "x.gguf", status=3)
    assert "stays packed" in refused.stderr


def test_a_group_that_is_not_there(tmp_path: Path, modelhub) -> None:
    broken(tmp_path / "llama", lambda tensors: tensors[f"{MODULE}.g_idx"].__setitem__(5, 99))
    refused = modelhub("convert", tmp_path / "llama", "--to", "safetensors", "-o", tmp_path / "x.safetensors", status=3)
    assert "g_idx names group 99, there are 2 groups" in refused.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_a_layout_that_is_not_read_is_named(tmp_path: Path, modelhub) -> None:
    prepared(tmp_path / "llama", "gptq-4")
    config = json.loads((tmp_path / "llama/config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "bitblas"
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    shown = modelhub("show", tmp_path / "llama", "--json").json
    assert any("'bitblas' is not read" in finding["message"] for finding in shown["findings"])


LAYOUTS = {
    "awq gemv": ("awq", {"version": "gemv"}, ("qweight", "qzeros", "scales"), "qweight", "scales is I32, expected F16"),
    "awq marlin": ("awq", {"version": "marlin"}, ("qweight", "qzeros", "scales"), "qweight", "'marlin' is not read"),
    "marlin": ("gptq", {"checkpoint_format": "marlin"}, ("B", "s", "workspace"), "B", "s is I32, expected F16"),
    "bitblas": ("gptq", {"checkpoint_format": "bitblas"}, ("qweight", "scales"), "qweight", "'bitblas' is not read"),
    "marlin-24": (
        "compressed-tensors", {"format": "marlin-24"}, ("weight_packed", "scale_packed", "meta"), "weight_packed",
        "scale_packed is I32, expected F16",
    ),
    "sparse": (
        "compressed-tensors", {"format": "dense"}, ("compressed", "bitmask", "row_offsets"), "compressed",
        "compressed is I32, expected F16",
    ),
    "hqq": ("hqq", {}, ("W_q", "scale", "zero"), "W_q", "scale is I32, expected F16"),
    "exl2": ("exl2", {}, ("q_weight", "q_scale"), "q_scale", "weights that exl2 quantized are not put together"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_read_is_named_and_refused(name: str, tmp_path: Path, modelhub) -> None:
    method, settings, parts, first, words = LAYOUTS[name]
    prepared(tmp_path / "llama", "gptq-4")
    path = tmp_path / "llama/model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(path).items() if MODULE not in key and "_proj" not in key}
    tensors.update({f"{MODULE}.{part}": torch.zeros(16, 32, dtype=torch.int32) for part in parts})
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((tmp_path / "llama/config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128, **settings}
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    (finding,) = modelhub("show", tmp_path / "llama", "--json").json["findings"]
    assert (finding["check"], finding.get("tensor", "")) == ("packed", f"{MODULE}.{first}" if first else "")
    assert words in finding["message"]
    refused = modelhub("convert", tmp_path / "llama", "--to", "gguf:f16", "-o", tmp_path / "x.gguf", status=3)
    assert MODULE in refused.stderr
    assert not (tmp_path / "x.gguf").exists()

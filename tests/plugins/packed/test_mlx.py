"""What MLX itself packed, read: every number of bits and mode, settings of single modules, experts in one tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelhub.engine import read_tensor
from safetensors.torch import load_file, save_file

from tests.made import made_once
from tests.plugins.pytorch_files import NAMES, look

LABELS = {
    **{f"affine-{bits}": f"MLX-INT{bits} g64" for bits in (2, 3, 4, 5, 6, 8)},
    **{f"groups-{size}": f"MLX-INT4 g{size}" for size in (32, 128)},
    "float16": "MLX-INT4 g64",
    "float32": "MLX-INT4 g64",
    "own": "MLX-INT4 g64",
    **{mode: f"MLX-{mode.upper()}" for mode in ("mxfp4", "nvfp4", "mxfp8")},
}


@pytest.fixture(scope="session")
def packed() -> Path:
    pytest.importorskip("mlx.core", exc_type=ImportError)
    return made_once(Path(__file__).parent / "mlx_files.py", "mlx")


@pytest.mark.parametrize("name", LABELS)
def test_weights_are_what_mlx_means(packed: Path, name: str) -> None:
    meant = load_file(packed / f"{name}.safetensors")
    found = look(packed / name)
    assert (found.state, found.precision, found.findings) == ("ready", LABELS[name], ())
    assert found.parameters == sum(tensor.numel() for tensor in meant.values())
    got = found.load_table().by_name
    assert set(got) == set(meant)
    for key, values in meant.items():
        assert (NAMES[values.dtype], tuple(values.shape)) == (got[key].dtype, got[key].shape)
        found_values = torch.frombuffer(bytearray(read_tensor(got[key])), dtype=values.dtype).reshape(values.shape)
        assert torch.equal(found_values, values), key


def test_a_plain_directory_says_nothing_of_packing(packed: Path, tmp_path: Path, modelhub: Any) -> None:
    modelhub("convert", packed / "own", "--to", "huggingface", "-o", tmp_path / "plain")
    got, meant = load_file(tmp_path / "plain" / "model.safetensors"), load_file(packed / "own.safetensors")
    assert all(torch.equal(got[key], values) for key, values in meant.items())
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & set(config)


def test_scales_that_do_not_fit_leave_the_module_packed(packed: Path, tmp_path: Path, modelhub: Any) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text((packed / "mxfp4" / "config.json").read_text())
    tensors = load_file(packed / "mxfp4" / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.scales"] = tensors["model.layers.0.self_attn.q_proj.scales"][:, :3].contiguous()
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    (finding,) = modelhub("show", tmp_path / "m", "--json").json["findings"]
    assert finding["tensor"] == "model.layers.0.self_attn.q_proj.weight"
    assert "no groups of 32" in finding["message"]

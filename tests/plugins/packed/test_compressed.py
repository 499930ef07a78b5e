"""What compressed-tensors itself packed, read: every scheme that it has, and groups with targets and blocks of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modelhub.engine import read_tensor
from safetensors.torch import load_file, save_file

from tests.made import made_once
from tests.plugins.gguf.logits import save_bpe
from tests.plugins.pytorch_files import look

LABELS = {
    **{f"W{bits}A16": f"INT{bits} g128" for bits in (2, 3, 4, 5, 6, 7, 8)},
    "W4A16_ASYM": "INT4 g128",
    "W4A8": "INT4 g128",
    "W8A8": "INT8",
    **dict.fromkeys(("FP8", "FP8_DYNAMIC", "block"), "FP8"),
    **dict.fromkeys(("NVFP4", "NVFP4A16"), "NVFP4"),
    "MXFP4": "MXFP4",
    "MXFP6A16": "MXFP6",
    "MXFP8A16": "MXFP8",
    "channel": "INT4",
    "mixed": "INT4 g64",
}


@pytest.fixture(scope="session")
def packed() -> Path:
    return made_once(Path(__file__).parent / "compressed_files.py", "compressed")


@pytest.mark.parametrize("name", LABELS)
def test_weights_are_those_that_the_library_computes_with(packed: Path, name: str) -> None:
    meant = load_file(packed / f"{name}.safetensors")
    found = look(packed / name)
    assert (found.state, found.precision, found.findings) == ("ready", LABELS[name], ())
    got = found.load_table().by_name
    assert {key for key in got if "norm" not in key} == set(meant)  # and no scales of activations
    assert len(meant) == 9
    assert found.parameters == sum(tensor.numel() for tensor in meant.values()) + 3 * 128
    for key, values in meant.items():
        assert (got[key].dtype, got[key].shape) == ("BF16", tuple(values.shape))
        found_values = torch.frombuffer(bytearray(read_tensor(got[key])), dtype=values.dtype).reshape(values.shape)
        assert torch.equal(found_values, values), key


def test_words_of_other_bits_than_the_settings_say(packed: Path, tmp_path: Path, modelhub: Any) -> None:
    (tmp_path / "m").mkdir()
    config = (packed / "W8A16" / "config.json").read_text().replace('"num_bits": 8', '"num_bits": 7')
    (tmp_path / "m" / "config.json").write_text(config)
    save_file(load_file(packed / "W8A16" / "model.safetensors"), tmp_path / "m" / "model.safetensors")
    (finding,) = modelhub("show", tmp_path / "m", "--json").json["findings"]
    assert "is no matrix of the bits that the settings say" in finding["message"]


def test_scales_of_activations_are_no_obstacle(packed: Path, tmp_path: Path, modelhub: Any) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text((packed / "NVFP4" / "config.json").read_text())
    tensors = load_file(packed / "NVFP4" / "model.safetensors")
    assert any(name.endswith("input_global_scale") for name in tensors)
    tensors |= {f"model.layers.0.self_attn.{side}_scale": torch.ones(1) for side in "kv"}  # of a cache in 8 bits
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    save_bpe(tmp_path / "m")
    done = modelhub("convert", tmp_path / "m", "--to", "gguf:q8_0", "-o", tmp_path / "m.gguf", "--json").json
    assert done["verified"]
    assert "blk.0.attn_k.weight" in {tensor["name"] for tensor in done["tensors"]}

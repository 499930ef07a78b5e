"""Directories as mlx-lm leaves them, packed by MLX itself: ``python mlx_files.py DIRECTORY``. Beside each stands what its weights
mean, as MLX computes it in float32 and rounds it once (``NAME.safetensors``)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

SHAPES = {
    "model.embed_tokens": (384, 128),
    "model.layers.0.self_attn.q_proj": (128, 128),
    "model.layers.0.mlp.down_proj": (128, 256),
    "model.layers.0.mlp.switch_mlp.up_proj": (4, 64, 128),
    "lm_head": (384, 128),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 384, "tie_word_embeddings": False,
}  # fmt: skip
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
Settings = dict[str, Any]


def write(root: Path, name: str, settings: Settings, own: dict[str, Settings | bool], dtype: str) -> None:
    mx.random.seed(5)
    tensors: dict[str, mx.array] = {}
    meant: dict[str, mx.array] = {}
    for module, shape in SHAPES.items():
        weight = (mx.random.normal(shape) * 0.05).astype(DTYPES[dtype])
        used = own.get(module, settings)
        if used is False:
            tensors[f"{module}.weight"] = meant[f"{module}.weight"] = weight
            continue
        parts = mx.quantize(weight, **used)
        tensors.update(
            {f"{module}.{part}": value for part, value in zip(("weight", "scales", "biases")[: len(parts)], parts, strict=True)}
        )
        wide = [parts[0], *(part.astype(mx.float32) for part in parts[1:])] if len(parts) == 3 else parts
        meant[f"{module}.weight"] = mx.dequantize(*wide, **used).astype(DTYPES[dtype])
    said = {**settings, **own}
    (root / name).mkdir()
    mx.save_safetensors(str(root / name / "model.safetensors"), tensors, metadata={"format": "mlx"})
    # mlx-lm writes its settings under both names (``mlx_lm/utils.py``, ``save_config`` and its callers).
    config = {**CONFIG, "torch_dtype": dtype, "quantization": said, "quantization_config": said}
    (root / name / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(root / f"{name}.safetensors"), meant)


def main(root: Path) -> None:
    for bits in (2, 3, 4, 5, 6, 8):
        write(root, f"affine-{bits}", {"group_size": 64, "bits": bits}, {}, "bfloat16")
    for size in (32, 128):
        write(root, f"groups-{size}", {"group_size": size, "bits": 4}, {}, "bfloat16")
    for dtype in ("float16", "float32"):
        write(root, dtype, {"group_size": 64, "bits": 4}, {}, dtype)
    own: dict[str, Settings | bool] = {
        "lm_head": {"group_size": 32, "bits": 6},
        "model.layers.0.mlp.down_proj": {"group_size": 128, "bits": 8},
        "model.layers.0.self_attn.q_proj": False,
    }
    write(root, "own", {"group_size": 64, "bits": 4}, own, "bfloat16")
    for mode, group, bits in (("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)):
        affine: Settings = {"group_size": 64, "bits": 8, "mode": "affine"}
        write(root, mode, {"group_size": group, "bits": bits, "mode": mode}, {"lm_head": affine}, "bfloat16")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

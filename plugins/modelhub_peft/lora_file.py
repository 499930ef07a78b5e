"""LoRA weights in one file, as trainers of diffusion models write them: kohya's sd-scripts (``networks/lora.py``: ``lora_down``,
``lora_up``, ``alpha``, metadata ``ss_*``), diffusers (``lora_A``, ``lora_B`` or ``lora.down``, ``lora.up``), and LyCORIS
(``hada_*``, ``lokr_*``, ``oft_*``: KohakuBlueleaf/LyCORIS ``lycoris/modules``).

They are told and shown, and so is the family of models that they change: by the names of its blocks and the width of what its
attention looks at, else by what the trainer noted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, Metadata, Tensor, read_described

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".ckpt", ".bin")
_DOWN = (
    ".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A.default.weight", "_lora.down.weight",
    ".lora_linear_layer.down.weight", ".hada_w1_b",
)  # fmt: skip
_UP = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight")
_METHODS = {
    "loha": (".hada_w1_a", ".hada_w1_b"),
    "lokr": (".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lokr_w2_a"),
    "oft": (".oft_blocks", ".oft_diag"),
    "full": (".diff",),
    "lora": (*_DOWN[:-1], *_UP),
}
"""Method -> how some of its tensors' names end."""
_DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_SIGNS = (
    b'"ss_network_', b".hada_w1_", b".lokr_w1", b".oft_blocks", b".oft_diag", b'"lora_unet_', b'"lora_te', b'"lycoris_',
    *(ending.encode() for ending in (*_DOWN, *_UP)),
)  # fmt: skip
_PICKLED = (b"lora_unet_", b"lora_te_", b"lora_te1_", b".lora.down.weight", b".lora_down.weight", b".processor.to_q_lora.down")
_WHOLE = b".base_layer."
"""A model with LoRA layers in it, not yet merged, has these beside them: it is a model."""
_UNNAMED = "pytorch_lora_weights"
"""What diffusers calls the file, whose directory has the name."""
_PARTS = {
    "lora_unet": "unet",
    "lora_te": "text encoder",
    "unet.": "unet",
    "text_encoder": "text encoder",
    "transformer.": "transformer",
    "diffusion_model.": "transformer",
}
_STORED = {
    "ss_base_model_version": "base_model_version",
    "ss_sd_model_name": "base_model",
    "ss_network_module": "network_module",
    "ss_output_name": "output_name",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "modelspec.architecture": "architecture_spec",
    "modelspec.title": "title",
}
MAX_TEXT = 200

Shapes = Mapping[str, tuple[int, ...]]
_BLOCKS = (
    ("hunyuan-video", re.compile(r"individual_token_refiner|txt_in_individual")),
    ("flux", re.compile(r"(^|[._])single_(transformer_)?blocks[._]\d")),
    ("flux", re.compile(r"(^|[._])double_blocks[._]\d")),
    ("stable-diffusion-3", re.compile(r"(^|[._])joint_blocks[._]\d")),
    ("qwen-image", re.compile(r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)[._]")),
    ("wan", re.compile(r"(^|[._])blocks[._]\d+[._](cross_attn|self_attn)[._]")),
    ("stable-diffusion-3", re.compile(r"transformer_blocks[._]\d+[._](ff_context|attn[._]add_(q|k|v)_proj)[._]")),
)
"""Family -> the names of blocks that it alone has, of either spelling. The first that fits counts."""
_ATTENDS = re.compile(r"attn2[._](processor[._])?to_(k|v)[._]")
_TEXT = re.compile(r"text_(model|encoder)[._].*self_attn[._](q|k|v)_proj")
_WIDTHS = {768: "stable-diffusion-1", 1024: "stable-diffusion-2", 2048: "stable-diffusion-xl", 1280: "stable-diffusion-xl"}
"""What attention looks at -> whose text encoder that is (CLIP ViT-L, OpenCLIP ViT-H, both of SDXL)."""
_NOTED = (
    ("stable-diffusion-xl", ("sdxl", "stable-diffusion-xl")),
    ("stable-diffusion-1", ("sd_v1", "sd1", "stable-diffusion-v1")),
    ("stable-diffusion-2", ("sd_v2", "sd2", "stable-diffusion-v2")),
    ("stable-diffusion-3", ("sd3", "stable-diffusion-3")),
    ("flux", ("flux",)),
    ("hunyuan-video", ("hunyuan",)),
    ("wan", ("wan",)),
)


def detect(file: File) -> Detection | None:
    """A file whose first names, or whose metadata, are those of a LoRA. An adapter of peft's is left to its directory."""
    if file.name.startswith("adapter_model") or not _signed(file):
        return None
    called = os.path.basename(os.path.dirname(file.path)) if file.stem == _UNNAMED else ""
    return Detection([file.path], confidence=97, name=called)


def _signed(file: File) -> bool:
    try:
        if file.name.lower().endswith(SAFETENSORS):
            return file.head[8:9] == b"{" and file.mentions(_SIGNS) and _WHOLE not in file.head
        return file.head[:4] == b"PK\x03\x04" and _WHOLE not in file.head and any(sign in file.head for sign in _PICKLED)
    except (FileProblem, OSError):
        return False


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """The tensors of the file as they are, and what their names and the file's metadata say of the adapter."""
    format = "safetensors" if checkpoint.primary.name.lower().endswith(SAFETENSORS) else "pytorch"
    return read_described(format, checkpoint, described)


def described(shapes: Shapes, metadata: Metadata) -> dict[str, Any]:
    """What is shown of a LoRA whose tensors have these names and shapes."""
    stored = metadata.stored
    kohya = any(name.startswith(("lora_", "lycoris_")) for name in shapes) or any(key.startswith("ss_") for key in stored)
    methods = [method for method, endings in _METHODS.items() if any(name.endswith(endings) for name in shapes)]
    if any(name.endswith(_DORA) for name in shapes):
        methods = ["dora", *(method for method in methods if method != "lora")]
    values: dict[str, Any] = {"adapter": "kohya" if kohya else "diffusers", "method": " + ".join(methods) or "lora"}
    values |= {name: stored[key] for key, name in _STORED.items() if 0 < len(stored.get(key, "")) <= MAX_TEXT}
    if kind := family(shapes, stored):
        values["family"] = kind
        if "architecture" not in metadata.values:  # in the words of the trainer ("stable-diffusion-xl-v1-base/lora")
            values["architecture"] = kind
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(_DOWN) and shape}
    if ranks:
        values["rank"] = max(ranks) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    parts = {part for name in shapes for start, part in _PARTS.items() if name.startswith(start)}
    if parts:
        values["adapts"] = sorted(parts)
    with suppress(KeyError, ValueError):
        values["alpha"] = float(stored["ss_network_alpha"])
    return values


def family(shapes: Shapes, stored: Mapping[str, str]) -> str:
    """The family of models that it was trained for; "" where nothing says."""
    for kind, pattern in _BLOCKS:
        if any(pattern.search(name) for name in shapes):
            return kind
    for pattern in (_ATTENDS, _TEXT):
        widths = {_width(name, shape) for name, shape in shapes.items() if pattern.search(name)} - {0}
        if pattern is _TEXT and any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in shapes):
            widths = {2048}
        kinds = {_WIDTHS[width] for width in widths if width in _WIDTHS}
        if len(kinds) == 1:
            return kinds.pop()
    said = [stored.get(key, "").lower() for key in ("ss_base_model_version", "modelspec.architecture")]
    return next((kind for kind, starts in _NOTED if any(text.startswith(starts) for text in said)), "")


def _width(name: str, shape: tuple[int, ...]) -> int:
    """The width of what a layer takes in, where the tensor's shape has it."""
    return shape[1] if name.endswith(_DOWN) and len(shape) > 1 else 0

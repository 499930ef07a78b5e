"""What the weights of diffusion models are called, one model in its several spellings: diffusers' components (``unet/...``),
Stability AI's single files (``model.diffusion_model...``), and the keys of LoRA files for both, with dots or (kohya's)
underscores.

(diffusers ``scripts/convert_original_stable_diffusion_to_diffusers.py`` for the blocks of a U-Net; kohya's ``networks/lora.py``
for the prefixes.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ROOTS = {
    "unet": ("unet.", "lora_unet_", ""),
    "transformer": ("transformer.", "diffusion_model.", "lora_transformer_", "lora_unet_", ""),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
    "": ("unet.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_", ""),
}
"""Component -> how a LoRA's keys for it begin."""
_SINGLE = {
    "model.diffusion_model.": "",
    "diffusion_model.": "",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
}
"""How names in a single file begin -> the component that they are of."""
_RESNET = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"),
)  # fmt: skip
LEVELS = 4


def _blocks() -> Iterator[tuple[str, str]]:
    """(in a single file, in diffusers) for each part of a U-Net with two resnets a level."""
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "label_emb.0.0", "add_embedding.linear_1"
    yield "label_emb.0.2", "add_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    for level in range(LEVELS):
        for each in range(2):
            yield f"input_blocks.{3 * level + each + 1}.0", f"down_blocks.{level}.resnets.{each}"
            yield f"input_blocks.{3 * level + each + 1}.1", f"down_blocks.{level}.attentions.{each}"
        yield f"input_blocks.{3 * level + 3}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        for each in range(3):
            yield f"output_blocks.{3 * level + each}.0", f"up_blocks.{level}.resnets.{each}"
            yield f"output_blocks.{3 * level + each}.1", f"up_blocks.{level}.attentions.{each}"
        for place in (1, 2):
            yield f"output_blocks.{3 * level + 2}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora(?=\.|$)")
_PAIRS = tuple(_blocks())
_TO_DIFFUSERS = dict(_PAIRS)
_TO_SINGLE = {other: one for one, other in reversed(_PAIRS)}
_BLOCK = re.compile(
    r"((?:input|output)_blocks\.\d+\.\d(?:\.op|\.conv)?|middle_block\.\d|time_embed\.\d|label_emb\.0\.\d|out\.\d)(?=\.|$)"
)
_OTHER = re.compile(
    r"((?:down|up)_blocks\.\d\.(?:resnets\.\d|attentions\.\d|(?:up|down)samplers\.0\.conv)|mid_block\.(?:resnets|attentions)\.\d"
    r"|(?:time|add)_embedding\.linear_\d|conv_in|conv_norm_out|conv_out)(?=\.|$)"
)


def spellings(path: str) -> list[str]:
    """The path of a module in a U-Net, as it is and as the other layout has it."""
    for pattern, names, inner in ((_BLOCK, _TO_DIFFUSERS, _RESNET), (_OTHER, _TO_SINGLE, tuple((b, a) for a, b in _RESNET))):
        match = pattern.match(path)
        if match and match[1] in names:
            rest = path[match.end() :]
            if "resnets" in (match[1] + names[match[1]]):
                rest = next((f".{other}" for one, other in inner if rest == f".{one}"), rest)
            return [path, names[match[1]] + rest]
    return [path]


def plain(module: str) -> str:
    """A LoRA's key without what older versions of diffusers (``unet.A.attn1.processor.to_q_lora``) and peft put into it."""
    return _PROCESSOR.sub(lambda match: f".{match[1]}{'.0' * (match[1] == 'to_out')}", module).replace("base_model.model.", "", 1)


def modules(names: Iterable[str]) -> dict[str, str]:
    """The keys by which LoRA files may call the modules whose weights ``names`` are -> the name of the weight."""
    found: dict[str, str] = {}
    for name in names:
        if not name.endswith(".weight"):
            continue
        component, _, path = name.removesuffix(".weight").rpartition("/")
        if not component:
            start = next((start for start in _SINGLE if path.startswith(start)), "")
            component, path = _SINGLE.get(start, ""), path.removeprefix(start)
        for spelling in spellings(path) if component in ("", "unet") else [path]:
            for root in _ROOTS.get(component, ()):
                key = root + (spelling.replace(".", "_") if root.endswith("_") else spelling)
                found.setdefault(key, name)
    return found

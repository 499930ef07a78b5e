"""Which diffusion model tensors belong to, told by their names and shapes; whole models and the parts that are published alone.

(The names are those of Stability AI's, Black Forest Labs' and diffusers' own code; the widths of text encoders those of CLIP
ViT-L, 768, OpenCLIP ViT-H, 1024, and of the two of SDXL, 2048 together.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_KINDS = (
    ("stable-diffusion-3", ("model.diffusion_model.joint_blocks.", "joint_blocks.")),
    ("stable-diffusion-xl-refiner", ("conditioner.embedders.0.model.transformer.resblocks.",)),
    ("stable-diffusion-xl", ("conditioner.embedders.1.",)),
    ("stable-diffusion-2", ("cond_stage_model.model.transformer.resblocks.", "cond_stage_model.model.token_embedding.")),
    ("stable-diffusion-1", ("cond_stage_model.transformer.",)),
)
"""Architecture -> how some of its tensors' names begin. The first that fits counts."""
_LATENT = "model.diffusion_model.input_blocks."
_WRAPPED = "model.diffusion_model."
_BLOCKS = ("double_blocks.", "single_blocks.")
"""Flux and those who came after it have both."""
_OFFSPRING = {"chroma": "distilled_guidance_layer.", "hunyuan-video": "txt_in.individual_token_refiner."}
"""Models of the same blocks -> what each has that Flux has not."""
_FLUX, _GUIDANCE = "double_blocks.0.img_attn.norm.key_norm.", "guidance_in."
"""What Flux has; "dev" takes a guidance scale, "schnell" none."""
_PARTS = {
    "first_stage_model.": "vae", "vae.": "vae", "cond_stage_model.": "text encoder", "conditioner.": "text encoders",
    "text_encoders.": "text encoders", "model.diffusion_model.": "diffusion model",
}  # fmt: skip
_ALONE = {
    "controlnet": ("control_model.", "controlnet_cond_embedding.", "controlnet_x_embedder.", "input_hint_block."),
    "ip-adapter": ("ip_adapter.",),
    "vae": ("decoder.mid.attn_1.", "decoder.mid_block.attentions.0."),
}
"""Parts that are published alone -> how some of their tensors' names begin."""
WIDTHS = {768: "stable-diffusion-1", 1024: "stable-diffusion-2", 2048: "stable-diffusion-xl"}
"""What a cross attention looks at -> whose text encoder that is."""
_ATTENDS = ("attn2.to_k.weight", "attn2.to_k_ip.weight")


def architecture(names: Collection[str]) -> str:
    """What people call the model with tensors of these names; "" where that cannot be told."""
    bare = [name.removeprefix(_WRAPPED) for name in names]
    if all(any(name.startswith(block) for name in bare) for block in _BLOCKS):
        other = next((kind for kind, start in _OFFSPRING.items() if any(name.startswith(start) for name in bare)), "")
        if other or not any(name.startswith(_FLUX) for name in bare):
            return other
        return "flux-dev" if any(name.startswith(_GUIDANCE) for name in bare) else "flux-schnell"
    found = next((kind for kind, starts in _KINDS if any(name.startswith(starts) for name in names)), "")
    return found or ("latent-diffusion" if any(name.startswith(_LATENT) for name in names) else "")


def described(shapes: Shapes, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a file with tensors of these names and shapes, which says ``said`` of itself."""
    values: dict[str, Any] = {}
    kind = architecture(shapes)
    if kind:
        values["architecture"] = kind
        if kind == "latent-diffusion" and attended(shapes):
            values["family"] = attended(shapes)
    elif embedding := _embedding(shapes):
        values = embedding
    else:
        for part, starts in _ALONE.items():
            if any(name.startswith(starts) for name in shapes):
                values = {"architecture": part, **_of_part(part, shapes)}
                break
    parts = sorted({part for name in shapes for start, part in _PARTS.items() if name.startswith(start)})
    if parts:
        values["parts"] = parts
    return values


def attended(shapes: Shapes) -> str:
    """The family whose text encoder the cross attentions look at; "" where there are none."""
    widths = {shape[1] for name, shape in shapes.items() if name.endswith(_ATTENDS) and len(shape) > 1}
    return WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""


def _of_part(part: str, shapes: Shapes) -> dict[str, Any]:
    if part == "vae":
        channels = _side(shapes, ("decoder.conv_in.weight", "post_quant_conv.weight"), 1)
        family = {4: "stable-diffusion-1, 2 and xl", 16: "stable-diffusion-3 and flux"}.get(channels, "")
        return {**({"latent_channels": channels} if channels else {}), **({"family": family} if family else {})}
    family = attended(shapes)
    if part == "controlnet" and any("controlnet_x_embedder." in name for name in shapes):
        family = "flux"
    return {"family": family} if family else {}


def _side(shapes: Shapes, names: Iterable[str], axis: int) -> int:
    return next((shapes[name][axis] for name in names if len(shapes.get(name, ())) > axis), 0)


def _embedding(shapes: Shapes) -> dict[str, Any]:
    """A textual inversion: vectors that a token stands for, in a file of one or two tensors."""
    if not 0 < len(shapes) <= 2:
        return {}
    names = sorted(shapes)
    token = names[0].removeprefix("string_to_param.")
    if names == ["clip_g", "clip_l"]:
        family, token = "stable-diffusion-xl", ""
    elif len(names) == 1 and (names[0] != token or token == "emb_params" or (token[:1] == "<" and token[-1:] == ">")):
        family = WIDTHS.get(shapes[names[0]][-1], "") if shapes[names[0]] else ""
    else:
        return {}
    shape = shapes[names[0]]
    values: dict[str, Any] = {"architecture": "textual-inversion", "vectors": shape[0] if len(shape) > 1 else 1}
    if token not in ("*", "emb_params", ""):
        values["token"] = token[:80]
    return {**values, **({"family": family} if family else {})}

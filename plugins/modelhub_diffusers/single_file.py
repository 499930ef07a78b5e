"""Diffusion models in one safetensors file, as Stability AI and Black Forest Labs publish them and web interfaces load them.

Which model it is follows from its tensors' names: ComfyUI and diffusers (``loaders/single_file_utils.py``) tell it so as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, Metadata, Tensor, read_as

SUFFIX = ".safetensors"
_SIGNS = (
    b'"model.diffusion_model.', b'"first_stage_model.', b'"cond_stage_model.', b'"conditioner.embedders.',
    b'"double_blocks.', b'"single_blocks.',
)  # fmt: skip
_KINDS = (
    ("stable-diffusion-3", ("model.diffusion_model.joint_blocks.",)),
    ("stable-diffusion-xl-refiner", ("conditioner.embedders.0.model.transformer.resblocks.",)),
    ("stable-diffusion-xl", ("conditioner.embedders.1.",)),
    ("stable-diffusion-2", ("cond_stage_model.model.transformer.resblocks.", "cond_stage_model.model.token_embedding.")),
    ("stable-diffusion-1", ("cond_stage_model.transformer.",)),
    ("latent-diffusion", ("model.diffusion_model.input_blocks.",)),
)
"""Architecture -> how some of its tensors' names begin. The first that fits counts."""
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


def detect(file: File) -> Detection | None:
    """A safetensors file whose first names are those of a diffusion model."""
    if not file.name.endswith(SUFFIX):
        return None
    try:
        signed = file.head[8:9] == b"{" and any(sign in file.head for sign in _SIGNS)
    except (FileProblem, OSError):
        return None
    return Detection([file.path], confidence=97) if signed else None


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """The tensors of the file as they are, and which model their names make it."""
    names: list[str] = []
    base = Metadata()
    for record in read_as("safetensors", checkpoint, list(checkpoint.files)):
        if isinstance(record, Metadata):
            base = record
            continue
        if isinstance(record, Tensor):
            names.append(record.name)
        yield record
    values = dict(base.values)
    kind = architecture(names)
    if kind:
        values["architecture"] = kind
    parts = sorted({part for name in names for start, part in _PARTS.items() if name.startswith(start)})
    if parts:
        values["parts"] = parts
    yield Metadata(values=values, stored=base.stored, container="safetensors", precision=base.precision)


def architecture(names: list[str]) -> str:
    """What people call the model with tensors of these names; "" where that cannot be told."""
    bare = [name.removeprefix(_WRAPPED) for name in names]
    if all(any(name.startswith(block) for name in bare) for block in _BLOCKS):
        other = next((kind for kind, start in _OFFSPRING.items() if any(name.startswith(start) for name in bare)), "")
        if other or not any(name.startswith(_FLUX) for name in bare):
            return other
        return "flux-dev" if any(name.startswith(_GUIDANCE) for name in bare) else "flux-schnell"
    return next((kind for kind, starts in _KINDS if any(name.startswith(starts) for name in names)), "")

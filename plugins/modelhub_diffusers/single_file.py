"""Diffusion models, and parts of them, in one file, as they are published and web interfaces load them: safetensors, or the
pickles (`.ckpt`) of before.

Which model it is follows from its tensors' names and shapes: ComfyUI and diffusers (``loaders/single_file_utils.py``) tell it so
as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, Metadata, Tensor, read_described

from modelhub_diffusers.families import architecture, described

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (SAFETENSORS, *PICKLES)
_SIGNS = (
    b'"model.diffusion_model.', b'"first_stage_model.', b'"cond_stage_model.', b'"conditioner.embedders.', b'"double_blocks.',
    b'"single_blocks.', b'"joint_blocks.', b'"control_model.', b'"controlnet_cond_embedding.', b'"controlnet_x_embedder.',
    b'"input_hint_block.', b'"decoder.mid.attn_1.', b'"decoder.mid_block.attentions.0.', b'"ip_adapter.', b'"emb_params',
    b'"clip_g"',
)  # fmt: skip
"""How some of their tensors' names begin, as they stand in JSON."""
_PICKLED = (
    b"model.diffusion_model.",
    b"first_stage_model.",
    b"cond_stage_model.",
    b"control_model.",
    b"string_to_param",
    b"ip_adapter",
)
_TOKEN = re.compile(rb'.{8}\{(?:"__metadata__":\{[^{}]*\},)?"<[^"<>]{1,80}>":\{', re.DOTALL)
_PICKLED_TOKEN = re.compile(rb"\}q\x00X.\0\0\0<[^<>]{1,80}>q\x01", re.DOTALL)
"""An embedding by the token that it stands for is all that such a file holds (diffusers ``loaders/textual_inversion.py``)."""
_UNNAMED = ("learned_embeds", "diffusion_pytorch_model")
"""What diffusers calls files whose directory has the name."""

__all__ = ["SUFFIXES", "architecture", "detect", "read"]


def detect(file: File) -> Detection | None:
    """A file whose first names are those of a diffusion model, or of a part of one."""
    name = file.name.lower()
    try:
        if name.endswith(SAFETENSORS):
            head = file.head
            signed = head[8:9] == b"{" and (file.mentions(_SIGNS) or _TOKEN.match(head) is not None)
        else:
            pickled = file.head[:4] == b"PK\x03\x04" or file.head[:1] == b"\x80"
            signed = pickled and (
                any(sign in file.head for sign in _PICKLED) or _PICKLED_TOKEN.search(file.head[:512]) is not None
            )
    except (FileProblem, OSError):
        return None
    called = os.path.basename(os.path.dirname(file.path)) if file.stem in _UNNAMED else ""
    return Detection([file.path], confidence=97, name=called) if signed else None


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """The tensors of the file as they are, and which model their names make it."""
    format = "safetensors" if checkpoint.primary.name.lower().endswith(SAFETENSORS) else "pytorch"
    return read_described(format, checkpoint, _described)


def _described(shapes: Mapping[str, tuple[int, ...]], metadata: Metadata) -> dict[str, Any]:
    return described(shapes, metadata.values)

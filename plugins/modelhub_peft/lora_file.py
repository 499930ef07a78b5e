"""LoRA weights in one safetensors file, as trainers of diffusion models write them: kohya's sd-scripts (``networks/lora.py``:
``lora_down``, ``lora_up``, ``alpha``, metadata ``ss_*``) and diffusers (``lora_A``, ``lora_B`` or ``lora.down``, ``lora.up``).

They are told and shown. Which matrix of which part of a pipeline they change is not said in them alone: they are not merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, Metadata, Tensor, read_as

SUFFIX = ".safetensors"
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight")
_SIGNS = (b'"ss_network_', *(ending.encode() for ending in (*_DOWN, *_UP)))
_WHOLE = b".base_layer."
"""A model with LoRA layers in it, not yet merged, has these beside them: it is a model."""
_PARTS = {
    "lora_unet": "unet",
    "lora_te": "text encoder",
    "unet.": "unet",
    "text_encoder": "text encoder",
    "transformer.": "transformer",
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


def detect(file: File) -> Detection | None:
    """A file whose first names, or whose metadata, are those of a LoRA. An adapter of peft's is left to its directory."""
    if not file.name.endswith(SUFFIX) or file.name.startswith("adapter_model") or not _signed(file):
        return None
    return Detection([file.path], confidence=97)


def _signed(file: File) -> bool:
    try:
        return file.head[8:9] == b"{" and _WHOLE not in file.head and any(sign in file.head for sign in _SIGNS)
    except (FileProblem, OSError):
        return False


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """The tensors of the file as they are, and what their names and the file's metadata say of the adapter."""
    ranks: set[int] = set()
    parts: set[str] = set()
    names: list[str] = []
    base = Metadata()
    for record in read_as("safetensors", checkpoint, list(checkpoint.files)):
        if isinstance(record, Metadata):
            base = record
            continue
        if isinstance(record, Tensor):
            names.append(record.name)
            if record.name.endswith(_DOWN) and record.shape:
                ranks.add(record.shape[0])
            parts.update(part for start, part in _PARTS.items() if record.name.startswith(start))
        yield record
    values = {**base.values, **_described(names, base.stored)}
    if ranks:
        values["rank"] = max(ranks) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    if parts:
        values["adapts"] = sorted(parts)
    yield Metadata(values=values, stored=base.stored, container="safetensors", precision=base.precision)


def _described(names: list[str], stored: Mapping[str, str]) -> dict[str, Any]:
    kohya = any(name.startswith(("lora_unet", "lora_te")) for name in names) or any(key.startswith("ss_") for key in stored)
    values: dict[str, Any] = {"adapter": "kohya" if kohya else "diffusers", "method": "lora"}
    values |= {name: stored[key] for key, name in _STORED.items() if 0 < len(stored.get(key, "")) <= MAX_TEXT}
    try:
        alpha = float(stored["ss_network_alpha"])
    except (KeyError, ValueError):
        return values
    return {**values, "alpha": alpha}

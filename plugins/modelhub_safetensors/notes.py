"""What ``__metadata__`` says: ties noted by whoever dropped a shared tensor, and the descriptions that trainers leave.

Ties follow ``safetensors.torch.save_model``: the key is the name of a tensor that was not stored, the text the name of the one
that was. Other keys are free text; the ones known here are shown under names that people search for.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

MAX_TEXT = 1000
"""Longer texts (a thumbnail, a caption list) stay in the stored metadata and out of what ``show`` prints."""

_NAMES = {
    # the Model Metadata Standard for diffusion models (github.com/Stability-AI/ModelSpec)
    "modelspec.architecture": "architecture",
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.description": "description",
    "modelspec.license": "license",
    "modelspec.date": "date",
    "modelspec.tags": "tags",
    "modelspec.resolution": "resolution",
    "modelspec.prediction_type": "prediction_type",
    "modelspec.trigger_phrase": "trigger_phrase",
    "modelspec.merged_from": "merged_from",
    "modelspec.usage_hint": "usage_hint",
    "modelspec.implementation": "implementation",
    # what kohya's sd-scripts note of a training run
    "ss_base_model_version": "base_model_version",
    "ss_sd_model_name": "base_model",
    "ss_output_name": "title",
    "ss_network_module": "adapter",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_resolution": "resolution",
    "ss_num_epochs": "epochs",
    "ss_max_train_steps": "steps",
    "ss_num_train_images": "training_images",
    "ss_learning_rate": "learning_rate",
    "ss_optimizer": "optimizer",
    "ss_mixed_precision": "training_precision",
    "ss_training_comment": "comment",
    # the framework that wrote the file: pt, tf, flax, np, mlx
    "format": "framework",
}
_NUMBERS = {"rank", "alpha", "epochs", "steps", "training_images", "learning_rate"}


def split_ties(stored: Mapping[str, str], tensors: Container[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(ties: dropped name -> kept name, the rest). A key that names a stored tensor, or one that we know, notes no tie."""
    ties = {key: text for key, text in stored.items() if text in tensors and key not in tensors and key not in _NAMES}
    return ties, {key: text for key, text in stored.items() if key not in ties}


def describe(stored: Mapping[str, str]) -> dict[str, Any]:
    """The known keys of ``stored`` under their common names; where two give the same one, the first in our list counts."""
    values: dict[str, Any] = {}
    for key in stored if stored.keys() <= {"format"} else _NAMES:
        text = stored.get(key, "")
        if text and text != "None" and len(text) <= MAX_TEXT:
            name = _NAMES[key]
            values.setdefault(name, _number(text) if name in _NUMBERS else text)
    return values


def _number(text: str) -> int | float | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return (
        value if type(value) is int and abs(value) < 1 << 63 else value if type(value) is float and value - value == 0 else text
    )

"""What ``show`` says of a Keras file: the model's class, its layers, what it takes, and which Keras wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import Metadata, Tensor

from modelhub_keras import attributes, config
from modelhub_keras.container import Container
from modelhub_keras.groups import group_at, links

LAYERS_SHOWN = 24
MAX_SHOWN = 300
_NOTED = ("keras_version", "backend")
_LAYOUTS = {
    "model": "model (architecture and weights)",
    "weights": "weights by layers",
    "variables": "weights by numbered variables (Keras 3)",
    "plain": "",
}


def metadata(
    file: Container,
    found: config.Config | None,
    tensors: Sequence[Tensor],
    layout: str,
    container: str,
    notes: Mapping[str, Any] | None = None,
) -> Metadata:
    """Everything there is to say. ``notes``: the archive's own."""
    notes = notes or {}
    groups = filter(None, (file.root, group_at(file, "model_weights")))
    noted = {name: attributes.text(file, group, name) for group in groups for name in _NOTED if attributes.has(file, group, name)}
    version, backend = noted.get("keras_version") or notes.get("keras_version"), noted.get("backend")
    values: dict[str, Any] = {"keras_version": version, "backend": backend, "layout": _LAYOUTS[layout]}
    if isinstance(saved := notes.get("date_saved"), str):
        values["saved"] = saved[:MAX_SHOWN]
    if found is not None:
        values |= {
            "architecture": found.kind,
            "model_name": found.name,
            "input_shape": _shape(found.input_shape),
            "layers": dict(found.layers.most_common(LAYERS_SHOWN)),
            "quantization": found.quantization,
            "custom_objects": list(found.custom)[:MAX_SHOWN],
        }
    if any(name in links(file, file.root) for name in (b"optimizer_weights", b"optimizer")):
        values["optimizer_state"] = True
    kept = {key: value for key, value in values.items() if value and (not isinstance(value, str) or len(value) <= MAX_SHOWN)}
    label = {"int8": "INT8", "int4": "INT4"}.get(found.quantization.partition("/")[0], "") if found else ""
    return Metadata(
        values=kept, precision=label if label and any(one.dtype == "I8" for one in tensors) else "", container=container
    )


def _shape(shape: Sequence[Any] | None) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]" if shape else ""

"""What ``show`` says of a Keras file: the model's class, its layers, what it takes, and which Keras wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import Metadata, Tensor

from modelhub_keras import config, hdf5

LAYERS_SHOWN = 24
MAX_SHOWN = 300
_LAYOUTS = {
    "model": "model (architecture and weights)",
    "weights": "weights by layers",
    "variables": "weights by numbered variables (Keras 3)",
    "plain": "",
}


def metadata(
    file: Any,
    found: config.Config | None,
    tensors: Sequence[Tensor],
    layout: str,
    container: str,
    notes: Mapping[str, Any] | None = None,
) -> Metadata:
    """Everything there is to say. ``file``: the open HDF5 file; ``notes``: the archive's own."""
    notes = notes or {}
    group = file.get("model_weights", file)
    version = hdf5.attribute(file, "keras_version") or hdf5.attribute(group, "keras_version") or notes.get("keras_version")
    backend = hdf5.attribute(file, "backend") or hdf5.attribute(group, "backend")
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
    if any(path.startswith(("optimizer_weights", "optimizer")) for path in file):
        values["optimizer_state"] = True
    kept = {key: value for key, value in values.items() if value and (not isinstance(value, str) or len(value) <= MAX_SHOWN)}
    label = {"int8": "INT8", "int4": "INT4", "float8": "F8_E4M3"}.get(found.quantization, "") if found else ""
    return Metadata(
        values=kept, precision=label if label and any(one.dtype == "I8" for one in tensors) else "", container=container
    )


def _shape(shape: Sequence[Any] | None) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]" if shape else ""

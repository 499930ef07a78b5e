"""What ``show`` says of a model: what it takes and gives, its operators, how it is quantized, and what its author wrote."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from modelhub import File, FileProblem, Metadata, dtypes, flatbuffers

from modelhub_tflite import schema, tensors
from modelhub_tflite.model import MAX_METADATA, Entry, Model

MAX_SHOWN = 300
OPERATORS_SHOWN = 24
SELECT = "Flex"
"""TensorFlow's own operators, which TensorFlow Lite calls by this and their name."""
_CARD = {"title": 0, "summary": 1, "model_version": 2, "author": 4, "license": 5}
"""Fields of ``ModelMetadata`` in TensorFlow Lite Support ``metadata_schema.fbs``, whose identifier starts with M00."""


def metadata(model: Model, file: File) -> Metadata:
    """Everything there is to say."""
    quantized, precision = quantization(model)
    runtime = _bytes(model, file, "min_runtime_version", 64).rstrip(b"\0").decode("ascii", "replace")
    values: dict[str, Any] = {
        "description": model.description,
        **_card(_bytes(model, file, "TFLITE_METADATA", MAX_METADATA)),
        "inputs": {entry.name[:MAX_SHOWN]: _typed(entry) for entry in model.inputs[:MAX_SHOWN]},
        "outputs": {entry.name[:MAX_SHOWN]: _typed(entry) for entry in model.outputs[:MAX_SHOWN]},
        "signatures": model.signatures[:MAX_SHOWN],
        "subgraphs": len(model.graphs) if len(model.graphs) > 1 else 0,
        "nodes": sum(model.operators.values()),
        "operators": dict(model.operators.most_common(OPERATORS_SHOWN)),
        "custom_operators": sorted(name for name, count in model.custom.items() if count)[:MAX_SHOWN],
        "variables": sum(entry.variable for graph in model.tensors for entry in graph),
        "min_runtime_version": runtime,
        "metadata": sorted(name for name in model.named if name != "min_runtime_version")[:MAX_SHOWN],
        "quantization": quantized,
    }
    return Metadata(values={key: value for key, value in values.items() if value}, precision=precision)


def _typed(entry: Entry) -> str:
    """As people write it: ``float32[?, 224, 224, 3]``; a side that the model leaves open is in its signature alone."""
    dtype = schema.dtype_of(entry.type)
    sides = entry.signature if len(entry.signature) == len(entry.shape) else entry.shape
    return f"{schema.LABELS.get(dtype, dtype)}[{', '.join('?' if side < 0 else str(side) for side in sides)}]"


def _bytes(model: Model, file: File, name: str, limit: int) -> bytes:
    """A buffer that the metadata names."""
    start, end = model.named.get(name, (0, 0))
    return file.read(start, end - start) if end - start <= limit else b""


def _card(data: bytes) -> dict[str, str]:
    """What the model's author wrote, in a buffer of its own; nothing where that is broken, for no runtime looks at it."""
    buffer = flatbuffers.FlatBuffer(data, "metadata")
    if not buffer.identifier.startswith(b"M00"):
        return {}
    try:
        root = buffer.root()
        found = {key: root.text(field)[:MAX_SHOWN].strip() for key, field in _CARD.items()}
    except FileProblem:
        return {}
    return {key: text for key, text in found.items() if text}


# --- quantization -------------------------------------------------------------------------------------------------


def quantization(model: Model) -> tuple[dict[str, Any], str]:
    """(how it is quantized, the label of its precision); two empty ones where it is not."""
    count: Counter[str] = Counter()
    per_channel, details = False, set()
    for _, entry in tensors.constants(model):
        known = dtypes.find(schema.dtype_of(entry.type))
        if known is None or (known.kind != "float" and not entry.scales) or (known.kind == "int" and known.bits > 16):
            continue  # biases are sums of products, in 32 or 64 bits: they say nothing of the weights
        count[known.label if known.kind == "float" else f"INT{known.bits:g}"] += prod(entry.shape)
        if entry.scales:
            per_channel |= entry.scales.scales[1] > 1
            details.add(schema.DETAILS[entry.scales.details] if entry.scales.details < len(schema.DETAILS) else "other")
    integers = {label for label in count if label.startswith("INT")}
    activations = _activations(model)
    if not integers and not activations:
        return ({"scheme": "float16 weights", "weights": "F16"}, "") if _mostly(count) == "F16" else ({}, "")
    weights = max(integers or count, key=lambda label: count[label], default="")
    found: dict[str, Any] = {"weights": weights, "quantized_parameters": sum(count[label] for label in integers)}
    if activations:
        found |= {"scheme": "full integer", "activations": activations}
        named = [entry for entry in (*model.inputs, *model.outputs) if entry.type == 0]
        found["interface"] = "float" if named else "integer"
    elif integers:
        found["scheme"] = "weights only" if model.operators["DEQUANTIZE"] else "dynamic range"
    if integers:
        found["per_channel"] = per_channel
    if other := sorted(filter(None, details)):
        found["details"] = other
    # As with other formats' quantizers: what is left in floats are layers that are too small to matter.
    quantized = sum(count[label] for label in integers)
    return found, weights if 2 * quantized >= sum(count.values()) else _mostly(count) or "mixed"


def _activations(model: Model) -> str:
    """The integers that are computed with, "" where they are floats."""
    kinds = Counter(
        schema.dtype_of(entry.type)
        for graph in model.tensors
        for entry in graph
        if entry.place is None and entry.scales and schema.dtype_of(entry.type) in ("I8", "U8", "I16")
    )
    return dtypes.get(kinds.most_common(1)[0][0]).label if kinds else ""


def _mostly(count: Counter[str]) -> str:
    """The label of nine tenths of the weights, or ""."""
    if not count:
        return ""
    label, most = count.most_common(1)[0]
    return label if most >= 0.9 * sum(count.values()) else ""

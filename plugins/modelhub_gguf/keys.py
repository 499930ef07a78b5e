"""What the keys of a GGUF header say, under the names that the catalog searches; and the label of its quantization.

Key names are those of the GGUF specification (ggml ``docs/gguf.md``, "Standardized key-value pairs"); the numbers of
``general.file_type`` are llama.cpp's (``enum llama_ftype`` in ``include/llama.h``), its labels are what people call the recipes.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import Any, NamedTuple

from modelhub import Extent

from modelhub_gguf.fields import ARRAY, F32, STRING, Field

MAX_TEXT = 1000
"""Longer texts are not shown; those that a header keeps as its own are in the stored metadata."""
_MAX_ITEMS = 256
_MAX_INT = 1 << 63


class FileType(NamedTuple):
    """``label``: what people call it. ``dtypes``: what most of the weights (not embeddings, not output) then are; the later ones
    where rows do not divide into blocks (``llama_tensor_get_type_fallback`` in ``src/llama-quant.cpp``)."""

    label: str
    dtypes: tuple[str, ...]


FILE_TYPES: Mapping[int, FileType] = {
    0: FileType("F32", ("F32",)),
    1: FileType("F16", ("F16",)),
    2: FileType("Q4_0", ("Q4_0",)),
    3: FileType("Q4_1", ("Q4_1",)),
    7: FileType("Q8_0", ("Q8_0",)),
    8: FileType("Q5_0", ("Q5_0",)),
    9: FileType("Q5_1", ("Q5_1",)),
    10: FileType("Q2_K", ("Q2_K", "Q3_K", "Q4_0", "IQ4_NL")),
    11: FileType("Q3_K_S", ("Q3_K", "Q4_0", "IQ4_NL")),
    12: FileType("Q3_K_M", ("Q3_K", "Q4_0", "IQ4_NL")),
    13: FileType("Q3_K_L", ("Q3_K", "Q4_0", "IQ4_NL")),
    14: FileType("Q4_K_S", ("Q4_K", "Q5_0")),
    15: FileType("Q4_K_M", ("Q4_K", "Q5_0")),
    16: FileType("Q5_K_S", ("Q5_K", "Q5_1")),
    17: FileType("Q5_K_M", ("Q5_K", "Q5_1")),
    18: FileType("Q6_K", ("Q6_K", "Q8_0")),
    19: FileType("IQ2_XXS", ("IQ2_XXS", "IQ4_NL")),
    20: FileType("IQ2_XS", ("IQ2_XS", "IQ4_NL")),
    21: FileType("Q2_K_S", ("Q2_K", "Q4_0", "IQ4_NL")),
    22: FileType("IQ3_XS", ("IQ3_XXS", "IQ3_S", "IQ4_NL")),
    23: FileType("IQ3_XXS", ("IQ3_XXS", "IQ4_NL")),
    24: FileType("IQ1_S", ("IQ1_S", "IQ4_NL")),
    25: FileType("IQ4_NL", ("IQ4_NL",)),
    26: FileType("IQ3_S", ("IQ3_S", "IQ4_NL")),
    27: FileType("IQ3_M", ("IQ3_S", "IQ4_NL")),
    28: FileType("IQ2_S", ("IQ2_XS", "IQ2_S", "IQ4_NL")),
    29: FileType("IQ2_M", ("IQ2_S", "IQ4_NL")),
    30: FileType("IQ4_XS", ("IQ4_XS", "IQ4_NL")),
    31: FileType("IQ1_M", ("IQ1_M", "IQ4_NL")),
    32: FileType("BF16", ("BF16",)),
    36: FileType("TQ1_0", ("TQ1_0", "Q4_0")),
    37: FileType("TQ2_0", ("TQ2_0", "Q4_0")),
    38: FileType("MXFP4_MOE", ("MXFP4", "Q8_0")),
    39: FileType("NVFP4", ("NVFP4",)),
    40: FileType("Q1_0", ("Q1_0",)),
    41: FileType("Q2_0", ("Q2_0",)),
}
"""The numbers in use; 4 to 6 and 33 to 35 were taken back."""

_GENERAL = {
    "name": "general.name",
    "type": "general.type",
    "version": "general.version",
    "finetune": "general.finetune",
    "basename": "general.basename",
    "size_label": "general.size_label",
    "author": "general.author",
    "organization": "general.organization",
    "description": "general.description",
    "quantized_by": "general.quantized_by",
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "url": "general.url",
    "repo_url": "general.repo_url",
    "source_url": "general.source.url",
    "tags": "general.tags",
    "languages": "general.languages",
    "tokenizer": "tokenizer.ggml.model",
    "pre_tokenizer": "tokenizer.ggml.pre",
    "imatrix": "quantize.imatrix.file",
    "imatrix_dataset": "quantize.imatrix.dataset",
    "adapter": "adapter.type",
    "alpha": "adapter.lora.alpha",
}
_OF_ARCHITECTURE = {
    "context_length": "context_length",
    "embedding_length": "embedding_length",
    "block_count": "block_count",
    "feed_forward_length": "feed_forward_length",
    "head_count": "attention.head_count",
    "head_count_kv": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
    "expert_count": "expert_count",
    "expert_used_count": "expert_used_count",
    "sliding_window": "attention.sliding_window",
    "rope_theta": "rope.freq_base",
    "rope_scaling": "rope.scaling.type",
}


def describe(fields: Mapping[str, Field], lengths: Mapping[str, int]) -> dict[str, Any]:
    """Plain, bounded values; what is missing or of no use is left out. ``lengths``: items of each array."""
    values: dict[str, Any] = {}
    architecture = plain(fields.get("general.architecture"))
    if isinstance(architecture, str) and architecture:
        values["architecture"] = architecture
        for name, key in _OF_ARCHITECTURE.items():
            _put(values, name, fields.get(f"{architecture}.{key}"))
    tokens = lengths.get("tokenizer.ggml.tokens", 0)
    if tokens:
        values.setdefault("vocab_size", tokens)
    for name, key in _GENERAL.items():
        _put(values, name, fields.get(key))
    if values.get("type") == "model":
        del values["type"]
    bases = _bases(fields)
    if bases:
        values["base_model"] = bases[0] if len(bases) == 1 else bases
    if "tokenizer.chat_template" in fields:
        values["chat_template"] = True
    kind = file_type(fields)
    if kind:
        values["quantization"] = kind.label
    return values


def _put(values: dict[str, Any], name: str, field: Field | None) -> None:
    value = plain(field)
    if value is not None and value not in ("", []):
        values[name] = value


def _bases(fields: Mapping[str, Field]) -> list[str]:
    """What the model was made of: repositories by their names ("org/name"), else names."""
    found = []
    for number in range(_MAX_ITEMS):
        url = plain(fields.get(f"general.base_model.{number}.repo_url"))
        name = plain(fields.get(f"general.base_model.{number}.name"))
        if isinstance(url, str) and url.startswith("https://huggingface.co/"):
            found.append(url.removeprefix("https://huggingface.co/").strip("/"))
        elif isinstance(name, str) and name:
            organization = plain(fields.get(f"general.base_model.{number}.organization"))
            found.append(f"{organization}/{name}" if isinstance(organization, str) and organization else name)
        else:
            break
    return found


def plain(field: Field | None) -> Any:
    """A field's value as JSON data, where it is short; else None."""
    if field is None or isinstance(field.value, Extent):
        return None
    if field.type != ARRAY:
        return _plain(field.value, field.type)
    items = [_plain(item, field.item) for item in field.value[:_MAX_ITEMS]]
    return None if None in items else items


def _plain(value: Any, kind: int) -> Any:
    if kind == STRING:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return text if len(text) <= MAX_TEXT else None
    if isinstance(value, float):
        return (single(value) if kind == F32 else value) if isfinite(value) else None
    return value if -_MAX_INT <= value < _MAX_INT else None


def single(value: float) -> float:
    """The shortest decimal number that is the same as a float32: 1e-05 in place of 9.999999747378752e-06."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


# --- quantization -------------------------------------------------------------------------------------------------


def file_type(fields: Mapping[str, Field]) -> FileType | None:
    """What ``general.file_type`` says; None where it is missing or not known."""
    field = fields.get("general.file_type")
    value = field.value if field else None
    return FILE_TYPES.get(value) if type(value) is int else None


def precision(fields: Mapping[str, Field], names: Sequence[str], kinds: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """What people call the quantization: the file type's label where the tensors bear it out, else "" (the dtypes then tell)."""
    claimed = file_type(fields)
    if claimed is None:
        return ""
    most = main_dtype(names, kinds, shapes)
    return claimed.label if not most or most in claimed.dtypes else ""


def main_dtype(names: Sequence[str], kinds: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """The dtype of most of the weights; matrices alone count, and embeddings only where there is nothing else (recipes give
    them more bits, and in a small model they are most of it). "" where there are no tensors."""
    inner: Counter[str] = Counter()
    outer: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for name, kind, shape in zip(names, kinds, shapes, strict=True):
        count = rest if len(shape) < 2 else outer if name.startswith(("token_embd", "output.", "per_layer_token")) else inner
        count[kind] += prod(shape)
    for count in (inner, outer, rest):
        if count:
            return count.most_common(1)[0][0]
    return ""

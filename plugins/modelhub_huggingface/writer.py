"""Lays out a Hugging Face directory: the weights as safetensors, and the source's configuration, tokenizer and documents beside
them.

The configuration is the source's own, or the one that a conversion made with the table. Its dtype is changed where a recipe
changed the weights', for ``from_pretrained`` loads into the dtype that the configuration names; and where packed weights are
written as what they stand for, nothing says any more that they are packed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from modelhub import CopyFile, File, ModelhubError, Node, StartFile, Table, WriteOptions, Writer, read_json, write_as

from modelhub_huggingface.config import DTYPES_OF_TORCH
from modelhub_huggingface.layout import CONFIG, MAX_CONFIG
from modelhub_huggingface.quantization import KEYS, OLDER_FILES

DTYPES = {dtype: name for name, dtype in DTYPES_OF_TORCH.items()}
"""What torch calls the dtypes that a model's weights may have as a whole."""
_KEYS = ("dtype", "torch_dtype")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def create(table: Table, options: WriteOptions) -> Writer:
    """``model.safetensors`` or shards with an index, ``config.json`` and whatever stood beside it. `ModelhubError` where the
    source has no configuration: one cannot be made up from tensors."""
    configured = any(os.path.basename(path) == CONFIG for path in table.files)
    directory = _source_directory(table) if configured or CONFIG not in table.documents else ""
    yield from write_as("safetensors", table, replace(options, name="model"))
    for name, content in table.documents.items():
        changed = _config_of_recipe(json.loads(content), table) if name == CONFIG else None
        yield StartFile(name)
        yield content if changed is None else _text(changed)
    for name in _documents(directory, table) if directory else ():
        if name in table.documents:
            continue
        source = os.path.join(directory, name)
        changed = _config_of_recipe(_read(source), table) if name == CONFIG else None
        if changed is None:
            yield CopyFile(name, source)
        else:
            yield StartFile(name)
            yield _text(changed)


def _text(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _read(path: str) -> dict[str, Any]:
    with File(path) as file:
        return read_json(file, limit=MAX_CONFIG)


def _source_directory(table: Table) -> str:
    """Where the source's ``config.json`` stands: the uppermost one among its files."""
    configs = [path for path in table.files if os.path.basename(path) == CONFIG]
    if not configs:
        raise ModelhubError(
            "a Hugging Face directory needs a config.json, and the source has none",
            "convert to safetensors instead, or put the model's config.json beside its weights and convert the directory",
        )
    return os.path.dirname(min(configs, key=lambda path: path.count("/")))


def _documents(directory: str, table: Table) -> Iterator[str]:
    """The source's files that are no weights, relative to its directory."""
    prefix = directory.rstrip("/") + "/"
    unpacked = _unpacked(table)
    for path in table.files:
        if unpacked and path[len(prefix) :] in OLDER_FILES:
            continue
        if path.startswith(prefix) and not path.endswith(_WEIGHTS) and not (".index." in path and path.endswith(".json")):
            yield path[len(prefix) :]


def _config_of_recipe(config: dict[str, Any], table: Table) -> dict[str, Any] | None:
    """The configuration with the dtype that a recipe gave the weights; None where it can stay as it is."""
    casts = any(isinstance(tensor.value, Node) and tensor.value.op == "cast" for tensor in table.logical)
    if _packed_anew(table):
        return None  # packed anew: the recipe has said what there is to say
    unpacked = _unpacked(table)
    for key in KEYS if unpacked else ():
        config.pop(key, None)
    if not casts and not unpacked and CONFIG not in table.documents:
        return None
    count: Counter[str] = Counter()
    for tensor in table.logical:
        if tensor.dtype in DTYPES:
            count[tensor.dtype] += prod(tensor.shape)
    dtype = DTYPES[count.most_common(1)[0][0]] if count else ""
    changed = bool(dtype) and _set_dtype(config, dtype)
    return config if changed or unpacked else None


def _packed_anew(table: Table) -> bool:
    """Whether a recipe packed the weights: then all but a word in the configuration is the source's own."""
    return any(isinstance(tensor.value, Node) and tensor.value.op.startswith("quantize.") for tensor in table.logical)


def _unpacked(table: Table) -> bool:
    """Whether weights that the source has packed are written as what they stand for."""
    return any(_dequantizes(tensor.value) for tensor in table.logical)


def _dequantizes(value: object) -> bool:
    return isinstance(value, Node) and (value.op.startswith("dequant.") or any(map(_dequantizes, value.inputs)))


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Whether anything was changed. Nested configurations (text, vision) name a dtype of their own."""
    changed = False
    for key in _KEYS:
        if isinstance(config.get(key), str) and config[key] != dtype:
            config[key] = dtype
            changed = True
    for inner in config.values():
        if isinstance(inner, dict):
            for key in _KEYS:
                if isinstance(inner.get(key), str) and inner[key] != dtype:
                    inner[key] = dtype
                    changed = True
    return changed

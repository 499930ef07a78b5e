"""Lays a pipeline, or a component of one, out again: the weights as safetensors, and every other file as it was.

A component of transformers names its dtype in its configuration: that is changed where a recipe changed the weights'.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from modelhub import CopyFile, File, ModelhubError, StartFile, Table, Tensor, WriteOptions, Writer, read_json, write_as

from modelhub_diffusers.layout import CONFIG, INDEX, MAX_JSON, STEMS, SUFFIXES, components, folders_of

_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_KEYS = ("dtype", "torch_dtype")


def create(table: Table, options: WriteOptions) -> Writer:
    """The pipeline whose `model_index.json` is among the table's files, or the component whose configuration is. `ModelhubError`
    where there is neither, or a tensor is none of a component's."""
    directory, whole = _directory(table)
    if not whole:
        yield from write_as("safetensors", table, replace(options, name=STEMS[0]))
        yield from (CopyFile(os.path.relpath(path, directory), path) for path in _documents(table, directory))
        return
    with File(os.path.join(directory, INDEX)) as file:
        index = read_json(file, limit=MAX_JSON)
    names = {component.name for component in components(index, folders_of(table.files, directory))}
    parts: dict[str, list[Tensor]] = {}
    for tensor in table.logical:
        name, _, inner = tensor.name.partition("/")
        if name not in names or not inner:
            raise ModelhubError(f"tensor {tensor.name!r:.200} is none of a component's of this pipeline")
        parts.setdefault(name, []).append(tensor._replace(name=inner))
    for name, tensors in parts.items():
        part = replace(table, tensors=tuple(tensors), metadata=replace(table.metadata, stored={}))
        yield from _within(name, write_as("safetensors", part, replace(options, name=_stem(table, directory, name))))
    for path in _documents(table, directory):
        name = os.path.relpath(path, directory)
        changed = _config(path, parts.get(os.path.dirname(name), ()))
        if changed is None:
            yield CopyFile(name, path)
        else:
            yield StartFile(name)
            yield json.dumps(changed, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _directory(table: Table) -> tuple[str, bool]:
    """Where the source's documents stand, and whether they are a pipeline's."""
    for name in (INDEX, CONFIG):
        found = [path for path in table.files if os.path.basename(path) == name]
        if found:
            path = min(found, key=len)
            _check_own(path)
            return os.path.dirname(path), name == INDEX
    raise ModelhubError(f"a pipeline needs a {INDEX}, and the source has none", "convert to safetensors instead")


def _check_own(path: str) -> None:
    """`ModelhubError` where a document does not say which of diffusers' classes it is for: it is another library's."""
    with File(path) as file:
        said = read_json(file, limit=MAX_JSON).get("_class_name")
    if not isinstance(said, str):
        raise ModelhubError(
            f"{os.path.basename(path)} names no class of diffusers: it is no part of a pipeline", "convert to safetensors instead"
        )


def _within(folder: str, writer: Writer) -> Writer:
    """The same files, in a folder."""
    try:
        piece = next(writer)
        while True:
            if isinstance(piece, StartFile):
                piece = StartFile(f"{folder}/{piece.name}")
            piece = writer.send((yield piece))
    except StopIteration:
        return


def _stem(table: Table, directory: str, component: str) -> str:
    """What the component's loader looks for: diffusers' models and transformers' are called differently."""
    prefix = f"{directory}/{component}/{STEMS[0]}"
    return STEMS[0] if any(path.startswith(prefix) for path in table.files) else STEMS[1]


def _documents(table: Table, directory: str) -> Iterator[str]:
    for path in table.files:
        if path.startswith(f"{directory}/") and not path.endswith((*SUFFIXES, ".msgpack")) and ".index." not in path:
            yield path


def _config(path: str, tensors: Sequence[Tensor]) -> dict[str, Any] | None:
    """A component's configuration with the dtype that its weights have now; None where it can stay as it is."""
    if os.path.basename(path) != CONFIG or not tensors:
        return None
    with File(path) as file:
        config = read_json(file, limit=MAX_JSON)
    count: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in _TORCH:
            count[tensor.dtype] += prod(tensor.shape)
    dtype = _TORCH[count.most_common(1)[0][0]] if count else ""
    wrong = [key for key in _KEYS if dtype and isinstance(config.get(key), str) and config[key] != dtype]
    return {**config, **dict.fromkeys(wrong, dtype)} if wrong else None

"""Reads a Hugging Face directory: what its documents say, and the tensors by the reader of the container that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Columns, Extent, FileProblem, Finding, Metadata, Tensor, read_as, read_index, read_json

from modelhub_huggingface import frameworks
from modelhub_huggingface.card import read_card
from modelhub_huggingface.config import DTYPES_OF_TORCH, describe
from modelhub_huggingface.layout import CONFIG, CONTAINERS, MAX_CONFIG, cache_name
from modelhub_huggingface.packed import trained, unpack
from modelhub_huggingface.quantization import OLDER_FILES, Quantization, quantization


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Columns | Metadata | Finding]:
    """The tensors and findings of the container as they are, and one `Metadata` for the whole."""
    config = read_json(checkpoint.open(CONFIG), limit=MAX_CONFIG) if CONFIG in checkpoint or not checkpoint.missing else {}
    values = describe(config)
    quantized = _quantization(checkpoint, config)
    precision = quantized.label
    if quantized.shown:
        values["quantization"] = quantized.shown
    values.update(_beside(checkpoint))

    container, weights = weights_of(checkpoint.directory, checkpoint.files)
    stored: dict[str, str] = {}
    packed: list[Tensor] = []
    plain: list[Tensor] = []
    trained_for_it = not quantized.method and trained.named(
        cache_name(checkpoint.directory)[0] or os.path.basename(checkpoint.directory)
    )
    if container in frameworks.CONTAINERS:
        yield from frameworks.read(container, checkpoint, weights)
    elif weights:
        for record in read_as(container, checkpoint, weights):
            if isinstance(record, Metadata):
                stored.update(record.stored)
                values = {**record.values, **values}
                precision = precision or record.precision
            elif quantized.method and isinstance(record, Columns):
                packed += record.tensors()
            elif quantized.method and isinstance(record, Tensor):
                packed.append(record)
            else:
                if trained_for_it and isinstance(record, Tensor | Columns):
                    plain += record.tensors() if isinstance(record, Columns) else [record]
                yield record
        if plain and trained.on_grid(plain, lambda place: checkpoint.open(place.file).read(place.offset, place.nbytes)):
            values["quantization"] = {"method": "quantization-aware training", "weights": "on a grid of Q4_0"}
        dtype = DTYPES_OF_TORCH.get(str(values.get("torch_dtype")), "")
        names: set[str] = set()
        whole = True
        for found in unpack(
            packed, quantized.method, quantized.said, dtype, lambda tensor, limit: _bytes(checkpoint, tensor, limit), stored
        ):
            if isinstance(found, Finding):
                whole = False
            else:
                names.add(found.name)
            yield found
        if quantized.method == "torchao" and whole:  # what is written of the parts does not hold of the wholes
            stored = {key: text for key, text in stored.items() if key not in names and key != "tensor_names"}
    else:
        for path in checkpoint.files:
            if ".index." in path and path.endswith(".json"):
                read_index(checkpoint.open(path))  # none of its shards is there; it may be no index at all
    yield Metadata(values=values, stored=stored, container=container, precision=precision)


def weights_of(directory: str, files: tuple[str, ...]) -> tuple[str, list[str]]:
    """(container, its shards and index) among a checkpoint's files; an empty list where only the index is there."""
    prefix = directory.rstrip("/") + "/"
    for container in CONTAINERS:
        weights = [path for path in files if path.endswith(container.suffix) and "/" not in path[len(prefix) :]]
        if weights:
            index = f"{container.suffix}.index."
            return container.format, weights + [path for path in files if index in path[len(prefix) :] and path.endswith(".json")]
    named = [container.format for container in CONTAINERS for path in files if f"{container.suffix}.index." in path]
    return (named[0] if named else ""), []


def _bytes(checkpoint: Checkpoint, tensor: Tensor, limit: int) -> bytes:
    place = tensor.value
    if not isinstance(place, Extent) or place.nbytes > limit:
        return b""
    return checkpoint.open(place.file).read(place.offset, place.nbytes)


def _quantization(checkpoint: Checkpoint, config: dict[str, Any]) -> Quantization:
    for name, method in OLDER_FILES.items():
        if name in checkpoint:
            try:
                return quantization(config, read_json(checkpoint.open(name), limit=MAX_CONFIG), method)
            except FileProblem:
                continue  # the weights do not need it; config.json may say the same
    return quantization(config)


def _beside(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the documents beside the configuration say."""
    values: dict[str, Any] = {}
    if "README.md" in checkpoint:
        values.update(read_card(checkpoint.open("README.md")))
    if "modules.json" in checkpoint:
        values["library"] = "sentence-transformers"
    name, revision = cache_name(checkpoint.directory)
    if revision:
        values.update(repository=name, revision=revision)
    return values

"""Adapter directories as peft writes them (``utils/constants.py``, ``save_pretrained``): ``adapter_config.json`` and
``adapter_model.safetensors``, in older ones ``adapter_model.bin``. Tells and reads them; how they change a base is `merge`'s."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import (
    Checkpoint,
    Detection,
    File,
    FileProblem,
    Finding,
    InvalidFile,
    Listing,
    Metadata,
    Rejected,
    Tensor,
    read_as,
    read_json,
)

from modelhub_peft.config import CONFIG, MAX_CONFIG, describe, parse

WEIGHTS = {"adapter_model.safetensors": "safetensors", "adapter_model.bin": "pytorch"}
"""Names of the weights, the preferred one first, and the formats that they are in."""
BESIDE = (
    "README.md", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes",
)  # fmt: skip
"""What trainers write beside an adapter."""


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A directory with an adapter's configuration; None where there is none."""
    if CONFIG not in listing:
        return None
    try:
        parse(read_json(listing.file(CONFIG), limit=MAX_CONFIG))
    except ValueError as error:
        return Rejected(f"{CONFIG}: {error}", confidence=60)
    except (FileProblem, OSError) as error:
        return Rejected(str(error), confidence=60)
    weights = next((name for name in WEIGHTS if name in listing), None)
    beside = [name for name in BESIDE if name in listing]
    files = [listing.join(name) for name in ([weights] if weights else []) + [CONFIG, *beside]]
    return Detection(files, confidence=95, missing=() if weights else (next(iter(WEIGHTS)),))


def detect(file: File) -> Detection | None:
    """The weights of an adapter whose directory is somebody else's, for its base lies there as well; or that the user named."""
    if file.name not in WEIGHTS or CONFIG not in file.siblings:
        return None
    path = os.path.join(os.path.dirname(file.path), CONFIG)
    try:
        with File(path) as config:
            parse(read_json(config, limit=MAX_CONFIG))
    except (ValueError, FileProblem, OSError):
        return None  # tensors all the same, of nobody knows what
    return Detection([file.path, path], confidence=95)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """The tensors of the weights as they are, and what the configuration says."""
    try:
        config = parse(read_json(checkpoint.open(CONFIG), limit=MAX_CONFIG))
    except ValueError as error:
        raise InvalidFile(f"{CONFIG}: {error}") from error
    stored: dict[str, str] = {}
    names: list[str] = []
    container = ""
    for name, container in WEIGHTS.items():
        if name in checkpoint:
            for record in read_as(container, checkpoint, [checkpoint.open(name).path]):
                if isinstance(record, Metadata):
                    stored.update(record.stored)
                else:
                    if isinstance(record, Tensor):
                        names.append(record.name)
                    yield record
            break
    yield Metadata(values=describe(config, names), stored=stored, container=container)

"""The merged table: changed tensors rounded to the base's dtypes, and a configuration that is right for them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelhub import File, Node, Table, Tensor, ops, read_json

from modelhub_peft.config import MAX_CONFIG
from modelhub_peft.names import EMBEDDINGS, OUTPUTS, Names

CONFIG = "config.json"
HEAD = "lm_head.weight"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
MAX_DOCUMENT = 128 << 20
TOKENIZER = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files of a tokenizer; without one of `VOCABULARIES` there is none."""


def finished(
    base: Table,
    values: Mapping[str, Node],
    replaced: Mapping[str, Tensor],
    trained: Collection[str],
    beside: Sequence[str] = (),
) -> Table:
    """``values`` (F32) and ``replaced`` in place of the base's tensors, the rest as it is; new ones at the end. ``trained``:
    those of ``replaced`` that are tied to nothing from now on. ``beside``: files that lie beside the adapters; where an
    embedding has other rows now, a tokenizer among them is the one that knows them."""
    _check_vocabulary(base, replaced)
    tensors = []
    for tensor in base.logical:
        own = replaced.get(tensor.name)
        shape = own.shape if own else tensor.shape
        if tensor.name in values:
            tensor = _rounded(tensor._replace(shape=shape), values[tensor.name])
        elif own is not None and own.value is not None:
            tensor = _rounded(tensor._replace(shape=shape), ops.typed(own.value, own.dtype, own.shape))
        tensors.append(tensor._replace(view="both") if tensor.name in replaced else tensor)
    common = next((tensor.dtype for tensor in base.logical if len(tensor.shape) > 1), "")
    for name, tensor in replaced.items():
        if name not in base.by_name and tensor.value is not None:
            value = values.get(name) or ops.typed(tensor.value, tensor.dtype, tensor.shape)
            tensors.append(_rounded(tensor._replace(dtype=common or tensor.dtype), value))
    extra, changes = _untied(base, trained)
    tensors += extra
    for name, tensor in replaced.items():
        mine = base.by_name.get(name)
        if mine is not None and mine.shape != tensor.shape and name.split(".")[-2:-1] and name.split(".")[-2] in EMBEDDINGS:
            changes["vocab_size"] = tensor.shape[0]
    documents = {**base.documents, **_config(base, changes)}
    tokenizer = [path for path in beside if os.path.basename(path) in TOKENIZER] if "vocab_size" in changes else []
    files = base.files
    if any(os.path.basename(path) in VOCABULARIES for path in tokenizer):
        files = tuple(path for path in files if os.path.basename(path) not in TOKENIZER)
        documents |= {os.path.basename(path): _whole(path) for path in tokenizer}
    return replace(base, tensors=tuple(tensors), files=files, documents=documents)


def _check_vocabulary(base: Table, replaced: Mapping[str, Tensor]) -> None:
    """ValueError where the embedding has other rows from now on, and the output, which had as many, has not: peft saves the one
    that was trained, and what others got as they were resized is lost."""
    embedding = Names(base).embedding()
    if embedding is None or embedding not in replaced:
        return
    for name, tensor in base.by_name.items():
        if name.split(".")[-2:] in ([output, "weight"] for output in OUTPUTS) and name not in replaced:
            before, after = base.by_name[embedding].shape[0], replaced[embedding].shape[0]
            if tensor.shape[:1] == (before,) and after != before:
                raise ValueError(
                    f"its embedding has {after} tokens, the base's {name} {before}, and it has no such output: resize the base "
                    "first, as it was before the training (resize_token_embeddings), and merge it into that"
                )


def _whole(path: str) -> bytes:
    with File(path) as file:
        if file.size > MAX_DOCUMENT:
            raise ValueError(f"{path} has {file.size:,} bytes, which is no tokenizer")
        return file.read(0, file.size)


def _rounded(tensor: Tensor, value: Node) -> Tensor:
    if value.dtype != tensor.dtype:
        value = ops.cast(value, value.dtype, tensor.shape, tensor.dtype)
    return tensor._replace(value=value)


def _untied(base: Table, trained: Collection[str]) -> tuple[list[Tensor], dict[str, Any]]:
    """Where only one of two tied matrices was trained, they are two from now on: the output that the base did not hold, and what
    the configuration says of it."""
    names = Names(base)
    embedding = names.embedding()
    if embedding is None or not _is_tied(base, embedding):
        return [], {}
    outputs = [name for name in trained if name.split(".")[-2:-1] and name.split(".")[-2] in OUTPUTS]
    if not outputs and embedding not in trained:
        return [], {}
    extra = []
    if not outputs and len(names.tied(embedding)) == 1:
        extra = [base.by_name[embedding]._replace(name=HEAD)]
    return extra, {"tie_word_embeddings": False}


def _is_tied(base: Table, embedding: str) -> bool:
    """Whether the model's output is its embedding: the same bytes, or a model with an output that is nowhere else."""
    if len(Names(base).tied(embedding)) > 1:
        return True
    if any(name.split(".")[-2:-1] and name.split(".")[-2] in OUTPUTS for name in base.by_name):
        return False
    said = base.metadata.values.get("architectures")
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in (said if isinstance(said, list) else ()))


def _config(base: Table, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """``config.json`` of the base with what has changed; nothing where the base has none, or nothing has."""
    path = min((path for path in base.files if path.rsplit("/", 1)[-1] == CONFIG), key=lambda path: path.count("/"), default=None)
    if path is None or not changes:
        return {}
    with File(path) as file:
        config = read_json(file, limit=MAX_CONFIG)
    config.update(changes)
    return {CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"}

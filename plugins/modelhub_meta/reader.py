"""Reads the parts of a checkpoint of Meta's as one table: each matrix whole, put together along the side it was cut at.

How a matrix is cut is fairscale's, in meta-llama/llama ``llama/model.py``: ``ColumnParallelLinear`` by its output,
``RowParallelLinear`` and ``ParallelEmbedding`` by its input; Llama 3 has ``VocabParallelEmbedding``, cut by tokens. What is cut
nowhere (norms, frequencies, routers) stands in every part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from modelhub import (
    Checkpoint,
    Finding,
    IncompleteFile,
    InvalidFile,
    Metadata,
    Tensor,
    UnsupportedFile,
    ops,
    read_as,
)  # fmt: skip

from modelhub_meta.layout import PARAMS, Params, parts_of, read_params

BY_OUTPUT = re.compile(r"(.*\.)?(attention\.w[qkv]|feed_forward\.w[13]|output)\.weight", re.DOTALL)
BY_INPUT = re.compile(r"(.*\.)?(attention\.wo|feed_forward\.w2)\.weight", re.DOTALL)
KEYS = re.compile(r"(.*\.)?attention\.w[kv]\.weight", re.DOTALL)
EMBEDDING = "tok_embeddings.weight"
_SHOWN = {
    "context_length": "max_seq_len", "feed_forward_length": "hidden_dim", "vocab_size": "vocab_size",
    "rope_theta": "rope_theta", "sliding_window": "sliding_window",
}  # fmt: skip


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Findings of the parts, the whole tensors in the order of the first part, and what ``params.json`` says."""
    params = read_params(checkpoint.open(PARAMS))
    paths = parts_of(checkpoint.files)
    parts: list[dict[str, Tensor]] = []
    stored: dict[str, str] = {}
    for path in paths:
        found: dict[str, Tensor] = {}
        for record in read_as("pytorch", checkpoint, [path]):
            if isinstance(record, Tensor):
                found[record.name] = record
            elif isinstance(record, Metadata):
                stored.update(record.stored)
            else:
                yield record
        parts.append(found)
    if not checkpoint.missing:
        yield from whole(parts, params, [os.path.basename(path) for path in paths])
    yield Metadata(values=_values(params, parts, len(paths)), stored=stored, container="pytorch")


def whole(parts: Sequence[dict[str, Tensor]], params: Params, names: Sequence[str]) -> list[Tensor]:
    """The tensors that the parts make. `InvalidFile` where a part lacks one of the others, or has it in another shape;
    `IncompleteFile` where the parts are not all."""
    for part, name in zip(parts, names, strict=True):
        if strange := part.keys() ^ parts[0].keys():
            first = min(strange)
            holds = name if first in part else names[0]
            raise InvalidFile(f"tensor {first[:200]!r} stands in {holds}, and not in {names[0] if holds == name else name}")
    tensors = [_joined(name, [part[name] for part in parts], params, names) for name in parts[0]]
    for tensor in tensors:
        if tensor.name.endswith(".attention.wq.weight") and tensor.shape and tensor.shape[0] < params.heads * params.head_dim:
            raise IncompleteFile(
                f"{tensor.name} has {tensor.shape[0]} rows in {len(parts)} parts, {params.heads} heads of {params.head_dim} were "
                f"expected: parts after {names[-1]} are missing"
            )
    return tensors


def _joined(name: str, parts: Sequence[Tensor], params: Params, names: Sequence[str]) -> Tensor:
    first = parts[0]
    if len(parts) == 1:
        return first
    for part, file in zip(parts, names, strict=True):
        if (part.dtype, part.shape, part.value is None) != (first.dtype, first.shape, first.value is None):
            raise InvalidFile(
                f"tensor {name[:200]!r} is {part.dtype} {list(part.shape)} in {file}, and {first.dtype} {list(first.shape)} in "
                f"{names[0]}: the parts of one model are alike"
            )
    axis = axis_of(first, len(parts), params)
    if axis is None or first.value is None:
        return first
    if KEYS.fullmatch(name) and len(parts) % params.kv_heads == 0 and first.shape[0] == params.head_dim:
        parts = parts[:: len(parts) // params.kv_heads]  # more parts than heads: several have the same head
    nodes = [ops.typed(part.value, part.dtype, part.shape) for part in parts if part.value is not None]
    joined = ops.concat(nodes, axis)
    return first._replace(shape=joined.shape, value=joined)


def axis_of(tensor: Tensor, parts: int, params: Params) -> int | None:
    """Along which side a part of a tensor was cut; None where every part has it all. `UnsupportedFile` for a matrix of a name
    that is not known."""
    if len(tensor.shape) == 2:
        if BY_OUTPUT.fullmatch(tensor.name):
            return 0
        if BY_INPUT.fullmatch(tensor.name):
            return 1
        if tensor.name == EMBEDDING:
            return 0 if tensor.shape[1] == params.dim else 1
        if tensor.name.endswith((".gate.weight", "_norm.weight")):
            return None
    if len(tensor.shape) < 2:
        return None
    raise UnsupportedFile(f"tensor {tensor.name[:200]!r} {list(tensor.shape)}: how it is cut into {parts} parts is not known")


def _values(params: Params, parts: Sequence[dict[str, Tensor]], count: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architecture": "llama",
        "embedding_length": params.dim,
        "block_count": params.layers,
        "head_count": params.heads,
        "head_count_kv": params.kv_heads,
        "head_dim": params.head_dim,
        "parts": count,
    }
    for name, key in _SHOWN.items():
        value = params.raw.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 53:
            values[name] = value
    gate = parts[0].get("layers.0.feed_forward.w1.weight") if parts else None
    if gate is not None and len(gate.shape) == 2:
        values.setdefault("feed_forward_length", gate.shape[0] * count)
    return values

"""Lays out safetensors files: a header from here, tensors from the engine. One file, or shards with an index.

Tensors keep the order of the source, so that a copy reads and writes in sequence, except that wider elements come before
narrower ones (the sort is stable): then every tensor is aligned to its element, as the library's writer has it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from modelhub import ModelhubError, Put, StartFile, Table, Tensor, WriteOptions, Writer, dtypes

from modelhub_safetensors.header import BITS, MAX_HEADER

_ALIGN = 8
"""The header is padded with spaces so that the data starts at a multiple of this (``serialize`` in ``tensor.rs``)."""


def create(table: Table, options: WriteOptions) -> Writer:
    """One file, or where ``options.max_shard_size`` asks for several ``NAME-0000i-of-0000n.safetensors`` and
    ``NAME.safetensors.index.json`` as transformers lays them out. `ModelhubError` where a name or a dtype cannot be stored."""
    metadata = {"format": "pt", **table.metadata.stored}
    tensors = [tensor for tensor in table.logical if tensor.value is not None]
    shards = list(_split(tensors, options.max_shard_size))
    if len(shards) < 2:
        yield from _file(tensors, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{options.name}-{number:05d}-of-{len(shards):05d}.safetensors"
        yield StartFile(name)
        yield from _file(shard, metadata)
        weight_map.update(dict.fromkeys((tensor.name for tensor in shard), name))
    total = sum(_nbytes(tensor) for tensor in tensors)
    yield StartFile(f"{options.name}.safetensors.index.json")
    yield _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, orjson.OPT_INDENT_2) + b"\n"


def _split(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Fill each shard up to ``limit`` bytes; a tensor that is larger stands alone."""
    shard: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = _nbytes(tensor)
        if shard and limit and size + nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    if shard:
        yield shard


def _file(tensors: Sequence[Tensor], metadata: dict[str, str]) -> Writer:
    ordered = sorted(tensors, key=lambda tensor: -BITS.get(tensor.dtype, 0))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for tensor in ordered:
        if tensor.dtype not in BITS:
            raise ModelhubError(
                f"safetensors cannot store {tensor.dtype} (tensor {tensor.name!r})", "choose a recipe, as in safetensors:bf16"
            )
        if tensor.name in entries:
            what = "is the name of its metadata" if tensor.name == "__metadata__" else "stands twice in the table"
            raise ModelhubError(f"safetensors cannot store a tensor called {tensor.name!r}: it {what}")
        end = position + _nbytes(tensor)
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (position, end)}
        position = end
    text = _json(entries)
    text += b" " * (-len(text) % _ALIGN)
    if len(text) > MAX_HEADER:
        raise ModelhubError(
            f"the header would take {len(text)} bytes, the format allows {MAX_HEADER}", "split it with --max-shard-size"
        )
    yield len(text).to_bytes(8, "little") + text
    for tensor in ordered:
        yield Put(tensor)


def _nbytes(tensor: Tensor) -> int:
    return dtypes.get(tensor.dtype).nbytes(tensor.shape)


def _json(value: dict[str, Any], option: int = 0) -> bytes:
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        for name in (
            *value,
            *value.get("__metadata__", {}),
            *value.get("__metadata__", {}).values(),
            *value.get("weight_map", {}),
        ):
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ModelhubError(f"the name or text {name!r} is not valid Unicode: safetensors cannot store it") from None
        raise

"""Lays out PyTorch's zip format: a pickle and small records from here, the tensors' bytes from the engine.

What comes out is what ``torch.save`` of torch 2.13 writes for a flat state dict: the same records, data aligned to 64 bytes,
tied tensors in one storage. Every member has its CRC, so that ``unzip -t`` and Python's ``zipfile`` find the file sound too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import orjson
from modelhub import ModelhubError, Put, StartFile, StoredZip, Table, Tensor, WriteOptions, Writer, dtypes

from modelhub_pytorch.emit import Entry, state_dict
from modelhub_pytorch.reader import STORED

ALIGN = 64
_TYPED = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
    "C64": "ComplexFloatStorage",
    "C128": "ComplexDoubleStorage",
}
_UNTYPED = {
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C32": "complex32",
    "F4": "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
DTYPES = (*_TYPED, *_UNTYPED)


def create(table: Table, options: WriteOptions) -> Writer:
    """One file, or where ``options.max_shard_size`` asks for several ``pytorch_model-0000i-of-0000n.bin`` (or the output's own
    name) and their index, as transformers reads them. `ModelhubError` where a dtype cannot be stored."""
    tensors = [tensor for tensor in table.logical if tensor.value is not None]
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelhubError(f"a state dict cannot hold two tensors called {tensor.name!r}")
        seen.add(tensor.name)
    ties = table.ties
    shards = list(_split(tensors, ties, options.max_shard_size))
    root = options.name.replace("/", "_").replace("\0", "_") or "archive"
    stored = dict(table.metadata.stored)
    if len(shards) < 2:
        yield from _file(tensors, ties, root, stored)
        return
    stem = "pytorch_model" if root == "model" else root
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.bin"
        yield StartFile(name)
        yield from _file(shard, ties, name.removesuffix(".bin"), stored)
        weight_map.update(dict.fromkeys((tensor.name for tensor in shard), name))
    total = sum(_nbytes(tensor) for tensor in tensors if tensor.name not in ties)
    yield StartFile(f"{stem}.bin.index.json")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    try:
        yield orjson.dumps(index, option=orjson.OPT_INDENT_2) + b"\n"
    except TypeError as error:
        raise ModelhubError("a tensor's name is not valid Unicode: an index cannot hold it", "write one file") from error


def _split(tensors: Sequence[Tensor], ties: Mapping[str, str], limit: int) -> Iterator[list[Tensor]]:
    """Fill each shard up to ``limit`` bytes; a tensor that is larger stands alone, a tied one with the tensor it is tied to."""
    place: dict[str, int] = {}
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        owner = ties.get(tensor.name)
        if owner in place:
            shards[place[owner]].append(tensor)
            continue
        nbytes = _nbytes(tensor)
        if shards[-1] and limit and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        place[tensor.name] = len(shards) - 1
        size += nbytes
    yield from shards


def _file(tensors: Sequence[Tensor], owners: Mapping[str, str], root: str, stored: dict[str, str]) -> Writer:
    keys: dict[str, str] = {}
    entries: list[Entry] = []
    written: list[Tensor] = []
    for tensor in tensors:
        owner = owners.get(tensor.name, tensor.name)
        if owner not in keys:
            keys[owner] = str(len(written))
            written.append(tensor)
        entries.append(_entry(tensor, keys[owner]))
    attributes = {STORED: dict(sorted(stored.items()))} if stored else {}
    pickle = state_dict(entries, attributes)
    zip_ = StoredZip()
    yield zip_.add(f"{root}/data.pkl", pickle, align=ALIGN)
    for name, text in ((".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little")):
        yield zip_.add(f"{root}/{name}", text, align=ALIGN)
    for number, tensor in enumerate(written):
        yield zip_.start(f"{root}/data/{number}", align=ALIGN)
        placed = yield Put(tensor, checksum="crc32")
        yield zip_.finish(placed)
    yield zip_.add(f"{root}/version", b"3\n", align=ALIGN)
    # torch puts a hash of all records here, for its own logs; ours is of the pickle, because the rest is still on its way.
    identity = str(int.from_bytes(hashlib.sha256(pickle).digest(), "big"))[:40].zfill(40)
    yield zip_.add(f"{root}/.data/serialization_id", identity.encode(), align=ALIGN)
    yield zip_.directory()


def _entry(tensor: Tensor, key: str) -> Entry:
    numel = 1
    for size in tensor.shape:
        numel *= size
    if tensor.dtype in _TYPED:
        return Entry(tensor.name, key, _TYPED[tensor.dtype], "", numel, tensor.shape)
    if tensor.dtype not in _UNTYPED:
        raise ModelhubError(
            f"PyTorch has no dtype {tensor.dtype} (tensor {tensor.name!r})", "choose a recipe, as in pytorch:bf16"
        )
    shape = tensor.shape
    if tensor.dtype == "F4":  # torch counts pairs of elements
        if not shape or shape[-1] % 2:
            raise ModelhubError(
                f"PyTorch stores {tensor.dtype} in pairs: tensor {tensor.name!r} has rows of {shape[-1] if shape else 1}"
            )
        shape = (*shape[:-1], shape[-1] // 2)
    return Entry(tensor.name, key, "UntypedStorage", _UNTYPED[tensor.dtype], _nbytes(tensor), shape)


def _nbytes(tensor: Tensor) -> int:
    return dtypes.get(tensor.dtype).nbytes(tensor.shape)

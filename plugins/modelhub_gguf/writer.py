"""Writes GGUF: version 3, little-endian, one file or the parts of a split.

Keys come from ``table.metadata.native`` (name -> `modelhub_gguf.fields.Field`, in that order). A table of another container has
none but what a recipe notes; then its free metadata is kept, and what can be told of ``general.*`` is. Layout:
``ggml/src/gguf.cpp``, ``gguf_write_to_buf``; the keys of a split: `modelhub_gguf.splits`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modelhub import Extent, File, ModelhubError, Put, StartFile, Table, Tensor, WriteOptions, Writer, dtypes

from modelhub_gguf import fields as typed
from modelhub_gguf import keys, splits, texts
from modelhub_gguf.fields import I32, U16, U32, Field, encode, encode_string
from modelhub_gguf.header import ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_NAME
from modelhub_gguf.types import BY_NAME

VERSION = 3
MAX_TENSOR_NAME = 63
"""Bytes: ggml keeps a name in 64 with its end (``GGML_MAX_NAME``) and refuses files with longer ones."""
MAX_DIMENSIONS = 4
"""``GGML_MAX_DIMS``."""
_COPY = 1 << 20
_QUANTIZATION_VERSION = 2
"""``GGML_QNT_VERSION``: the layout of blocks since May 2023."""


class _Info(NamedTuple):
    """A tensor and where it goes, counted from the start of the data."""

    tensor: Tensor
    offset: int


def create(table: Table, options: WriteOptions) -> Writer:
    """One file, or where ``options.max_shard_size`` asks for several ``NAME-0000i-of-0000n.gguf``, of which the first has the
    keys. `ModelhubError` where GGUF, or ggml which reads it, cannot hold a name, a shape, a dtype or a key."""
    fields = fields_of(table)
    alignment = _alignment(fields)
    tensors = [tensor for tensor in table.logical if tensor.value is not None]
    _check(tensors)
    parts = list(_parts(tensors, options.max_shard_size, alignment))
    if len(parts) < 2:
        yield from _file(fields, tensors, alignment)
        return
    if len(parts) > 0xFFFF:
        raise ModelhubError(
            f"the output would have {len(parts)} parts, a split counts up to 65535", "give a larger --max-shard-size"
        )
    for number, part in enumerate(parts):
        about = {
            splits.NUMBER: Field(U16, number),
            splits.COUNT: Field(U16, len(parts)),
            splits.TENSORS: Field(I32, len(tensors)),
        }
        yield StartFile(splits.part_name(options.name, number + 1, len(parts)))
        kept = {"general.alignment": fields["general.alignment"]} if "general.alignment" in fields else {}
        yield from _file({**fields, **about} if number == 0 else {**kept, **about}, part, alignment)


def fields_of(table: Table) -> dict[str, Field]:
    """The keys that ``table`` is written with."""
    native: dict[str, Field] = {key: field for key, field in table.metadata.native.items() if key not in splits.KEYS}
    if "general.architecture" in native:
        return native
    known = texts.from_texts(table.metadata.stored)
    told = _told(table, known)
    merged = {**told, **known, **native}
    first = ("general.architecture", "general.type", "general.name")
    return {key: merged[key] for key in (*(key for key in first if key in merged), *(key for key in merged if key not in first))}


def _told(table: Table, known: Mapping[str, Field]) -> dict[str, Field]:
    """What follows from a table of another container: enough for others to list the file, not to run it."""
    values = table.metadata.values
    told: dict[str, Field] = {}
    if "general.architecture" not in known:
        architecture = values.get("architecture")
        told["general.architecture"] = typed.string(architecture if isinstance(architecture, str) and architecture else "unknown")
    for name, key in (
        ("name", "general.name"),
        ("title", "general.name"),
        ("license", "general.license"),
        ("author", "general.author"),
    ):
        if isinstance(values.get(name), str) and key not in told:
            told[key] = typed.string(values[name])
    quantized = [tensor for tensor in table.logical if tensor.dtype in BY_NAME and BY_NAME[tensor.dtype].block > 1]
    if quantized:
        told["general.quantization_version"] = typed.u32(_QUANTIZATION_VERSION)
    most = keys.main_dtype(*zip(*((t.name, t.dtype, t.shape) for t in table.logical), strict=True)) if table.logical else ""
    number = next((number for number, kind in keys.FILE_TYPES.items() if kind.label == most), None)
    if number is not None:
        told["general.file_type"] = typed.u32(number)
    return told


def _alignment(fields: Mapping[str, Field]) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return ALIGNMENT
    value = field.value
    if field.type != U32 or not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelhubError(f"general.alignment is {value!r}, a u32 and a power of two up to {MAX_ALIGNMENT} was expected")
    return value


def _check(tensors: Sequence[Tensor]) -> None:
    """Refuse what no reader of GGUF would open again."""
    seen: set[str] = set()
    for name, dtype, shape, *_ in tensors:
        if dtype not in BY_NAME:
            raise ModelhubError(f"GGUF cannot store {dtype} (tensor {name!r})", "choose a recipe, as in gguf:f16")
        if name in seen:
            raise ModelhubError(f"GGUF cannot store two tensors called {name!r}")
        seen.add(name)
        try:
            length = len(encode_string(name)) - 8
        except ValueError:
            raise ModelhubError(f"the name {name!r} is not valid Unicode: GGUF cannot store it") from None
        if length > MAX_TENSOR_NAME:
            raise ModelhubError(
                f"tensor {name[:200]!r} has a name of {length} bytes, GGUF's readers take {MAX_TENSOR_NAME}",
                "a conversion that knows the architecture gives shorter names",
            )
        if len(shape) > MAX_DIMENSIONS:
            raise ModelhubError(f"tensor {name!r} has {len(shape)} dimensions, GGUF's readers take {MAX_DIMENSIONS}")
        block = BY_NAME[dtype].block
        if block > 1 and (not shape or shape[-1] % block):
            raise ModelhubError(
                f"tensor {name!r} has rows of {shape[-1] if shape else 1} elements; {dtype} packs {block} together"
            )


def _parts(tensors: Sequence[Tensor], limit: int, alignment: int) -> Iterator[list[Tensor]]:
    """Fill each part up to ``limit`` bytes of tensors; one that is larger stands alone."""
    part: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = _padded(_nbytes(tensor), alignment)
        if part and limit and size + nbytes > limit:
            yield part
            part, size = [], 0
        part.append(tensor)
        size += nbytes
    if part:
        yield part


def _file(fields: Mapping[str, Field], tensors: Sequence[Tensor], alignment: int) -> Writer:
    infos: list[_Info] = []
    end = 0
    for tensor in tensors:
        infos.append(_Info(tensor, end))
        end += _padded(_nbytes(tensor), alignment)
    header = list(_header(fields, infos))  # the whole of it, so that what does not fit is said before anything is written
    size = 0
    for piece in header:
        if isinstance(piece, Extent):
            size += piece.nbytes
            yield from _copied(piece)
        else:
            size += len(piece)
            yield piece
    yield bytes(-size % alignment)
    for info in infos:
        yield Put(info.tensor, align=alignment)
    if infos and (rest := -_nbytes(infos[-1].tensor) % alignment):
        yield bytes(rest)  # readers map whole multiples


def _header(fields: Mapping[str, Field], infos: Sequence[_Info]) -> Iterator[bytes | Extent]:
    pieces = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(infos), len(fields)))
    for key, field in fields.items():
        pieces += _key(key)
        try:
            for piece in encode(field):
                if isinstance(piece, Extent):
                    yield bytes(pieces)
                    pieces.clear()
                    yield piece
                else:
                    pieces += piece
        except ValueError as error:
            raise ModelhubError(f"the key {key!r} cannot be written: {error}") from error
    for tensor, offset in infos:
        kind = BY_NAME[tensor.dtype]
        sides = tuple(reversed(tensor.shape))
        pieces += encode_string(tensor.name)
        pieces += struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind.number, offset)
    yield bytes(pieces)


def _key(key: str) -> bytes:
    try:
        name = encode_string(key)
    except ValueError:
        raise ModelhubError(f"the key {key!r} is not valid Unicode: GGUF cannot store it") from None
    if not 8 < len(name) <= 8 + MAX_NAME:
        raise ModelhubError(f"a key of {len(name) - 8} bytes cannot be written, GGUF allows 1 to {MAX_NAME}")
    return name


def _copied(extent: Extent) -> Iterator[bytes]:
    """Bytes of another file's header, as they are."""
    with File(extent.file) as file:
        for start in range(0, extent.nbytes, _COPY):
            yield file.read(extent.offset + start, min(_COPY, extent.nbytes - start))


def _padded(nbytes: int, alignment: int) -> int:
    return nbytes + -nbytes % alignment


def _nbytes(tensor: Tensor) -> int:
    return dtypes.get(tensor.dtype).nbytes(tensor.shape)

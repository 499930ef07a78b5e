"""An array's metadata in zarr, version 2 (``.zarray``) or 3 (``zarr.json``), as one record.

(zarr-specs: "Zarr storage specification version 2"; "Zarr core specification version 3" with its codecs bytes, transpose, gzip,
zstd, crc32c and sharding_indexed, and the chunk key encodings default and v2.) What is known and not read is said in
``unsupported``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from modelhub import InvalidFile, dtypes

from modelhub_orbax.elements import DTYPES, of_zarr2

MAX_SIDES = 32
MAX_BYTES = 1 << 45
"""No array of a checkpoint takes more: 32 TiB."""
MAX_PADDED = 1 << 46
MAX_SHARD_CHUNKS = 1 << 20
COMPRESSIONS = ("zstd", "gzip", "zlib")


@dataclass(frozen=True, slots=True)
class Layout:
    """``shape`` of the array, ``chunk`` of one chunk of it. ``order``: the axes of a chunk, in the order in which they stand in
    its bytes. ``packing``: what was done to those, in this order. ``inner``: where a chunk is a shard, the layout of the chunks
    inside, whose index stands at its end or start. ``separator``, ``lead``: how the keys of chunks are put together."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    fill: Any
    big_endian: bool = False
    order: tuple[int, ...] = ()
    packing: tuple[str, ...] = ()
    separator: str = "."
    lead: str = ""
    inner: Layout | None = None
    index_checked: bool = False
    index_first: bool = False
    index_big_endian: bool = False
    unsupported: str = ""
    kind: str = field(default="", compare=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each side."""
        return tuple(-(-side // step) for side, step in zip(self.shape, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        return prod(self.chunk) * dtypes.get(self.dtype).block_bytes

    def key(self, at: Sequence[int]) -> str:
        """The key of the chunk at ``at`` of the grid, behind the array's name."""
        return self.separator.join([self.lead, *map(str, at)] if self.lead else map(str, at)) or "0"


def _sides(value: Any, where: str, what: str, least: int = 0) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_SIDES or not all(type(side) is int and side >= least for side in value):
        raise InvalidFile(f"{where}: {what} is {value!r:.80}, {'positive ' if least else ''}numbers were expected")
    return tuple(value)


def _measured(layout: Layout, where: str) -> Layout:
    """Held against what makes sense. `InvalidFile` where it does not."""
    if len(layout.chunk) != len(layout.shape):
        raise InvalidFile(f"{where}: chunks of {list(layout.chunk)} in an array of {list(layout.shape)}")
    size = dtypes.get(layout.dtype).block_bytes if layout.dtype else 1
    for sides, most in ((layout.shape, MAX_BYTES), (layout.chunk, MAX_PADDED)):
        nbytes = size
        for side in sides:
            nbytes *= side
            if nbytes > most:
                raise InvalidFile(f"{where}: {list(sides)} elements take more than {most} bytes: no checkpoint has such an array")
    return layout


def zarr2(said: Mapping[str, Any], where: str) -> Layout:
    """What ``.zarray`` says."""
    if said.get("zarr_format") != 2:
        raise InvalidFile(f"{where}: zarr_format {said.get('zarr_format')!r:.40}, 2 was expected")
    shape = _sides(said.get("shape"), where, "shape")
    chunk = _sides(said.get("chunks"), where, "chunks", 1)
    name = said.get("dtype")
    dtype, big_endian = of_zarr2(name) if isinstance(name, str) else ("", False)
    unsupported = "" if dtype else f"array of dtype {name!r:.60}"
    compressor = said.get("compressor")
    packing: tuple[str, ...] = ()
    if compressor is not None:
        kind = compressor.get("id") if isinstance(compressor, dict) else compressor
        if kind not in COMPRESSIONS:
            unsupported = unsupported or f"array in chunks compressed by {kind!r:.40}"
        else:
            packing = (str(kind),)
    if said.get("filters"):
        unsupported = unsupported or "array in chunks with filters"
    rank = len(shape)
    order = tuple(range(rank)) if said.get("order", "C") == "C" else tuple(range(rank))[::-1]
    separator = said.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise InvalidFile(f"{where}: dimension_separator {separator!r:.40}")
    layout = Layout(shape, chunk, dtype, said.get("fill_value"), big_endian, order, packing, separator)
    return _measured(replace(layout, unsupported=unsupported, kind=str(name)[:40]), where)


def zarr3(said: Mapping[str, Any], where: str) -> Layout:
    """What ``zarr.json`` says of an array."""
    if said.get("zarr_format") != 3 or said.get("node_type") != "array":
        raise InvalidFile(f"{where}: zarr_format {said.get('zarr_format')!r:.40}, an array of version 3 was expected")
    shape = _sides(said.get("shape"), where, "shape")
    name = said.get("data_type")
    dtype = DTYPES.get(name, "") if isinstance(name, str) else ""
    unsupported = "" if dtype else f"array of dtype {name!r:.60}"
    grid, _ = _named(said.get("chunk_grid"), where)
    if grid != "regular":
        unsupported = unsupported or f"array in chunks in a grid {grid!r:.40}"
    chunk = _sides(_configured(said.get("chunk_grid"), "chunk_shape"), where, "chunk_shape", 1)
    keys, told = _named(said.get("chunk_key_encoding"), where)
    lead, usual = ("c", "/") if keys == "default" else ("", ".")
    separator = told.get("separator", usual)
    if keys not in ("default", "v2") or separator not in ("/", "."):
        raise InvalidFile(f"{where}: chunk_key_encoding {said.get('chunk_key_encoding')!r:.80}")
    if said.get("storage_transformers"):
        unsupported = unsupported or "array in chunks behind storage transformers"
    layout = Layout(shape, chunk, dtype, said.get("fill_value"), separator=separator, lead=lead, kind=str(name)[:40])
    layout = _measured(replace(layout, unsupported=unsupported), where)
    return _coded(layout, said.get("codecs"), where, inside=False)


def _named(value: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """The name and the configuration of an extension point."""
    if isinstance(value, str):
        return value, {}
    match value:
        case {"name": str(name)} if isinstance(value.get("configuration", {}), dict):
            return name, value.get("configuration", {})
    raise InvalidFile(f"{where}: {value!r:.80} is no extension with a name")


def _configured(value: Any, key: str) -> Any:
    return value["configuration"].get(key) if isinstance(value, dict) and isinstance(value.get("configuration"), dict) else None


def _coded(layout: Layout, codecs: Any, where: str, *, inside: bool) -> Layout:
    """``layout`` with what its chain of codecs says."""
    if not isinstance(codecs, list) or not 0 < len(codecs) <= 16:
        raise InvalidFile(f"{where}: codecs {codecs!r:.80}, a list was expected")
    order = tuple(range(len(layout.shape)))
    packing: list[str] = []
    laid_out = False
    for codec in codecs:
        name, told = _named(codec, where)
        if name == "transpose" and not laid_out:
            axes = _sides(told.get("order"), where, "the order of transpose")
            if sorted(axes) != list(range(len(order))):
                raise InvalidFile(f"{where}: {list(axes)} is no order of {len(order)} axes")
            order = tuple(order[axis] for axis in axes)
        elif name == "bytes" and not laid_out:
            layout, laid_out = replace(layout, big_endian=told.get("endian") == "big"), True
        elif name == "sharding_indexed" and not laid_out and not inside:
            if order != tuple(sorted(order)):
                return replace(layout, unsupported="array in shards with transposed axes")
            layout, laid_out = _sharded(layout, told, where), True
        elif name in ("zstd", "gzip", "crc32c") and laid_out:
            packing.append(name)
        else:
            return replace(layout, unsupported=layout.unsupported or f"array in chunks coded by {name!r:.40}")
    if not laid_out:
        raise InvalidFile(f"{where}: no codec makes bytes of its chunks")
    if layout.inner is not None and packing:
        return replace(layout, unsupported="array in shards that are compressed as a whole")
    return replace(layout, order=order, packing=tuple(packing))


def _sharded(layout: Layout, told: Mapping[str, Any], where: str) -> Layout:
    chunk = _sides(told.get("chunk_shape"), where, "the chunk_shape of sharding", 1)
    if len(chunk) != len(layout.chunk) or any(whole % part for whole, part in zip(layout.chunk, chunk, strict=True)):
        raise InvalidFile(f"{where}: shards of {list(layout.chunk)} cannot hold chunks of {list(chunk)}")
    if prod(whole // part for whole, part in zip(layout.chunk, chunk, strict=True)) > MAX_SHARD_CHUNKS:
        raise InvalidFile(f"{where}: more than {MAX_SHARD_CHUNKS} chunks of {list(chunk)} in a shard")
    index = [_named(codec, where) for codec in told.get("index_codecs") or []]
    names = [name for name, _ in index]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return replace(layout, unsupported=f"array in shards with an index coded by {names!r:.60}")
    inner = Layout(layout.chunk, chunk, layout.dtype, layout.fill)
    inner = _coded(inner, told.get("codecs"), where, inside=True)
    return replace(
        layout,
        inner=inner,
        index_checked=len(names) == 2,
        index_first=told.get("index_location", "end") == "start",
        index_big_endian=index[0][1].get("endian") == "big",
        unsupported=layout.unsupported or inner.unsupported,
    )

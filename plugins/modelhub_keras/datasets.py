"""A dataset as a tensor: its type, and its bytes as they lie: in one run, in the header, or in compressed chunks.

Layouts and filters as in the HDF5 File Format Specification 3.0 (IV.A.2.i and .l, III.A.1 for chunks). Chunks become an
expression: each is inflated, its bytes are put back in order ("shuffle" stores the first byte of all elements, then the second),
and placed.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import NamedTuple

from modelhub import Extent, Inline, InvalidFile, Node, Tensor, dtypes, ops

from modelhub_keras import attributes, lzf, types
from modelhub_keras.chunks import OLD, Chunk, Index, chunks, index_of
from modelhub_keras.container import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILL,
    FILTERS,
    LAYOUT,
    OLD_FILL,
    Container,
    Cursor,
    Place,
)
from modelhub_keras.groups import Entry

MAX_CHUNKS = 20_000
"""Of one dataset; a table holds a few numbers for each."""
COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = range(4)
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_ORDER = (_SHUFFLE, _DEFLATE, lzf.FILTER, _FLETCHER)
"""In which chunks go through the filters that are read."""
_FILTERS = {
    4: "szip", 5: "nbit", 6: "scaleoffset", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32015: "Zstandard",
}  # fmt: skip
"""Those that are not read, by their registered numbers."""

Value = Extent | Inline | Node


class Layout(NamedTuple):
    """How a dataset is stored: at ``address``, in ``nbytes`` bytes, as ``data`` of the header, or in ``chunks``."""

    kind: int
    address: int = -1
    nbytes: int = 0
    data: bytes = b""
    chunks: Index | None = None
    why: str = ""


class Dataset:
    """One dataset's header, taken apart."""

    def __init__(self, file: Container, entry: Entry) -> None:
        self.file, self.where = file, f"{file.name}: dataset {entry.path[:200]!r}"
        self.messages = {message.type: message.data for message in reversed(file.messages(entry.address))}
        self.layout = self._layout()
        kind, space = self.messages.get(DATATYPE), self.messages.get(DATASPACE)
        if kind is None or space is None:
            raise InvalidFile(f"{self.where} has no type, or no shape")
        self.kind = types.parse(Cursor(kind, self.where))
        if self.kind.opaque:  # older files leave the note out, and had but one such type
            noted = attributes.text(file, entry.address, "dtype")
            self.kind = types.of_opaque(self.kind, noted if isinstance(noted, str) else "bfloat16")
        found = types.shape_and_limits(Cursor(space, self.where), file)
        self.shape: tuple[int, ...] | None = found[0] if found else None
        self.limits: tuple[int, ...] = found[1] if found else ()

    @property
    def leads_out(self) -> str:
        """Where its bytes come from if not from this file, in words; "" for an ordinary one."""
        if self.layout.kind == VIRTUAL:
            first, more = self._virtual_files()
            others = f" and of {more} more places" if more else ""
            return f"a virtual dataset of {first[:300]}{others}" if first != "." or more else ""
        if EXTERNAL in self.messages:
            return f"its bytes in {self._external_file()[:300]}"
        return ""

    def value(self, place: Place) -> tuple[Value | None, str]:
        """(its bytes, why they cannot be had)."""
        if self.layout.kind == VIRTUAL:
            return None, "virtual dataset, which is made of other datasets"
        if self.kind.why or self.shape is None:
            return None, self.kind.why or "dataset without a shape"
        if EXTERNAL in self.messages:
            return None, "dataset whose bytes lie in another file"
        nbytes = dtypes.get(self.kind.dtype).nbytes(self.shape)
        if not nbytes:
            return Inline(b""), ""
        if self.layout.why:
            return None, self.layout.why
        if self.layout.kind == COMPACT:
            if len(self.layout.data) != nbytes:
                raise self._sizes(nbytes, len(self.layout.data))
            return Inline(self.layout.data), ""
        if self.layout.address == self.file.undefined:  # never written: all elements are the one that stands in the header
            return self._filled(self.shape), ""
        if self.layout.kind == CHUNKED:
            return self._chunked(self.shape, place)
        if self.layout.nbytes not in (0, nbytes):  # old layouts do not say
            raise self._sizes(nbytes, self.layout.nbytes)
        return place(self.file.start + self.layout.address, nbytes), ""

    def _sizes(self, nbytes: int, stored: int) -> InvalidFile:
        return InvalidFile(f"{self.where}: {self.kind.dtype} {list(self.shape or ())} takes {nbytes} bytes, {stored} are stored")

    # --- the header -------------------------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        data = Cursor(self.messages[LAYOUT], self.where)
        version = data.number(1)
        if version in (1, 2):
            rank, kind = data.number(1), data.number(1)
            data.take(5)
            address = data.number(self.file.offsets) if kind != COMPACT else -1
            sides = tuple(data.number(4) for _ in range(rank))
            if kind == COMPACT:
                return Layout(kind, data=data.take(data.number(4)))
            return Layout(kind, address, chunks=Index(OLD, address, sides[:-1]) if kind == CHUNKED else None)
        if version not in (3, 4, 5):
            raise InvalidFile(f"{self.where}: a layout of version {version}")
        kind = data.number(1)
        if kind == COMPACT:
            return Layout(kind, data=data.take(data.number(2)))
        if kind == CONTIGUOUS:
            return Layout(kind, data.number(self.file.offsets), data.number(self.file.lengths))
        if kind == CHUNKED and version == 3:
            rank, address = data.number(1), data.number(self.file.offsets)
            return Layout(kind, address, chunks=Index(OLD, address, tuple(data.number(4) for _ in range(rank))[:-1]))
        if kind == CHUNKED:
            index, why = index_of(data, self.file)
            return Layout(kind, index.address, chunks=index, why=why)
        if kind == VIRTUAL:
            return Layout(kind, data.number(self.file.offsets), data.number(4))
        raise InvalidFile(f"{self.where}: a layout of class {kind}")

    def _external_file(self) -> str:
        """The name of the first file of external storage (IV.A.2.h)."""
        data = Cursor(self.messages[EXTERNAL], self.where)
        data.take(8)
        heap, name = data.number(self.file.offsets), data.number(self.file.lengths)
        head = Cursor(self.file.at(heap, 8 + 2 * self.file.lengths + self.file.offsets, "a heap"), self.where, 8)
        size = head.number(self.file.lengths)
        head.take(self.file.lengths)
        names = self.file.at(head.number(self.file.offsets), min(size, 1 << 20), "a heap's data")
        return Cursor(names, self.where, name).text().decode("utf-8", "replace")

    def _virtual_files(self) -> tuple[str, int]:
        """(the first file that a virtual dataset is made of, how many more places); its mappings stand in a global heap
        (IV.A.2.i)."""
        if self.layout.address in (0, self.file.undefined):
            return ".", 0
        data = Cursor(attributes.heap_object(self.file, self.layout.address, self.layout.nbytes), self.where)
        data.take(1)
        count = data.number(self.file.lengths)
        return (data.text().decode("utf-8", "replace"), count - 1) if count else (".", 0)

    def _fill_value(self) -> bytes:
        """The bytes of an element that was never written."""
        size = dtypes.get(self.kind.dtype).block_bytes
        found = b""
        if FILL in self.messages:
            data = Cursor(self.messages[FILL], self.where)
            version = data.number(1)
            defined = data.take(3)[2] if version < 3 else data.number(1) & 0x20
            found = data.take(data.number(4)) if (version == 1 or defined) and len(data.data) >= data.at + 4 else b""
        elif OLD_FILL in self.messages:
            data = Cursor(self.messages[OLD_FILL], self.where)
            found = data.take(data.number(4))
        return found if len(found) == size else bytes(size)

    def _filled(self, shape: tuple[int, ...]) -> Value:
        return ops.strided(Inline(self._fill_value()), self.kind.dtype, shape, [0] * len(shape))

    # --- chunks -----------------------------------------------------------------------------------------------------

    def _codes(self) -> list[int]:
        """The filters that chunks went through, in their order (IV.A.2.l)."""
        if FILTERS not in self.messages:
            return []
        data = Cursor(self.messages[FILTERS], self.where)
        version, count = data.number(1), data.number(1)
        data.take(6 if version == 1 else 0)
        found = []
        for _ in range(count):
            code = data.number(2)
            length = data.number(2) if version == 1 or code >= 256 else 0
            data.take(2)
            values = data.number(2)
            data.take(-(-length // 8) * 8 if version == 1 else length)
            data.take(4 * values + (4 if version == 1 and values % 2 else 0))
            found.append(code)
        return found

    def _chunked(self, shape: tuple[int, ...], place: Place) -> tuple[Value | None, str]:
        index = self.layout.chunks or Index(OLD, self.layout.address, ())
        codes, sides = self._codes(), index.sides
        if strange := next((code for code in codes if code not in _ORDER), None):
            return None, f"dataset compressed with {_FILTERS.get(strange, f'filter {strange}')}, which is not read"
        if codes != sorted(codes, key=_ORDER.index) or len(codes) != len(set(codes)) or {_DEFLATE, lzf.FILTER} <= set(codes):
            return None, f"dataset with filters in the order {codes}, which is not read"
        if len(sides) != len(shape) or 0 in sides or not shape:
            raise InvalidFile(f"{self.where}: chunks of {list(sides)} in {list(shape)}")
        grid = [range(0, whole, side) for whole, side in zip(shape, sides, strict=True)]
        if (count := prod(map(len, grid))) > MAX_CHUNKS:
            return None, f"dataset in {count} chunks, at most {MAX_CHUNKS} are read"
        missing = set(product(*grid))
        parts: list[Value] = []
        boxes: list[list[list[int]]] = []
        nbytes = dtypes.get(self.kind.dtype).nbytes(sides)
        if lzf.FILTER in codes and nbytes > lzf.MAX_CHUNK:
            return None, f"dataset compressed with LZF in chunks of {nbytes} bytes, which is more than is held in memory"
        for chunk in chunks(self.file, index, shape, self.limits, nbytes, self.where):
            if chunk.corner not in missing:
                continue  # left over from when the dataset was larger
            missing.discard(chunk.corner)
            boxes.append([[at, min(side, end - at)] for at, side, end in zip(chunk.corner, sides, shape, strict=True)])
            parts.append(self._chunk(chunk, codes, sides, [length for _, length in boxes[-1]], place))
        if not parts:
            return self._filled(shape), ""
        for corner in sorted(missing):  # chunks that were never written
            boxes.append([[at, min(side, end - at)] for at, side, end in zip(corner, sides, shape, strict=True)])
            parts.append(self._filled(tuple(length for _, length in boxes[-1])))
        return ops.place(parts, boxes, self.kind.dtype, shape), ""

    def _chunk(self, chunk: Chunk, codes: list[int], sides: tuple[int, ...], kept: list[int], place: Place) -> Value:
        """One chunk's elements that lie inside the whole, in C order."""
        dtype = self.kind.dtype
        done = {code for number, code in enumerate(codes) if not chunk.skipped >> number & 1}
        nbytes = dtypes.get(dtype).nbytes(sides)
        stored = chunk.nbytes - (4 if _FLETCHER in done else 0)
        if stored < 0 or (done.isdisjoint((_DEFLATE, lzf.FILTER)) and stored != nbytes):
            raise InvalidFile(f"{self.where}: a chunk of {list(sides)} takes {nbytes} bytes, {stored} are stored")
        value: Value = place(self.file.start + chunk.address, stored)
        if _DEFLATE in done:
            value = ops.inflate(value, nbytes=nbytes, method="zlib")
        elif lzf.FILTER in done:
            value = ops.node("hdf5.lzf", value, nbytes=nbytes)
        size = dtypes.get(dtype).block_bytes
        if _SHUFFLE in done and size > 1:
            value = ops.strided(value, "U8", (nbytes // size, size), (1, nbytes // size))
        if kept == list(sides):
            return ops.reshape(value, dtype, sides)
        return ops.strided(value, dtype, kept, [prod(sides[axis + 1 :]) for axis in range(len(sides))])


def tensor(file: Container, entry: Entry, place: Place) -> tuple[Tensor, str]:
    """(the record of a dataset, under its path; where it leads out of the file, or "")."""
    if entry.outside:
        return Tensor(entry.path, "LINK", (), None, unsupported=entry.outside), f"a {entry.outside}"
    dataset = Dataset(file, entry)
    try:
        value, why = dataset.value(place)
        shape = dataset.shape or ()
        if value is not None and dataset.kind.big and 0 not in shape:
            value = ops.byteswap(value, dataset.kind.dtype, shape)
    except ValueError as error:
        raise InvalidFile(f"{dataset.where}: {str(error)[:300]}") from error
    return Tensor(entry.path, dataset.kind.dtype, shape, value, unsupported=why), dataset.leads_out

"""A dataset as a tensor: its type, and its bytes as they lie: in one run, in the header, or in compressed chunks.

Types, layouts and filters as in the HDF5 File Format Specification 3.0 (IV.A.2.d, .i and .l). Chunks become an expression: each
is inflated, its bytes are put back in order ("shuffle" stores the first byte of all elements, then the second), and placed.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from modelhub import Extent, Inline, InvalidFile, Node, Tensor, dtypes, ops

from modelhub_keras.hdf5 import Dataset, Place

MAX_CHUNKS = 20_000
"""Of one dataset; a table holds a few numbers for each."""
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_FILTERS = {
    4: "szip",
    5: "nbit",
    6: "scaleoffset",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32015: "Zstandard",
}
"""Those that are not read, by their registered numbers."""
_FLOATS = {
    (2, 15, 10, 5, 0, 10): "F16",
    (2, 15, 7, 8, 0, 7): "BF16",
    (4, 31, 23, 8, 0, 23): "F32",
    (8, 63, 52, 11, 0, 52): "F64",
    (1, 7, 2, 5, 0, 2): "F8_E5M2",
}
"""(bytes, sign, exponent's place and size, mantissa's place and size)."""
_OPAQUE = {("bfloat16", 2): "BF16", ("float8_e4m3fn", 1): "F8_E4M3", ("float8_e5m2", 1): "F8_E5M2"}
"""What Keras stores as bytes of no type, and notes beside them (``saving_lib.py``, ``H5Entry``)."""

Value = Extent | Inline | Node


def tensor(dataset: Dataset, place: Place, who: str, *, opaque: str = "") -> Tensor:
    """The record of a dataset, under its path. ``opaque``: the type of elements that have none of their own."""
    from h5py import h5d  # type: ignore[import-untyped]

    if dataset.outside:
        return Tensor(dataset.path, "LINK", (), None, unsupported=dataset.outside)
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:  # before anything asks for its shape, for which the library may look for the others
        return Tensor(dataset.path, "VIRTUAL", (), None, unsupported="virtual dataset, which is made of other files' data")
    shape = _shape(dataset.id)
    dtype, swapped, why = _dtype(dataset.id.get_type(), opaque)
    if why or shape is None:
        return Tensor(dataset.path, dtype, shape or (), None, unsupported=why or "dataset without a shape")
    if plan.get_external_count():
        return Tensor(dataset.path, dtype, shape, None, unsupported="dataset whose bytes lie in another file")
    where = f"{who}: dataset {dataset.path[:200]!r}"
    try:
        value, why = _value(dataset.id, plan, dtype, swapped, shape, place, where)
        if value is not None and swapped and 0 not in shape:
            value = ops.byteswap(value, dtype, shape)
    except ValueError as error:
        raise InvalidFile(f"{where}: {str(error)[:300]}") from error
    return Tensor(dataset.path, dtype, shape, value, unsupported=why)


def leads_out(dataset: Dataset) -> str:
    """Where a dataset's bytes come from if not from this file, in words; "" for an ordinary one."""
    from h5py import h5d

    if dataset.outside:
        return f"a {dataset.outside}"
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:
        names = {plan.get_virtual_filename(number) for number in range(min(plan.get_virtual_count(), 10))} - {"."}
        return f"a virtual dataset of {', '.join(sorted(names))[:300]}" if names else ""
    if plan.get_external_count():
        return f"its bytes in {plan.get_external(0)[0].decode('utf-8', 'replace')[:300]}"
    return ""


def _shape(identifier: Any) -> tuple[int, ...] | None:
    from h5py import h5s

    space = identifier.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return None
    return tuple(int(side) for side in space.get_simple_extent_dims())


def _dtype(kind: Any, opaque: str) -> tuple[str, bool, str]:
    """(dtype, whether it is big-endian, why it is none that is read)."""
    from h5py import h5t

    size = kind.get_size()
    match kind.get_class():
        case h5t.FLOAT:
            found = _FLOATS.get((size, *kind.get_fields()))
            if found is None and (size, *kind.get_fields()) == (1, 7, 3, 4, 0, 3):
                found = "F8_E4M3"
            if found is None:
                return "FLOAT", False, f"dataset of floats of {size} bytes with fields {kind.get_fields()}"
            return found, kind.get_order() == h5t.ORDER_BE and size > 1, ""
        case h5t.INTEGER:
            found = f"{'I' if kind.get_sign() else 'U'}{8 * size}"
            if size not in (1, 2, 4, 8) or kind.get_precision() != 8 * size:
                return "INTEGER", False, f"dataset of integers of {kind.get_precision()} bits in {size} bytes"
            return found, kind.get_order() == h5t.ORDER_BE and size > 1, ""
        case h5t.ENUM:
            names = {kind.get_member_name(number) for number in range(min(kind.get_nmembers(), 3))}
            if size == 1 and names == {b"FALSE", b"TRUE"}:
                return "BOOL", False, ""
            return "ENUM", False, "dataset of an enumeration"
        case h5t.COMPOUND:
            return _complex(kind, size)
        case h5t.OPAQUE:
            found = _OPAQUE.get((opaque, size))
            return (found, False, "") if found else ("OPAQUE", False, f"dataset of {size} opaque bytes an element")
        case h5t.STRING | h5t.VLEN:
            return "STRING", False, "dataset of texts" if kind.get_class() == h5t.STRING else "dataset of lists of any length"
    return "OTHER", False, "dataset of references or of another type that is no number"


def _complex(kind: Any, size: int) -> tuple[str, bool, str]:
    """h5py stores complex numbers as pairs ``r`` and ``i``."""
    from h5py import h5t

    names = [kind.get_member_name(number) for number in range(min(kind.get_nmembers(), 3))]
    if names == [b"r", b"i"] and size in (8, 16) and kind.get_member_offset(1) == size // 2:
        parts = [kind.get_member_type(number) for number in (0, 1)]
        if all(one.get_class() == h5t.FLOAT and one.get_size() == size // 2 for one in parts):
            return f"C{8 * size}", parts[0].get_order() == h5t.ORDER_BE, ""
    return "RECORD", False, "dataset of records"


def _value(
    identifier: Any, plan: Any, dtype: str, swapped: bool, shape: tuple[int, ...], place: Place, who: str
) -> tuple[Value | None, str]:
    """(the bytes of a dataset, why they cannot be had)."""
    from h5py import h5d

    nbytes = dtypes.get(dtype).nbytes(shape)
    if not nbytes:
        return Inline(b""), ""
    layout = plan.get_layout()
    if layout == h5d.COMPACT:
        import numpy as np
        from h5py import h5s

        if identifier.get_storage_size() != nbytes:
            raise InvalidFile(f"{who}: {dtype} {list(shape)} takes {nbytes} bytes, {identifier.get_storage_size()} are stored")
        data = np.empty(nbytes, "u1")
        identifier.read(h5s.ALL, h5s.ALL, data, mtype=identifier.get_type())
        return Inline(data.tobytes()), ""
    if layout == h5d.CONTIGUOUS:
        stored = identifier.get_storage_size()
        if not stored:  # never written: all its elements are the one that stands in its header
            return _filled(plan, dtype, swapped, shape)
        offset = identifier.get_offset()
        if offset is None or stored != nbytes:
            raise InvalidFile(f"{who}: {dtype} {list(shape)} takes {nbytes} bytes, {stored} are stored")
        return place(offset, nbytes), ""
    if layout == h5d.CHUNKED:
        return _chunked(identifier, plan, dtype, swapped, shape, place, who)
    return None, "dataset of an unknown layout"


def _filled(plan: Any, dtype: str, swapped: bool, shape: tuple[int, ...]) -> tuple[Value | None, str]:
    """A whole of one element again and again, in the byte order that what was written has."""
    import numpy as np

    kind = np.dtype(dtypes.get(dtype).numpy or "u1")
    one = np.zeros(1, kind.newbyteorder(">") if swapped else kind)
    if dtype == "BF16" or dtype.startswith("F8"):
        return None, "dataset that was never written"
    plan.get_fill_value(one)
    return ops.strided(Inline(one.tobytes()), dtype, shape, [0] * len(shape)), ""


def _chunked(
    identifier: Any, plan: Any, dtype: str, swapped: bool, shape: tuple[int, ...], place: Place, who: str
) -> tuple[Value | None, str]:
    filters = [plan.get_filter(number) for number in range(plan.get_nfilters())]
    codes = [code for code, *_ in filters]
    if strange := next((code for code in codes if code not in (_DEFLATE, _SHUFFLE, _FLETCHER)), None):
        return None, f"dataset compressed with {_FILTERS.get(strange, f'filter {strange}')}, which is not read"
    if codes != sorted(codes, key=(_SHUFFLE, _DEFLATE, _FLETCHER).index) or len(codes) != len(set(codes)):
        return None, f"dataset with filters in the order {codes}, which is not read"
    sides = tuple(int(side) for side in plan.get_chunk())
    grid = [range(0, whole, side) for whole, side in zip(shape, sides, strict=True)]
    if (count := prod(map(len, grid))) > MAX_CHUNKS:
        return None, f"dataset in {count} chunks, at most {MAX_CHUNKS} are read"
    parts: list[Value] = []
    boxes: list[list[list[int]]] = []
    if not identifier.get_num_chunks():
        return _filled(plan, dtype, swapped, shape)
    missing = set(product(*grid))
    for number in range(identifier.get_num_chunks()):
        info = identifier.get_chunk_info(number)
        corner = tuple(int(at) for at in info.chunk_offset)
        if corner not in missing:
            continue  # left over from when the dataset was larger
        missing.discard(corner)
        box = [[at, min(side, whole - at)] for at, side, whole in zip(corner, sides, shape, strict=True)]
        parts.append(_chunk(info, codes, dtype, sides, [length for _, length in box], place, who))
        boxes.append(box)
    for corner in sorted(missing):  # chunks that were never written
        box = [[at, min(side, whole - at)] for at, side, whole in zip(corner, sides, shape, strict=True)]
        part, why = _filled(plan, dtype, swapped, tuple(length for _, length in box))
        if part is None:
            return None, why
        parts.append(part)
        boxes.append(box)
    return ops.place(parts, boxes, dtype, shape), ""


def _chunk(info: Any, codes: list[int], dtype: str, sides: tuple[int, ...], kept: list[int], place: Place, who: str) -> Value:
    """One chunk's elements that lie inside the whole, in C order."""
    skipped = {code for number, code in enumerate(codes) if info.filter_mask >> number & 1}
    nbytes = dtypes.get(dtype).nbytes(sides)
    stored = int(info.size) - (4 if _FLETCHER in codes and _FLETCHER not in skipped else 0)
    deflated = _DEFLATE in codes and _DEFLATE not in skipped
    if stored < 0 or (not deflated and stored != nbytes):
        raise InvalidFile(f"{who}: a chunk of {list(sides)} takes {nbytes} bytes, {stored} are stored")
    value: Value = place(int(info.byte_offset), stored)
    if deflated:
        value = ops.inflate(value, nbytes=nbytes, method="zlib")
    size = dtypes.get(dtype).block_bytes
    if _SHUFFLE in codes and _SHUFFLE not in skipped and size > 1:
        value = ops.strided(value, "U8", (nbytes // size, size), (1, nbytes // size))
    if kept == list(sides):
        return ops.reshape(value, dtype, sides)
    strides = [prod(sides[axis + 1 :]) for axis in range(len(sides))]
    return ops.strided(value, dtype, kept, strides)

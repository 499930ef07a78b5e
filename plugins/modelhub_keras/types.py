"""Datatypes and shapes of HDF5 as dtypes (IV.A.2.d and IV.A.2.b of the specification)."""

from __future__ import annotations

from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras.container import Container, Cursor

MAX_RANK = 32
"""As HDF5's library has it."""
_FLOATS: dict[tuple[int, ...], str] = {
    (2, 15, 10, 5, 0, 10): "F16",
    (2, 15, 7, 8, 0, 7): "BF16",
    (4, 31, 23, 8, 0, 23): "F32",
    (8, 63, 52, 11, 0, 52): "F64",
    (1, 7, 2, 5, 0, 2): "F8_E5M2",
    (1, 7, 3, 4, 0, 3): "F8_E4M3",
}
"""(bytes, sign, exponent's place and size, mantissa's place and size)."""
_OPAQUE = {("bfloat16", 2): "BF16", ("float8_e4m3fn", 1): "F8_E4M3", ("float8_e5m2", 1): "F8_E5M2"}
"""What Keras stores as bytes of no type, and notes beside them (``saving_lib.py``, ``H5Entry``)."""


class Kind(NamedTuple):
    """A type: its dtype ("" for none), bytes of an element, whether it is big-endian, why it is not read; ``texts`` is "fixed" or
    "heap" for texts, ``opaque`` says that what it means is noted elsewhere."""

    dtype: str
    size: int
    big: bool = False
    why: str = ""
    texts: str = ""
    opaque: bool = False


def parse(data: Cursor) -> Kind:
    """The type in a datatype message."""
    head, bits = data.number(1), data.number(3)
    size = data.number(4)
    kind, version = head & 15, head >> 4
    if kind == 0:
        start, precision = data.number(2), data.number(2)
        if size not in (1, 2, 4, 8) or precision != 8 * size or start:
            return Kind("INTEGER", size, why=f"dataset of integers of {precision} bits in {size} bytes")
        return Kind(f"{'I' if bits & 8 else 'U'}{8 * size}", size, bool(bits & 1) and size > 1)
    if kind == 1:
        return _float(data, bits, size)
    if kind == 3:
        return Kind("STRING", size, why="dataset of texts", texts="fixed")
    if kind == 5:
        return Kind("OPAQUE", size, why=f"dataset of {size} opaque bytes an element", opaque=True)
    if kind == 6:
        return _compound(data, bits & 0xFFFF, size, version)
    if kind == 8:
        return _enumeration(data, bits & 0xFFFF, size, version)
    if kind == 9:
        is_text = bits & 15 == 1
        if is_text:
            return Kind("STRING", size, why="dataset of texts", texts="heap")
        return Kind("LIST", size, why="dataset of lists of any length")
    return Kind("OTHER", size, why="dataset of references or of another type that is no number")


def of_opaque(kind: Kind, noted: str) -> Kind:
    """The type of opaque elements, given what is noted of it."""
    dtype = _OPAQUE.get((noted, kind.size))
    return Kind(dtype, kind.size) if dtype else kind


def _float(data: Cursor, bits: int, size: int) -> Kind:
    start, precision = data.number(2), data.number(2)
    fields = [bits >> 8 & 0xFF, *(data.number(1) for _ in range(4))]
    data.take(4)  # the exponent's bias, which follows from the rest in all that are known
    dtype = _FLOATS.get((size, *fields))
    if dtype is None or bits & 0x40 or start or precision != 8 * size:
        return Kind("FLOAT", size, why=f"dataset of floats of {size} bytes with fields {fields}")
    return Kind(dtype, size, bool(bits & 1) and size > 1)


def _member(data: Cursor, version: int, size: int) -> tuple[bytes, int]:
    """(name, offset) of a member of a compound."""
    name = data.text(1 if version >= 3 else 8)
    if version >= 3:
        return name, data.number(max(1, (size.bit_length() + 7) // 8))
    offset = data.number(4)
    data.take(28 if version == 1 else 0)
    return name, offset


def _compound(data: Cursor, members: int, size: int, version: int) -> Kind:
    """Pairs of floats ``r`` and ``i`` are how h5py stores complex numbers."""
    records = Kind("RECORD", size, why="dataset of records")
    if members != 2 or size not in (8, 16):
        return records
    kinds = []
    for number, name in enumerate((b"r", b"i")):
        if _member(data, version, size) != (name, number * size // 2) or data.data[data.at : data.at + 1] not in (
            bytes([low | 1]) for low in (0x10, 0x20, 0x30, 0x40)
        ):
            return records
        kinds.append(parse(data))
    if {kind.dtype for kind in kinds} != {"F32" if size == 8 else "F64"} or kinds[0].big != kinds[1].big:
        return records
    return Kind(f"C{8 * size}", size, kinds[0].big)


def _enumeration(data: Cursor, members: int, size: int, version: int) -> Kind:
    """FALSE and TRUE in a byte are how h5py stores bools."""
    other = Kind("ENUM", size, why="dataset of an enumeration")
    if members != 2 or size != 1 or data.data[data.at] & 15 != 0:
        return other
    parse(data)
    names = [data.text(1 if version >= 3 else 8) for _ in range(2)]
    return Kind("BOOL", 1) if names == [b"FALSE", b"TRUE"] and data.take(2) == b"\0\1" else other


def shape(data: Cursor, file: Container) -> tuple[int, ...] | None:
    """The shape in a dataspace message; None where there are no elements at all, not even none of a shape."""
    found = shape_and_limits(data, file)
    return found and found[0]


def shape_and_limits(data: Cursor, file: Container) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The same with the sides that there may be at the most: -1 for no limit."""
    version, rank, flags = data.number(1), data.number(1), data.number(1)
    if version not in (1, 2) or rank > MAX_RANK:
        raise InvalidFile(f"{data.what}: a shape of version {version} with {rank} sides")
    if version == 2:
        if data.number(1) == 2:
            return None
    else:
        data.take(5)
    sides = tuple(data.number(file.lengths) for _ in range(rank))
    if not flags & 1:
        return sides, sides
    endless = (1 << 8 * file.lengths) - 1
    found = tuple(data.number(file.lengths) for _ in range(rank))
    return sides, tuple(-1 if limit == endless else limit for limit in found)

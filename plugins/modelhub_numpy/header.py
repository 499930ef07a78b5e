"""The header of an `.npy` file: magic, version, length, and a Python dictionary of three keys, of which no more is parsed than
NumPy writes.

(NumPy ``lib/format.py`` and NEP 1. Version 1 has a length of 16 bits, 2 and 3 of 32 bits; 3 is UTF-8.)
"""

from __future__ import annotations

import re
from math import prod
from typing import NamedTuple

from modelhub import Extent, InvalidFile, Node, Tensor, UnsupportedFile, dtypes, ops

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 20
"""No array has a longer header: structured dtypes of some thousand fields fit."""
PEEK = 4096
DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64", "u4": "U32",
    "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64", "c16": "C128", "V2": "BF16",
}  # fmt: skip
"""NumPy's kinds and item sizes. ``V2``, two bytes that mean nothing to NumPy, is how it stores bfloat16 (ml_dtypes)."""
_HEADER = re.compile(
    r"\s*\{\s*'descr':\s*(?P<descr>'[^'\\]{1,64}'|\[.*\])\s*,\s*'fortran_order':\s*(?P<fortran>True|False)\s*,"
    r"\s*'shape':\s*\((?P<shape>[\dL, ]*)\)\s*,?\s*\}\s*\Z",
    re.DOTALL,
)


class Header(NamedTuple):
    """``descr``: NumPy's word for the dtype; ``start``: where the data begin."""

    descr: str
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> str:
        """The dtype by modelhub's name; "" where there is none."""
        return DTYPES.get(self.descr[1:], "") if self.descr[:1] in "<>|=" else ""

    @property
    def is_pickled(self) -> bool:
        """Whether the data are a pickle: NumPy has one for any type with objects in it, a field of a record too."""
        return "O" in re.findall(r"[<>|=]([A-Za-z])", self.descr)


def length(data: bytes, what: str) -> int:
    """Bytes of magic, version, length and header, told from the first twelve."""
    if not data.startswith(MAGIC):
        raise InvalidFile(f"{what}: does not start with an .npy header (found {data[:6]!r})")
    version = data[6] if len(data) > 6 else 0
    if version == 1 and len(data) >= 10:
        return 10 + int.from_bytes(data[8:10], "little")
    if version in (2, 3) and len(data) >= 12:
        return 12 + int.from_bytes(data[8:12], "little")
    if version in (1, 2, 3):
        raise InvalidFile(f"{what}: ends within its .npy header")
    raise UnsupportedFile(f"{what}: .npy version {version}, expected 1, 2 or 3")


def parse(data: bytes, what: str) -> Header:
    """The header in ``data``, which holds all of it."""
    start = length(data, what)
    if start > MAX_HEADER:
        raise InvalidFile(f"{what}: a header of {start} bytes; {MAX_HEADER} are read")
    if len(data) < start:
        raise InvalidFile(f"{what}: ends within its .npy header of {start} bytes")
    raw = data[10 if data[6] == 1 else 12 : start]
    try:
        found = _HEADER.match(raw.decode("utf-8" if data[6] == 3 else "latin-1"))
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{what}: the .npy header is not UTF-8: {error}") from error
    if not found:
        raise InvalidFile(f"{what}: the .npy header is not what NumPy writes: {raw[:80]!r}")
    sides = [side.strip().removesuffix("L") for side in found["shape"].split(",")]
    if not all(side.isdecimal() or not side for side in sides) or any(len(side) > 19 for side in sides) or len(sides) > 65:
        raise InvalidFile(f"{what}: the shape ({found['shape'][:80]}) is none")
    return Header(found["descr"].strip("'"), found["fortran"] == "True", tuple(int(side) for side in sides if side), start)


def tensor(name: str, header: Header, place: Extent | Node, nbytes: int, what: str) -> Tensor:
    """The array as a record. ``place``: its ``nbytes`` bytes, in the file's byte order and order of axes."""
    dtype, shape = header.dtype, header.shape
    if not dtype:
        return Tensor(name, header.descr[:40], shape, None, unsupported=_why(header.descr))
    wanted = dtypes.get(dtype).nbytes(shape)
    if nbytes != wanted:
        raise InvalidFile(f"{what}: {dtype} {list(shape)} takes {wanted} bytes, there are {nbytes}")
    value: Extent | Node = place
    if header.descr[0] == ">":
        value = ops.byteswap(value, dtype, shape)
    if header.fortran and len(shape) > 1:
        value = ops.strided(value, dtype, shape, [prod(shape[:axis]) for axis in range(len(shape))])
    return Tensor(name, dtype, shape, value)


def _why(descr: str) -> str:
    if descr[1:2] == "O":
        return "Python objects, which are pickled: never loaded"
    if descr.startswith("["):
        return "records of several fields"
    return f"array of NumPy type {descr:.40}"

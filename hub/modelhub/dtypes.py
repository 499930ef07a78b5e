"""The dtype registry: how many bytes an element encoding takes, and how its elements are packed.

A dtype here is an *encoding*: ``F32`` is one element in 4 bytes, a block type may be 256 elements in 144 bytes. Names
are those of the safetensors specification where it has one (``safetensors/src/tensor.rs``, ``enum Dtype``). Plugins
register more with a `Codec`. What an encoding's bits mean is the business of codecs, not of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class DType:
    """An element encoding.

    ``block`` elements take ``block_bytes`` bytes. ``rowwise`` dtypes pack each row (the last dimension) by itself, so
    its length must be a multiple of ``block``; flat ones pack the whole tensor. ``numpy`` names the little-endian
    NumPy type whose items are the stored units (``<u2`` for BF16), or "" where one unit is not one element.
    ``kind`` is float, int, uint, bool, complex or quantized. ``precision`` is the label people use for it.
    """

    name: str
    block_bytes: int
    block: int = 1
    kind: str = "float"
    numpy: str = ""
    rowwise: bool = False
    precision: str = ""

    @property
    def bits(self) -> float:
        """Bits per element, as stored."""
        return self.block_bytes * 8 / self.block

    @property
    def label(self) -> str:
        return self.precision or self.name

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of ``shape`` takes. ValueError where the shape does not fit the packing."""
        elements = prod(shape)
        if self.block == 1:
            return elements * self.block_bytes
        unit = (shape[-1] if shape else 1) if self.rowwise else elements
        if unit % self.block:
            what = "a row" if self.rowwise else "a tensor"
            raise ValueError(f"{self.name} packs {self.block} elements together: {what} of {unit} does not divide")
        return elements // self.block * self.block_bytes


_REGISTRY: dict[str, DType] = {}


def register(dtype: DType) -> DType:
    """Add ``dtype``. The same record twice is fine; another record under a taken name is a ValueError."""
    known = _REGISTRY.setdefault(dtype.name, dtype)
    if known != dtype:
        raise ValueError(f"dtype {dtype.name} is registered already, with another layout")
    return known


def get(name: str) -> DType:
    """The dtype called ``name``; KeyError where there is none."""
    return _REGISTRY[name]


def find(name: str) -> DType | None:
    """The dtype called ``name``, or None."""
    return _REGISTRY.get(name)


def all_dtypes() -> Iterator[DType]:
    """Every registered dtype, in the order of registration."""
    yield from _REGISTRY.values()


for _name, _bytes, _kind, _numpy in (
    ("BOOL", 1, "bool", "|b1"),
    ("U8", 1, "uint", "|u1"),
    ("I8", 1, "int", "|i1"),
    ("U16", 2, "uint", "<u2"),
    ("I16", 2, "int", "<i2"),
    ("U32", 4, "uint", "<u4"),
    ("I32", 4, "int", "<i4"),
    ("U64", 8, "uint", "<u8"),
    ("I64", 8, "int", "<i8"),
    ("F16", 2, "float", "<f2"),
    ("BF16", 2, "float", "<u2"),
    ("F32", 4, "float", "<f4"),
    ("F64", 8, "float", "<f8"),
    ("F8_E4M3", 1, "float", "|u1"),
    ("F8_E5M2", 1, "float", "|u1"),
    ("F8_E4M3FNUZ", 1, "float", "|u1"),
    ("F8_E5M2FNUZ", 1, "float", "|u1"),
    ("F8_E8M0", 1, "float", "|u1"),
    ("C32", 4, "complex", "<u4"),
    ("C64", 8, "complex", "<c8"),
    ("C128", 16, "complex", "<c16"),
):
    _label = {"I8": "INT8", "I16": "INT16", "I32": "INT32", "U8": "UINT8"}.get(_name, "")
    register(DType(_name, _bytes, kind=_kind, numpy=_numpy, precision=_label))
# Sub-byte floats pack flat, low bits first (safetensors: `F4` two elements a byte, `F6_*` four in three bytes).
register(DType("F4", 1, block=2))
register(DType("F6_E2M3", 3, block=4))
register(DType("F6_E3M2", 3, block=4))
register(DType("I4", 1, block=2, kind="int", precision="INT4"))
register(DType("U4", 1, block=2, kind="uint"))

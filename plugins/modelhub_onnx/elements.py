"""ONNX's element types: the number of each, its dtype here, and the field that holds typed data of it.

Numbers, packing and fields as in onnx ``onnx.proto`` (``TensorProto.DataType`` and the comments beside ``*_data``).
"""

from __future__ import annotations

from typing import NamedTuple

from modelhub import DType, dtypes

FLOATS, INTS, STRINGS, LONGS, RAW, DOUBLES, UNSIGNED = 4, 5, 6, 7, 9, 10, 11
"""Fields of a ``TensorProto``: float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data."""
STRING = 8


class Element(NamedTuple):
    """``typed``: the field of typed data. ``label``: how ONNX's users write it."""

    dtype: str
    typed: int
    label: str


dtypes.register(DType("I2", 1, block=4, kind="int", precision="INT2"))
dtypes.register(DType("U2", 1, block=4, kind="uint", precision="UINT2"))

ELEMENTS: dict[int, Element] = {
    1: Element("F32", FLOATS, "float32"),
    2: Element("U8", INTS, "uint8"),
    3: Element("I8", INTS, "int8"),
    4: Element("U16", INTS, "uint16"),
    5: Element("I16", INTS, "int16"),
    6: Element("I32", INTS, "int32"),
    7: Element("I64", LONGS, "int64"),
    9: Element("BOOL", INTS, "bool"),
    10: Element("F16", INTS, "float16"),
    11: Element("F64", DOUBLES, "float64"),
    12: Element("U32", UNSIGNED, "uint32"),
    13: Element("U64", UNSIGNED, "uint64"),
    14: Element("C64", FLOATS, "complex64"),
    15: Element("C128", DOUBLES, "complex128"),
    16: Element("BF16", INTS, "bfloat16"),
    17: Element("F8_E4M3", INTS, "float8e4m3fn"),
    18: Element("F8_E4M3FNUZ", INTS, "float8e4m3fnuz"),
    19: Element("F8_E5M2", INTS, "float8e5m2"),
    20: Element("F8_E5M2FNUZ", INTS, "float8e5m2fnuz"),
    21: Element("U4", INTS, "uint4"),
    22: Element("I4", INTS, "int4"),
    23: Element("F4", INTS, "float4e2m1"),
    24: Element("F8_E8M0", INTS, "float8e8m0"),
    25: Element("U2", INTS, "uint2"),
    26: Element("I2", INTS, "int2"),
    27: Element("F6_E2M3", INTS, "float6e2m3"),
    28: Element("F6_E3M2", INTS, "float6e3m2"),
}
DTYPES = tuple(element.dtype for element in ELEMENTS.values())


def label(number: int) -> str:
    """What ONNX's users call the element type of this number."""
    if number in ELEMENTS:
        return ELEMENTS[number].label
    return "string" if number == STRING else f"type {number}"

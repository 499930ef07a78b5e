"""Element types by their names in zarr's metadata, and fill values as bytes.

(zarr 2: NumPy's type strings, and TensorStore's names for what NumPy has not, ``driver/zarr/dtype.cc``; zarr 3: "Data types" of
the core specification, and TensorStore's ``driver/zarr3/metadata.cc``.)
"""

from __future__ import annotations

from typing import Any

from modelhub import dtypes

DTYPES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_TYPE_STRINGS = {
    "b1": "BOOL", "i1": "I8", "u1": "U8", "i2": "I16", "u2": "U16", "i4": "I32", "u4": "U32", "i8": "I64", "u8": "U64",
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def of_zarr2(name: str) -> tuple[str, bool]:
    """(dtype, whether its bytes are big-endian); ("", False) for what there is no dtype for."""
    if name in DTYPES:
        return DTYPES[name], False
    return _TYPE_STRINGS.get(name[1:], "") if name[:1] in "<>|" else "", name[:1] == ">"


def filling(value: Any, dtype: str) -> bytes | None:
    """One element of a fill value, little-endian; None where it cannot be told. Nothing and zero are zeros."""
    kind = dtypes.get(dtype)
    if value is None or (isinstance(value, int | float) and value == 0 and str(value)[:1] != "-"):
        return bytes(kind.block_bytes)
    if isinstance(value, str) and value in _WORDS:
        value = _WORDS[value]
    if isinstance(value, str) and value.startswith("0x") and len(value) == 2 + 2 * kind.block_bytes:
        try:
            return bytes.fromhex(value[2:])[::-1]
        except ValueError:
            return None
    if not isinstance(value, int | float) or kind.kind not in ("bool", "int", "uint", "float") or dtype.startswith("F8"):
        return None
    import numpy as np

    try:
        if dtype == "BF16":
            bits = int(np.array(value, "<f4").view("<u4"))
            quiet = bits >> 16 | 0x40 if value != value else bits + 0x7FFF + (bits >> 16 & 1) >> 16
            return (quiet & 0xFFFF).to_bytes(2, "little")
        return np.array(value, kind.numpy).tobytes()
    except (OverflowError, ValueError, TypeError):
        return None

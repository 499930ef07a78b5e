"""Element types: Paddle's numbers of them, and NumPy's type strings.

(``phi/core/framework/framework.proto``, ``VarType.Type``; bfloat16 stands in NumPy's arrays as uint16, of which Paddle has no
tensors: ``framework/io.py``.)
"""

from __future__ import annotations

NUMBERS = {
    0: "BOOL", 1: "I16", 2: "I32", 3: "I64", 4: "F16", 5: "F32", 6: "F64", 20: "U8", 21: "I8", 22: "BF16", 23: "C64", 24: "C128",
    32: "F8_E4M3", 33: "F8_E5M2",
}  # fmt: skip
NUMPY = {
    "b1": "BOOL", "i1": "I8", "u1": "U8", "i2": "I16", "u2": "BF16", "i4": "I32", "u4": "U32", "i8": "I64", "u8": "U64",
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip
DTYPES = tuple(dict.fromkeys([*NUMBERS.values(), *NUMPY.values()]))

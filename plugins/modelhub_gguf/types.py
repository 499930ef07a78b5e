"""ggml's tensor types: their numbers in a file, names, block sizes and bytes; and the dtypes of the same names.

What the bits of a block mean is the business of `modelhub_gguf.codecs`. Facts: ``enum ggml_type`` (``ggml/include/ggml.h``)
and the block structures of ``ggml/src/ggml-common.h``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from modelhub import DType, dtypes


class GgmlType(NamedTuple):
    """``number`` stands in a file; ``name`` is the dtype's name here; ``block`` elements of a row take ``nbytes`` bytes."""

    number: int
    name: str
    block: int
    nbytes: int


_ALL = (
    GgmlType(0, "F32", 1, 4),
    GgmlType(1, "F16", 1, 2),
    GgmlType(2, "Q4_0", 32, 18),
    GgmlType(3, "Q4_1", 32, 20),
    GgmlType(6, "Q5_0", 32, 22),
    GgmlType(7, "Q5_1", 32, 24),
    GgmlType(8, "Q8_0", 32, 34),
    GgmlType(9, "Q8_1", 32, 36),
    GgmlType(10, "Q2_K", 256, 84),
    GgmlType(11, "Q3_K", 256, 110),
    GgmlType(12, "Q4_K", 256, 144),
    GgmlType(13, "Q5_K", 256, 176),
    GgmlType(14, "Q6_K", 256, 210),
    GgmlType(15, "Q8_K", 256, 292),
    GgmlType(16, "IQ2_XXS", 256, 66),
    GgmlType(17, "IQ2_XS", 256, 74),
    GgmlType(18, "IQ3_XXS", 256, 98),
    GgmlType(19, "IQ1_S", 256, 50),
    GgmlType(20, "IQ4_NL", 32, 18),
    GgmlType(21, "IQ3_S", 256, 110),
    GgmlType(22, "IQ2_S", 256, 82),
    GgmlType(23, "IQ4_XS", 256, 136),
    GgmlType(24, "I8", 1, 1),
    GgmlType(25, "I16", 1, 2),
    GgmlType(26, "I32", 1, 4),
    GgmlType(27, "I64", 1, 8),
    GgmlType(28, "F64", 1, 8),
    GgmlType(29, "IQ1_M", 256, 56),
    GgmlType(30, "BF16", 1, 2),
    GgmlType(34, "TQ1_0", 256, 54),
    GgmlType(35, "TQ2_0", 256, 66),
    GgmlType(39, "MXFP4", 32, 17),
    GgmlType(40, "NVFP4", 64, 36),
    GgmlType(41, "Q1_0", 128, 18),
    GgmlType(42, "Q2_0", 64, 18),
)

BY_NUMBER = MappingProxyType({kind.number: kind for kind in _ALL})
"""Every type that a file may name today, by its number."""

BY_NAME = MappingProxyType({kind.name: kind for kind in _ALL})
"""The same by name."""

REMOVED = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)
"""Numbers that were given out once and taken back: ggml itself no longer reads them."""

for _kind in _ALL:
    if _kind.block > 1:
        dtypes.register(DType(_kind.name, _kind.nbytes, block=_kind.block, kind="quantized", rowwise=True))

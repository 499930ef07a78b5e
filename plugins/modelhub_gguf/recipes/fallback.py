"""What a tensor gets whose rows a type's blocks do not divide.

Facts: llama.cpp ``src/llama-quant.cpp`` (``tensor_type_fallback``): a type of blocks of 256 gives way to one of 32 with about as
many bits, and where those do not divide a row either, F16 is taken.
"""

from __future__ import annotations

from types import MappingProxyType

from modelhub_gguf.types import BY_NAME

SMALLER = MappingProxyType(
    {
        "IQ1_S": "IQ4_NL",
        "IQ1_M": "IQ4_NL",
        "IQ2_XXS": "IQ4_NL",
        "IQ2_XS": "IQ4_NL",
        "IQ2_S": "IQ4_NL",
        "IQ3_XXS": "IQ4_NL",
        "IQ3_S": "IQ4_NL",
        "IQ4_XS": "IQ4_NL",
        "Q2_0": "Q4_0",
        "Q2_K": "Q4_0",
        "Q3_K": "Q4_0",
        "TQ1_0": "Q4_0",
        "TQ2_0": "Q4_0",
        "Q4_K": "Q5_0",
        "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
    }
)
"""The type of blocks of 32 in the place of one of larger blocks."""


def divides(dtype: str, columns: int) -> bool:
    """Whether rows of so many elements are whole blocks."""
    return columns % BY_NAME[dtype].block == 0


def fit(dtype: str, columns: int) -> tuple[str, str]:
    """The type for rows of ``columns``: ``dtype`` and "", or another and why. ValueError where there is no other."""
    if divides(dtype, columns):
        return dtype, ""
    block = BY_NAME[dtype].block
    other = SMALLER.get(dtype, dtype)
    if other == dtype and block > 32:
        raise ValueError(f"rows of {columns} do not divide by {block}, and nothing takes the place of {dtype}")
    if not divides(other, columns):
        other = "F16"
    return other, instead(columns, dtype, other)


def instead(columns: int, dtype: str, other: str) -> str:
    """The reason in words."""
    return f"rows of {columns} do not divide by {BY_NAME[dtype].block}: {other} in place of {dtype}"

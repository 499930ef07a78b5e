"""The mixtures that people type, and what a file that was made by one is numbered.

Facts: ``enum llama_ftype`` (llama.cpp ``include/llama.h``), the names that ``llama-quantize`` takes
(``tools/quantize/quantize.cpp``) and the type that each starts from (``llama_ftype_get_default_type``, ``src/llama-quant.cpp``).
Which tensor gets another type than its mixture's is the business of `modelhub_gguf.recipes.mixtures`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from modelhub_gguf.types import BY_NAME

QUANTIZATION_VERSION = 2
"""``GGML_QNT_VERSION`` (``ggml/include/ggml.h``): the generation of the block encodings that a file holds."""


class Mixture(NamedTuple):
    """``name`` is what users type; ``base`` the type of most tensors; ``number`` what ``general.file_type`` says of such a
    file."""

    name: str
    base: str
    number: int
    title: str

    @property
    def quantized(self) -> bool:
        """Whether its types are blocks: the rules for single tensors, overrides and fallbacks are for such mixtures only."""
        return BY_NAME[self.base].block > 1


_ALL = (
    Mixture("f32", "F32", 0, "Matrices as 32-bit floats"),
    Mixture("f16", "F16", 1, "Matrices as 16-bit floats; vectors stay"),
    Mixture("bf16", "BF16", 32, "Matrices as bfloat16; vectors stay"),
    Mixture("q8_0", "Q8_0", 7, "8 bits in blocks of 32"),
    Mixture("q6_k", "Q6_K", 18, "6 bits in blocks of 256"),
    Mixture("q5_k_s", "Q5_K", 16, "5 bits in blocks of 256, small"),
    Mixture("q5_k_m", "Q5_K", 17, "5 bits in blocks of 256; half of attention's values and of the down projections in 6"),
    Mixture("q5_0", "Q5_0", 8, "5 bits in blocks of 32"),
    Mixture("q5_1", "Q5_1", 9, "5 bits in blocks of 32, with an offset"),
    Mixture("q4_k_s", "Q4_K", 14, "4 bits in blocks of 256, small; the first layers in 5"),
    Mixture("q4_k_m", "Q4_K", 15, "4 bits in blocks of 256; half of attention's values and of the down projections in 6"),
    Mixture("q4_0", "Q4_0", 2, "4 bits in blocks of 32"),
    Mixture("q4_1", "Q4_1", 3, "4 bits in blocks of 32, with an offset"),
    Mixture("iq4_nl", "IQ4_NL", 25, "4 bits of a non-linear scale in blocks of 32"),
    Mixture("iq4_xs", "IQ4_XS", 30, "4 bits of a non-linear scale in blocks of 256"),
    Mixture("mxfp4_moe", "MXFP4", 38, "Experts in 4-bit floats with shared exponents, the rest in 8 bits"),
    Mixture("q3_k_s", "Q3_K", 11, "3 bits in blocks of 256, small"),
    Mixture("q3_k_m", "Q3_K", 12, "3 bits in blocks of 256; values, outputs and down projections in 4 and 5"),
    Mixture("q3_k_l", "Q3_K", 13, "3 bits in blocks of 256; values, outputs and down projections in 5"),
    Mixture("q2_k", "Q2_K", 10, "2 bits in blocks of 256; values, outputs and down projections in 3"),
    Mixture("q2_k_s", "Q2_K", 21, "2 bits in blocks of 256, small; needs an importance matrix"),
    Mixture("q2_0", "Q2_0", 41, "2 bits in blocks of 64, for models that were trained so"),
    Mixture("q1_0", "Q1_0", 40, "1 bit in blocks of 128, for models that were trained so"),
    Mixture("tq2_0", "TQ2_0", 37, "Ternary weights, 2.06 bits each"),
    Mixture("tq1_0", "TQ1_0", 36, "Ternary weights, 1.69 bits each"),
)

MIXTURES = MappingProxyType({mixture.name: mixture for mixture in _ALL})
"""Every mixture by name, the widest first among those of one family."""

ALIASES = MappingProxyType({"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"})
"""Short names that mean the medium mixture."""

NUMBER_OF_TYPE = MappingProxyType(
    {mixture.base: mixture.number for mixture in _ALL if mixture.name not in ("q2_k_s", "q3_k_s", "q3_k_l", "q4_k_s", "q5_k_s")}
)
"""The file type to note for a file whose weights are mostly of a type, but in no mixture's order: the common one of that type."""

UNNAMED = 1024
"""``LLAMA_FTYPE_GUESSED``: the file type of a file that none of the others is for."""

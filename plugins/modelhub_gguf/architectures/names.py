"""Name patterns: how a tensor's name is looked up among a row's, and the blocks of names that architectures share.

A pattern is a name without ``.weight`` or ``.bias`` in which ``{b}`` stands for a block's number and ``{e}`` for an expert's.
GGUF's side of the shared blocks is llama.cpp's (``gguf-py/gguf/constants.py``, ``TENSOR_NAMES``), the other side transformers'
(``gguf-py/gguf/tensor_mapping.py`` lists most).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

SUFFIXES = (".weight", ".bias")
_NUMBER = re.compile(r"\{([be])\}")


class Found(NamedTuple):
    """A pattern that a name fits, with its numbers (``b``, ``e``) and its suffix ("" where the pattern has none or its own)."""

    pattern: str
    numbers: dict[str, int]
    suffix: str


class Index:
    """Patterns, looked up by name in constant time."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: dict[str, tuple[str, tuple[str, ...]]] = {}
        for pattern in patterns:
            self._patterns.setdefault(_NUMBER.sub("#", pattern), (pattern, tuple(_NUMBER.findall(pattern))))

    def find(self, name: str) -> Found | None:
        """The pattern that ``name`` fits: as it stands first, then without its suffix."""
        for suffix in ("", *SUFFIXES):
            if suffix and not name.endswith(suffix):
                continue
            base = name.removesuffix(suffix) if suffix else name
            if base in self._patterns and not self._patterns[base][1]:
                return Found(self._patterns[base][0], {}, suffix)
            parts = base.split(".")
            numbers = [part for part in parts if part.isdecimal() and len(part) < 8]
            key = ".".join("#" if part.isdecimal() and len(part) < 8 else part for part in parts)
            if key in self._patterns and len(self._patterns[key][1]) == len(numbers):
                pattern, letters = self._patterns[key]
                return Found(pattern, dict(zip(letters, map(int, numbers), strict=True)), suffix)
        return None


def fill(pattern: str, numbers: Mapping[str, int], suffix: str) -> str:
    """The name that a pattern gives. A pattern that ends in a suffix of its own keeps it; another gets ``suffix``, or
    ``.weight``."""
    name = _NUMBER.sub(lambda found: str(numbers[found[1]]), pattern)
    return name if name.endswith(SUFFIXES) else name + (suffix or ".weight")


# --- names that many share ----------------------------------------------------------------------------------------


def under(prefix: str, gguf: str, names: Mapping[str, str]) -> dict[str, str]:
    """``names`` with a prefix on either side."""
    return {f"{prefix}{hf}": f"{gguf}{base}" for hf, base in names.items()}


ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""Embeddings and output of a decoder as most of transformers' models name them."""
ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.{e}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{e}.up_proj": "ffn_up_exps",
    "mlp.experts.{e}.down_proj": "ffn_down_exps",
}
"""Experts as Qwen's and DeepSeek's models name them."""


def decoder(*blocks: Mapping[str, str], ends: Mapping[str, str] = ENDS, layer: str = "model.layers.{b}.") -> dict[str, str]:
    """The names of a decoder: its ends, and what stands in each of its layers."""
    names = dict(ends)
    for block in blocks:
        names.update(under(layer, "blk.{b}.", block))
    return names


LLAMA = decoder(NORMS, ATTENTION, MLP)
"""Llama and all that are built like it."""

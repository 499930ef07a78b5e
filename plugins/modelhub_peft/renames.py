"""What modules are called in the memory of newer versions of transformers, where files still have their older names: adapters
are saved with the former, bases with the latter (transformers ``conversion_mapping.py``)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_RENAMED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), others)
    for pattern, others in (
        # mixtures of experts: Mixtral, MiniMax, Phi-3.5-MoE, Granite
        (r"\.mlp\.(?=experts\.|gate\.|router\.)", (".block_sparse_moe.",)),
        (r"(?<=\.block_sparse_moe\.)router\.(?=weight$)", ("gate.", "router.layer.")),
        (r"(?<=\.block_sparse_moe\.)experts\.gate_up_proj$", ("input_linear.weight",)),
        (r"(?<=\.block_sparse_moe\.)experts\.down_proj$", ("output_linear.weight",)),
        # transformers of images: ViT, DeiT, BEiT, DINOv2, Swin
        (r"(?:^|(?<=\.))layers\.(?=\d+\.(?:attention|mlp|layernorm)[._])", ("encoder.layer.",)),
        (r"(?<=\.attention\.)q_proj\.", ("attention.query.", "self.query.")),
        (r"(?<=\.attention\.)k_proj\.", ("attention.key.", "self.key.")),
        (r"(?<=\.attention\.)v_proj\.", ("attention.value.", "self.value.")),
        (r"(?<=\.attention\.)o_proj\.", ("output.dense.",)),
        (r"(?<=\.)mlp\.fc1\.", ("intermediate.dense.",)),
        (r"(?<=\.)mlp\.fc2\.", ("output.dense.",)),
    )
)
"""A part of a tensor's name in memory -> what it may be in a file. Each is tried on what the ones before have made."""
MAX_SPELLINGS = 24


def spellings(name: str) -> Iterator[str]:
    """The names that files may have for the tensor that is ``name`` in memory, itself left out."""
    found = [name]
    for pattern, others in _RENAMED:
        found += [pattern.sub(other, each) for each in found if pattern.search(each) for other in others]
        del found[MAX_SPELLINGS:]
    yield from found[1:]

"""What the user asks of single tensors: (pattern, type) pairs, as ``llama-quantize --tensor-type`` takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modelhub_gguf.types import BY_NAME

PLAIN = ("F32", "F16", "BF16")
"""Types without blocks that a matrix may be asked to be."""

_INTERNAL = ("Q8_1", "Q8_K")
"""Encodings of activations, while a model runs: no file holds weights in them."""


@dataclass(slots=True)
class Overrides:
    """Compiled patterns; ``used`` notes which of them changed something."""

    pairs: Sequence[tuple[re.Pattern[str], str]]
    used: set[str] = field(default_factory=set)

    def type_of(self, name: str) -> str:
        """The type of the first pattern that is found in a name; "" where none is."""
        for pattern, dtype in self.pairs:
            if pattern.search(name):
                self.used.add(pattern.pattern)
                return dtype
        return ""

    def idle(self) -> list[str]:
        """Notes on patterns that changed nothing."""
        return [
            f"no tensor that can be quantized has a name that {pattern.pattern!r} is found in, or an earlier pattern took it"
            for pattern, _ in self.pairs
            if pattern.pattern not in self.used
        ]


def compiled(pairs: Iterable[tuple[str, str]]) -> Overrides:
    """ValueError says which pattern is no regular expression, and which type does not exist."""
    found = []
    for text, dtype in pairs:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression: {error}") from error
        name = dtype.upper()
        if name not in PLAIN and (name not in BY_NAME or BY_NAME[name].block == 1 or name in _INTERNAL):
            known = [*PLAIN, *(kind.name for kind in BY_NAME.values() if kind.block > 1 and kind.name not in _INTERNAL)]
            raise ValueError(f"{dtype!r} is not the type of a tensor; there are {', '.join(known)}")
        found.append((pattern, name))
    return Overrides(found)

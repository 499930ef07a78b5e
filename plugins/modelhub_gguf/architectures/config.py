"""A model's configuration as the table's rows ask it: ``config.json``, over what transformers fills in. Nothing in it is trusted
to have its type: who asks says what it must be, and the error names the file and the key.

The look-ups are those of llama.cpp's converter (``conversion/base.py``, ``TextModel.__init__`` and ``find_hparam``): the first
of several names that is there counts, even where its value is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelhub import InvalidFile

from modelhub_gguf.documents import Documents, mapping

MAX_COUNT = (1 << 32) - 1
_INNER = ("text_config", "llm_config", "lm_config", "language_config")
_THETA = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
_LOCAL_THETA = ("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq")
_PARTIAL = ("partial_rotary_factor", "rope_pct", "rope_percent", "rotary_pct")
_PER_KIND = ("full_attention", "sliding_attention")


class Config:
    """``values``: the merged configuration, which a row may change; ``documents``: what stands beside it. ``raw`` is
    ``config.json`` as it stands."""

    def __init__(self, raw: Mapping[str, Any], documents: Documents, defaults: Mapping[str, Mapping[str, Any]]) -> None:
        self.raw, self.documents = raw, documents
        inner: Mapping[str, Any] = next((raw[key] for key in _INNER if isinstance(raw.get(key), dict)), {})
        self.values: dict[str, Any] = {**_defaults(raw, defaults), **raw, **_defaults(inner, defaults, always=False), **inner}
        """The language model's own configuration, where there is one inside, covers the whole's."""

    def find(self, *names: str) -> Any:
        """The value of the first of ``names`` that is there; None where none is, or where it is null."""
        return next((self.values[name] for name in names if name in self.values), None)

    def count(self, *names: str) -> int:
        """The same, which must be there and be a count."""
        value = self.find(*names)
        if value is None:
            raise InvalidFile(f"config.json has no {' or '.join(names)}: this architecture needs it")
        return self.whole(value, names[0])

    def number(self, *names: str, default: float | None = None) -> float:
        """The same for a number; ``default`` where it is missing or null."""
        value = self.find(*names)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidFile(f"config.json: {names[0]} is {value!r:.40}, a number was expected")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """The same for a boolean."""
        value = self.find(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidFile(f"config.json: {names[0]} is {value!r:.40}, true or false was expected")
        return value

    @staticmethod
    def whole(value: Any, name: str) -> int:
        """``value`` where it is a count. `InvalidFile` names ``name`` where it is none."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise InvalidFile(f"config.json: {name} is {value!r:.40}, a count was expected")
        return value

    @property
    def blocks(self) -> int:
        return self.count("n_layers", "num_hidden_layers", "n_layer", "num_layers")

    @property
    def heads(self) -> int:
        return self.count("num_attention_heads", "n_head", "n_heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; those of queries where nothing is said."""
        value = self.find("num_key_value_heads", "n_kv_heads")
        return self.heads if value is None else self.whole(value, "num_key_value_heads")

    @property
    def width(self) -> int:
        return self.count("hidden_size", "n_embd", "dim")

    @property
    def head_dim(self) -> int:
        """Elements of a head: said, or the width shared out among the heads."""
        value = self.find("head_dim")
        if value is not None:
            return self.whole(value, "head_dim")
        if not self.heads:
            raise InvalidFile("config.json: num_attention_heads is 0")
        return self.width // self.heads

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 where there are none."""
        value = self.find("num_local_experts", "num_experts", "n_routed_experts")
        return 0 if value is None else self.whole(value, "num_local_experts")

    @property
    def rope(self) -> dict[str, Any]:
        """``rope_parameters``, or the older ``rope_scaling``, with what older configurations say beside it. Where a model has
        several, they stand in it as ``full_attention`` and ``sliding_attention``."""
        found = dict(mapping(self.find("rope_parameters")) or mapping(self.find("rope_scaling")))
        if any(kind in found for kind in _PER_KIND):
            return found
        if (local := self.find(*_LOCAL_THETA)) is not None:
            found["sliding_attention"] = {"rope_theta": local}
        for name, value in (
            ("rope_theta", self.find(*_THETA)),
            ("rope_type", found.get("type")),
            ("partial_rotary_factor", self.find(*_PARTIAL)),
            ("original_max_position_embeddings", self.find("original_max_position_embeddings")),
        ):
            if value is not None and name not in found:
                found[name] = value
        return found

    @property
    def global_rope(self) -> Mapping[str, Any]:
        """The rotary settings of layers that see the whole context."""
        return mapping(self.rope.get("full_attention")) or self.rope

    def rotary_factor(self, default: float) -> float:
        """Which part of a head is rotated."""
        factor = self.global_rope.get("partial_rotary_factor", default)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
            raise InvalidFile(f"config.json: partial_rotary_factor is {factor!r:.40}, a number above 0 and up to 1 was expected")
        return float(factor)


def _defaults(config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]], *, always: bool = True) -> dict[str, Any]:
    kind = config.get("model_type")
    own = defaults.get(kind, {}) if isinstance(kind, str) else {}
    return {**(defaults.get("", {}) if always else {}), **own}

"""What ``adapter_config.json`` says of an adapter, as the field names it. Nothing in it is trusted to have its type.

Keys are those of peft (``tuners/lora/config.py``, ``tuners/ia3/config.py``, ``config.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelhub_peft import patterns

CONFIG = "adapter_config.json"
MAX_CONFIG = 16 << 20
MAX_TEXT = 300
MAX_ITEMS = 1000
MERGED = {
    "LORA": "LoRA (rsLoRA, DoRA)",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "OFT": "OFT",
    "HRA": "HRA",
    "MISS": "MiSS",
    "HIRA": "HiRA",
    "IA3": "IA3",
    "LN_TUNING": "LN tuning",
    "TRAINABLE_TOKENS": "trainable tokens",
}
"""Kinds of adapters that are merged, as people call them."""
MAX_TOKENS = 1 << 20
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin a training (``init_lora_weights``) that change the base as well: such an adapter is none of the base as it is."""
UNMERGED = (
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
"""Settings of adapters that are more than a change of the base's matrices, or that lie otherwise in memory than in files."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """``kind`` is ``peft_type`` in upper case (LORA, IA3); ``rank`` and ``alpha`` hold where no pattern says otherwise.
    ``start_rank``: what AdaLoRA began with. ``tokens``: the rows that were trained by themselves, by the names of embeddings (""
    for the model's own)."""

    raw: Mapping[str, Any]
    kind: str
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    base_model: str
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    start_rank: int = 0
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def scale_of(self, module: str, rank: int) -> float:
        """What the product of a module's matrices of ``rank`` is multiplied with: alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def alpha_of(self, module: str) -> float:
        return next((value for key, value in self.alphas.items() if patterns.ends(key, module)), self.alpha)

    def rank_of(self, module: str) -> int:
        """The rank that a module was given, where its matrices do not tell."""
        return next((value for key, value in self.ranks.items() if patterns.ends(key, module)), self.rank)

    def feeds_forward(self, module: str) -> bool:
        """Whether IA3 scales what goes into a module, not what comes out of it (peft ``tuners/ia3/model.py``)."""
        said = self.raw.get("feedforward_modules")
        if isinstance(said, str):
            try:
                return patterns.matches(said, module)
            except ValueError as error:
                raise ValueError(f"feedforward_modules is {said:.60}, which is no pattern that is known here: {error}") from error
        return any(module.endswith(name) for name in _texts(said))

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """The rows of an embedding that were trained by themselves; empty where none were."""
        return next(
            (places for name, places in self.tokens.items() if f".{module}".endswith(f".{name}")), self.tokens.get("", ())
        )


def parse(raw: Mapping[str, Any]) -> AdapterConfig:
    """ValueError where the configuration names no kind of adapter, or a number in it is none."""
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or not kind or len(kind) > 40:
        raise ValueError("it names no peft_type")
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", raw.get("alpha", 8))
    rank = 8 if rank is None else rank  # AdaLoRA has it under another name
    known = kind.upper() in MERGED  # other methods have their own words
    if type(rank) is not int or not 0 <= rank < 1 << 20:
        if known:
            raise ValueError(f"r is {rank!r:.40}, which is no rank")
        rank = 0
    if not _is_number(alpha):
        if known:
            raise ValueError(f"lora_alpha is {alpha!r:.40}, which is no number")
        alpha = 0
    start = raw.get("init_r", 12)
    return AdapterConfig(
        raw=raw,
        kind=kind.upper(),
        rank=rank,
        alpha=float(alpha),
        rslora=raw.get("use_rslora") is True,
        dora=raw.get("use_dora") is True,
        fan_in_fan_out=raw.get("fan_in_fan_out") is True,
        base_model=_text(raw.get("base_model_name_or_path")),
        alphas={key: float(value) for key, value in _pattern(raw.get("alpha_pattern"))},
        ranks={key: value for key, value in _pattern(raw.get("rank_pattern")) if type(value) is int and 0 < value < 1 << 20},
        start_rank=start if type(start) is int and 0 < start < 1 << 20 else 12,
        tokens=_tokens(raw),
    )


def _pattern(said: Any) -> Iterator[tuple[str, Any]]:
    for key, value in said.items() if isinstance(said, dict) else ():
        if len(key) <= patterns.MAX_PATTERN and _is_number(value):
            yield key, value


def _tokens(raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """``trainable_token_indices`` of LoRA (a list, or lists by names), or ``token_indices`` of a kind of its own."""
    said = raw.get("trainable_token_indices") or raw.get("token_indices")
    found = {}
    for name, places in (said if isinstance(said, dict) else {"": said}).items():
        if isinstance(places, list) and len(places) <= MAX_TOKENS and all(type(place) is int for place in places):
            found[name] = tuple(places)
    return found


def unmergeable(config: AdapterConfig) -> str:
    """Why an adapter cannot be merged into a base, as far as its configuration says; "" where it can."""
    if config.kind not in MERGED:
        merged = ", ".join(MERGED.values())
        return f"it is of the kind {config.kind}, and merged here are {merged}: save what merge_and_unload of peft makes of it"
    start = config.raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        return f"its training began with {start:.40}, which changes the base too: save it anew with peft, converted to plain LoRA"
    used = [name for name in UNMERGED if config.raw.get(name)]
    for where, keys in (("alpha_pattern", config.alphas), ("rank_pattern", config.ranks)):
        for key in keys:
            try:
                patterns.check(key)
            except ValueError as error:
                return f"{where} has {key:.60}, which is no pattern that is known here: {error}"
    return f"it uses {used[0]}, which cannot be merged here: merge_and_unload of peft may" if used else ""


def describe(config: AdapterConfig, tensors: Sequence[str] = ()) -> dict[str, Any]:
    """What ``show`` prints: method, rank, alpha, targets, base. ``tensors``: the names of the adapter's; where patterns that are
    more than names give modules their alphas, what they come to is told for each of those that have one."""
    raw = config.raw
    values: dict[str, Any] = {"adapter": "peft", "method": method(config)}
    if config.kind == "VERA":
        values["rank"] = config.rank
    if config.kind in ("LORA", "ADALORA", "LOHA", "LOKR"):
        values |= {
            "rank": config.start_rank if config.kind == "ADALORA" else config.rank,
            "alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        }
    if not all(map(patterns.is_literal, config.alphas)) and not unmergeable(config):
        modules = dict.fromkeys(name.partition(".lora_")[0] for name in tensors if ".lora_A" in name)
        alphas = {module: config.alpha_of(module.removeprefix("base_model.model.")) for module in modules}
        values["alphas"] = {module: alpha for module, alpha in alphas.items() if alpha != config.alpha}
    if config.base_model:
        values["base_model"] = config.base_model
    for key in ("target_modules", "modules_to_save", "target_parameters", "feedforward_modules", "exclude_modules"):
        if found := _texts(raw.get(key)):
            values[key] = found
    for key in ("rank_pattern", "alpha_pattern"):
        given = raw.get(key)
        if isinstance(given, dict) and given:
            values[key] = {name: value for name, value in list(given.items())[:MAX_ITEMS] if _is_number(value)}
    for key, name in (
        ("task_type", "task_type"),
        ("peft_version", "peft_version"),
        ("bias", "bias"),
        ("revision", "base_revision"),
    ):
        if (said := _text(raw.get(key))) and said != "none":
            values[name] = said
    if config.fan_in_fan_out:
        values["fan_in_fan_out"] = True
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and _text(start) and config.kind == "LORA":
        values["init_lora_weights"] = start
    if why := unmergeable(config):
        values["cannot_be_merged"] = why
    return values


def method(config: AdapterConfig) -> str:
    """What people call it: lora, rslora, dora, ia3, ..."""
    if config.kind == "LORA":
        return "-".join(["rslora"] * config.rslora + ["dora"] * config.dora) or "lora"
    return config.kind.lower()


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e12


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def _texts(value: Any) -> str | list[str]:
    """A pattern, or the list of names (sorted: peft keeps a set)."""
    if isinstance(value, list):
        return sorted(item for item in value[:MAX_ITEMS] if _text(item))
    return _text(value)

"""The keys of hyper-parameters: what most architectures share, and how a row's keys become typed fields.

Names, types and order are those of llama.cpp's converter (``conversion/base.py``, ``TextModel.set_gguf_parameters``;
``gguf-py/gguf/constants.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from modelhub import InvalidFile, UnsupportedFile

from modelhub_gguf import fields
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.records import Architecture, Key
from modelhub_gguf.documents import items, mapping, text
from modelhub_gguf.fields import BOOL, F32, STRING, U32, Field

if TYPE_CHECKING:
    from modelhub_gguf.architectures.given import Given

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""``general.file_type`` of a model that is not quantized, by the dtype of its matrices (``enum llama_ftype``)."""
_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
_GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}


def count(name: str, *sources: str, back: str = "") -> Key:
    return Key(f"{{arch}}.{name}", U32, sources, back)


def real(name: str, *sources: str, back: str = "") -> Key:
    return Key(f"{{arch}}.{name}", F32, sources, back)


def computed(name: str, type: int, source: Callable[[Config], Any], back: str = "") -> Key:
    return Key(f"{{arch}}.{name}", type, source, back)


def fields_of(row: Architecture, config: Config) -> dict[str, Field]:
    """The fields that a row's keys give, in order."""
    found: dict[str, Field] = {}
    for key in row.keys:
        name = key.name.format(arch=row.name)
        value = key.source(config) if callable(key.source) else config.find(*key.source)
        if value is not None:
            found[name] = typed(name, key.type, value)
    return found


def typed(name: str, kind: int, value: Any) -> Field:
    """``value`` as a field of ``kind``. `InvalidFile` where it is something else."""
    if isinstance(value, list | tuple):
        return _array(name, list(value))
    match kind:
        case fields.BOOL if isinstance(value, bool):
            return fields.boolean(value)
        case fields.STRING if isinstance(value, str):
            return fields.string(value)
        case fields.F32 if isinstance(value, int | float) and not isinstance(value, bool):
            return fields.f32(value)
        case fields.U32 if not isinstance(value, bool):
            return fields.u32(Config.whole(value, f"what {name} is taken from"))
        case fields.I32 if type(value) is int:
            return fields.i32(value)
    raise InvalidFile(f"config.json: {value!r:.40} was found for {name}, which is a {fields.TYPE_NAMES[kind]}")


def _array(name: str, values: list[Any]) -> Field:
    if values and all(isinstance(value, bool) for value in values):
        return fields.array(BOOL, values)
    if all(type(value) is int and -(1 << 31) <= value < 1 << 31 for value in values):
        return fields.array(fields.I32, values)
    if all(type(value) in (int, float) for value in values):
        return fields.array(F32, [float(value) for value in values])
    if all(isinstance(value, str) for value in values):
        return fields.array(STRING, values)
    raise InvalidFile(f"config.json: {str(values)[:60]} was found for {name}: numbers or texts were expected")


# --- rotary embeddings --------------------------------------------------------------------------------------------


def _scaling(name: str) -> Callable[[Config], Any]:
    """A setting of scaled rotary embeddings, where the model has them and GGUF has a name for the kind."""

    def setting(config: Config) -> Any:
        rope = config.global_rope
        kind, factor = rope.get("rope_type"), rope.get("factor")
        if kind in ("su", "longrope"):
            return "longrope" if name == "type" else None
        if kind not in ("linear", "yarn") or factor is None:
            return None
        if name == "type":
            return kind
        if name == "factor":
            return factor
        if kind != "yarn":
            return None
        if name == "original_max_position_embeddings":
            return rope.get(name, config.find("max_position_embeddings"))
        if name == "attention_factor":
            return rope.get(name, rope.get("attn_factor"))
        return rope.get(name)

    return setting


def _sections(config: Config) -> list[Any] | None:
    sections = items(config.rope.get("mrope_section"))
    return [*sections, 0, 0, 0, 0][:4] if sections else None


ROPE = (
    computed("rope.scaling.type", STRING, _scaling("type")),
    computed("rope.scaling.factor", F32, _scaling("factor")),
    computed("rope.scaling.original_context_length", U32, _scaling("original_max_position_embeddings")),
    computed("rope.scaling.yarn_ext_factor", F32, _scaling("extrapolation_factor")),
    computed("rope.scaling.yarn_attn_factor", F32, _scaling("attention_factor")),
    computed("rope.scaling.yarn_beta_fast", F32, _scaling("beta_fast")),
    computed("rope.scaling.yarn_beta_slow", F32, _scaling("beta_slow")),
    computed("rope.dimension_sections", U32, _sections),
    computed("rope.freq_base", F32, lambda config: config.global_rope.get("rope_theta")),
    computed("rope.freq_base_swa", F32, lambda config: mapping(config.rope.get("sliding_attention")).get("rope_theta")),
)


def _odd_base(config: Config) -> Any:
    base = config.global_rope.get("rope_theta")
    return None if base == USUAL_ROPE_BASE else base


USUAL_ROPE_BASE = 10000.0
ODD_ROPE_BASE = computed("rope.freq_base", F32, _odd_base)
"""For architectures for which the reference writes no base: llama.cpp takes 10000 then, and another one must be said."""


# --- what most architectures share --------------------------------------------------------------------------------


def _gating(config: Config) -> int | None:
    name = config.find(
        "score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func",
        "expert_selection_fn",
    )  # fmt: skip
    if name is None:
        return None
    if name not in _GATING:
        raise UnsupportedFile(f"config.json: experts are chosen by {name!r:.40}; GGUF knows {', '.join(_GATING)}")
    return _GATING[name]


CONTEXT = ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length")
_FORWARD = ("prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim")

BASE: tuple[Key, ...] = (
    computed("block_count", U32, lambda config: config.blocks, back="num_hidden_layers"),
    count("context_length", *CONTEXT),
    count("embedding_length", "hidden_size", "n_embd", "dim"),
    count("feed_forward_length", *_FORWARD, back="intermediate_size"),
    count("attention.head_count", "num_attention_heads", "n_head", "n_heads"),
    count("attention.head_count_kv", "num_key_value_heads", "n_kv_heads"),
    computed("attention.causal", BOOL, lambda config: False if config.find("is_causal") is False else None),
    *ROPE,
    real("attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps"),
    real("attention.layer_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    count("expert_count", "num_local_experts", "num_experts", "n_routed_experts"),
    count("expert_used_count", "num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    count("expert_group_count", "n_group"),
    count("expert_group_used_count", "topk_group"),
    computed("expert_gating_func", U32, _gating),
    count("attention.key_length", "head_dim"),
    count("attention.value_length", "head_dim"),
)
"""What the reference's ``TextModel`` writes for every model that says it."""


def without(keys: Iterable[Key], *names: str) -> tuple[Key, ...]:
    """Keys but those called ``names`` (``{arch}.`` left out)."""
    return tuple(key for key in keys if key.name.removeprefix("{arch}.") not in names)


# --- pooling, labels ----------------------------------------------------------------------------------------------


def _pooling(config: Config) -> int | None:
    """How a sentence-transformer pools (its ``modules.json`` names a directory with a configuration of its own)."""
    documents = config.documents
    if "modules.json" not in documents:
        return None
    path = next((text(entry.get("path")) for entry in _modules(documents) if text(entry.get("type")).endswith("Pooling")), "")
    settings = documents.object(f"{path}/config.json") if path else {}
    if not settings:
        return None
    for name, number in _POOLING.items():
        suffix = name if name == "lasttoken" else f"{name}_token" if name == "cls" else f"{name}_tokens"
        if settings.get(f"pooling_mode_{suffix}") is True:
            return number
    mode = settings.get("pooling_mode")
    if isinstance(mode, str) and mode in _POOLING:
        return _POOLING[mode]
    raise UnsupportedFile(f"{path}/config.json pools in a way that GGUF has no name for: it knows {', '.join(_POOLING)}")


def _modules(documents: Any) -> list[dict[str, Any]]:
    try:
        found = json.loads(documents.text("modules.json") or "")
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"modules.json is not JSON: {error}") from None
    return [entry for entry in items(found) if isinstance(entry, dict)]


def _classifier_pooling(config: Config) -> int | None:
    mode = config.find("classifier_pooling")
    if mode is None:
        return None
    if mode not in ("cls", "mean"):
        raise UnsupportedFile(f"config.json: classifier_pooling is {mode!r:.40}; GGUF knows cls and mean")
    return _POOLING[mode]


def pooling_documents(given: Given) -> dict[str, bytes]:
    """The inverse of `_pooling`: the modules of a sentence-transformer that pools as the header says; {} where it does not say,
    or says a way that has no name there."""
    names = {number: name for name, number in _POOLING.items()}
    name = names.get(given.key("pooling_type"))
    if name is None:
        return {}
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    modes = {f"pooling_mode_{mode}": mode.startswith(name) for mode in ("cls_token", "mean_tokens", "lasttoken")}
    settings = {"word_embedding_dimension": given.count("embedding_length"), **modes}
    return {"modules.json": json_of(modules), "1_Pooling/config.json": json_of(settings)}


def json_of(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


POOLING = (
    computed("pooling_type", U32, _pooling),
    computed("classifier.pooling_type", U32, _classifier_pooling),
)

"""``general.*``: what a GGUF header says of a model besides its architecture, from the model card, the configuration, the
directory's name and the sampling defaults beside them.

Keys, order and precedence are those of llama.cpp's converter (``gguf-py/gguf/metadata.py``), with one difference: in a Hugging
Face cache the directory is called after a revision, and the repository's name is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import FileProblem, Tensor

from modelhub_gguf import fields
from modelhub_gguf.architectures.card import front_matter
from modelhub_gguf.architectures.carry import parameters
from modelhub_gguf.architectures.model_id import Parts, parts_of, size_label, title
from modelhub_gguf.documents import Documents, text
from modelhub_gguf.fields import F32, I32, STRING, Field

Card = Mapping[str, "str | list[str]"]

SAMPLING = (
    ("sequence", STRING, ("sequence",)),
    ("top_k", I32, ("top_k",)),
    ("top_p", F32, ("top_p",)),
    ("min_p", F32, ("min_p",)),
    ("xtc_probability", F32, ("xtc_probability",)),
    ("xtc_threshold", F32, ("xtc_threshold",)),
    ("temp", F32, ("temperature",)),
    ("penalty_last_n", I32, ("penalty_last_n",)),
    ("penalty_repeat", F32, ("penalty_repeat", "repetition_penalty")),
    ("mirostat", I32, ("mirostat",)),
    ("mirostat_tau", F32, ("mirostat_tau",)),
    ("mirostat_eta", F32, ("mirostat_eta",)),
)
"""Key below ``general.sampling``, type, and what generation_config.json may call it: the last is transformers' own name."""
_NAMED = ("name", "author", "version", "organization", "finetune", "basename", "description", "size_label")
_ALIASES = {"author": ("model_creator",), "basename": ("model_type",)}
_SOURCES = ("url", "doi", "uuid", "repo_url")
_HUB = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")
_URL = re.compile(r"(https?|ssh)://")
_REPOSITORY = "https://huggingface.co/"


def general(documents: Documents, config: Mapping[str, Any], tensors: Sequence[Tensor], repository: str = "") -> dict[str, Field]:
    """The fields, in order. ``tensors``: GGUF's, which are counted; ``repository``: the model's name where its directory's is a
    revision."""
    card = front_matter(documents.text("README.md") or "")
    counts = parameters(tensors)
    found = _described(card, config, repository or os.path.basename(documents.directory), counts[0])
    found.setdefault("size_label", size_label(*counts) if counts[0] else "")
    values = {
        **_sampling(documents),
        **{f"general.{name}": found.get(name, "") for name in _NAMED},
        "general.license": _joined(card.get("license")),
        "general.license.name": _one(card.get("license_name")),
        "general.license.link": _one(card.get("license_link")),
        **{f"general.source.{name}": _one(card.get(name)) or _one(card.get(f"model_{name}")) for name in _SOURCES},
    }
    known = {name: value if isinstance(value, Field) else fields.string(value) for name, value in values.items() if value}
    known.update(_parents("base_model", card, ("base_model", "base_models", "base_model_sources"), counts[0]))
    known.update(_parents("dataset", card, ("datasets", "dataset", "dataset_sources"), counts[0]))
    for name, keys in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        if listed := [item for key in keys for item in _items(card.get(key))]:
            known[f"general.{name}"] = fields.array(STRING, listed)
    return known


def _described(card: Card, config: Mapping[str, Any], directory: str, total: int) -> dict[str, str]:
    """The texts of `_NAMED`: from the card, else from the configuration's ``_name_or_path``, else from the directory's name."""
    found: dict[str, str] = {}
    for name in _NAMED:
        for key in (name, f"model_{name}", *_ALIASES.get(name, ())):
            if value := _one(card.get(key)):
                found.setdefault(name, value)
    said = text(config.get("_name_or_path"))
    for model_id in (said if said.count("/") <= 1 else "", directory):
        parts = parts_of(model_id, total)
        for name, value in (("name", title(parts.name)), ("organization", title(parts.organization)), *_rest(parts)):
            if value:
                found.setdefault(name, value)
    found.setdefault("name", directory or "model")
    return found


def _rest(parts: Parts) -> tuple[tuple[str, str], ...]:
    return tuple((name, getattr(parts, name)) for name in ("basename", "finetune", "version", "size_label"))


def _sampling(documents: Documents) -> dict[str, Field]:
    """``general.sampling.*`` from ``generation_config.json``; what is not of its type there, or no JSON, is left out."""
    try:
        settings = documents.object("generation_config.json")
    except FileProblem:
        return {}  # nothing else needs it, and not all are valid
    found: dict[str, Field] = {}
    for name, kind, keys in SAMPLING:
        value = next((settings[key] for key in keys if settings.get(key) is not None), None)
        if kind == STRING and isinstance(value, str) and value:
            found[f"general.sampling.{name}"] = fields.string(value)
        elif kind == F32 and isinstance(value, int | float) and not isinstance(value, bool):
            found[f"general.sampling.{name}"] = fields.f32(float(value))
        elif kind == I32 and type(value) is int and -(1 << 31) <= value < 1 << 31:
            found[f"general.sampling.{name}"] = fields.i32(value)
    return found


def _parents(kind: str, card: Card, keys: Sequence[str], total: int) -> dict[str, Field]:
    """Base models, or data sets: how many, and of each what its id says."""
    key = next((key for key in keys if key in card), None)
    if key is None:
        return {}
    models = _items(card[key])
    found = {f"general.{kind}.count": fields.u32(len(models))}
    for number, model in enumerate(models):
        for name, value in _parent(model, total).items():
            if value:
                found[f"general.{kind}.{number}.{name}"] = fields.string(value)
    return found


def _parent(model: str, total: int) -> dict[str, str]:
    url = bool(_URL.match(model))
    match = _HUB.fullmatch(model)
    parts = parts_of(match[1] if match else "" if url else model, total)
    found = {"name": title(parts.name), "version": parts.version, "organization": title(parts.organization)}
    if url:
        found["repo_url"] = model
    elif parts.organization and parts.name:
        found["repo_url"] = f"{_REPOSITORY}{parts.organization}/{parts.name}"
    return found


def _one(value: str | list[str] | None) -> str:
    return value if isinstance(value, str) else ""


def _joined(value: str | list[str] | None) -> str:
    return ",".join(_items(value))


def _items(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []

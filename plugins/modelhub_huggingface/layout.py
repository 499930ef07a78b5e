"""Which files of a directory make up a Hugging Face checkpoint: the weights of one container, and what belongs to them.

Told by names (transformers ``utils/__init__.py``: ``SAFE_WEIGHTS_NAME`` and its neighbours; sentence-transformers
``modules.json``); the configuration is looked at only where the weights' names are unusual. Weights in another container are
left to other formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from modelhub import Detection, FileProblem, Listing, ModelhubError, Rejected, ShardGroup, group_of, read_json

from modelhub_huggingface.interrupted import interrupted

CONFIG = "config.json"
MAX_CONFIG = 16 << 20


class Container(NamedTuple):
    """A format that holds the tensors. Weights with the usual ``stem`` are told by their names alone; others (``unusual``) need a
    configuration that names a model, and to be the only ones."""

    format: str
    stem: str
    suffix: str
    unusual: str = ""

    def is_usual(self, name: str) -> bool:
        """``stem`` and ``suffix``, with a variant ("fp16"), a shard's numbers, or as an index."""
        variant = r"(\.[A-Za-z0-9_-]+)?"
        numbers = r"(-\d{5,6}-of-\d{5,6})?"
        pattern = rf"{self.stem}{variant}{numbers}{variant}\{self.suffix}(\.index{variant}\.json)?"
        return name.startswith(self.stem) and re.fullmatch(pattern, name) is not None

    def is_unusual(self, name: str) -> bool:
        return bool(self.unusual) and re.fullmatch(self.unusual, name, re.DOTALL) is not None


CONTAINERS = (
    Container("safetensors", "model", ".safetensors", unusual=r"(?!adapter|optimizer).+\.safetensors"),
    Container("pytorch", "pytorch_model", ".bin"),
    Container("keras", "tf_model", ".h5"),
    Container("flax", "flax_model", ".msgpack"),
)
"""The first that is complete is preferred, as transformers prefers safetensors. The last two are those of its models for other
frameworks (`modelhub_huggingface.frameworks`)."""

_BELONGS = re.compile(
    r".*\.(json|txt|md|model|jinja|py|tiktoken|jsonl|spm|bpe|vocab|imatrix)|(licen[cs]e|notice|copying|usage_policy|use_policy)([._-].*)?|\.gitattributes",
    re.IGNORECASE | re.DOTALL,
)
"""Configuration, tokenizer, model card, licence and modelling code: whatever ``from_pretrained`` may open, or a person read."""
_OTHERS = {"adapter_config.json", "model_index.json", "params.json"}
"""The marks of other layouts (PEFT, diffusers, Meta), which own them."""
_TEMPLATES = "additional_chat_templates"


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A directory with a configuration and weights; or what there is so far of one that is being downloaded, incomplete. None for
    anything else: a tokenizer alone is no checkpoint."""
    if (not _OTHERS.isdisjoint(listing.files) and CONFIG not in listing) or "model_index.json" in listing:
        return None
    weights = _choose(listing) if CONFIG in listing else None
    if weights is None:
        return interrupted(listing, lambda name: _belongs(listing, name), cache_name(listing.path)[0])
    index = [weights.index_name] if weights.index_name else []
    others = [name for name in listing.files if _belongs(listing, name) and name not in index and name != CONFIG]
    files = [*weights.present, *index, CONFIG, *others, *_below(listing)]
    return Detection(
        [listing.join(name) for name in files], confidence=96, missing=weights.missing, name=cache_name(listing.path)[0]
    )


def cache_name(path: str) -> tuple[str, str]:
    """(name, revision) of a snapshot in a Hugging Face cache, ``models--ORG--NAME/snapshots/REVISION``: what its owner calls
    it. Two empty texts anywhere else."""
    parts = path.rstrip("/").split("/")
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return "", ""


def _choose(listing: Listing) -> ShardGroup | None:
    """The preferred container's preferred weights: complete before incomplete, usual names before others."""
    groups = [group for container in CONTAINERS for group in _usual(listing, container)] or list(_unusual(listing))
    complete = (group for group in groups if group.present and not group.missing)
    return next(complete, max(groups, key=lambda group: len(group.present), default=None))


def _usual(listing: Listing, container: Container) -> Iterator[ShardGroup]:
    # Plain names first: model.safetensors before model.safetensors.index.json before model.fp16.safetensors.
    names = [name for name in listing.files if container.is_usual(name)]
    seen: set[str] = set()
    for name in sorted(names, key=lambda name: (name != container.stem + container.suffix, name.count("."), name)):
        if name not in seen:
            group = _group(listing, name)
            seen.update(group.present, (group.index_name,))
            yield group


def _unusual(listing: Listing) -> Iterator[ShardGroup]:
    """The only weights of a directory whose configuration names a model: ``gptq_model-4bit-128g.safetensors``."""
    for container in CONTAINERS:
        names = [name for name in listing.files if container.is_unusual(name)]
        if names:
            group = _group(listing, names[0])
            if set(names) <= set(group.present) and _names_a_model(listing):
                yield group


def _group(listing: Listing, name: str) -> ShardGroup:
    try:
        group = group_of(listing.file(name))
    except (FileProblem, OSError):  # a broken index: reading it will say so
        group = ShardGroup((), (), name, name)
    return group or ShardGroup((name,), (), name)


def _names_a_model(listing: Listing) -> bool:
    try:
        config = read_json(listing.file(CONFIG), limit=MAX_CONFIG)
    except (ModelhubError, OSError):
        return False
    return any(isinstance(config.get(key), (str, list)) for key in ("model_type", "architectures"))


def is_document(name: str) -> bool:
    """Whether a file called ``name`` belongs to the weights beside it, by its name alone."""
    return name not in _OTHERS and _BELONGS.fullmatch(name) is not None


def _belongs(listing: Listing, name: str) -> bool:
    if not is_document(name):
        return False
    if ".index." in name and name.endswith(
        ".json"
    ):  # another container's: its weights, where they are there, are another checkpoint
        return not _group(listing, name).present
    return True


def _below(listing: Listing) -> Iterator[str]:
    """Files of sub-directories that belong to the checkpoint: the modules of a sentence-transformer, chat templates."""
    if "modules.json" in listing:
        for name in listing.directories:
            if re.fullmatch(r"\d+_\w+", name):
                inner = listing.subdirectory(name).files
                weights = any(container.is_usual(file) for file in inner for container in CONTAINERS)
                if CONFIG in inner and not weights:
                    yield f"{name}/{CONFIG}"
    if _TEMPLATES in listing.directories:
        yield from (f"{_TEMPLATES}/{name}" for name in listing.subdirectory(_TEMPLATES).files if name.endswith(".jinja"))

"""Which files make up a pipeline: `model_index.json` names a class for each component, whose folder holds its configuration and
weights.

(diffusers ``pipelines/pipeline_utils.py``, ``utils/constants.py``: ``WEIGHTS_NAME`` and its neighbours. Components are
[library, class]; [null, null] is one that was left out.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from modelhub import Detection, File, FileProblem, Listing, Rejected, ShardGroup, group_of, read_json

INDEX = "model_index.json"
CONFIG = "config.json"
MAX_JSON = 4 << 20
MAX_COMPONENTS = 64
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "flax_model")
SUFFIXES = {".safetensors": "safetensors", ".bin": "pytorch"}
"""In the order in which diffusers prefers them."""
_WEIGHTLESS = re.compile(r"Scheduler|Tokenizer|Processor|FeatureExtractor|Guider", re.IGNORECASE)
_DOCUMENTS = re.compile(r".*\.(json|txt|model|jinja|py)", re.DOTALL)
_AROUND = re.compile(r"readme(\..*)?|licen[cs]e(\..*)?|.*\.py", re.IGNORECASE | re.DOTALL)
"""What belongs to a pipeline beside its index: its card, its licence, code of its own (which is never run here)."""


class Component(NamedTuple):
    """A part of a pipeline: its name and folder, the library and class that load it."""

    name: str
    library: str
    kind: str

    @property
    def has_weights(self) -> bool:
        """Schedulers, tokenizers and processors have none."""
        return not _WEIGHTLESS.search(self.kind)


def components(index: Mapping[str, Any], folders: Collection[str]) -> list[Component]:
    """What `model_index.json` names, but for what was left out. ``folders``: those that are there: of several of a kind (a
    ``MultiControlNetModel``) the index names the first, ``controlnet``, and they are ``controlnet_1``, ... ."""
    found: list[Component] = []
    for name, said in index.items():
        if not name.startswith("_") and isinstance(said, list) and len(said) == 2 and all(isinstance(part, str) for part in said):
            if name in (".", "..") or "/" in name or "\0" in name or len(found) >= MAX_COMPONENTS:
                continue  # a component's name is a folder's
            found.append(Component(name, *said))
            if said[1].startswith("Multi"):
                found += [Component(f"{name}_{n}", *said) for n in range(1, MAX_COMPONENTS) if f"{name}_{n}" in folders]
    return found


def folders_of(files: Iterable[str], directory: str) -> set[str]:
    """The folders in ``directory`` in which the files lie."""
    start = len(directory) + 1
    return {path[start:].partition("/")[0] for path in files if path.startswith(f"{directory}/")}


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A directory with `model_index.json`, whose parts without a folder or weights are missing; or a part that stands alone."""
    if INDEX not in listing:
        return _part(listing)
    try:
        index = read_json(listing.file(INDEX), limit=MAX_JSON)
    except FileProblem as error:
        return Rejected(f"{INDEX}: {error}", confidence=97)
    if not isinstance(index.get("_class_name"), str):
        return None
    files, missing = [listing.join(INDEX)], []
    for component in components(index, listing.directories):
        if component.name not in listing.directories:
            missing.append(f"{component.name}/" if component.has_weights else f"{component.name}/ ({component.kind})")
            continue
        inner = listing.subdirectory(component.name)
        try:
            files += [inner.join(name) for name in inner.files if _DOCUMENTS.fullmatch(name) and ".index." not in name]
            if component.has_weights:
                group = weights(inner)
                if group is None:
                    missing.append(f"{component.name}/{STEMS[component.library == 'transformers']}.safetensors")
                else:
                    index_file = [group.index_name] if group.index_name else []
                    files += [inner.join(name) for name in (*group.present, *index_file)]
                    missing += [f"{component.name}/{name}" for name in group.missing]
        finally:
            inner.close()
    files += [listing.join(name) for name in listing.files if _AROUND.fullmatch(name)]
    return Detection(files, confidence=97, missing=missing, name=cache_name(listing.path))


def _part(listing: Listing) -> Detection | None:
    """A component as ``save_pretrained`` writes it (a ControlNet, a VAE): its configuration names a class of diffusers."""
    if CONFIG not in listing or not any(name.startswith(STEMS[0]) for name in listing.files):
        return None
    group = weights(listing)
    if group is None or not isinstance(json_of(listing.file(CONFIG)).get("_class_name"), str):
        return None
    files = [*group.present, *([group.index_name] if group.index_name else []), CONFIG]
    files += [name for name in listing.files if name.lower() in ("readme.md", "license.md", "license")]
    return Detection([listing.join(name) for name in files], confidence=97, missing=group.missing, name=cache_name(listing.path))


def weights(listing: Listing) -> ShardGroup | None:
    """A component's preferred weights: safetensors before pickles, complete before not, no variant before one ("fp16")."""
    groups = []
    for suffix in SUFFIXES:
        names = [name for name in listing.files if name.endswith(suffix) and name.startswith(STEMS)]
        seen: set[str] = set()
        for name in sorted(names, key=lambda name: (name.count("."), name)):
            if name not in seen:
                group = _group(listing, name)
                seen.update(group.present)
                groups.append(group)
    complete = (group for group in groups if not group.missing)
    return next(complete, groups[0] if groups else None)


def _group(listing: Listing, name: str) -> ShardGroup:
    try:
        group = group_of(listing.file(name))
    except (FileProblem, OSError):
        group = None
    return group or ShardGroup((name,), (), name)


def cache_name(path: str) -> str:
    """In a Hugging Face cache the owner's name for it; "" elsewhere."""
    parts = path.rstrip("/").split("/")
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return ""


def json_of(file: File) -> dict[str, Any]:
    """A document beside the weights; {} where it cannot be read, for the weights do not need it."""
    try:
        return read_json(file, limit=MAX_JSON)
    except (FileProblem, json.JSONDecodeError):
        return {}

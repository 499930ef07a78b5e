"""Which files of a directory are a checkpoint of Meta's, and what its ``params.json`` says.

Names and fields are those of meta-llama/llama ``llama/generation.py`` and ``model.py`` (``ModelArgs``), and of
mistralai/mistral-src ``mistral/model.py``. ``checklist.chk`` is what ``md5sum`` writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelhub import Detection, File, FileProblem, InvalidFile, Listing, read_json

PARAMS, CHECKLIST, TOKENIZER = "params.json", "checklist.chk", "tokenizer.model"
MAX_JSON = 1 << 20
MAX_CHECKLIST = 1 << 16
MAX_COUNT = 1 << 31
_PART = re.compile(r"consolidated\.(\d{2,3})\.pth", re.ASCII)
_LISTED = re.compile(r"[0-9a-fA-F]{32}\s+\*?(\S+)", re.ASCII)
_BESIDE = re.compile(r"(license|notice|use_policy|readme|model_card)([._-].*)?", re.IGNORECASE | re.DOTALL)


def detect_directory(listing: Listing) -> Detection | None:
    """Parts and a ``params.json`` that says a transformer's shape; with what stands beside them."""
    if PARAMS not in listing:
        return None
    parts = [name for name in listing.files if _PART.fullmatch(name)]
    if not parts:
        return None
    try:
        said = read_json(listing.file(PARAMS), limit=MAX_JSON)
    except FileProblem:
        said = {"dim": 0, "n_layers": 0}  # the names are enough: reading it says what is wrong
    if "dim" not in said or "n_layers" not in said:
        return None
    beside = [PARAMS, *(name for name in listing.files if name in (CHECKLIST, TOKENIZER) or _BESIDE.fullmatch(name))]
    return Detection([listing.join(name) for name in (*parts, *beside)], confidence=97, missing=_missing(listing, parts))


def _missing(listing: Listing, parts: list[str]) -> list[str]:
    """Parts that must be there: those before the last, and those that were there when their sums were taken."""
    numbers = [int(name.split(".")[1]) for name in parts]
    width = len(parts[0].split(".")[1])
    wanted = {f"consolidated.{number:0{width}}.pth" for number in range(max(numbers) + 1)}
    if CHECKLIST in listing and listing.files[CHECKLIST] <= MAX_CHECKLIST:
        file = listing.file(CHECKLIST)
        lines = file.read(0, file.size).decode("utf-8", "replace").splitlines()
        names = (match[1] for line in lines if (match := _LISTED.fullmatch(line.strip())))
        wanted.update(name for name in names if _PART.fullmatch(name))
    return sorted(wanted - set(parts))


def parts_of(files: Iterator[str] | tuple[str, ...]) -> list[str]:
    """The parts among ``files``, by their numbers."""
    found = [path for path in files if _PART.fullmatch(os.path.basename(path))]
    return sorted(found, key=lambda path: int(os.path.basename(path).split(".")[1]))


@dataclass(frozen=True, slots=True)
class Params:
    """What ``params.json`` says. ``kv_heads`` and ``head_dim`` are worked out where it is silent; ``raw`` is all of it."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    raw: Mapping[str, Any]

    def number(self, name: str, default: float) -> float:
        """A number, or ``default`` where it is missing. `InvalidFile` where it is none."""
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InvalidFile(f"{PARAMS}: {name} is {value!r:.40}, a positive number was expected")
        return float(value)


def read_params(file: File) -> Params:
    """`InvalidFile` names a field that is missing, or no count."""
    raw = read_json(file, limit=MAX_JSON)

    def count(name: str, default: int | None = None) -> int:
        value = raw.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < MAX_COUNT:
            raise InvalidFile(f"{PARAMS}: {name} is {value!r:.40}, a count was expected")
        return value

    dim, heads = count("dim"), count("n_heads")
    params = Params(dim, count("n_layers"), heads, count("n_kv_heads", heads), count("head_dim", dim // heads), 0.0, raw)
    if not params.head_dim:
        raise InvalidFile(f"{PARAMS}: dim {dim} cannot be shared out among {heads} heads")
    return Params(dim, params.layers, heads, params.kv_heads, params.head_dim, params.number("norm_eps", 1e-5), raw)

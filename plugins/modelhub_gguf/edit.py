"""Keys set and removed on the way from one GGUF to another (``convert --set KEY=VALUE``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from modelhub import Extent, Metadata

from modelhub_gguf import splits, texts
from modelhub_gguf.fields import STRING, TYPE_NAMES, Field
from modelhub_gguf.header import MAX_ALIGNMENT, MAX_NAME


def edit(metadata: Metadata, changes: Mapping[str, str | None]) -> Metadata:
    """``metadata`` with keys set (a text: of the type that the key has, or with one in front, ``u32:5``) or removed (None).
    ValueError says which key cannot be, and why."""
    native: dict[str, Field] = dict(metadata.native) or texts.from_texts(metadata.stored)
    stored = dict(metadata.stored)
    architecture = native["general.architecture"].value if "general.architecture" in native else ""
    for key, text in changes.items():
        _check_key(key)
        if text is None:
            _remove(key, native)
            stored.pop(key, None)
            continue
        try:
            field = texts.parse(text, key, native.get(key), architecture if isinstance(architecture, str) else "")
            _check_value(key, field)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; a type may stand in front, as in u32:5, of {', '.join(TYPE_NAMES[:9])}") from None
        native[key] = field
        shown = texts.to_text(field)
        if shown is not None:
            stored[key] = shown
    return replace(metadata, native=native, stored=stored)


def _check_key(key: str) -> None:
    if key in splits.KEYS:
        raise ValueError(f"{key} says how a model is split: --max-shard-size does that")
    if not key or len(key.encode("utf-8", "surrogateescape")) > MAX_NAME or any(letter.isspace() for letter in key):
        raise ValueError(f"{key!r:.80} is no name for a key: up to {MAX_NAME} bytes without spaces were expected")


def _remove(key: str, native: dict[str, Field]) -> None:
    if key not in native:
        near = difflib.get_close_matches(key, native, 1)
        raise ValueError(f"there is no key {key!r} to remove" + (f"; there is {near[0]}" if near else ""))
    if key == "general.architecture":
        raise ValueError("general.architecture cannot be removed: every GGUF names its architecture")
    del native[key]


def _check_value(key: str, field: Field) -> None:
    """What would make a file that nothing opens."""
    if key == "general.architecture" and (field.type != STRING or not field.value):
        raise ValueError("a name was expected, as in llama")
    if key == "general.alignment":
        value = field.value
        if isinstance(value, Extent) or field.type != 4 or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            raise ValueError(f"{value!r} is no alignment: a u32 and a power of two up to {MAX_ALIGNMENT} was expected")

"""Fields as texts and back: what a container that keeps only texts takes over, and what people type.

A scalar is written as people would (``4096``, ``1e-05``, ``true``), a short array as JSON. Types are not in the text: on the way
back they follow from an existing field, from a prefix (``u32:5``, ``[i32]:[1, 2]``), or from what is known of the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from modelhub import Extent

from modelhub_gguf import fields as typed
from modelhub_gguf.fields import ARRAY, BOOL, F32, F64, I32, I64, STRING, TYPE_NAMES, U32, U64, Field
from modelhub_gguf.keys import single

NOT_CARRIED = ("split.", "general.alignment", "general.file_type", "general.quantization_version", "quantize.")
"""Keys that describe one file and its encoding: another container's file does not have them."""
_MAX_ITEMS = 64

_PREFIX = re.compile(r"(?P<array>\[)?(?P<type>[a-z]+[0-9]*)(?(array)\]):", re.ASCII)
_WORDS = {"str": STRING, "boolean": BOOL, "int": I32, "float": F32, **{name: number for number, name in enumerate(TYPE_NAMES)}}
_OURS = re.compile(r"(?:general|tokenizer|quantize|adapter|split|[a-z0-9_-]+)(?:\.[a-z0-9_-]+)+", re.ASCII)
_COUNTED = re.compile(r"general\.(?:base_model|dataset)\.count|general\.(?:file_type|quantization_version|alignment)")
_LISTS = ("general.tags", "general.languages", "general.datasets")


def stored_texts(fields: Mapping[str, Field]) -> dict[str, str]:
    """The scalars and short arrays, as free metadata that any container can keep."""
    texts: dict[str, str] = {}
    for key, field in fields.items():
        if not key.startswith(NOT_CARRIED):
            text = to_text(field)
            if text is not None:
                texts[key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")] = text
    return texts


def to_text(field: Field) -> str | None:
    """A field as a text; None where it is too large, or a list of what JSON cannot say."""
    if isinstance(field.value, Extent):
        return None
    if field.type == STRING:
        return _string(field.value)
    if field.type != ARRAY:
        return json.dumps(_number(field.value, field.type))
    if len(field.value) > _MAX_ITEMS:
        return None
    items = [_string(item) if field.item == STRING else _number(item, field.item) for item in field.value]
    return json.dumps(items, ensure_ascii=False)


def _string(value: Any) -> str:
    text: str = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text


def _number(value: Any, kind: int) -> Any:
    return single(value) if kind == F32 else value


# --- back ---------------------------------------------------------------------------------------------------------


def from_texts(texts: Mapping[str, str]) -> dict[str, Field]:
    """Free metadata as fields: the keys of GGUF with the types that they have there, all others as strings."""
    architecture = texts.get("general.architecture", "")
    return {key: guessed(key, text, architecture) for key, text in texts.items() if key and not key.startswith(NOT_CARRIED)}


def guessed(key: str, text: str, architecture: str) -> Field:
    """A field from a text whose type nothing tells but the key: GGUF's own keys hold numbers where they look like it, except
    for those that are names by their nature."""
    names = key.startswith("general.") and not (_COUNTED.fullmatch(key) or key.startswith("general.sampling.") or key in _LISTS)
    known = _OURS.fullmatch(key) and (key.startswith(("general.", "tokenizer.ggml.", f"{architecture}.")))
    if not known or names or key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        return typed.string(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return typed.string(text)
    if isinstance(value, list) and value:
        kinds = {_kind_of(item) for item in value}
        kind = kinds.pop() if len(kinds) == 1 else F32 if kinds == {U32, F32} else I32 if kinds == {U32, I32} else -1
        if kind >= 0:
            return typed.array(I32 if kind == U32 else kind, [float(item) if kind == F32 else item for item in value])
        return typed.string(text)
    kind = _kind_of(value)
    return Field(kind, value) if kind not in (-1, STRING) else typed.string(text)


def _kind_of(value: Any) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str):
        return STRING
    if isinstance(value, float):
        return F32 if abs(value) < 3.4e38 or value != value else F64
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
        return -1
    if value >= 0:
        return U32 if value < 1 << 32 else U64
    return I32 if value >= -(1 << 31) else I64


def parse(text: str, key: str, before: Field | None, architecture: str) -> Field:
    """What people typed for ``key``: with a type in front (``u32:5``, ``[string]:["a", "b"]``), else of the type that the key had
    before, else of the one that it usually has. ValueError says what does not fit."""
    match = _PREFIX.match(text)
    if match and match["type"] in _WORDS and match["type"] != "array":
        kind = _WORDS[match["type"]]
        rest = text[match.end() :]
        return _array(kind, rest) if match["array"] else _checked(Field(kind, _scalar(kind, rest)))
    if before is None:
        return _checked(guessed(key, text, architecture))
    if before.type == ARRAY:
        return _array(before.item, text)
    return _checked(Field(before.type, _scalar(before.type, text)))


def _array(kind: int, text: str) -> Field:
    """``[1, 2]`` or ``1,2``."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = [item.strip() for item in text.split(",")] if text.strip() else []
    if not isinstance(items, list):
        items = [items]
    texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
    return _checked(typed.array(kind, [_scalar(kind, item) for item in texts]))


def _scalar(kind: int, text: str) -> Any:
    if kind == STRING:
        return text
    word = text.strip().lower()
    if kind == BOOL:
        if word not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{text!r:.60} is neither true nor false")
        return word in ("true", "1", "yes")
    try:
        return float(word) if kind in (F32, F64) else int(word, 0)
    except ValueError:
        raise ValueError(f"{text!r:.60} is not a {TYPE_NAMES[kind]}") from None


def _checked(field: Field) -> Field:
    """``field``, whose value fits its type. ValueError where it does not."""
    for piece in typed.encode(field):
        if isinstance(piece, Extent):
            raise ValueError("a value was expected, not a place")
    return field

"""Checks of the records that plugins declare, made once when a plugin is loaded. Each problem is said in the author's terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelhub import dtypes
from modelhub.declared import Check, Codec, Combination, Conversion, Format, Op, Program, Recipe

API = 1
"""The newest ``api`` of a record that this modelhub understands."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}\Z")
_LEVELS = ("structure", "safety", "digest", "values", "runnable")
_CALLABLES: dict[type, tuple[tuple[str, bool], ...]] = {
    Format: (("detect", False), ("detect_directory", False), ("read", False), ("create", False), ("edit", False)),
    Codec: (("decode", True), ("encode", False), ("transcode", False), ("prepare", False)),
    Op: (("rows", True), ("infer", True), ("needs", False), ("memory", False)),
    Recipe: (("choose", False), ("assign", False), ("measure", False), ("derive", False)),
    Conversion: (("derive", True),),
    Combination: (("derive", True),),
    Program: (("run", True), ("memory_estimate", False)),
    Check: (("run", True),),
}


def check_record(record: object, kinds: tuple[type, ...]) -> str:
    """What is wrong with ``record``, which should be one of ``kinds``; "" where nothing is."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    if type(record) not in kinds:
        return f"a {type(record).__name__}, expected modelhub.{expected}"
    kind = type(record).__name__
    name = getattr(record, "dtype", None) if isinstance(record, Codec) else getattr(record, "name", None)
    if not isinstance(name, str) or not name:
        return f"a {kind} without a name"
    what = f"{kind} {name!r}"
    api = getattr(record, "api", None)
    if type(api) is not int or api < 1:
        return f"{what} with api={api!r}, expected a number from 1 to {API}"
    if api > API:
        return f"{what} with api={api}; this modelhub speaks api {API}: upgrade modelhub"
    for attribute, required in _CALLABLES[type(record)]:
        value = getattr(record, attribute)
        if not callable(value) and (required or value is not None):
            return f"{what} whose {attribute} is not callable"
    problem = _details(record)
    return f"{what} {problem}" if problem else ""


def _details(record: object) -> str:
    match record:
        case Format():
            return _format(record)
        case Codec():
            return "" if dtypes.find(record.dtype) else "for an unknown dtype: call modelhub.dtypes.register(DType(...)) first"
        case Recipe():
            if not (record.choose or record.assign or record.measure or record.derive):
                return "that has none of choose, assign, measure and derive"
            return _plain_name(record.name) or _strings("formats", record.formats)
        case Check():
            if record.level not in _LEVELS:
                return f"with level={record.level!r}, expected one of {', '.join(_LEVELS)}"
            return _strings("formats", record.formats) or _strings("requires", record.requires)
        case Combination():
            return "" if _text(record.source) else "whose source is not a format's name"
        case Program() if record.recipe and _plain_name(record.recipe):
            return f"with the recipe {record.recipe!r}, {_plain_name(record.recipe).removeprefix('with ')}"
        case Conversion() | Program():
            return "" if _text(record.source) and _text(record.target) else "whose source and target are not formats' names"
    return ""


def _format(record: Format) -> str:
    problem = _plain_name(record.name)
    for attribute in ("suffixes", "dtypes"):
        problem = problem or _strings(attribute, getattr(record, attribute))
    if problem:
        return problem
    if any(suffix != suffix.lower() for suffix in record.suffixes):
        return "with an upper-case suffix; names are compared in lower case"
    if not isinstance(record.magics, tuple) or not all(isinstance(magic, bytes) and magic for magic in record.magics):
        return "whose magics are not a tuple of non-empty bytes"
    if record.sharing not in ("none", "exact", "any"):
        return f"with sharing={record.sharing!r}, expected none, exact or any"
    if not isinstance(record.unavailable, Mapping) or not all(
        _text(text) for pair in record.unavailable.items() for text in pair
    ):
        return "whose unavailable is not a mapping from a capability to what is missing"
    if record.create and not isinstance(record.extension, str):
        return "whose extension is not a text"
    return ""


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _plain_name(name: str) -> str:
    return "" if _NAME.match(name) else "with a name hard to type: lower-case letters, digits, then . _ + - as well"


def _strings(attribute: str, value: Any) -> str:
    if isinstance(value, tuple) and all(_text(item) for item in value):
        return ""
    hint = " (a trailing comma is missing)" if isinstance(value, str) else ""
    return f"whose {attribute} is not a tuple of non-empty texts{hint}"

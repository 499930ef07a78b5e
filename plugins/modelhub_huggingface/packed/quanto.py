"""optimum-quanto: INT8 and FP8 with one scale a row; 2 and 4 bits are told only.

``weight._data`` and ``weight._scale``; ``quanto_qmap.json`` beside them says each module's kind. Narrow numbers are stored in
groups, ``weight._data._data``, and nothing stores how many rows these are. (quanto ``tensor/qbytes.py``,
``tensor/weights/qbits.py``, ``models/transformers_models.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

_KINDS = {"qint2": "INT2", "qint4": "INT4", "qint8": "INT8", "qfloat8_e4m3fn": "FP8", "qfloat8_e5m2": "FP8", "qfloat8": "FP8"}


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every ``weight`` with ``_data``."""
    for module in modules(source.tensors, "weight._data._data"):
        yield Kept(member(module, "weight._data._data"), "quanto's 2 and 4 bits are not read: shapes are not stored")
    for module in modules(source.tensors, "weight._data"):
        parts = (member(module, "weight._data"), member(module, "weight._scale"))
        why = lack(source.tensors, {parts[0]: ("I8", "F8_E4M3", "F8_E5M2"), parts[1]: FLOATS})
        if not why:
            numbers, scale = (source.tensors[part] for part in parts)
            try:
                args = rows.layout(numbers.shape[-1] if numbers.shape else 0, scale.dtype)
                value = ops.dequant("rows", typed(numbers), typed(scale), **args)
            except ValueError as error:
                why = str(error)
            else:
                yield whole(member(module, "weight"), value, parts)
        if why:
            yield Kept(parts[0], why)


def label(settings: Mapping[str, Any]) -> str:
    """What people call it, from the kinds of the modules."""
    found = {kind.get("weights") for kind in settings.values() if isinstance(kind, dict) and isinstance(kind.get("weights"), str)}
    kinds = {_KINDS[kind] for kind in found if kind in _KINDS}
    return f"QUANTO-{kinds.pop()}" if len(kinds) == 1 else "QUANTO"


SCHEME = Scheme(methods=("quanto",), unpack=unpack, beside=("input_scale", "output_scale"))

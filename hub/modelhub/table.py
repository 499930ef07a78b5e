"""A checkpoint's table of tensors, and its compact form: one blob that travels from a worker to the catalog and back.

The blob keeps columns, not records: names, dtypes, shapes, and for plain extents the gap to the end of the one before, which
is nearly always zero. Zlib does the rest, so that a hundred tensors take a few hundred bytes. Files are numbers into the
checkpoint's list of files, so a table survives a move.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any

import orjson

from modelhub import dtypes, ops
from modelhub.types import Columns, Extent, Metadata, Tensor, Value

_PLAIN, _ODD_NAMES = b"\x01", b"\x02"
_LIMIT = 1 << 31
"""No honest table is longer than this when unpacked (a hundred million tensors)."""


@dataclass(frozen=True)
class Table:
    """The tensors of a checkpoint in file order, and what it says of itself. Derived tables are the same record; ``documents``
    are then files that a `Conversion` made for the writer of a directory (name -> content), in place of the source's own, and
    ``notes`` what the user should know of it, in words."""

    tensors: tuple[Tensor, ...]
    metadata: Metadata = field(default_factory=Metadata)
    files: tuple[str, ...] = ()
    documents: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def stored(self) -> tuple[Tensor, ...]:
        """What stands in the files: for structure checks."""
        return tuple(tensor for tensor in self.tensors if tensor.view != "logical")

    @cached_property
    def logical(self) -> tuple[Tensor, ...]:
        """What the model means: for parameters, precision, diff and conversion."""
        return tuple(tensor for tensor in self.tensors if tensor.view != "stored")

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        """The logical tensors by name."""
        return {tensor.name: tensor for tensor in self.logical}

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Names of logical tensors whose value is that of an earlier one -> that one's name."""
        seen: dict[Any, str] = {}
        found: dict[str, str] = {}
        for tensor in self.logical:
            if tensor.value is None or not _is_stored(tensor.value) or not prod(tensor.shape):
                continue  # constants that are alike share nothing
            first = seen.setdefault((tensor.dtype, tensor.shape, value_key(tensor.value)), tensor.name)
            if first != tensor.name:
                found[tensor.name] = first
        return found

    @cached_property
    def parameters(self) -> int:
        """Elements over the logical tensors, ties counted once."""
        return sum(prod(tensor.shape) for tensor in self.logical if tensor.name not in self.ties)

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Parameters by dtype, ties counted once, the most frequent first."""
        count: Counter[str] = Counter()
        for tensor in self.logical:
            if tensor.name not in self.ties:
                count[tensor.dtype] += prod(tensor.shape)
        return dict(count.most_common())

    @cached_property
    def nbytes(self) -> int:
        """Bytes that the logical tensors take, ties counted once."""
        return sum(tensor_nbytes(tensor) for tensor in self.logical if tensor.name not in self.ties)

    @cached_property
    def precision(self) -> str:
        """One label that people use: the metadata's own, else the dtype of nine tenths of the weights, else "mixed"."""
        return self.metadata.precision or precision_label(self.dtypes)


def precision_label(count: Mapping[str, int]) -> str:
    """The label of parameters counted by dtype: the dtype of nine tenths of the weights, else "mixed"; "" for no weights."""
    # Indices, masks and counters say nothing of the weights' precision, unless there is nothing else.
    known = [(n, dtype) for name, n in count.items() if n and (dtype := dtypes.find(name))]
    weights = [pair for pair in known if pair[1].kind in ("float", "complex", "quantized")] or known
    if not weights:
        return ""
    most, dtype = max(weights, key=lambda pair: pair[0])
    return dtype.label if most >= 0.9 * sum(n for n, _ in weights) else "mixed"


def _is_stored(value: Value) -> bool:
    """Whether any of it stands in a file."""
    return isinstance(value, Extent) or next(ops.extents(value), None) is not None


def value_key(value: Value) -> Any:
    """A hashable key that is equal for values that are the same expression over the same bytes."""
    return value if isinstance(value, tuple) else json.dumps(ops.to_json(value), sort_keys=True)


def tensor_nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; 0 where its value cannot be had."""
    return 0 if tensor.value is None else dtypes.get(tensor.dtype).nbytes(tensor.shape)


# --- the compact form ---------------------------------------------------------------------------------------------


def pack(tensors: Sequence[Tensor] | Columns, files: Sequence[str], gaps: Sequence[int] = ()) -> bytes:
    """The blob of ``tensors``, whose extents lie in ``files``. KeyError names a file that is not among them. ``gaps``: the
    bytes between each of `Columns` and the one before, from a caller that has seen that their lengths follow from dtypes and
    shapes."""
    if not isinstance(tensors, Columns):
        return _encode(_columns(tensors, files))
    if not gaps or [tensors.file] != list(files):
        return _encode(_columns(tensors.tensors(), files))
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(tensors.dtypes))}
    codes = list(map(kinds.__getitem__, tensors.dtypes)) if len(kinds) > 1 else [0] * len(gaps)
    return _encode([tensors.names, list(kinds), codes, tensors.shapes, 0, gaps, {}])


def _columns(tensors: Sequence[Tensor], files: Sequence[str]) -> list[Any]:
    index = {path: number for number, path in enumerate(files)}
    kinds: dict[str, int] = {}
    names, codes, shapes, places, gaps = [], [], [], [], []
    others: dict[int, Any] = {}
    ends = [0] * len(files)
    for number, (name, dtype, shape, value, view, unsupported) in enumerate(tensors):
        names.append(name)
        codes.append(kinds.setdefault(dtype, len(kinds)))
        shapes.append(shape)
        if type(value) is Extent and view == "both":
            where = index[value.file]
            places.append(where)
            gaps.append(value.offset - ends[where])
            ends[where] = value.offset + value.nbytes
            if value.nbytes == dtypes.get(dtype).nbytes(shape):
                continue
            others[number] = {"nbytes": value.nbytes}
        else:
            places.append(-1)
            gaps.append(0)
            packed = None if value is None else _relocate(ops.to_json(value), index)
            others[number] = {"value": packed, "view": view, "unsupported": unsupported}
    return [names, list(kinds), codes, shapes, places if any(places) else 0, gaps, others]


def _encode(columns: list[Any]) -> bytes:
    try:
        return _PLAIN + zlib.compress(orjson.dumps(columns, option=orjson.OPT_NON_STR_KEYS), 1)
    except TypeError:  # lone surrogates in a name, or integers past 64 bits
        return _ODD_NAMES + zlib.compress(json.dumps(columns).encode(), 1)


def unpack(blob: bytes, files: Sequence[str]) -> tuple[Tensor, ...]:
    """The tensors of a blob, their extents in ``files``."""
    inflater = zlib.decompressobj()
    raw = inflater.decompress(blob[1:], _LIMIT)
    columns = orjson.loads(raw) if blob[:1] == _PLAIN else json.loads(raw)
    names, kinds, codes, shapes, places, gaps, others = columns
    if not all(map(dtypes.find, kinds)):  # those of plugins, which nothing has loaded until now
        import_module("modelhub.plugins").get()
    places = places or [0] * len(names)
    ends = [0] * len(files)
    tensors = []
    for number, name in enumerate(names):
        dtype, shape, where = kinds[codes[number]], tuple(shapes[number]), places[number]
        other = others.get(str(number), {}) if others else {}
        if where < 0:
            packed = other["value"]
            value = None if packed is None else ops.from_json(_relocate(packed, files))
            tensors.append(Tensor(name, dtype, shape, value, other["view"], other["unsupported"]))
            continue
        nbytes = other["nbytes"] if other else dtypes.get(dtype).nbytes(shape)
        offset = ends[where] + gaps[number]
        ends[where] = offset + nbytes
        tensors.append(Tensor(name, dtype, shape, Extent(files[where], offset, nbytes)))
    return tuple(tensors)


def names(blob: bytes) -> list[str]:
    """Only the names of a blob's tensors."""
    raw = zlib.decompressobj().decompress(blob[1:], _LIMIT)
    found: list[str] = (orjson.loads(raw) if blob[:1] == _PLAIN else json.loads(raw))[0]
    return found


def _relocate(data: Any, index: Mapping[str, int] | Sequence[str]) -> Any:
    """Swap the files of a serialised expression for their numbers, or back."""
    match data:
        case [file, int(offset), int(nbytes)]:
            return [index[file], offset, nbytes]
        case {"inputs": list(inputs)}:
            return {**data, "inputs": [_relocate(item, index) for item in inputs]}
    return data

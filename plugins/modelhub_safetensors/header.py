"""A safetensors header: parsed, and held against the rules of the format. No weights are read.

The format (safetensors README, "Format"; ``safetensors/src/tensor.rs``, ``Metadata::validate``): a little-endian u64 ``n``, ``n``
bytes of JSON that start with ``{``, then the data. Offsets count from the data's start; sorted they run from 0 to the file's
end without a hole. Stricter than the library here: no name may stand twice, which the format forbids and the library lets pass.

A drive holds tens of thousands of these, so the honest case takes one pass of C code over the JSON and a few over its columns.
"""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import repeat
from math import prod
from operator import add, itemgetter, sub
from typing import Any, NamedTuple

import orjson
from modelhub import Columns, File, IncompleteFile, InvalidFile, UnsupportedFile

MAX_HEADER = 100_000_000
"""The library's own limit (``MAX_HEADER_SIZE``)."""

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits per element of each dtype of the format (``enum Dtype``)."""

MAX_DIMENSIONS = 64
"""NumPy's and torch's own limit; it bounds the products of hostile shapes."""

_MAX_COUNT = (1 << 64) - 1
_DTYPE, _SHAPE, _OFFSETS = itemgetter("dtype"), itemgetter("shape"), itemgetter("data_offsets")
_LIST = {list}


class Header(NamedTuple):
    """``columns``: the tensors in the order of their bytes; ``stored`` is ``__metadata__``."""

    columns: Columns
    stored: dict[str, str]


class _Parsed(NamedTuple):
    """``text``: the header, without metadata that stand in it first. ``nbytes``: of all tensors; ``data_start``: where the first
    began."""

    text: bytes
    columns: Columns
    stored: dict[str, str]
    nbytes: int
    data_start: int


_PARSED: list[_Parsed] = []
"""The last headers, the newest first: the checkpoints of one training run, and fine-tunes of one model, have the same tensors to
the byte."""
REMEMBERED = 8
MAX_REMEMBERED = 1 << 20
"""How many headers are remembered, and how long one may be at the most."""
_STORED = b'"__metadata__"'
_STORED_FIRST = re.compile(rb'\{"__metadata__": ?(\{(?:[^"{}]|"(?:[^"\\]++|\\.)*+")*+\}), ?(?=")', re.DOTALL)
"""The metadata where they stand first, as the library writes them; an object in them would be no metadata."""


def header_length(file: File) -> int:
    """The ``n`` that the file starts with. `InvalidFile` where it cannot be one, `IncompleteFile` where the file ends before."""
    head = file.head
    if head.startswith(b"version https://git-lfs"):
        raise IncompleteFile(f"{file.name} is a Git LFS pointer, the weights are not here", "fetch them with: git lfs pull")
    if len(head) < 8:
        raise IncompleteFile(f"{file.name} is {file.size} bytes long, a safetensors file starts with 8 bytes of length")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER:
        raise InvalidFile(f"{file.name} declares a header of {length} bytes, the format allows {MAX_HEADER}")
    if not length:
        raise InvalidFile(f"{file.name} declares a header of 0 bytes, at least 2 were expected")
    if head[8:9] not in (b"{", b""):
        raise InvalidFile(f"{file.name}: the header starts with {head[8:9]!r}, '{{' was expected")
    if 8 + length > file.size:
        raise IncompleteFile(f"{file.name}: a header of {length} bytes is declared, the file ends at {file.size}")
    return length


def parse(file: File) -> Header:
    """The table of one file. `InvalidFile`, `IncompleteFile` or `UnsupportedFile` say what is wrong, where."""
    data_start = 8 + header_length(file)
    raw = file.read(8, data_start - 8)
    text, stored = _apart(file, raw)
    known = next((known for known in _PARSED if known.text == text), None)
    if known is None:
        known = _parse(file, text, raw, data_start)
        if len(text) <= MAX_REMEMBERED:
            del _PARSED[REMEMBERED - 1 :]
            _PARSED.insert(0, known)
    if data_start + known.nbytes != file.size:
        raise _end_problem(file, data_start, known.nbytes)
    columns = known.columns
    if data_start != known.data_start:
        columns = columns._replace(offsets=tuple(map(add, columns.offsets, repeat(data_start - known.data_start))))
    columns = columns._replace(file=file.path, explain=partial(_explain_text, file, text))
    return Header(columns, known.stored if stored is None else stored)


def _apart(file: File, raw: bytes) -> tuple[bytes, dict[str, str] | None]:
    """A header without its metadata, and these; or all of it, and None where they do not stand first, or not so that every JSON
    reader takes them for what they are."""
    first = _STORED_FIRST.match(raw)
    if first is None or raw.find(_STORED, first.end()) >= 0:
        return raw, None
    try:
        stored = _stored(file, orjson.loads(first[1]))
    except ValueError:
        return raw, None
    strings = 2 * len(stored)
    if b"\\" in first[1] or first[1].count(b'"') != 2 * strings:
        _reject_duplicates(file, first[1])
    return b"{" + raw[first.end() :], stored


def _parse(file: File, text: bytes, raw: bytes, data_start: int) -> _Parsed:
    """What ``text`` says: the header ``raw``, or what is left of it without its metadata."""
    try:
        entries = orjson.loads(text)
    except ValueError as error:
        raise InvalidFile(f"{file.name}: the header is not JSON: {_json_problem(raw) or error}") from None
    if type(entries) is not dict:
        raise InvalidFile(f"{file.name}: the header is a JSON {type(entries).__name__}, an object was expected")

    stored = {}
    if "__metadata__" in entries:
        if text is not raw:  # a second one, written with escapes
            _reject_duplicates(file, raw)
        stored = _stored(file, entries.pop("__metadata__"))
    # A name that stands twice has its key in the text and not in the dict. Without backslashes every quote delimits
    # a string, and an entry has five (name, three keys, dtype): counting quotes tells, and where they do not add up we look.
    strings = 5 * len(entries) + (1 + 2 * len(stored) if _STORED in text else 0)
    if b"\\" in text or text.count(b'"') != 2 * strings:
        _reject_duplicates(file, text)

    try:
        columns, position = _columns(file.path, data_start, entries)
    except (KeyError, TypeError, ValueError):
        _explain(file, entries)
        raise
    if b"true" in text or b"false" in text:  # numbers to Python; here they may stand in a text only
        _explain(file, entries)
    if position < 0:
        _explain(file, entries)
        columns, position = _sorted(file, columns, data_start)
    return _Parsed(text, columns, stored, position, data_start)


def _json_problem(raw: bytes) -> str:
    """What is wrong, at its place in the header."""
    try:
        orjson.loads(raw)
    except ValueError as error:
        return str(error)
    return ""


def _columns(path: str, data_start: int, entries: dict[str, Any]) -> tuple[Columns, int]:
    """The tensors, and where the last one ends (-1 where they do not stand in the order of their bytes, one behind the other).
    KeyError, TypeError or ValueError where an entry is no entry; whether its shape fits its bytes is measured by the core.
    Column by column, because then each step is one call into C."""
    if not entries:
        return Columns(path, (), (), (), (), ()), 0
    infos = entries.values()
    kinds = tuple(map(_DTYPE, infos))
    shapes = list(map(_SHAPE, infos))
    starts, ends = zip(*map(_OFFSETS, infos), strict=True)
    # A sum is an int only where every number is one (or a bool, which the caller looks for).
    if not type(sum(starts)) is type(sum(ends)) is int or {*map(type, shapes)} != _LIST or not {*kinds} <= BITS.keys():
        raise TypeError
    if min(starts) < 0:
        raise ValueError
    offsets = tuple(map(add, starts, repeat(data_start)))
    columns = Columns(path, tuple(entries), kinds, tuple(map(tuple, shapes)), offsets, tuple(map(sub, ends, starts)))
    return columns, (ends[-1] if starts == (0, *ends[:-1]) else -1)


def _stored(file: File, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise InvalidFile(f"{file.name}: __metadata__ is a JSON {type(value).__name__}, an object was expected")
    for key, text in value.items():
        if type(text) is not str:
            raise InvalidFile(f"{file.name}: __metadata__ {key!r} is a JSON {type(text).__name__}, text was expected")
    return value


def _reject_duplicates(file: File, raw: bytes) -> None:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InvalidFile(f"{file.name}: the name {twice[:200]!r} stands twice in the header")
        return found

    try:
        json.loads(raw, object_pairs_hook=pairs)
    except RecursionError:
        raise InvalidFile(f"{file.name}: the header nests too deep to be a table of tensors") from None
    except ValueError as error:
        raise InvalidFile(f"{file.name}: the header is not JSON: {error}") from None


def _overflows(shape: list[int]) -> bool:
    count = 1
    for side in shape:
        count *= side or 1
    return count > _MAX_COUNT


def _explain_text(file: File, raw: bytes) -> None:
    """The same, from the text: kept in place of its entries, which take ten times the room."""
    entries = orjson.loads(raw)
    entries.pop("__metadata__", None)
    _explain(file, entries)


def _explain(file: File, entries: dict[str, Any]) -> None:
    """Raise what is wrong with the first wrong entry; nothing where none is."""
    for name, info in entries.items():
        _check_entry(file, name, info)


def _check_entry(file: File, name: str, info: Any) -> None:
    """Raise what is wrong with an entry, in words; nothing where it is right."""
    where = f"{file.name}: tensor {name[:200]!r}"
    match info:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise InvalidFile(f"{where} has no dtype, shape and two data_offsets of the right types")
    if dtype not in BITS:
        raise UnsupportedFile(f"{where} has the dtype {dtype[:50]!r}, which the format did not have when this was written")
    if any(type(side) is not int or side < 0 for side in (*shape, start, end)):
        raise InvalidFile(
            f"{where}: shape {str(shape)[:100]}, data_offsets [{start}, {end}]: whole numbers from 0 up were expected"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidFile(f"{where} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are read")
    if _overflows(shape):
        raise InvalidFile(f"{where}: the dimensions {str(shape)[:100]} overflow 64 bits")
    if end < start:
        raise InvalidFile(f"{where}: its bytes end at {end}, before they start at {start}")
    elements = prod(shape)
    bits = elements * BITS[dtype]
    if bits % 8:
        raise InvalidFile(f"{where}: {elements} elements of {dtype} do not fill whole bytes")
    if bits // 8 != end - start:
        raise InvalidFile(
            f"{where}: {dtype} {str(shape)[:100]} takes {bits // 8} bytes, data_offsets [{start}, {end}] hold {end - start}"
        )


def _sorted(file: File, columns: Columns, data_start: int) -> tuple[Columns, int]:
    """``columns`` in the order of their bytes, and where the last one ends."""
    rows = sorted(zip(*columns[1:6], strict=True), key=itemgetter(3, 4))
    position = data_start
    before = ""
    for name, _, _, offset, length in rows:
        if offset != position:
            what = "overlaps" if offset < position else "leaves a hole after"
            place = f"tensor {before[:200]!r}" if before else "the header"
            raise InvalidFile(
                f"{file.name}: tensor {name[:200]!r} {what} {place}: it starts at "
                f"{offset - data_start} of the data, {position - data_start} was expected"
            )
        position = offset + length
        before = name
    names, kinds, shapes, offsets, nbytes = zip(*rows, strict=True)
    return columns._replace(names=names, dtypes=kinds, shapes=shapes, offsets=offsets, nbytes=nbytes), position - data_start


def _end_problem(file: File, data_start: int, position: int) -> InvalidFile | IncompleteFile:
    end = data_start + position
    if end > file.size:
        return IncompleteFile(
            f"{file.name}: the tensors end at byte {end}, the file at {file.size}: {end - file.size} bytes are missing"
        )
    return InvalidFile(
        f"{file.name}: the tensors end at byte {end}, the file at {file.size}: {file.size - end} bytes belong to no tensor"
    )

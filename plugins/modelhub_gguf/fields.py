"""Typed key-values of a GGUF header: the record, how to make one, and its bytes. Parsing a header is `modelhub_gguf.header`'s.

GGUF specification (ggml ``docs/gguf.md``, "File Structure"): a value is preceded by its type id; an array is its item type (u32),
its length (u64) and its items; a string is its length (u64) and its bytes, UTF-8, not terminated. All little-endian here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from modelhub import Extent

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
"""Ids of the value types (``enum gguf_type``)."""

TYPE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
"""What the types are called, by id."""
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
"""The `struct` code of each type of a fixed size."""
SIZES = {kind: struct.calcsize("<" + code) for kind, code in CODES.items()}
"""Bytes of each type of a fixed size."""

_PIECE = 1 << 14
"""Items that are encoded at a time."""


class Field(NamedTuple):
    """One value of a header.

    ``type`` and, for arrays, ``item`` are type ids. ``value`` is a Python value: int, float, bool, str (bytes where a string is
    not UTF-8), a list of them for an array; or an `Extent` over the little-endian bytes of the whole value as they stand in
    another GGUF file (of an array: item type, length and items), which are then copied as they are."""

    type: int
    value: Any
    item: int = -1


def u8(value: int) -> Field:
    return Field(U8, int(value))


def u32(value: int) -> Field:
    return Field(U32, int(value))


def i32(value: int) -> Field:
    return Field(I32, int(value))


def u64(value: int) -> Field:
    return Field(U64, int(value))


def f32(value: float) -> Field:
    return Field(F32, float(value))


def boolean(value: bool) -> Field:
    return Field(BOOL, bool(value))


def string(value: str | bytes) -> Field:
    return Field(STRING, value)


def array(item: int, values: Iterable[Any]) -> Field:
    """An array of ``values``, all of the type ``item`` (no arrays in arrays: nothing reads them)."""
    if item not in CODES and item != STRING:
        raise ValueError(f"an array of type {item} is not one of numbers, booleans or strings")
    return Field(ARRAY, values if isinstance(values, list) else list(values), item)


def describe(field: Field) -> str:
    """The type in words: "u32", "array of string"."""
    return f"array of {TYPE_NAMES[field.item]}" if field.type == ARRAY else TYPE_NAMES[field.type]


def encode(field: Field) -> Iterator[bytes | Extent]:
    """The bytes of a field (its type id, then its value) in pieces; an `Extent` stands where bytes of another file go.
    ValueError says what does not fit its type."""
    if isinstance(field.value, Extent):
        yield struct.pack("<I", field.type)
        yield field.value
    elif field.type == ARRAY:
        yield struct.pack("<IIQ", ARRAY, field.item, len(field.value))
        items = iter(field.value)
        while piece := list(islice(items, _PIECE)):
            yield _pack(field.item, piece)
    else:
        yield struct.pack("<I", field.type) + _pack(field.type, [field.value])


def _pack(kind: int, values: Sequence[Any]) -> bytes:
    if kind == STRING:
        return b"".join(map(encode_string, values))
    try:
        return struct.pack(f"<{len(values)}{CODES[kind]}", *values)
    except KeyError:
        raise ValueError(f"{kind} is not the id of a value type") from None
    except (struct.error, OverflowError, TypeError) as error:
        raise ValueError(f"{_first_odd(kind, values)!r:.60} is not a {TYPE_NAMES[kind]}: {error}") from None


def _first_odd(kind: int, values: Sequence[Any]) -> Any:
    for value in values:
        try:
            struct.pack("<" + CODES[kind], value)
        except (struct.error, OverflowError, TypeError):
            return value
    return values


def encode_string(text: str | bytes) -> bytes:
    """A string's length and bytes; undecodable bytes of a name stand in it surrogate-escaped. ValueError for what is no text."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape")
    elif not isinstance(text, (bytes, bytearray)):
        raise ValueError(f"{text!r:.60} is not a text")
    return struct.pack("<Q", len(text)) + text

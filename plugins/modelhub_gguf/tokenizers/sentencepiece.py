"""SentencePiece models (``tokenizer.model``): pieces, scores, types, and how text is normalized before it is cut.

A small reader of the protocol buffer that the file is (google/sentencepiece ``src/sentencepiece_model.proto``): every length is
checked, fields that are not needed are passed over. It does not tokenize.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from modelhub import InvalidFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""``SentencePiece.Type``; GGUF's token types (``enum llama_token_type``) have the same numbers."""
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
"""``TrainerSpec.ModelType``."""
MAX_PIECES = 1 << 22

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class SentencePiece:
    """A model. ``pieces``, ``scores`` and ``types`` are equally long; an id is a place in them. Defaults are the format's own."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    whitespace_is_suffix: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


def parse(data: bytes, name: str) -> SentencePiece:
    """The model that ``data`` holds; ``name`` is for errors. `InvalidFile` where it is no such model, or cut short."""
    model = SentencePiece()
    try:
        for number, wire, value in _fields(data):
            if number == 1 and wire == _BYTES:
                _piece(model, data, *value)
            elif number == 2 and wire == _BYTES:
                _trainer(model, data, *value)
            elif number == 3 and wire == _BYTES:
                _normalizer(model, data, *value)
    except _Malformed as error:
        raise InvalidFile(f"{name} is not a SentencePiece model: {error}") from None
    if not model.pieces:
        raise InvalidFile(f"{name} is not a SentencePiece model: it has no pieces")
    return model


class _Malformed(Exception):
    pass


Value = tuple[int, int]
"""Where the bytes of a length-delimited field stand (start, end); of a number: (the number, 0)."""


def _fields(data: bytes, start: int = 0, end: int = -1) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of each field of the message between ``start`` and ``end``."""
    end = len(data) if end < 0 else end
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(data, at, end)
            yield key >> 3, wire, (number, 0)
        elif wire == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise _Malformed(f"a field of {length} bytes at offset {at} reaches past its message, which ends at {end}")
            yield key >> 3, wire, (at, at + length)
            at += length
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
            if length > end - at:
                raise _Malformed(f"it ends inside a number at offset {at}")
            yield key >> 3, wire, (int.from_bytes(data[at : at + length], "little"), 0)
            at += length
        else:
            raise _Malformed(f"wire type {wire} at offset {at}")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise _Malformed(f"a number at offset {at} does not end")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _piece(model: SentencePiece, data: bytes, start: int, end: int) -> None:
    piece, score, kind = b"", 0.0, NORMAL
    # As they are written nearly always: the text, the score, and a type where it is not the normal one.
    length = data[start + 1] if end - start > 1 and data[start] == 0x0A else 255
    after = start + 2 + length
    if length < 128 and after + 5 == end and data[after] == 0x15:
        piece = data[start + 2 : after]
        score = struct.unpack_from("<f", data, after + 1)[0]
    else:
        for number, wire, value in _fields(data, start, end):
            if number == 1 and wire == _BYTES:
                piece = data[slice(*value)]
            elif number == 2 and wire == _FIXED32:
                score = struct.unpack("<f", value[0].to_bytes(4, "little"))[0]
            elif number == 3 and wire == _VARINT:
                kind = value[0]
    if kind not in range(NORMAL, BYTE + 1):
        raise _Malformed(f"piece {len(model.pieces)} is of type {kind}, there are {NORMAL} to {BYTE}")
    if len(model.pieces) >= MAX_PIECES:
        raise _Malformed(f"it has more than {MAX_PIECES} pieces")
    try:
        model.pieces.append(piece.decode())
    except UnicodeDecodeError:
        raise _Malformed(f"piece {len(model.pieces)} is not UTF-8: {piece!r:.60}") from None
    model.scores.append(score)
    model.types.append(kind)


def _trainer(model: SentencePiece, data: bytes, start: int, end: int) -> None:
    for number, wire, (value, _) in _fields(data, start, end):
        if wire == _VARINT:
            if number == 3:
                model.model_type = value
            elif number == 24:
                model.whitespace_is_suffix = bool(value)
            elif number == 35:
                model.byte_fallback = bool(value)


def _normalizer(model: SentencePiece, data: bytes, start: int, end: int) -> None:
    for number, wire, value in _fields(data, start, end):
        if number == 2 and wire == _BYTES:
            model.charsmap = data[slice(*value)]
        elif number == 3 and wire == _VARINT:
            model.add_dummy_prefix = bool(value[0])
        elif number == 4 and wire == _VARINT:
            model.remove_extra_whitespaces = bool(value[0])

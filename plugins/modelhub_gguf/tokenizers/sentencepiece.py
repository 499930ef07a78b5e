"""SentencePiece models (``tokenizer.model``): pieces, scores, types, and how text is normalized before it is cut.

The file is a protobuf message (google/sentencepiece ``src/sentencepiece_model.proto``); fields that are not needed are passed
over. It does not tokenize.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from modelhub import FileProblem, InvalidFile
from modelhub.protobuf import BYTES, FIXED32, VARINT, Wire

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""``SentencePiece.Type``; GGUF's token types (``enum llama_token_type``) have the same numbers."""
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
"""``TrainerSpec.ModelType``."""
MAX_PIECES = 1 << 22


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
    wire = Wire(data, name)
    try:
        for number, kind, start, end in wire.fields():
            if number == 1 and kind == BYTES:
                _piece(model, wire, data, start, end)
            elif number == 2 and kind == BYTES:
                _trainer(model, wire, start, end)
            elif number == 3 and kind == BYTES:
                _normalizer(model, wire, start, end)
    except FileProblem as problem:
        raise InvalidFile(f"{name} is not a SentencePiece model: {problem}") from None
    if not model.pieces:
        raise InvalidFile(f"{name} is not a SentencePiece model: it has no pieces")
    return model


def _piece(model: SentencePiece, wire: Wire, data: bytes, start: int, end: int) -> None:
    piece, score, kind = b"", 0.0, NORMAL
    # As they are written nearly always: the text, the score, and a type where it is not the normal one.
    length = data[start + 1] if end - start > 1 and data[start] == 0x0A else 255
    after = start + 2 + length
    if length < 128 and after + 5 == end and data[after] == 0x15:
        piece = data[start + 2 : after]
        score = struct.unpack_from("<f", data, after + 1)[0]
    else:
        for number, form, at, after in wire.fields(start, end):
            if number == 1 and form == BYTES:
                piece = data[at:after]
            elif number == 2 and form == FIXED32:
                score = wire.float32(at)
            elif number == 3 and form == VARINT:
                kind = at
    if kind not in range(NORMAL, BYTE + 1):
        raise InvalidFile(f"piece {len(model.pieces)} is of type {kind}, there are {NORMAL} to {BYTE}")
    if len(model.pieces) >= MAX_PIECES:
        raise InvalidFile(f"it has more than {MAX_PIECES} pieces")
    try:
        model.pieces.append(piece.decode())
    except UnicodeDecodeError:
        raise InvalidFile(f"piece {len(model.pieces)} is not UTF-8: {piece!r:.60}") from None
    model.scores.append(score)
    model.types.append(kind)


def _trainer(model: SentencePiece, wire: Wire, start: int, end: int) -> None:
    for number, kind, value, _ in wire.fields(start, end):
        if kind == VARINT:
            if number == 3:
                model.model_type = value
            elif number == 24:
                model.whitespace_is_suffix = bool(value)
            elif number == 35:
                model.byte_fallback = bool(value)


def _normalizer(model: SentencePiece, wire: Wire, start: int, end: int) -> None:
    for number, kind, value, after in wire.fields(start, end):
        if number == 2 and kind == BYTES:
            model.charsmap = wire.data(value, after)
        elif number == 3 and kind == VARINT:
            model.add_dummy_prefix = bool(value)
        elif number == 4 and kind == VARINT:
            model.remove_extra_whitespaces = bool(value)

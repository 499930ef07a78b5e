"""SentencePiece models: a protobuf message with pieces, and what the trainer and the normalizer were told.

(google/sentencepiece ``src/sentencepiece_model.proto``; what makes a model unusable is in ``src/model_interface.cc``.)
"""

from __future__ import annotations

import math
import struct

from modelhub import File, FileProblem, InvalidFile
from modelhub.protobuf import BYTES, FIXED32, VARINT, Wire

from modelhub_tokenizers.contents import MAX_BYTES, MAX_TOKENS, Tokenizer, check_bytes, first_of, some

MAGICS = (b"\n\x0e\n\x05<unk>\x15", b"\n\x0e\n\x05<pad>\x15", b"\n\x0c\n\x03<s>\x15")
"""How models begin whose first piece is one of the usual: whatever their files are called."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ALGORITHMS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
_ENOUGH = 4


def is_model(file: File) -> bool:
    """Whether the first fields are pieces, as no other message has them. (A trained model has four at least.)"""
    if not 16 < file.size <= MAX_BYTES or file.head[:1] != b"\n":
        return False
    head, at = file.head, 0
    try:
        for _ in range(_ENOUGH):  # one by one: the file may end in the next
            nbytes, start = _length(head, at + 1)
            inner = list(Wire(head[start : start + nbytes]).fields())
            if head[at : at + 1] != b"\n" or [(field[0], field[1]) for field in inner[:2]] != [(1, BYTES), (2, FIXED32)]:
                return False
            at = start + nbytes
    except FileProblem:
        return False
    return at <= len(head)


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A piece's length, of one byte or two, and where it begins."""
    low, high = (*data[at : at + 2], 0, 0)[:2]
    return (low, at + 1) if low < 0x80 else (low & 0x7F | high << 7, at + 2)


def parse(file: File, thorough: bool) -> Tokenizer:
    """The model; with ``thorough`` what SentencePiece asks of its pieces is checked as well."""
    if file.size > MAX_BYTES:
        raise InvalidFile(f"{file.name} is {file.size:,} bytes long; no SentencePiece model needs more than {MAX_BYTES:,}")
    data = file.read(0, file.size)
    wire = Wire(data, file.name)
    pieces: list[str] = []
    kinds: list[int] = []
    endless: list[str] = []
    trained = {3: 1, 24: 0, 35: 0}  # model_type, treat_whitespace_as_suffix, byte_fallback
    rules = ""
    for number, form, start, end in wire.fields():
        if number == 1 and form == BYTES:
            text, score, kind = _piece(wire, data, start, end, len(pieces))
            pieces.append(text)
            kinds.append(kind)
            if not math.isfinite(score):
                endless.append(text)
            if len(pieces) > MAX_TOKENS:
                raise InvalidFile(f"{file.name}: more than {MAX_TOKENS:,} pieces")
        elif number == 2 and form == BYTES:
            trained |= {field: value for field, kind, value, _ in wire.fields(start, end) if kind == VARINT}
        elif number == 3 and form == BYTES:
            for field, kind, at, to in wire.fields(start, end):
                if (field, kind) == (1, BYTES):
                    rules = wire.text(at, to, 200)
    if not pieces:
        raise InvalidFile(f"{file.name} has no pieces: it is not a SentencePiece model")
    found = Tokenizer(ALGORITHMS.get(trained[3], ""), "sentencepiece", tokens={text: at for at, text in enumerate(pieces)})
    found.shown = {
        "vocab_size": len(pieces),
        "special_tokens": some([text for text, kind in zip(pieces, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]),
        "user_defined_tokens": kinds.count(USER_DEFINED),
        "normalizer": rules,
        "byte_fallback": bool(trained[35]),
    }
    if thorough:
        _check(found, pieces, kinds, bool(trained[35]))
        if endless:
            found.error(f"the score of {first_of('the piece', endless)} is no finite number")
        if trained[3] not in ALGORITHMS:
            found.error(f"its model type is {trained[3]}, there are 1 to {len(ALGORITHMS)}")
    return found


def _piece(wire: Wire, data: bytes, start: int, end: int, place: int) -> tuple[str, float, int]:
    raw, score, kind = b"", 0.0, NORMAL
    # As they are written nearly always: the text, the score, and no type.
    length = data[start + 1] if end - start > 1 and data[start] == 0x0A else 255
    after = start + 2 + length
    if length < 128 and after + 5 == end and data[after] == 0x15:
        raw, score = data[start + 2 : after], struct.unpack_from("<f", data, after + 1)[0]
    else:
        for number, form, at, to in wire.fields(start, end):
            if number == 1 and form == BYTES:
                raw = wire.data(at, to)
            elif number == 2 and form == FIXED32:
                score = wire.float32(at)
            elif number == 3 and form == VARINT:
                kind = at
    if not NORMAL <= kind <= BYTE:
        raise InvalidFile(f"{wire.name}: piece {place} is of type {kind}, there are {NORMAL} to {BYTE}")
    try:
        return raw.decode(), score, kind
    except UnicodeDecodeError:
        raise InvalidFile(f"{wire.name}: piece {place} is not UTF-8: {raw!r:.60}") from None


def _check(found: Tokenizer, pieces: list[str], kinds: list[int], byte_fallback: bool) -> None:
    seen: set[str] = set()
    twice = [text for text in pieces if text in seen or seen.add(text)]  # type: ignore[func-returns-value]
    if twice:
        found.error(f"{first_of('the piece', twice)} is there more than once")
    if "" in seen:
        found.error(f"piece {pieces.index('')} is empty")
    if kinds.count(UNKNOWN) != 1:
        found.error(f"{kinds.count(UNKNOWN)} pieces stand for what is unknown, one was expected")
    if byte_fallback:
        check_bytes(found, {text for text, kind in zip(pieces, kinds, strict=True) if kind == BYTE}, "error")
    elif BYTE in kinds:
        found.error(f"the piece {pieces[kinds.index(BYTE)]!r} stands for a byte, and the model does not fall back to bytes")

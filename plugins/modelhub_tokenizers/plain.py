"""Vocabularies that are lists: BERT's ``vocab.txt`` (a token a line), and GPT-2's ``vocab.json`` with ``merges.txt``.

(transformers ``models/bert/tokenization_bert.py``; openai/gpt-2 ``encoder.py``, whose files are ``encoder.json`` and
``vocab.bpe``.)
"""

from __future__ import annotations

import re

from modelhub import File, InvalidFile, read_json

from modelhub_tokenizers.contents import (
    MAX_BYTES,
    MAX_TOKENS,
    Tokenizer,
    check_ids,
    check_merges,
    pairs_of,
    whole_ids,
)

BERT = ("[UNK]", "[CLS]", "[SEP]")
_VERSION = re.compile(rb"#version: ?[0-9.]+")
_MERGE = re.compile(rb"\S+ \S+")
_IDS = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\d+\s*[,}]')


def is_wordpiece(file: File) -> bool:
    """A list with BERT's own tokens in it: any other list of words has none of them."""
    lines = set(file.head.splitlines())
    return all(token.encode() in lines for token in BERT)


def is_merges(file: File) -> bool:
    """Lines of two tokens each, below a version or not."""
    lines = file.head.splitlines()[: -1 if file.size > len(file.head) else None]
    if lines and _VERSION.fullmatch(lines[0]):
        lines = lines[1:]
    return bool(lines) and all(_MERGE.fullmatch(line) for line in lines if line)


def is_ids(file: File) -> bool:
    """A JSON object that begins with a text and a number."""
    return _IDS.match(file.head) is not None


def wordpiece(file: File, thorough: bool) -> Tokenizer:
    """BERT's list: an id is the number of a line."""
    tokens = [line.rstrip("\r") for line in _text(file).split("\n")]
    if tokens and not tokens[-1]:
        tokens.pop()
    if len(tokens) > MAX_TOKENS:
        raise InvalidFile(f"{file.name}: {len(tokens):,} lines; at most {MAX_TOKENS:,} are read")
    found = Tokenizer("WordPiece", "vocab.txt")
    vocabulary: dict[str, int] = {}
    twice = []
    for number, token in enumerate(tokens):
        if token in vocabulary:
            twice.append((number, token))
        vocabulary.setdefault(token, number)
    found.tokens = vocabulary
    special = [token for token in ("[PAD]", *BERT, "[MASK]") if token in vocabulary]
    found.shown = {"vocab_size": len(tokens), "special_tokens": special, "pre_tokenizer": "Bert"}
    if thorough and twice:
        number, token = twice[0]
        more = f" (and {len(twice) - 1:,} more)" if len(twice) > 1 else ""
        found.warn(f"lines {vocabulary[token] + 1} and {number + 1} are the same token, {token[:80]!r}{more}")
    return found


def pairs(vocabulary: File, merges: File, thorough: bool) -> Tokenizer:
    """GPT-2's two files."""
    ids = whole_ids(read_json(vocabulary, limit=MAX_BYTES), vocabulary.name)
    lines = [line for line in _text(merges).split("\n") if line.strip()]
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    if len(lines) > MAX_TOKENS:
        raise InvalidFile(f"{merges.name}: {len(lines):,} merges; at most {MAX_TOKENS:,} are read")
    found = Tokenizer("BPE", "vocab.json + merges.txt", tokens=ids)
    found.shown = {"vocab_size": len(ids), "merges": len(lines)}
    if "\u0120" in "".join(list(ids)[:2000]):  # how the byte of a space is written
        found.shown["pre_tokenizer"] = "ByteLevel"
    if thorough:
        check_ids(found, ids)
        check_merges(found, pairs_of([line.rstrip("\r") for line in lines], merges.name), ids)
    return found


def lone(file: File, thorough: bool) -> Tokenizer:
    """A vocabulary without merges: each character, or each word, is a token."""
    ids = whole_ids(read_json(file, limit=MAX_BYTES), file.name)
    found = Tokenizer("", "vocab.json", {"vocab_size": len(ids)}, ids)
    if thorough:
        check_ids(found, ids)
    return found


def _text(file: File) -> str:
    if file.size > MAX_BYTES:
        raise InvalidFile(f"{file.name} is {file.size:,} bytes long; no vocabulary needs more than {MAX_BYTES:,}")
    data = file.read(0, file.size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{file.name} is not UTF-8 at offset {error.start}") from None

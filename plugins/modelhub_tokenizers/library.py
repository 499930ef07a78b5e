"""`tokenizer.json`, as the tokenizers library writes it: one object with the model (vocabulary, merges), added tokens, and the
steps before and behind it.

(huggingface/tokenizers ``tokenizers/src/tokenizer/serialization.rs``, and ``models/*/serialization.rs`` for the models.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from modelhub import File, FileProblem, InvalidFile, read_json

from modelhub_tokenizers.contents import (
    MAX_BYTES,
    MAX_TOKENS,
    Tokenizer,
    check_bytes,
    check_ids,
    check_merges,
    pairs_of,
    some,
    whole_ids,
)

NAME = "tokenizer.json"
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_START = re.compile(rb'\s*\{\s*"version"\s*:\s*"[0-9.]+"\s*,\s*"truncation"\s*:')
MAX_STEPS = 16
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
"""Where a sequence of steps has them."""


def is_library(file: File) -> bool:
    """The first two keys are always the same; a file that somebody has sorted is read whole."""
    if _START.match(file.head):
        return True
    if not file.head.lstrip().startswith(b"{") or file.size > MAX_BYTES:
        return False
    try:
        model = read_json(file, limit=MAX_BYTES).get("model")
    except FileProblem:
        return False
    return isinstance(model, dict) and "vocab" in model


def parse(file: File, thorough: bool) -> Tokenizer:
    """The tokenizer; with ``thorough`` merges and ids are checked as well."""
    document = read_json(file, limit=MAX_BYTES)
    model = document.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise InvalidFile(f"{file.name} has no model with a vocabulary")
    kind = _kind(model)
    if kind not in MODELS:
        raise InvalidFile(f"{file.name}: a model of the type {str(model.get('type'))[:60]!r}; there are {', '.join(MODELS)}")
    found = Tokenizer(kind, "tokenizers")
    scored = isinstance(model["vocab"], list)
    if scored != (kind == "Unigram"):
        raise InvalidFile(f"{file.name}: the vocabulary of a {kind} model is a JSON {'list' if scored else 'object'}")
    vocabulary = _scored(found, model, file.name, thorough) if scored else whole_ids(model["vocab"], file.name)
    added = _added(document.get("added_tokens"), file.name)
    found.tokens = {**vocabulary, **{token: number for token, (number, _) in added.items()}}
    special = [token for token, (_, is_special) in added.items() if is_special]
    found.shown = {
        "vocab_size": len(found.tokens),
        "merges": len(model["merges"]) if isinstance(model.get("merges"), list) else 0,
        "added_tokens": len(added),
        "special_tokens": some(special),
        **{step: _steps(document.get(step)) for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder")},
        "byte_fallback": model.get("byte_fallback") is True,
    }
    if thorough:
        _check(found, model, vocabulary, added, file.name)
    return found


def _kind(model: Mapping[str, Any]) -> str:
    """Files of the library's first versions do not say their model's type."""
    if isinstance(model.get("type"), str):
        return str(model["type"])
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _scored(found: Tokenizer, model: Mapping[str, Any], name: str, thorough: bool) -> dict[str, int]:
    """The pieces of a Unigram model: [text, score] each, an id is a place in the list."""
    pieces = model["vocab"]
    if len(pieces) > MAX_TOKENS:
        raise InvalidFile(f"{name}: {len(pieces):,} tokens; at most {MAX_TOKENS:,} are read")
    vocabulary: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        match piece:
            case [str() as token, int() | float() as score]:
                if thorough and token in vocabulary:
                    found.warn(f"the pieces {vocabulary[token]} and {number} are both {token[:80]!r}")
                elif thorough and not math.isfinite(score):
                    found.error(f"the score of piece {number}, {token[:80]!r}, is {score}")
                vocabulary.setdefault(token, number)
            case _:
                raise InvalidFile(f"{name}: piece {number} is {str(piece)[:80]!r}, a text and a score were expected")
    return vocabulary


def _added(entries: Any, name: str) -> dict[str, tuple[int, bool]]:
    """Added tokens: text -> (id, whether it is special)."""
    found: dict[str, tuple[int, bool]] = {}
    if not isinstance(entries, list | None) or len(entries or ()) > MAX_TOKENS:
        raise InvalidFile(f"{name}: added_tokens is not a list of tokens")
    for entry in entries or ():
        match entry:
            case {"id": int() as number, "content": str() as token} if 0 <= number < MAX_TOKENS * 16:
                found[token] = number, entry.get("special") is True
            case _:
                raise InvalidFile(f"{name}: {str(entry)[:120]!r} is no added token, an id and a content were expected")
    return found


def _steps(step: Any) -> str:
    """The kinds of a step in a word: "NFC", "Split + ByteLevel"."""
    kinds: list[str] = []
    waiting = [step]
    while waiting and len(kinds) < MAX_STEPS:
        one = waiting.pop()
        if not isinstance(one, dict) or not isinstance(one.get("type"), str):
            continue
        inner = next((one[key] for key in _LISTS if isinstance(one.get(key), list)), None)
        if one["type"] == "Sequence" and inner is not None:
            waiting += inner[: 2 * MAX_STEPS][::-1]
        else:
            kinds.append(one["type"][:40])
    return " + ".join(kinds)


def _check(
    found: Tokenizer, model: Mapping[str, Any], vocabulary: Mapping[str, int], added: Mapping[str, tuple[int, bool]], name: str
) -> None:
    owners = {number: token for token, number in vocabulary.items()}
    if found.algorithm != "Unigram":
        check_ids(found, vocabulary)
    for token, (number, _) in added.items():
        other = owners.setdefault(number, token)
        if other != token:
            found.error(f"the added token {token[:80]!r} has the id of {other[:80]!r}, {number}")
        elif vocabulary.get(token, number) != number:
            found.error(f"the added token {token[:80]!r} has the id {number}, and {vocabulary[token]} in the vocabulary")
    if found.algorithm == "BPE":
        prefix = model.get("continuing_subword_prefix")
        check_merges(found, pairs_of(model.get("merges", []), name), vocabulary, prefix if isinstance(prefix, str) else "")
    if found.shown["byte_fallback"]:
        check_bytes(found, vocabulary, "warning")  # the library takes the token for what is unknown
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown not in found.tokens:
        found.error(f"the token for what is unknown, {unknown[:80]!r}, is not in the vocabulary")
    place = model.get("unk_id")
    if found.algorithm == "Unigram" and place is not None and not (type(place) is int and 0 <= place < len(model["vocab"])):
        found.error(f"unk_id is {str(place)[:40]}, there are {len(model['vocab']):,} pieces")
    gaps = 1 + max(owners) - len(owners) if owners else 0
    if gaps > 0:
        found.warn(f"{gaps:,} ids below the last have no token")

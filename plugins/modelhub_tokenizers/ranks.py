"""Byte-level vocabularies by rank: tiktoken's lists (a token's bytes in base64, and its rank), and Mistral's tekken, JSON around
the same.

(openai/tiktoken ``tiktoken/load.py``; mistralai/mistral-common ``tokens/tokenizers/tekken.py``.)
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from typing import Any

from modelhub import File, InvalidFile, read_json

from modelhub_tokenizers.contents import MAX_BYTES, MAX_TOKENS, Tokenizer, some

_LINES = re.compile(rb"(?:[A-Za-z0-9+/]+={0,2} \d{1,8}\r?\n){3}")
_TEKKEN = re.compile(rb'\s*\{\s*"(config|vocab|special_tokens|image|audio)"\s*:')


def is_tiktoken(file: File) -> bool:
    return _LINES.match(file.head) is not None


def is_tekken(file: File) -> bool:
    """The settings come first, in all that were published; what they are called is tekken's own."""
    return _TEKKEN.match(file.head) is not None and b'"default_num_special_tokens"' in file.head + file.tail


def tiktoken(file: File, thorough: bool) -> Tokenizer:
    """The list. Special tokens, and how text is cut, stand in the model's code and not in it."""
    if file.size > MAX_BYTES:
        raise InvalidFile(f"{file.name} is {file.size:,} bytes long; no list of ranks needs more than {MAX_BYTES:,}")
    ranks: dict[bytes, int] = {}
    found = Tokenizer("BPE", "tiktoken")
    lines = file.read(0, file.size).splitlines()
    if len(lines) > MAX_TOKENS:
        raise InvalidFile(f"{file.name}: {len(lines):,} lines; at most {MAX_TOKENS:,} are read")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text, _, rank = line.partition(b" ")
        if not rank.strip().isdigit() or len(rank) > 10:
            raise InvalidFile(f"{file.name}, line {number}: {line[:60]!r} is not a token and a rank")
        token = _bytes(text, f"{file.name}, line {number}")
        if thorough and token in ranks:
            found.error(f"line {number}: the token {token!r:.80} is there already, with the rank {ranks[token]}")
        ranks[token] = int(rank)
    found.shown = {"vocab_size": len(ranks), "pre_tokenizer": "in the model's code"}
    if thorough:
        _check(found, ranks)
    return found


def tekken(file: File, thorough: bool) -> Tokenizer:
    """The vocabulary that is used: of the tokens in the file the first so many, behind the special ones."""
    document = read_json(file, limit=MAX_BYTES)
    config, vocabulary = document.get("config"), document.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocabulary, list):
        raise InvalidFile(f"{file.name} has no config and vocab, as tekken has them")
    size, special = (config.get(key) for key in ("default_vocab_size", "default_num_special_tokens"))
    if type(size) is not int or type(special) is not int or not 0 <= special <= size <= MAX_TOKENS:
        raise InvalidFile(f"{file.name}: a vocabulary of {str(size)[:40]}, {str(special)[:40]} of them special, makes no sense")
    named = document.get("special_tokens")
    entries = named if isinstance(named, list) else []
    found = Tokenizer("BPE", "tekken")
    found.shown = {
        "vocab_size": size,
        "special_tokens": some([str(entry.get("token_str")) for entry in entries if isinstance(entry, dict)]) or special,
        "tokenizer_version": str(config.get("version", ""))[:40],
        "pre_tokenizer": "Split (a regular expression)" if isinstance(config.get("pattern"), str) else "",
        "modalities": [name for name in ("image", "audio") if isinstance(document.get(name), dict)],
    }
    if thorough:
        _check_tekken(found, config, vocabulary, entries, size - special, special, file.name)
    return found


def _check_tekken(
    found: Tokenizer, config: dict[str, Any], vocabulary: list[Any], entries: list[Any], used: int, special: int, name: str
) -> None:
    if len(vocabulary) > MAX_TOKENS:
        raise InvalidFile(f"{name}: {len(vocabulary):,} tokens; at most {MAX_TOKENS:,} are read")
    if len(vocabulary) < used:
        found.error(f"it lists {len(vocabulary):,} tokens, its settings ask for {used:,}")
    promised = config.get("num_vocab_tokens")
    if type(promised) is int and promised != len(vocabulary):
        found.error(f"it lists {len(vocabulary):,} tokens, num_vocab_tokens says {promised:,}")
    ranks: dict[bytes, int] = {}
    for number, entry in enumerate(vocabulary):
        match entry:
            case {"rank": int() as rank, "token_bytes": str() as text}:
                token = _bytes(text.encode("utf-8", "surrogatepass"), f"{name}, token {number}")
                if token in ranks:
                    found.error(f"the tokens {ranks[token]} and {number} have the same bytes, {token!r:.80}")
                ranks.setdefault(token, rank)
                if rank != number:
                    found.error(f"token {number} has the rank {rank}: they stand in the order of their ranks")
                    return
            case _:
                raise InvalidFile(f"{name}: token {number} is {str(entry)[:80]!r}, a rank and token_bytes were expected")
    _check(found, ranks)
    places = [entry.get("rank") for entry in entries if isinstance(entry, dict)]
    if len(set(map(str, places))) < len(places):
        found.error("two special tokens have the same rank")
    if any(type(place) is not int or not 0 <= place < special for place in places):
        found.error(f"a special token's rank is not below their number, {special}")


def _bytes(text: bytes, where: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (Error, ValueError):
        raise InvalidFile(f"{where}: {text[:60]!r} is not base64") from None


def _check(found: Tokenizer, ranks: dict[bytes, int]) -> None:
    numbers = set(ranks.values())
    if len(numbers) < len(ranks):
        found.error(f"{len(ranks) - len(numbers):,} of its {len(ranks):,} tokens have the rank of another")
    lost = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lost:
        found.error(f"{len(lost)} of the 256 bytes are no tokens, the first is 0x{lost[0]:02X}: not every text can be cut")

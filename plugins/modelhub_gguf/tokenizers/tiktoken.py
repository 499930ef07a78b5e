"""tiktoken's ranks (``tokenizer.model`` of Meta's own Llama 3: a line has a token's bytes in base64, and its rank), as a
byte-level BPE with merges. The file holds neither how text is cut nor special tokens; for Llama 3 both are known."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error

from modelhub import InvalidFile, UnsupportedFile

from modelhub_gguf.fields import boolean, u32
from modelhub_gguf.tokenizers.sentencepiece import CONTROL, NORMAL
from modelhub_gguf.tokenizers.vocabulary import MAX_TOKENS, Vocabulary, fill

_LLAMA3 = 128000
"""Ranks of Llama 3; its 256 special tokens follow (meta-llama/llama-models ``llama3/tokenizer.py``, Hugging Face's names)."""
_MAX_BYTES = 1 << 10


def is_ranks(data: bytes) -> bool:
    """Whether a ``tokenizer.model`` is such a list (a SentencePiece model starts with a newline's byte, a field's number)."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data[:2048]) is not None


def vocabulary(data: bytes, name: str, architecture: str, size: int, pre: str) -> Vocabulary:
    """The vocabulary of Llama 3. `UnsupportedFile` for another model's ranks."""
    ranks = _ranks(data, name)
    if len(ranks) != _LLAMA3 or architecture != "llama":
        raise UnsupportedFile(
            f"{name} lists {len(ranks)} tokens as tiktoken does; nothing beside it says how text is cut",
            "save the tokenizer with a tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    letters = byte_letters()
    tokens: list[str | None] = ["".join(map(letters.__getitem__, token)) for token in ranks]
    merges = []
    for token in ranks:
        splits = ((token[:at], token[at:], at) for at in range(1, len(token)))
        pairs = [(ranks[left], ranks[right], at) for left, right, at in splits if left in ranks and right in ranks]
        if len(token) > 1 and not pairs:
            raise InvalidFile(f"{name}: the token {token!r:.60} cannot be merged from two others")
        written = "".join(map(letters.__getitem__, token))
        # Each pair of tokens that is a token may be merged, at the rank of what it comes to.
        merges += [f"{written[:at]} {written[at:]}" for _, _, at in sorted(pairs)]
    tokens += _special_tokens()
    types = [NORMAL] * _LLAMA3 + [CONTROL] * 256
    filled = fill(tokens, types, None, size=size, name=name, keep=True)
    found = Vocabulary("gpt2", pre or "llama-bpe", filled, types, merges=merges)
    for key, text in (("bos", "<|begin_of_text|>"), ("eos", "<|end_of_text|>"), ("eot", "<|eot_id|>"), ("eom", "<|eom_id|>")):
        found.extra[f"tokenizer.ggml.{key}_token_id"] = u32(tokens.index(text, _LLAMA3))
    found.extra["tokenizer.ggml.add_bos_token"] = boolean(True)
    return found


def _ranks(data: bytes, name: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = b64decode(encoded, validate=True)
            place = int(rank)
        except (ValueError, Error):
            raise InvalidFile(f"{name}: line {number + 1}, {line!r:.60}, is not a token in base64 and its rank") from None
        if place != len(ranks) or place >= MAX_TOKENS or not 0 < len(token) <= _MAX_BYTES or token in ranks:
            raise InvalidFile(f"{name}: line {number + 1} has the rank {place}, {len(ranks)} was expected, and each token once")
        ranks[token] = place
    return ranks


def byte_letters() -> dict[int, str]:
    """GPT-2's characters for the bytes (openai/gpt-2 ``encoder.py``): a printable one for itself, the others in order from
    U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + at) for at, byte in enumerate(others)}}


def _special_tokens() -> list[str]:
    named = {
        0: "begin_of_text",
        1: "end_of_text",
        4: "finetune_right_pad_id",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
    }
    named |= {9: "eot_id", 10: "python_tag"}
    reserved = iter(range(256))
    return [f"<|{named[at]}|>" if at in named else f"<|reserved_special_token_{next(reserved)}|>" for at in range(256)]

"""Llama 3's tokenizer, which Meta ships as tiktoken's ranks (``tokenizer.model``: a line has a token's bytes in base64, and its
rank), as the ``tokenizer.json`` that says all of it. How text is cut and the special tokens stand in the model's code
(meta-llama/llama-models ``llama3/tokenizer.py``), and are known here.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Mapping
from typing import Any

from modelhub import InvalidFile, UnsupportedFile

RANKS, SPECIAL = 128000, 256
_MAX_BYTES = 1 << 10
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FIRST = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_SINCE_3_1 = {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def is_ranks(model: bytes) -> bool:
    """Whether a ``tokenizer.model`` is such a list; a SentencePiece model begins with a newline's byte."""
    return _FIRST_LINE.match(model[:2048]) is not None


def documents(model: bytes, *, since_3_1: bool) -> Mapping[str, Any]:
    """``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json`` as JSON data. ``since_3_1``: whether it is a
    Llama 3.1 or later, which named some of the tokens that were reserved. `UnsupportedFile` for the ranks of another model."""
    ranks = _ranks(model)
    if len(ranks) != RANKS:
        raise UnsupportedFile(
            f"tokenizer.model lists {len(ranks)} tokens as tiktoken does, Llama 3 has {RANKS}: how text is cut is not known",
            "the same model in a Hugging Face directory has a tokenizer.json",
        )
    special = _special(since_3_1)
    start, end = special[0], special[1]
    stops = [RANKS + number for number in (1, 8, 9) if number != 8 or since_3_1]
    return {
        "tokenizer.json": _tokenizer(ranks, special),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": end,
            "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"],
        },
        "generation_config.json": {"bos_token_id": RANKS, "eos_token_id": stops},
    }  # fmt: skip


def _ranks(model: bytes) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for number, line in enumerate(model.splitlines()):
        try:
            encoded, rank = line.split()
            token, place = b64decode(encoded, validate=True), int(rank)
        except (ValueError, Error):
            raise InvalidFile(
                f"tokenizer.model: line {number + 1}, {line!r:.60}, is not a token in base64 and its rank"
            ) from None
        if place != number or token in found or not 0 < len(token) <= _MAX_BYTES:
            raise InvalidFile(f"tokenizer.model: line {number + 1} has the rank {place}: each rank and each token comes once")
        found[token] = place
    return found


def _special(since_3_1: bool) -> list[str]:
    named = {**_FIRST, **(_SINCE_3_1 if since_3_1 else {})}
    reserved = iter(range(SPECIAL))
    return [f"<|{named.get(number) or f'reserved_special_token_{next(reserved)}'}|>" for number in range(SPECIAL)]


def _tokenizer(ranks: Mapping[bytes, int], special: list[str]) -> dict[str, Any]:
    letters = _letters()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:  # by rank: whatever two tokens come to it may be merged, the pair of the lowest ranks first
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [[written[left], written[right]] for _, _, left, right in sorted(pairs)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    start = special[0]
    around = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": start, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {start: {"id": start, "ids": [RANKS], "tokens": [start]}},
    }  # fmt: skip
    added = [
        {
            "id": RANKS + number, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }
        for number, text in enumerate(special)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _CUT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": {"type": "Sequence", "processors": [{**byte_level, "add_prefix_space": True}, around]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": {text: ranks[token] for token, text in written.items()}, "merges": merges,
        },
    }  # fmt: skip


def _letters() -> dict[int, str]:
    """GPT-2's characters for the bytes: a printable one for itself, the others in order from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}

"""Vocabularies of pieces, which hold spaces as a character of their own: SentencePiece models (BPE and Unigram), and the same
tokenizers where only a tokenizer.json is left of them."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import InvalidFile, UnsupportedFile

from modelhub_gguf.documents import Documents, flag, items, mapping, text, whole
from modelhub_gguf.fields import U8, array, boolean
from modelhub_gguf.tokenizers.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
)
from modelhub_gguf.tokenizers.vocabulary import SPACE, Added, Vocabulary, added_kind, added_tokens, by_id, fill, place

_PREFIX, _SPACES, _CHARSMAP = (
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.precompiled_charsmap",
)
_REPEATED = ("phi3", "internlm2")
"""Architectures whose tokenizer.json rules over the model, also where it only repeats it."""


def from_model(documents: Documents, model: SentencePiece, name: str, architecture: str, size: int) -> Vocabulary:
    """The vocabulary of a SentencePiece model with the tokens that were added to it."""
    if model.model_type not in (BPE, UNIGRAM):
        raise UnsupportedFile(f"{name} is a SentencePiece model of words or characters; llama.cpp knows BPE and Unigram")
    tokens: list[str | None] = list(model.pieces)
    types, scores = list(model.types), list(model.scores)
    added = added_tokens(documents)
    if name == "sentencepiece.bpe.model" and tokens[:3] == ["<unk>", "<s>", "</s>"]:
        tokens[:3], types[:3], scores[:3] = ["<s>", "<pad>", "</s>", "<unk>"], [CONTROL] * 3 + [UNKNOWN], [0.0] * 4
        added.setdefault(len(tokens), Added("<mask>", True, name))
    for number, kind in enumerate(types):
        token = tokens[number]
        if kind == USER_DEFINED and token is not None:
            tokens[number] = token.replace(SPACE, " ")
    if architecture not in _REPEATED:
        added = {number: token for number, token in added.items() if not _repeats(token, tokens[number : number + 1])}
    place(tokens, types, scores, added, size)
    filled = fill(tokens, types, scores, size=size, name=name, keep=False)
    if model.model_type == BPE:
        vocabulary = Vocabulary("llama", "default", filled, types, scores)
        if not model.add_dummy_prefix or architecture == "internlm2":
            vocabulary.extra[_PREFIX] = boolean(model.add_dummy_prefix)
        return vocabulary
    vocabulary = _unigram(filled, types, scores, model.add_dummy_prefix, model.remove_extra_whitespaces, model.charsmap)
    if name == "sentencepiece.bpe.model":  # a bos and an eos around a text, which no document of theirs says
        vocabulary.extra.update({f"tokenizer.ggml.add_{end}_token": boolean(True) for end in ("bos", "eos")})
    return vocabulary


def _repeats(token: Added, place: list[str | None]) -> bool:
    """Whether tokenizer.json only repeats what the model has in that ``place``: then its type and score stay."""
    return token.source == "tokenizer.json" and place in ([token.content], [added_kind(token)[0]])


def _unigram(
    tokens: list[str], types: list[int], scores: list[float], prefix: bool, merge_spaces: bool, charsmap: bytes
) -> Vocabulary:
    vocabulary = Vocabulary("t5", "default", tokens, types, scores)
    vocabulary.extra[_PREFIX] = boolean(prefix)
    vocabulary.extra[_SPACES] = boolean(merge_spaces)
    if charsmap:
        vocabulary.extra[_CHARSMAP] = array(U8, charsmap)
    return vocabulary


def from_merges(documents: Documents, tokenizer: Mapping[str, Any], size: int) -> Vocabulary:
    """A SentencePiece BPE that only a tokenizer.json is left of. Its merges stand in the order of the scores that they were made
    from (transformers ``convert_slow_tokenizer.py``, ``generate_merges``), so the order gives the scores: those of the model
    itself, where its pieces stand in the order of their scores, as SentencePiece writes them."""
    model = mapping(tokenizer.get("model"))
    trained = mapping(model.get("vocab"))
    tokens = by_id(trained, "tokenizer.json")
    added = added_tokens(documents)
    unknown = trained.get(text(model.get("unk_token")))
    types = [_kind(token, number, unknown) for number, token in enumerate(tokens)]
    order: dict[str, None] = {}
    for merge in items(model.get("merges")):
        match merge:
            case [str() as left, str() as right]:
                order[left + right] = None
            case str():
                left, _, right = merge.partition(" ")
                order[left + right] = None
            case _:
                raise InvalidFile(f"tokenizer.json: the merge {merge!r:.80} is not two texts")
    for number, token in enumerate(tokens):
        if token is not None and types[number] == NORMAL and number not in added:
            order.setdefault(token)  # single characters, behind all that is merged
    rank = {token: -float(number) for number, token in enumerate(order)}
    scores = [0.0 if token is None or kind != NORMAL else rank.get(token, 0.0) for token, kind in zip(tokens, types, strict=True)]
    place(tokens, types, scores, added, size)
    filled = fill(tokens, types, scores, size=size, name="tokenizer.json", keep=False)
    vocabulary = Vocabulary("llama", "default", filled, types, scores)
    if not _puts_space(tokenizer):
        vocabulary.extra[_PREFIX] = boolean(False)
    return vocabulary


def _kind(token: str | None, number: int, unknown: Any) -> int:
    if token is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return UNKNOWN if number == unknown else NORMAL


def from_unigram(documents: Documents, tokenizer: Mapping[str, Any], size: int) -> Vocabulary:
    """A Unigram that only a tokenizer.json is left of."""
    model = mapping(tokenizer.get("model"))
    tokens: list[str | None] = []
    scores: list[float] = []
    for number, piece in enumerate(items(model.get("vocab"))):
        match piece:
            case [str() as token, (int() | float()) as score]:
                tokens.append(token)
                scores.append(float(score))
            case _:
                raise InvalidFile(f"tokenizer.json: piece {number} is {piece!r:.80}; a text and a score were expected")
    if not tokens:
        raise InvalidFile("tokenizer.json: the vocabulary is empty")
    unknown = whole(model.get("unk_id"))
    types = [_kind(token, number, unknown) for number, token in enumerate(tokens)]
    for number in range(len(tokens) - 1, -1, -1):  # what filled a list up, when it was made from a GGUF
        if types[number] != NORMAL or re.fullmatch(r"\[PAD\d+\]", tokens[number] or "") is None:
            break
        types[number] = UNUSED
    beyond: dict[int, Added] = {}
    for number, entry in added_tokens(documents).items():
        if number >= len(tokens):
            beyond[number] = entry
        elif number != unknown:
            tokens[number], types[number] = added_kind(entry)
    place(tokens, types, scores, beyond, size)
    filled = fill(tokens, types, scores, size=size, name="tokenizer.json", keep=False)
    charsmap = b""
    merge_spaces = False
    for step in _steps(tokenizer, "normalizer", "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled":
            try:
                charsmap = b64decode(text(step.get("precompiled_charsmap")), validate=True)
            except ValueError as error:
                raise InvalidFile(f"tokenizer.json: precompiled_charsmap is not base64: {error}") from None
        elif kind == "Replace" and text(mapping(step.get("pattern")).get("Regex")) in (" {2,}", r"\s{2,}", " +"):
            merge_spaces = True
    merge_spaces |= any(step.get("type") == "WhitespaceSplit" for step in _steps(tokenizer, "pre_tokenizer", "pretokenizers"))
    return _unigram(filled, types, scores, _puts_space(tokenizer), merge_spaces, charsmap)


def _steps(tokenizer: Mapping[str, Any], part: str, inner: str) -> Iterator[Mapping[str, Any]]:
    step = mapping(tokenizer.get(part))
    yield from map(mapping, items(step.get(inner)) if step.get("type") == "Sequence" else [step] if step else [])


def _puts_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a definition puts a space before a text."""
    for step in _steps(tokenizer, "normalizer", "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            return True
    for step in _steps(tokenizer, "pre_tokenizer", "pretokenizers"):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme in ("always", "first") if isinstance(scheme, str) else flag(step.get("add_prefix_space")) is not False
    return False

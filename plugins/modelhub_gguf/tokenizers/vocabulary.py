"""What a tokenizer comes to in a GGUF header, whatever it was read from: tokens with types, scores or merges; and the tokens that
were added to the trained ones (``added_tokens`` of tokenizer.json, ``added_tokens_decoder``, ``added_tokens.json``).

The rules are those of llama.cpp's converter (``conversion/base.py``: ``get_vocab_base``, ``_create_vocab_sentencepiece``,
``does_token_look_special``), told apart by what the documents say and not by classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelhub import InvalidFile

from modelhub_gguf.documents import Documents, items, mapping, text, whole
from modelhub_gguf.fields import F32, I32, STRING, Field, array, string
from modelhub_gguf.tokenizers.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED

MAX_TOKENS = 1 << 22
PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0
SPACE = "\u2581"
"""The character that stands for a space in the pieces of SentencePiece."""
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The special tokens that have a name of their own (``bos_token`` in tokenizer_config.json)."""


@dataclass(slots=True)
class Vocabulary:
    """``model`` is llama.cpp's name for the algorithm, ``pre`` the pre-tokenizer's. ``tokens`` and ``types`` (and ``scores``,
    where the algorithm has them) are equally long. ``extra``: further keys, in the order in which they are written."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    extra: dict[str, Field] = field(default_factory=dict)

    def fields(self) -> Iterator[tuple[str, Field]]:
        yield "tokenizer.ggml.model", string(self.model)
        yield "tokenizer.ggml.pre", string(self.pre)
        yield "tokenizer.ggml.tokens", array(STRING, self.tokens)
        if self.scores is not None:
            yield "tokenizer.ggml.scores", array(F32, self.scores)
        yield "tokenizer.ggml.token_type", array(I32, self.types)
        yield from self.extra.items()
        if self.merges is not None:
            yield "tokenizer.ggml.merges", array(STRING, self.merges)


class Added(NamedTuple):
    """A token that was added to the trained ones. ``special``: it is no text, but a sign to the model. ``source``: the
    document."""

    content: str
    special: bool
    source: str


def added_tokens(documents: Documents) -> dict[int, Added]:
    """The added tokens by id. Where several documents name one, tokenizer_config.json rules, as it does in transformers; a token
    is special where any of them says so, or gives it a name."""
    named = named_tokens(documents)
    found: dict[int, Added] = {}
    sources: list[tuple[str, Iterable[tuple[Any, Any, Any]]]] = [
        ("added_tokens.json", ((number, content, False) for content, number in documents.object("added_tokens.json").items())),
        (
            "tokenizer.json",
            (
                (entry.get("id"), entry.get("content"), entry.get("special"))
                for entry in map(mapping, items(documents.object("tokenizer.json").get("added_tokens")))
            ),
        ),
        (
            "tokenizer_config.json",
            (
                (_number(key), mapping(entry).get("content"), mapping(entry).get("special"))
                for key, entry in mapping(documents.object("tokenizer_config.json").get("added_tokens_decoder")).items()
            ),
        ),
    ]
    for source, entries in sources:
        for number, content, special in entries:
            if whole(number) is None or number >= MAX_TOKENS or not isinstance(content, str):
                raise InvalidFile(f"{source}: {content!r:.80} with the id {number!r:.40} is not an added token")
            before = found.get(number)
            was_special = before is not None and before.content == content and before.special
            found[number] = Added(content, special is True or was_special or content in named, source)
    return found


def named_tokens(documents: Documents) -> dict[str, str]:
    """The special tokens that have a name, text -> name ("bos"; "" for the additional ones)."""
    found: dict[str, str] = {}
    for document in ("tokenizer_config.json", "special_tokens_map.json"):
        entries = documents.object(document)
        for name in NAMED:
            if content := token_text(entries.get(f"{name}_token")):
                found.setdefault(content, name)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            for entry in items(entries.get(key)):
                if content := token_text(entry):
                    found.setdefault(content, "")
    return found


def token_text(entry: Any) -> str:
    """The text of a token that is given as a text or as an object (``AddedToken``); "" for anything else."""
    return text(mapping(entry).get("content")) if isinstance(entry, dict) else text(entry)


def _number(key: str) -> int | None:
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None


def looks_special(token: str) -> bool:
    """Whether an added token that is not marked as special is one all the same: command-r, deepseek-coder and Gemma have such."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def added_kind(token: Added) -> tuple[str, int]:
    """The text and the type of an added token. What is matched in raw text has spaces, not their SentencePiece character."""
    if token.special or looks_special(token.content):
        return token.content, CONTROL
    return token.content.replace(SPACE, " "), USER_DEFINED


def by_id(vocabulary: Mapping[str, Any], name: str) -> list[str | None]:
    """The tokens of a ``text -> id`` map in the order of their ids, None where there is none. `InvalidFile` for an id that is no
    number, or that two tokens share."""
    if not vocabulary:
        raise InvalidFile(f"{name}: the vocabulary is empty")
    numbers = list(vocabulary.values())
    odd = [number for number in numbers if type(number) is not int or not 0 <= number < MAX_TOKENS]
    if odd:
        raise InvalidFile(f"{name}: {odd[0]!r:.40} is not the id of a token")
    tokens: list[str | None] = [None] * (max(numbers) + 1)
    for token, number in vocabulary.items():
        if tokens[number] is not None:
            raise InvalidFile(f"{name}: the tokens {tokens[number]!r:.60} and {token!r:.60} have the same id, {number}")
        tokens[number] = token
    return tokens


def place(tokens: list[str | None], types: list[int], scores: list[float] | None, added: Mapping[int, Added], size: int) -> None:
    """Put added tokens where their ids say; those that the model has no row for (``size``, where it is given) are left out."""
    for number in sorted(added):
        if size and number >= size:
            break
        while len(tokens) <= number:
            tokens.append(None)
            types.append(NORMAL)
            if scores is not None:
                scores.append(PAD_SCORE)
        tokens[number], types[number] = added_kind(added[number])
        if scores is not None:
            scores[number] = ADDED_SCORE


def fill(
    tokens: list[str | None], types: list[int], scores: list[float] | None, *, size: int, name: str, keep: bool
) -> list[str]:
    """The tokens, exactly ``size`` of them (0: as many as there are): rows without a token get an unused one. ``types`` and
    ``scores`` are brought to the same length in place. ``keep``: tokens past the last row are an error, and not left out."""
    size = size or len(tokens)
    if len(tokens) > size and keep and any(token is not None for token in tokens[size:]):
        raise InvalidFile(
            f"{name} has a token with the id {len(tokens) - 1}, but the model only {size} rows for tokens",
            "the tokenizer belongs to another model, or the model was not resized for it",
        )
    filled = [f"[PAD{number}]" if token is None else token for number, token in enumerate(tokens[:size])]
    for number, token in enumerate(tokens[:size]):
        if token is None:
            types[number] = UNUSED
    filled += [f"[PAD{number}]" for number in range(len(filled), size)]
    del types[size:]
    types += [UNUSED] * (size - len(types))
    if scores is not None:
        del scores[size:]
        scores += [PAD_SCORE] * (size - len(scores))
    return filled

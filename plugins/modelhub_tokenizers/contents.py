"""What every kind of tokenizer file comes to here: what is shown of it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelhub import InvalidFile

MAX_TOKENS = 1 << 22
"""More than that nobody's vocabulary has: the largest published ones have 260,000."""
MAX_BYTES = 96 << 20
"""The longest file that is read: three times the longest that is published."""
SHOWN = 12


@dataclass(slots=True)
class Tokenizer:
    """One tokenizer. ``algorithm``: BPE, Unigram, WordPiece, WordLevel, Word, Char; "" where the file does not say.
    ``container``: what holds it. ``shown``: what people want to know of it. ``tokens``: text -> id, where ids are known.
    ``problems``: (severity, what is wrong)."""

    algorithm: str
    container: str
    shown: dict[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def error(self, message: str) -> None:
        self.problems.append(("error", message))

    def warn(self, message: str) -> None:
        self.problems.append(("warning", message))


def some(texts: Sequence[str]) -> list[str]:
    """The first of many texts, and how many more there are."""
    if len(texts) <= SHOWN:
        return [text[:80] for text in texts]
    return [*(text[:80] for text in texts[: SHOWN - 1]), f"and {len(texts) - SHOWN + 1:,} more"]


def first_of(what: str, items: Collection[Any]) -> str:
    """The first of the items that have the same thing wrong with them, and how many they are."""
    more = f" (and {len(items) - 1:,} more)" if len(items) > 1 else ""
    return f"{what} {str(next(iter(items)))[:120]!r}{more}"


def check_ids(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> None:
    """Every token has an id of its own; ids without a token are told."""
    owners: dict[int, str] = {}
    twice = [(token, owners[number]) for token, number in vocabulary.items() if owners.setdefault(number, token) != token]
    if twice:
        token, other = twice[0]
        more = f", and so on for {len(twice) - 1:,} more" if len(twice) > 1 else ""
        tokenizer.error(f"the tokens {other[:80]!r} and {token[:80]!r} have the same id, {vocabulary[token]}{more}")


def check_merges(tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], vocabulary: Mapping[str, int], prefix: str = "") -> None:
    """Both halves of every merge, and what they are merged to, are tokens. ``prefix`` marks a token that continues a word, and
    is dropped from the second half."""
    unknown: list[str] = []
    homeless: list[str] = []
    for left, right in pairs:
        if left not in vocabulary or right not in vocabulary:
            unknown.append(left if left not in vocabulary else right)
        elif left + right.removeprefix(prefix) not in vocabulary:
            homeless.append(f"{left} {right}")
    if unknown:
        tokenizer.error(f"{first_of('a merge is of', unknown)}, which is no token of the vocabulary")
    if homeless:
        tokenizer.error(f"{first_of('the merge', homeless)} makes a token that the vocabulary has not")


def check_bytes(tokenizer: Tokenizer, vocabulary: Collection[str], severity: str) -> None:
    """With byte fallback there is a token for each byte; how bad it is where one is not depends on who loads it."""
    lost = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if lost:
        tokenizer.problems.append((severity, f"it falls back to bytes, and has no token for {len(lost)} of the 256: {lost[0]}"))


def whole_ids(vocabulary: Any, name: str) -> dict[str, int]:
    """A map from tokens to ids as it stands in JSON. `InvalidFile` for anything else."""
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InvalidFile(f"{name}: the vocabulary is not a map from tokens to ids")
    if len(vocabulary) > MAX_TOKENS:
        raise InvalidFile(f"{name}: {len(vocabulary):,} tokens; at most {MAX_TOKENS:,} are read")
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < MAX_TOKENS * 16:
            raise InvalidFile(f"{name}: the token {token[:80]!r} has the id {str(number)[:40]}, a number from 0 was expected")
    return vocabulary


def pairs_of(merges: Any, name: str) -> Iterator[tuple[str, str]]:
    """The merges of BPE, ``"a b"`` or ``["a", "b"]``. `InvalidFile` for anything else."""
    if not isinstance(merges, list):
        raise InvalidFile(f"{name}: the merges are a {type(merges).__name__}, a list was expected")
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InvalidFile(f"{name}: merge {number} is {str(merge)[:80]!r}, two tokens were expected")
        yield parts[0], parts[1]

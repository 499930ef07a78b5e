"""Reads a tokenizer: what its file says, and what the documents around it add (`tokenizer_config.json`,
`special_tokens_map.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, FileProblem, Finding, InvalidFile, Metadata, Table, read_json

from modelhub_tokenizers import plain
from modelhub_tokenizers.contents import Tokenizer, first_of
from modelhub_tokenizers.layout import PAIRS, SETTINGS, parser_of

SPECIAL = "special_tokens_map.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAX_JSON = 16 << 20
MAX_CONTEXT = 1 << 30
"""transformers writes 10^30 for "no limit"."""


def read(checkpoint: Checkpoint) -> Iterator[Metadata]:
    """There are no tensors: one `Metadata`."""
    tokenizer = parse(checkpoint, thorough=False)
    values: dict[str, Any] = {"architecture": tokenizer.algorithm, **tokenizer.shown}
    settings, roles = _json(checkpoint, SETTINGS), named(checkpoint)
    if isinstance(settings.get("tokenizer_class"), str):
        values["tokenizer_class"] = settings["tokenizer_class"][:80]
    length = settings.get("model_max_length")
    if isinstance(length, int | float) and 0 < length < MAX_CONTEXT:
        values["context_length"] = int(length)
    if roles:
        values["special_tokens"] = roles
    if isinstance(settings.get("chat_template"), str | list) or "chat_template.jinja" in checkpoint:
        values["chat_template"] = True
    yield Metadata(values={key: value for key, value in values.items() if value}, container=tokenizer.container)


def parse(checkpoint: Checkpoint, *, thorough: bool) -> Tokenizer:
    """The checkpoint's tokenizer; `InvalidFile` where its file is not what it looked like."""
    file = checkpoint.primary
    for vocabulary, merges in PAIRS:
        partner = file.path.removesuffix(vocabulary) + merges
        if file.name.endswith(vocabulary) and partner in checkpoint:
            return plain.pairs(file, checkpoint.open(partner), thorough)
    parser = parser_of(file)
    if parser is not None:
        return parser(file, thorough)
    if file.name.endswith("vocab.json"):
        return plain.lone(file, thorough)
    raise InvalidFile(f"{file.name} is no tokenizer of a known kind")


def check(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Whether vocabulary, merges and special tokens fit each other, and the documents around them."""
    tokenizer = parse(checkpoint, thorough=True)
    name = checkpoint.primary.name
    for severity, message in tokenizer.problems:
        yield Finding("tokenizer", "error" if severity == "error" else "warning", message, file=name)
    if not tokenizer.tokens:
        return
    added = _added(checkpoint)
    for role, token in named(checkpoint).items():
        if token not in tokenizer.tokens and token not in added:
            yield Finding("tokenizer", "warning", f"the {role} token, {token!r:.80}, is not in the vocabulary", file=name)
    other = [token for token, number in added.items() if tokenizer.tokens.get(token, number) != number]
    if other:
        message = f"{first_of('the token', other)} has the id {added[other[0]]}, and {tokenizer.tokens[other[0]]} in {name}"
        yield Finding("tokenizer", "error", message, file=SETTINGS)
    rows = _json(checkpoint, "config.json").get("vocab_size")
    last = max([*tokenizer.tokens.values(), *added.values()])
    if type(rows) is int and last >= rows:
        message = f"config.json gives the model {rows:,} rows for tokens, the last token has the id {last:,}"
        yield Finding("tokenizer", "warning", message, file=name)


def named(checkpoint: Checkpoint) -> dict[str, str]:
    """The special tokens by what they are for ("bos"), as the documents have them."""
    found: dict[str, str] = {}
    for document in (SETTINGS, SPECIAL):
        said = _json(checkpoint, document)
        for role in ROLES:
            entry = said.get(f"{role}_token")
            token = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(token, str) and token:
                found.setdefault(role, token[:200])
    return found


def _added(checkpoint: Checkpoint) -> dict[str, int]:
    """The tokens that the documents add to the file's, with their ids."""
    found: dict[str, int] = {}
    for token, number in _json(checkpoint, "added_tokens.json").items():
        if type(number) is int:
            found[token] = number
    entries = _json(checkpoint, SETTINGS).get("added_tokens_decoder")
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and key.isascii() and key.isdigit() and len(key) < 10:
            found[content] = int(key)
    return found


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """A document beside the tokenizer; {} where there is none, or it cannot be read: the tokenizer does not need it."""
    if name not in checkpoint:
        return {}
    try:
        return read_json(checkpoint.open(name), limit=MAX_JSON)
    except (FileProblem, OSError):
        return {}

"""From the keys of a GGUF header to the documents of a Hugging Face directory: ``tokenizer.json``, which says the whole
tokenizer, and ``tokenizer_config.json``, which names its special tokens and holds the chat template.

What llama.cpp does beyond what the keys say (its defaults, what a pre-tokenizer's name implies) is written out, so that
``AutoTokenizer`` tokenizes as llama.cpp does with the same file; where the original did otherwise, the header does not say so.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from modelhub import Extent, File, InvalidFile, UnsupportedFile

from modelhub_gguf.fields import ARRAY, BOOL, CODES, SIZES, STRING, Field, describe
from modelhub_gguf.tokenizers import pretokenizers
from modelhub_gguf.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from modelhub_gguf.tokenizers.vocabulary import SPACE

_MAX_WORK = 1 << 31
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0, "add_bos": True, "add_eos": False, "prefix": True},
    "gpt2": {"add_bos": False, "add_eos": False},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "t5": {"eos": 1, "unknown": 2, "padding": 0, "add_bos": False, "add_eos": True, "prefix": True},
}
"""What llama.cpp takes where a header does not say (``llama_vocab::impl::load``)."""
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "seperator": "sep", "padding": "pad", "mask": "mask"}
"""Names of special tokens in GGUF, and in Hugging Face's documents."""


class _Header:
    """The ``tokenizer.*`` keys, typed, and the token list with its types."""

    def __init__(self, metadata: Mapping[str, Field], model: str) -> None:
        self.metadata = metadata
        self.model = model
        self.defaults = _DEFAULTS[model]
        tokens = self.array("tokens", STRING)
        if not tokens:
            raise InvalidFile("tokenizer.ggml.tokens is missing or empty: a tokenizer without tokens")
        odd = next((number for number, token in enumerate(tokens) if not isinstance(token, str)), None)
        if odd is not None:
            raise UnsupportedFile(f"token {odd} is {tokens[odd]!r:.60}, which is not UTF-8: a tokenizer.json cannot hold it")
        self.tokens: list[str] = tokens
        self.types: list[int] = self.array("token_type", None) or [NORMAL] * len(tokens)
        if len(self.types) != len(tokens):
            raise InvalidFile(f"tokenizer.ggml.token_type has {len(self.types)} items for {len(tokens)} tokens")

    def array(self, key: str, item: int | None) -> list[Any]:
        """An array below ``tokenizer.ggml``; empty where there is none. ``item`` None: of numbers."""
        field = self.metadata.get(f"tokenizer.ggml.{key}")
        if field is None:
            return []
        if field.type != ARRAY or (field.item == STRING) != (item == STRING):
            wanted = "strings" if item == STRING else "numbers"
            raise InvalidFile(f"tokenizer.ggml.{key} is {describe(field)}, an array of {wanted} was expected")
        return list(value_of(field))

    def number(self, name: str) -> int | None:
        """The id of a special token, where it is one of the tokens."""
        field = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        number = self.defaults.get(name) if field is None else field.value
        return number if isinstance(number, int) and 0 <= number < len(self.tokens) else None

    def flag(self, key: str, default: bool) -> bool:
        field = self.metadata.get(f"tokenizer.ggml.{key}")
        return field.value if field is not None and isinstance(field.value, bool) else default

    def vocabulary(self) -> dict[str, int]:
        """Tokens that are in use, text -> id."""
        return {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != UNUSED or token != f"[PAD{number}]"
        }

    def added(self) -> list[dict[str, Any]]:
        """The tokens that are looked for in a text before anything else is done with it."""
        return [
            {
                "id": number,
                "content": self.tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for number, kind in enumerate(self.types)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        ]


def documents(metadata: Mapping[str, Field]) -> dict[str, bytes]:
    """See `modelhub_gguf.tokenizers.documents`."""
    field = metadata.get("tokenizer.ggml.model")
    if field is None or field.value in ("none", "no_vocab"):
        return {}
    build = {"gpt2": _bytewise, "llama": _pieces, "t5": _unigram, "bert": _wordpiece}.get(str(field.value))
    if build is None:
        raise UnsupportedFile(
            f"tokenizer.ggml.model is {field.value!r:.60}; a tokenizer.json is made for gpt2, llama, t5 and bert",
            "take the tokenizer's documents from the model that the file was made from",
        )
    header = _Header(metadata, str(field.value))
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": header.added(), **build(header)}
    return {
        "tokenizer.json": orjson.dumps(tokenizer, option=orjson.OPT_INDENT_2),
        "tokenizer_config.json": orjson.dumps(_config(header), option=orjson.OPT_INDENT_2),
    }


def value_of(field: Field) -> Any:
    """The Python value of a field whose bytes may stand in a file (`header.native`: little-endian)."""
    if not isinstance(field.value, Extent):
        return field.value
    path, offset, nbytes = field.value
    with File(path) as file:
        data = file.read(offset, nbytes)
    if field.type == STRING:
        return _text(data[8:])
    count = int.from_bytes(data[4:12], "little")
    if field.item != STRING:
        if count * SIZES[field.item] != nbytes - 12:
            raise InvalidFile(f"{file.name}: an array of {count} items stands in {nbytes} bytes at offset {offset}")
        values = struct.unpack_from(f"<{count}{CODES[field.item]}", data, 12)
        return [value != 0 for value in values] if field.item == BOOL else list(values)
    texts: list[str | bytes] = []
    unpack = struct.Struct("<Q").unpack_from
    at = 12
    while len(texts) < count:
        length = unpack(data, at)[0] if at + 8 <= nbytes else nbytes
        if length > nbytes - at - 8:
            raise InvalidFile(f"{file.name}: string {len(texts)} of an array reaches past its end at byte {offset + nbytes}")
        at += 8 + length
        texts.append(_text(data[at - length : at]))
    return texts


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# --- the four algorithms ------------------------------------------------------------------------------------------


def _bytewise(header: _Header) -> dict[str, Any]:
    field = header.metadata.get("tokenizer.ggml.pre")
    name = str(field.value) if field is not None else "default"
    steps = pretokenizers.STEPS.get(name)
    if steps is None:
        raise UnsupportedFile(
            f"tokenizer.ggml.pre is {name!r:.60}, and how that cuts text is not known here",
            "name one that cuts alike: --set tokenizer.ggml.pre=NAME",
        )
    vocabulary = header.vocabulary()
    merges = []
    for number, merge in enumerate(header.array("merges", STRING)):
        at = merge.find(" ", 1) if isinstance(merge, str) else -1
        if at < 0:
            raise InvalidFile(
                f"tokenizer.ggml.merges: merge {number} is {merge!r:.80}; two texts with a space between were expected"
            )
        left, right = merge[:at], merge[at + 1 :]
        if left in vocabulary and right in vocabulary and left + right in vocabulary:  # else it cannot come to a token
            merges.append((left, right))
    return {
        "normalizer": {"type": "NFC"} if name in pretokenizers.NFC else None,
        "pre_tokenizer": pretokenizers.definition_of(steps),
        "post_processor": _roberta(header, name) or _around(header, add_bos=name in pretokenizers.ADD_BOS) or _byte_level(),
        "decoder": _byte_level(),
        "model": {
            **_bpe(vocabulary, merges),
            "ignore_merges": name in pretokenizers.IGNORE_MERGES,
        },
    }


def _roberta(header: _Header, name: str) -> dict[str, Any] | None:
    """RoBERTa's own post-processor, by which its tokenizer is told from GPT-2's."""
    first, last = header.number("bos"), header.number("eos")
    if name not in pretokenizers.ROBERTA or first is None or last is None:
        return None
    ends = {key: [header.tokens[number], number] for key, number in (("sep", last), ("cls", first))}
    return {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def _pieces(header: _Header) -> dict[str, Any]:
    prefix = header.flag("add_space_prefix", True)
    unknown = header.number("unknown")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, space]} if prefix else space,
        "pre_tokenizer": None,
        "post_processor": _around(header),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            **_bpe(header.vocabulary(), _merges(header)),
            "unk_token": None if unknown is None else header.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": sum(kind == BYTE for kind in header.types) == 256,
        },
    }


def _merges(header: _Header) -> list[tuple[str, str]]:
    """The merges that scores stand for: every pair of pieces that is a piece, the best score first (as transformers'
    ``generate_merges`` has it). Pieces of equal scores follow in the order of their ids, in which SentencePiece writes them."""
    scores = header.array("scores", None)
    if len(scores) != len(header.tokens):
        raise InvalidFile(f"tokenizer.ggml.scores has {len(scores)} items for {len(header.tokens)} tokens")
    normal = {token: number for number, token in enumerate(header.tokens) if header.types[number] == NORMAL}
    if sum(len(token) ** 2 for token in normal) > _MAX_WORK:
        raise InvalidFile("tokenizer.ggml.tokens: the pieces are too long to be those of a tokenizer")
    found = []
    for token, number in normal.items():
        if len(token) > 1:
            score = -scores[number]
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in normal and right in normal:
                    found.append((score, number, normal[left], normal[right]))
    found.sort()
    return [(header.tokens[left], header.tokens[right]) for _, _, left, right in found]


def _unigram(header: _Header) -> dict[str, Any]:
    scores = header.array("scores", None)
    if len(scores) != len(header.tokens):
        raise InvalidFile(f"tokenizer.ggml.scores has {len(scores)} items for {len(header.tokens)} tokens")
    unknown = header.number("unknown")
    if unknown is None:
        unknown = next((number for number, kind in enumerate(header.types) if kind == UNKNOWN), None)
    charsmap = header.array("precompiled_charsmap", None)
    steps: list[dict[str, Any]] = []
    if charsmap:
        packed = b64encode(bytes(value & 255 for value in charsmap)).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": packed})
    if header.flag("remove_extra_whitespaces", False):
        steps += [_replace("^ +| +$", ""), _replace(" {2,}", " ")]
    scheme = "always" if header.flag("add_space_prefix", True) else "never"
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": space,
        "post_processor": _around(header),
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": list(zip(header.tokens, scores, strict=True)),
            "byte_fallback": False,
        },
    }


def _replace(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _wordpiece(header: _Header) -> dict[str, Any]:
    for number, token in enumerate(header.tokens):
        if header.types[number] == UNUSED:
            header.tokens[number] = token.removeprefix(SPACE)
        elif header.types[number] != CONTROL:
            header.tokens[number] = token.removeprefix(SPACE) if token.startswith(SPACE) else "##" + token
    unknown = header.number("unknown")
    lowercase = header.flag("normalizer.lowercase", True)
    strip = header.metadata.get("tokenizer.ggml.normalizer.strip_accents")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None if strip is None else bool(strip.value),
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(header, header.number("bos"), header.number("seperator")),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]" if unknown is None else header.tokens[unknown],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": header.vocabulary(),
        },
    }


# --- what is the same for all -------------------------------------------------------------------------------------


def _around(header: _Header, *, add_bos: bool = False) -> dict[str, Any] | None:
    """What puts the special tokens around a text, as the flags say; None where nothing is put."""
    bos = header.number("bos") if header.flag("add_bos_token", add_bos or header.defaults["add_bos"]) else None
    eos = header.number("eos") if header.flag("add_eos_token", header.defaults["add_eos"]) else None
    return None if bos is None and eos is None else _template(header, bos, eos)


def _template(header: _Header, first: int | None, last: int | None) -> dict[str, Any]:
    before = [] if first is None else [_special(header, first)]
    after = [] if last is None else [_special(header, last)]
    one, two = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    between: list[dict[str, Any]] = []
    middle: int | None = None
    if header.model != "bert" and header.flag("add_sep_token", False):
        middle = header.number("seperator")
        between = after if middle is None else [_special(header, middle)]
    elif header.model in ("llama", "gpt2"):
        between = before
    return {
        "type": "TemplateProcessing",
        "single": [*before, one, *after],
        "pair": [*before, one, *after, *between, two, *after],
        "special_tokens": {
            header.tokens[number]: {"id": header.tokens[number], "ids": [number], "tokens": [header.tokens[number]]}
            for number in (first, middle, last)
            if number is not None
        },
    }


def _special(header: _Header, number: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": header.tokens[number], "type_id": 0}}


def _config(header: _Header) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, called in _NAMES.items():
        number = header.number(name)
        if number is not None:
            config[f"{'cls' if header.model == 'bert' and name == 'bos' else called}_token"] = header.tokens[number]
    if header.model != "bert":
        for name in ("bos", "eos"):
            field = header.metadata.get(f"tokenizer.ggml.add_{name}_token")
            if field is not None:
                config[f"add_{name}_token"] = bool(field.value)
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix")
    if prefix is not None and header.model != "bert":
        config["add_prefix_space"] = bool(prefix.value)
    architecture = header.metadata.get("general.architecture")
    context = header.metadata.get(f"{architecture.value}.context_length") if architecture is not None else None
    if context is not None and isinstance(context.value, int):
        config["model_max_length"] = context.value
    templates = _templates(header)
    if templates:
        only = list(templates) == ["default"]
        named = [{"name": name, "template": template} for name, template in templates.items()]
        config["chat_template"] = templates["default"] if only else named
    return config


def _templates(header: _Header) -> dict[str, str]:
    found: dict[str, str] = {}
    key = "tokenizer.chat_template"
    for name in (key, *(name for name in header.metadata if name.startswith(f"{key}."))):
        field = header.metadata.get(name)
        template = value_of(field) if field is not None and field.type == STRING else None
        if isinstance(template, str):
            found["default" if name == key else name.removeprefix(f"{key}.")] = template
    return found

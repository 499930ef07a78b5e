"""From the documents of a Hugging Face directory to the keys of a GGUF header: which algorithm a tokenizer is, and its
vocabulary.

llama.cpp has four that matter here: ``llama`` (SentencePiece's BPE: merges by score, bytes for what has no piece), ``gpt2``
(byte-level BPE: cuts text into words, merges by rank), ``t5`` (Unigram) and ``bert`` (WordPiece). What is written follows its
converter (``conversion/base.py`` and the families' own modules); where that leaves a tokenizer tokenizing otherwise than Hugging
Face's library does, and there is a notation for it, the notation is used:

- a piece that is *user defined* in a SentencePiece model stays so (the converter makes it an ordinary one);
- a SentencePiece tokenizer that is only in tokenizer.json gets scores by the rank of its merges (the converter gives all the
same); - ``add_space_prefix`` is false where the definition puts no space before a text, whatever the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, UnsupportedFile

from modelhub_gguf.documents import Documents, flag, items, mapping, text
from modelhub_gguf.fields import Field
from modelhub_gguf.tokenizers import families, pieces, pretokenizers, sentencepiece, tiktoken
from modelhub_gguf.tokenizers.sentencepiece import CONTROL, NORMAL
from modelhub_gguf.tokenizers.special import Special, special
from modelhub_gguf.tokenizers.vocabulary import (
    SPACE,
    Added,
    Vocabulary,
    added_tokens,
    by_id,
    fill,
    named_tokens,
    place,
    token_text,
)

_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
FAIRSEQ = "sentencepiece.bpe.model"
"""What XLM-RoBERTa and its kind call it: the ids are one higher than in the model, behind four of fairseq's own."""
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "gpt2": {"bos": 11, "eos": 11},
}
"""What llama.cpp takes where a header does not say (``llama_vocab::impl::load``)."""


def fields(
    documents: Documents, config: Mapping[str, Any], *, architecture: str, vocab_size: int, pre: str = ""
) -> dict[str, Field]:
    """See `modelhub_gguf.tokenizers.fields`."""
    vocabulary = _vocabulary(documents, architecture, vocab_size, pre)
    found = special(documents, config, len(vocabulary.tokens))
    families.adjust(architecture, config, documents, vocabulary, found)
    _check_unique(vocabulary.tokens)
    _name_the_rest(documents, vocabulary, found)
    if vocabulary.pre in pretokenizers.ADD_BOS and "tokenizer.ggml.add_bos_token" not in vocabulary.extra:
        found.add.setdefault("bos", False)
    return {**dict(vocabulary.fields()), **dict(found.fields())}


def _check_unique(tokens: Sequence[str]) -> None:
    if len({*tokens}) == len(tokens):
        return
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        first = seen.setdefault(token, number)
        if first != number:
            raise InvalidFile(
                f"the tokens {first} and {number} are both {token!r:.80}; llama.cpp ends where one stands twice",
                "take out one of them in added_tokens (tokenizer.json) or added_tokens_decoder (tokenizer_config.json)",
            )


def _vocabulary(documents: Documents, architecture: str, size: int, pre: str) -> Vocabulary:
    tokenizer = documents.json("tokenizer.json")
    model = mapping((tokenizer or {}).get("model"))
    kind = text(model.get("type")) or ("BPE" if "merges" in model else "")
    name = documents.first(_MODELS)
    data = documents.data(name) if name else None
    if data is not None and not (kind == "BPE" and _is_bytewise(tokenizer or {})) and not (kind == "Unigram" and name == FAIRSEQ):
        if tiktoken.is_ranks(data):
            return tiktoken.vocabulary(data, name, architecture, size, pre)
        return pieces.from_model(documents, sentencepiece.parse(data, name), name, architecture, size)
    if tokenizer is not None:
        if kind == "BPE" and model.get("byte_fallback") is True and not _is_bytewise(tokenizer):
            return pieces.from_merges(documents, tokenizer, size)
        if kind == "BPE" and (_is_bytewise(tokenizer) or pre):
            return _bytewise(documents, tokenizer, architecture, size, pre)
        if kind == "Unigram":
            return pieces.from_unigram(documents, tokenizer, size)
        if kind == "WordPiece":
            return _wordpiece(documents, mapping(model.get("vocab")), "tokenizer.json", size, pre)
        raise UnsupportedFile(
            f"tokenizer.json is a {kind or 'tokenizer without a model'} that llama.cpp has no notation for",
            "byte-level BPE, BPE with byte fallback, Unigram and WordPiece are known",
        )
    if "vocab.json" in documents and "merges.txt" in documents:
        return _bytewise(documents, _from_old(documents), architecture, size, pre)
    if "vocab.txt" in documents:
        lines = documents.lines("vocab.txt") or []
        return _wordpiece(documents, {line: number for number, line in enumerate(lines)}, "vocab.txt", size, pre)
    raise UnsupportedFile(
        "there is no tokenizer beside the weights",
        "one of tokenizer.json, tokenizer.model, vocab.json with merges.txt, or vocab.txt is needed in the same directory",
    )


def _is_bytewise(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer maps the bytes of a text to characters before it merges, as GPT-2's does."""
    for part, inner in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        step = mapping(tokenizer.get(part))
        if any(mapping(one).get("type") == "ByteLevel" for one in (step, *items(step.get(inner)))):
            return True
    return False


def _bytewise(documents: Documents, tokenizer: Mapping[str, Any], architecture: str, size: int, pre: str) -> Vocabulary:
    model = mapping(tokenizer.get("model"))
    trained = mapping(model.get("vocab"))
    tokens = by_id(trained, "tokenizer.json")
    if size and len(tokens) > size:
        fill(tokens, [], None, size=size, name="tokenizer.json", keep=True)
    types = [NORMAL] * len(tokens)
    added = added_tokens(documents)
    for token in (*named_tokens(documents), *items(tokenizer.get("named"))):
        if token in trained:  # what has a name is no text, even if no list of added tokens has it
            added.setdefault(trained[token], Added(token, True, "tokenizer_config.json"))
    place(tokens, types, None, added, size)
    contents = {token.content for token in added.values()}
    name = pre or pretokenizers.name_of(tokenizer, architecture, lambda token: token in contents or token in trained)
    filled = fill(tokens, types, None, size=size, name="tokenizer.json", keep=True)
    return Vocabulary("gpt2", name, filled, types, merges=merges_of(model))


def merges_of(model: Mapping[str, Any]) -> list[str]:
    """The merges of a BPE as GGUF has them, two texts with a space between them: a space inside of one becomes the character that
    stands for its byte."""
    merges = items(model.get("merges"))
    if all(type(merge) is str for merge in merges):
        return merges
    joined = []
    for number, merge in enumerate(merges):
        match merge:
            case [str() as left, str() as right]:
                if " " in left or " " in right:
                    left, right = left.replace(" ", "\u0120"), right.replace(" ", "\u0120")
                joined.append(f"{left} {right}")
            case str():
                joined.append(merge)
            case _:
                raise InvalidFile(f"tokenizer.json: merge {number} is {merge!r:.80}; two texts were expected")
    return joined


def _from_old(documents: Documents) -> dict[str, Any]:
    """What tokenizer.json would hold, from ``vocab.json`` and ``merges.txt``, which name no pre-tokenizer: the tokenizer's class
    does (transformers ``convert_slow_tokenizer.py``)."""
    settings = documents.object("tokenizer_config.json")
    name = text(settings.get("tokenizer_class")).removesuffix("Fast")
    steps = {"Qwen2Tokenizer": (pretokenizers.QWEN2,)}.get(name, (pretokenizers.GPT2,))
    known = ("", "GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "BartTokenizer")
    if name not in known:
        raise UnsupportedFile(
            f"how {name} cuts text is not known here, and there is no tokenizer.json that says so",
            "save the tokenizer with a tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    merges = [line for line in documents.lines("merges.txt") or [] if line.strip()]
    if merges and merges[0].startswith("#version"):
        merges = merges[1:]
    bert = name in ("RobertaTokenizer", "BartTokenizer")
    return {
        "named": ["<s>", "</s>", "<pad>", "<unk>", "<mask>"] if bert else ["<|endoftext|>"],
        "model": {"type": "BPE", "vocab": dict(documents.object("vocab.json")), "merges": merges},
        "pre_tokenizer": pretokenizers.definition_of(steps),
        "normalizer": {"type": "NFC"} if name == "Qwen2Tokenizer" else None,
        "post_processor": {"type": "RobertaProcessing" if bert else "ByteLevel"},
    }


def _wordpiece(documents: Documents, trained: Mapping[str, Any], name: str, size: int, pre: str) -> Vocabulary:
    """WordPiece: in GGUF a piece that starts a word has SentencePiece's space before it, and one that goes on with it has
    none."""
    tokens = by_id(trained, name)
    if size and len(tokens) > size:
        fill(tokens, [], None, size=size, name=name, keep=True)
    types = [NORMAL] * len(tokens)
    added = added_tokens(documents)
    if not added:
        named = {token_text(documents.object("tokenizer_config.json").get(f"{kind}_token")) for kind in families.BERT_NAMES}
        named = (named - {""}) | set(families.BERT_NAMES.values())
        added = {number: Added(token, True, name) for number, token in enumerate(tokens) if token in named}
    place(tokens, types, None, added, size)
    filled = fill(tokens, types, None, size=size, name=name, keep=True)
    for number, token in enumerate(filled):
        if types[number] != CONTROL:
            filled[number] = token[2:] if token.startswith("##") else SPACE + token
    known = trained.get("[UNK]") == 100 and trained.get("[CLS]") == 101
    # llama.cpp does not look at it. The names are those that its converter knows the two commonest vocabularies by.
    label = {30522: "jina-v2-en", 21128: "bert-bge-large"}.get(len(trained), "default") if known else "default"
    return Vocabulary("bert", pre or label, filled, types)


def _name_the_rest(documents: Documents, vocabulary: Vocabulary, found: Special) -> None:
    """Special tokens that are named by a text only, in a directory without tokenizer.json: their ids, unless llama.cpp takes the
    same where a header does not say."""
    others = documents.object("special_tokens_map.json")
    names = {name: content or token_text(others.get(f"{name}_token")) for name, content in found.names.items()}
    if vocabulary.model == "bert":
        names = {name: names.get(name) or content for name, content in families.BERT_NAMES.items()}
        names["bos"] = names["cls"]
        if flag(documents.object("tokenizer_config.json").get("do_lower_case")) is not None and found.lowercase is None:
            found.lowercase = documents.object("tokenizer_config.json")["do_lower_case"]
    missing = {name: content for name, content in names.items() if content and name not in found.ids}
    if not missing:
        return
    wanted = set(missing.values())
    places = {token: number for number, token in enumerate(vocabulary.tokens) if token in wanted}
    defaults = _DEFAULTS[vocabulary.model]
    for name, content in missing.items():
        if content in places and places[content] != defaults.get(name):
            found.ids[name] = places[content]

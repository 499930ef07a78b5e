"""What llama.cpp's converter does for single families of models on top of the tokenizer's own documents (``set_vocab`` in
``conversion/*.py``). Rules by the texts of tokens, not by ids: a smaller vocabulary of the same family gets the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelhub_gguf.documents import Documents, flag, whole
from modelhub_gguf.fields import boolean, u32
from modelhub_gguf.tokenizers.sentencepiece import UNUSED
from modelhub_gguf.tokenizers.special import Special
from modelhub_gguf.tokenizers.vocabulary import Vocabulary

BERT_NAMES = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
"""The special tokens of BERT, where the documents do not say otherwise."""

_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "chatglm": (("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>")),
    "glm4": (("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")),
    "glm4moe": (("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")),
    "gemma": (("eot", "<end_of_turn>"),),
    "llama": (("eot", "\u2581<EOT>"),),  # Code Llama
}
"""Tokens that get a name where they have none, by architecture."""
_TYPES = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3")
"""Architectures with embeddings for the first and the second of two texts."""

_LLAMAS = ("llama", "smollm3", "granite", "granitemoe")
"""Architectures whose converter is Llama's."""
_STARCODER = 49152
"""Tokens of StarCoder's vocabulary, which small Granite and SmolLM models have: nothing is put before a text."""


def adjust(architecture: str, config: Mapping[str, Any], documents: Documents, vocabulary: Vocabulary, found: Special) -> None:
    """Change what was read as the family of ``architecture`` wants it."""
    rules = _NAMES.get(architecture, ())
    if rules:
        wanted = {token for _, token in rules}
        places = {token: number for number, token in enumerate(vocabulary.tokens) if token in wanted}
        for name, token in rules:
            if token in places:
                found.ids.setdefault(name, places[token])
    if architecture in ("gemma", "gemma2", "gemma3", "gemma3n"):
        vocabulary.extra["tokenizer.ggml.add_space_prefix"] = boolean(False)
    elif architecture in _LLAMAS:
        prefix = flag(documents.object("tokenizer_config.json").get("add_prefix_space"))
        if prefix is not None:
            vocabulary.extra["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
        if len(vocabulary.tokens) == _STARCODER:
            found.add["bos"] = False
    elif architecture == "phi2":
        found.add.setdefault("bos", False)
    elif architecture == "internlm2":
        _internlm2(vocabulary, found)
    elif architecture == "modern-bert":
        found.add.update(bos=True, eos=True, sep=True)
    if architecture in _TYPES and vocabulary.model in ("bert", "gpt2", "t5"):
        count = whole(config.get("type_vocab_size"))
        default = 2 if architecture == "jina-bert-v2" and vocabulary.model == "gpt2" else 1
        vocabulary.extra["tokenizer.ggml.token_type_count"] = u32(default if count is None else count)


def _internlm2(vocabulary: Vocabulary, found: Special) -> None:
    """A piece of one zero byte would be an empty text to llama.cpp, which has no use for two of those; a chat ends with its
    own sign."""
    for number, token in enumerate(vocabulary.tokens):
        if token == "\0":
            vocabulary.tokens[number] = "\U0001f409"
        elif token.startswith("[UNUSED"):
            vocabulary.types[number] = UNUSED
        elif token == "<|im_end|>":
            found.ids["eos"] = number

"""Byte-level BPE: for each published way to cut text, a tokenizer trained that way tokenizes hard text in llama.cpp as in Hugging
Face's library, there and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from modelhub import File, InvalidFile, UnsupportedFile
from modelhub_gguf.header import parse
from modelhub_gguf.tokenizers.pretokenizers import DEEPSEEK_LETTERS

from tests.conftest import Modelhub
from tests.plugins.gguf.logits import tiny
from tests.plugins.gguf.vocabularies import (
    DECOMPOSED,
    HARD,
    MARKS,
    MIXED_DIGITS,
    added,
    back,
    differing,
    encoder,
    llama_cpp,
    save,
    template,
    to_gguf,
    tokenizer_of,
    train_bytewise,
    unlike,
    write,
)

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
CASED = (
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+%s"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*%s"
    "|%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
TIKTOKEN = (
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
)
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"


def split(regex: str, *, removed: bool = False) -> dict[str, Any]:
    behavior = "Removed" if removed else "Isolated"
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": removed}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


class Family(NamedTuple):
    """A published tokenizer's definition, and llama.cpp's name for it. ``differs``: the hard texts that llama.cpp itself cuts
    otherwise, with the reason beside it."""

    pre: str
    pre_tokenizer: dict[str, Any]
    architecture: str = "llama"
    ignore_merges: bool = False
    normalizer: dict[str, Any] | None = None
    extra: tuple[str, ...] = ()
    bos: bool = False
    differs: tuple[str, ...] = ()


NFC = {"type": "NFC"}
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
MARKS_ALONE = (MARKS, DECOMPOSED)
"""llama.cpp's expressions for these leave out marks (\\p{M}), so that one stands apart from its letter."""
FAMILIES = {
    "gpt-2": Family("gpt-2", GPT2, "gpt2"),
    "phi-2": Family("phi-2", GPT2, "phi2"),
    "gpt-neox": Family("olmo", GPT2, "gptneox", normalizer=NFC, differs=(DECOMPOSED,)),  # llama.cpp does not compose
    "roberta": Family("roberta-bpe", GPT2, "bert"),
    "starcoder2": Family("starcoder", sequence(digits(True), GPT2), "starcoder2"),
    "granite": Family("refact", sequence(digits(True), GPT2), "granite", extra=("<fim_prefix>",)),
    "smollm": Family("smollm", sequence(digits(True), GPT2)),
    "command-r": Family("command-r", sequence(digits(True), GPT2), "command-r", normalizer=NFC, differs=(DECOMPOSED,)),
    "qwen2": Family("qwen2", sequence(split(SHORT + WORDS % "\\p{N}"), BYTES), "qwen2", normalizer=NFC, differs=(DECOMPOSED,)),
    "deepseek-r1-qwen": Family(
        "deepseek-r1-qwen", sequence(split(SHORT + WORDS % "\\p{N}"), BYTES), "qwen2", extra=("<｜begin▁of▁sentence｜>",)
    ),
    "stablelm2": Family("stablelm2", sequence(split(SHORT + WORDS % "\\p{N}"), BYTES), "stablelm"),
    "bailing": Family("bailingmoe", sequence(split(TIKTOKEN % ""), BYTES), "bailingmoe"),
    "llama3": Family("llama-bpe", sequence(split(SHORT + WORDS % "\\p{N}{1,3}"), BYTES), ignore_merges=True, bos=True),
    "phi-4": Family("dbrx", sequence(split(SHORT + WORDS % "\\p{N}{1,3}"), BYTES), "phi3"),
    "olmo2": Family("dbrx", sequence(split(TIKTOKEN % "{1,3}", removed=True), BYTES), "olmo2"),
    "glm4": Family(
        "glm4", sequence(split(SHORT + WORDS % "\\p{N}{1,3}"), BYTES), "glm4", ignore_merges=True, extra=("<|observation|>",)
    ),
    "chatglm": Family(
        "chatglm-bpe", sequence(split(SHORT + WORDS % "\\p{N}{1,3}"), BYTES), "chatglm", extra=("<|observation|>",)
    ),
    "falcon": Family(
        "falcon",
        sequence({"type": "Punctuation", "behavior": "Contiguous"}, GPT2, digits(False), split("[0-9][0-9][0-9]")),
        "falcon",
    ),
    "bloom": Family("bloom", sequence(split(BLOOM), BYTES), "bloom"),
    "viking": Family("viking", sequence(split(BLOOM), digits(True), BYTES)),
    "mistral-nemo": Family(
        "tekken", sequence(split(CASED % ("", "", "\\p{N}")), BYTES), ignore_merges=True, bos=True, differs=MARKS_ALONE
    ),
    "gpt-4o": Family("gpt-4o", sequence(split(CASED % (SHORT + "?", SHORT + "?", "\\p{N}{1,3}")), BYTES), differs=MARKS_ALONE),
    "llama4": Family(
        "llama4", sequence(split(CASED % (SHORT + "?", SHORT + "?", "\\p{N}{1,3}")), BYTES), "llama4", differs=MARKS_ALONE
    ),
    "tiny-aya": Family(
        "tiny_aya",
        sequence(split("\\d{1,3}(?=(?:\\d{3})*\\b)"), split(CASED % (SHORT + "?", SHORT + "?", "\\p{N}{1,3}")), BYTES),
        "cohere2",
        differs=(MIXED_DIGITS,),  # llama.cpp sees the end of a word where a Chinese character follows a digit
    ),
    "deepseek-llm": Family(
        "deepseek-llm",
        sequence(
            split("[\r\n]"),
            split(DEEPSEEK_LETTERS),
            split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            split("\\s+$"),
            split(HAN),
            digits(True),
            BYTES,
        ),
    ),
    "deepseek-coder": Family(
        "deepseek-coder",
        sequence(split("[\r\n]"), split("\\s?\\p{L}+"), split("\\s?\\p{P}+"), split(HAN), digits(True), BYTES),
    ),
    "deepseek-v3": Family("deepseek-v3", sequence(split("\\p{N}{1,3}"), split(CJK), split(DEEPSEEK3), BYTES), "deepseek2"),
    "seed-coder": Family(
        "seed-coder",
        sequence(
            split(
                SHORT + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
            ),
            BYTES,
        ),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_and_hugging_face_agree(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    special = ("<|endoftext|>", *family.extra)
    processor = template("<|endoftext|>", 0) if family.bos else None
    if name == "roberta":
        special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        ends = {"sep": ["</s>", 2], "cls": ["<s>", 0]}
        processor = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    tokenizer = train_bytewise(
        family.pre_tokenizer,
        special=special,
        ignore_merges=family.ignore_merges,
        normalizer=family.normalizer,
        post_processor=processor,
    )
    settings: dict[str, Any] = {"bos_token": special[0], "eos_token": "</s>" if name == "roberta" else special[0]}
    keys = to_gguf(save(tmp_path / "hf", tokenizer_json=tokenizer, tokenizer_config_json=settings), family.architecture)
    assert (keys["tokenizer.ggml.model"].value, keys["tokenizer.ggml.pre"].value) == ("gpt2", family.pre)
    original = encoder(tokenizer_of(tokenizer))
    texts = (*HARD, f"in{special[0]}side {special[0]} {special[0]}")
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, original, texts) == {*family.differs}
        again = back(tmp_path / "back", keys)
        # What the definition says is said again, so that also what llama.cpp does otherwise comes back.
        composes = {DECOMPOSED} if family.pre in ("deepseek-r1-qwen",) else set()
        assert differing(encoder(again), original, texts) == composes
    assert unlike(keys, to_gguf(tmp_path / "back", family.architecture)) == []


def test_rows_without_a_token_are_padded_and_added_tokens_keep_their_kind(tmp_path: Path) -> None:
    tokenizer = train_bytewise(GPT2, size=400)
    tokenizer["added_tokens"] += [
        added(400, "<|im_start|>", special=False),  # looks special
        added(401, "    ", special=False),
        added(403, "<tool>"),
        added(900, "<past the last row>"),
    ]
    directory = save(tmp_path, tokenizer_json=tokenizer)
    keys = to_gguf(directory, vocab_size=408)
    tokens, types = keys["tokenizer.ggml.tokens"].value, keys["tokenizer.ggml.token_type"].value
    assert len(tokens) == len(types) == 408
    assert tokens[400:405] == ["<|im_start|>", "    ", "[PAD402]", "<tool>", "[PAD404]"]
    assert types[399:408] == [1, 3, 4, 5, 3, 5, 5, 5, 5]
    assert types[0] == 3


def test_a_trained_token_without_a_row_is_an_error(tmp_path: Path) -> None:
    directory = save(tmp_path, tokenizer_json=train_bytewise(GPT2, size=400))
    with pytest.raises(InvalidFile, match="a token with the id 399, but the model only 390 rows"):
        to_gguf(directory, vocab_size=390)


def test_merges_as_pairs_may_hold_spaces(tmp_path: Path) -> None:
    tokenizer = train_bytewise(GPT2, size=300)
    pairs = tokenizer["model"]["merges"]
    texts = [" ".join(pair) for pair in pairs]
    assert to_gguf(save(tmp_path / "pairs", tokenizer_json=tokenizer))["tokenizer.ggml.merges"].value == texts
    tokenizer["model"]["merges"] = texts
    assert to_gguf(save(tmp_path / "texts", tokenizer_json=tokenizer))["tokenizer.ggml.merges"].value == texts
    tokenizer["model"]["merges"] = [["a b", "c"]]
    assert to_gguf(save(tmp_path / "spaces", tokenizer_json=tokenizer))["tokenizer.ggml.merges"].value == ["aĠb c"]
    tokenizer["model"]["merges"] = [["a", "b"], ["a", "b", "c"]]
    with pytest.raises(InvalidFile, match="merge 1 is"):
        to_gguf(save(tmp_path / "three", tokenizer_json=tokenizer))


def test_an_unknown_cut_is_shown_and_can_be_named(tmp_path: Path) -> None:
    tokenizer = train_bytewise(sequence(split("[aeiou]+|[^aeiou]+"), BYTES))
    directory = save(tmp_path, tokenizer_json=tokenizer)
    with pytest.raises(UnsupportedFile) as caught:
        to_gguf(directory)
    assert "'[aeiou]+|[^aeiou]+'" in caught.value.message
    assert "--set tokenizer.ggml.pre=" in caught.value.hint
    assert to_gguf(directory, pre="gpt-2")["tokenizer.ggml.pre"].value == "gpt-2"


def test_a_user_names_the_cut(tmp_path: Path, modelhub: Modelhub) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    tiny(tmp_path / "hf", "LlamaForCausalLM", sizes, tokenizer="")
    save(tmp_path / "hf", tokenizer_json=train_bytewise(sequence(split("[aeiou]+|[^aeiou]+"), BYTES), size=300))
    words = ("convert", tmp_path / "hf", "--to", "gguf", "-o", tmp_path / "model.gguf")
    failed = modelhub(*words, status=3)
    assert "'[aeiou]+|[^aeiou]+'" in failed.stderr
    assert "--set tokenizer.ggml.pre=NAME" in failed.stderr
    modelhub(*words, "--set", "tokenizer.ggml.pre=gpt-2")
    with File(str(tmp_path / "model.gguf")) as file:
        assert parse(file).fields["tokenizer.ggml.pre"].value == "gpt-2"


def test_what_llama_cpp_does_not_do_to_a_text_is_said(tmp_path: Path) -> None:
    tokenizer = train_bytewise(GPT2, normalizer={"type": "Lowercase"})
    with pytest.raises(UnsupportedFile, match="normalizer Lowercase"):
        to_gguf(save(tmp_path, tokenizer_json=tokenizer))


def test_no_bos_is_said_where_llama_cpp_would_put_one(tmp_path: Path) -> None:
    tokenizer = train_bytewise(FAMILIES["llama3"].pre_tokenizer, ignore_merges=True)
    keys = to_gguf(save(tmp_path, tokenizer_json=tokenizer, tokenizer_config_json={"bos_token": "<|endoftext|>"}))
    assert keys["tokenizer.ggml.add_bos_token"].value is False
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, encoder(tokenizer_of(tokenizer))) == set()


@pytest.mark.parametrize(
    ("kind", "pre"), [("GPT2Tokenizer", "gpt-2"), ("Qwen2Tokenizer", "qwen2"), ("RobertaTokenizer", "roberta-bpe")]
)
def test_a_vocabulary_and_merges_of_old_are_enough(kind: str, pre: str, tmp_path: Path) -> None:
    special = ("<s>", "</s>") if kind == "RobertaTokenizer" else ("<|endoftext|>",)
    cut = FAMILIES["qwen2"].pre_tokenizer if pre == "qwen2" else GPT2
    tokenizer = train_bytewise(cut, special=special, size=500)
    merges = "\n".join(" ".join(pair) for pair in tokenizer["model"]["merges"])
    save(
        tmp_path,
        vocab_json=tokenizer["model"]["vocab"],
        merges_txt=f"#version: 0.2\n{merges}\n",
        tokenizer_config_json={"tokenizer_class": kind, "bos_token": special[0], "eos_token": special[-1]},
    )
    architecture = "bert" if pre == "roberta-bpe" else "gpt2"
    keys = to_gguf(tmp_path, architecture)
    assert keys["tokenizer.ggml.pre"].value == pre
    assert keys["tokenizer.ggml.token_type"].value[: len(special)] == [3] * len(special)
    assert keys["tokenizer.ggml.bos_token_id"].value == 0
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        original = encoder(tokenizer_of(tokenizer))
        assert {text for text in HARD if tokenize(text, False) != original(text, False)} == set()

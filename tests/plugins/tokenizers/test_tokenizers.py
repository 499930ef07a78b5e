"""Tokenizers that stand alone are models of their own kind; beside a model they are the model's. The files are those of the real
libraries, which also say what is broken."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.conftest import Modelhub

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells on the sea shore",
    "unaffable words: naïve café 東京",
] * 9


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>")])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    return tokenizer


def wordlevel() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


MADE = {"BPE": bpe, "Unigram": unigram, "WordPiece": wordpiece, "WordLevel": wordlevel}


def pieces(prefix: Path, **options: Any) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_prefix=str(prefix), vocab_size=330, minloglevel=2, num_threads=1, **options
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pieces(tmp_path_factory.mktemp("pieces") / "m", byte_fallback=True, hard_vocab_limit=False).read_bytes()


def ranks() -> list[bytes]:
    return [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" sea"]


def tiktoken() -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks()))


def tekken() -> dict[str, Any]:
    tokens = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for rank, token in enumerate(ranks())
    ]
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(["<unk>", "<s>", "</s>"])]
    config = {
        "pattern": r"\s+",
        "num_vocab_tokens": 259,
        "default_vocab_size": 262,
        "default_num_special_tokens": 3,
        "version": "v7",
    }
    return {"config": config, "vocab": tokens, "special_tokens": special}


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
def test_a_tokenizer_of_the_library_is_shown_as_the_library_has_it(kind: str, tmp_path: Path, modelhub: Modelhub) -> None:
    tokenizer = MADE[kind]()
    home = tmp_path / "mine"
    home.mkdir()
    tokenizer.save(str(home / "tokenizer.json"))
    shown = modelhub("show", home, "--json").json
    assert (shown["format"], shown["container"], shown["architecture"]) == ("tokenizer", "tokenizers", kind)
    assert (shown["name"], shown["state"], shown["parameters"]) == ("mine", "ready", 0)
    assert shown["metadata"]["vocab_size"] == tokenizer.get_vocab_size(with_added_tokens=True)
    assert modelhub("verify", home, "--json").json[0]["findings"] == []


def test_steps_and_tokens_are_shown_in_a_word(tmp_path: Path, modelhub: Modelhub) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    bpe().save(str(home / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "model_max_length": 2048}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    shown = modelhub("show", home, "--json").json
    assert len(shown["files"]) == 2
    metadata = shown["metadata"]
    assert (metadata["normalizer"], metadata["pre_tokenizer"], metadata["decoder"]) == ("NFC", "Digits + ByteLevel", "ByteLevel")
    assert (metadata["added_tokens"], metadata["special_tokens"], metadata["context_length"]) == (2, {"eos": "<|end|>"}, 2048)
    assert metadata["merges"] > 10


def test_files_of_other_kinds_are_each_a_tokenizer(tmp_path: Path, piece_model: bytes, modelhub: Modelhub) -> None:
    drive = tmp_path / "drive"
    (drive / "gpt2").mkdir(parents=True)
    (drive / "bert").mkdir()
    bpe().model.save(str(drive / "gpt2"))  # vocab.json and merges.txt
    bpe().model.save(str(drive), "small")  # the same with a name before them
    wordpiece().model.save(str(drive / "bert"))
    (drive / "llama.model.v3").write_bytes(piece_model)
    (drive / "t5.spm").write_bytes(piece_model)
    (drive / "qwen.tiktoken").write_bytes(tiktoken())
    (drive / "tekken_250101.json").write_text(json.dumps(tekken(), indent=2))
    modelhub("scan", drive)
    listed = modelhub("ls", "--json").json
    assert sorted((row["name"], row["container"], row["architecture"]) for row in listed) == [
        ("bert", "vocab.txt", "WordPiece"),
        ("gpt2", "vocab.json + merges.txt", "BPE"),
        ("llama.model.v3", "sentencepiece", "Unigram"),
        ("qwen", "tiktoken", "BPE"),
        ("small", "vocab.json + merges.txt", "BPE"),
        ("t5", "sentencepiece", "Unigram"),
        ("tekken_250101", "tekken", "BPE"),
    ]
    for row in modelhub("verify", *(drive / row["path"] for row in listed), "--json").json:
        assert row["ok"], row
        assert row["findings"] == []
    processor = sentencepiece.SentencePieceProcessor(model_proto=piece_model)
    shown = modelhub("show", "t5", "--json").json["metadata"]
    assert shown["vocab_size"] == processor.vocab_size()
    assert (shown["special_tokens"], shown["byte_fallback"]) == (["<unk>", "<s>", "</s>"], True)


def test_the_sample_drives_tokenizer_is_listed_and_those_of_its_models_are_not(sample_drive: Path, modelhub: Modelhub) -> None:
    modelhub("scan", sample_drive)
    rows = modelhub("ls", "--json", "--where", "format=tokenizer").json
    assert [(row["name"], row["container"], row["architecture"]) for row in rows] == [
        ("tokenizer.model.v1", "sentencepiece", "BPE")
    ]
    shown = modelhub("show", sample_drive / "mistral-common" / "data" / "tokenizer.model.v1", "--json").json["metadata"]
    assert (shown["vocab_size"], shown["byte_fallback"], shown["normalizer"]) == (32000, True, "identity")


# --- what is not a tokenizer of its own -----------------------------------------------------------------------------


def a_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.weight", np.ones((32, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_tokenizer_beside_a_model_is_the_models(tmp_path: Path, piece_model: bytes, modelhub: Modelhub) -> None:
    drive = tmp_path / "drive"
    weights = {"w": np.ones((4, 4), np.float32)}
    for name in ("hf", "gguf", "web/onnx", "meta/7B", "pipe/unet", "pipe/tokenizer", "pipe/text_encoder"):
        (drive / name).mkdir(parents=True)
    text = bpe().to_str()
    for place in ("hf", "gguf", "web", "pipe/tokenizer"):
        (drive / place / "tokenizer.json").write_text(text)
        (drive / place / "qwen.tiktoken").write_bytes(tiktoken())
    for place in ("hf", "web"):
        (drive / place / "config.json").write_text('{"model_type": "llama"}')
    save_file(weights, drive / "hf" / "model.safetensors")
    a_gguf(drive / "gguf" / "small.gguf")
    save_file(weights, drive / "web" / "onnx" / "model.safetensors")
    (drive / "meta" / "tokenizer.model").write_bytes(piece_model)
    save_file(weights, drive / "meta" / "7B" / "model.safetensors")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (drive / "pipe" / "model_index.json").write_text(json.dumps(index))
    save_file(weights, drive / "pipe" / "unet" / "diffusion_pytorch_model.safetensors")
    modelhub("scan", drive)
    assert sorted(row["format"] for row in modelhub("ls", "--json").json) == [
        "diffusers", "gguf", "huggingface", "safetensors", "safetensors",
    ]  # fmt: skip
    # The user may ask for it all the same.
    assert modelhub("show", drive / "gguf" / "tokenizer.json", "--json").json["architecture"] == "BPE"


def test_a_tokenizer_to_which_weights_come_is_no_entry_any_more(tmp_path: Path, modelhub: Modelhub) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    bpe().save(str(home / "tokenizer.json"))
    (home / "config.json").write_text('{"model_type": "llama"}')
    modelhub("scan", tmp_path)
    assert [row["format"] for row in modelhub("ls", "--json").json] == ["tokenizer"]
    save_file({"w": np.ones((4, 4), np.float32)}, home / "model.safetensors")
    modelhub("scan", tmp_path)
    (row,) = [row for row in modelhub("ls", "--json").json if row["state"] != "missing"]
    assert (row["format"], len(row["files"])) == ("huggingface", 3)


def test_lists_and_documents_of_other_things_are_not_claimed(tmp_path: Path, modelhub: Modelhub) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / "vocab.txt").write_text("apple\nbanana\n[optional]\n")
    (drive / "vocab.json").write_text('{"words": ["a", "b"]}')
    (drive / "merges.txt").write_text("#version: 0.2\na b\n")
    (drive / "tokenizer.json").write_text('{"version": 3, "settings": {"model": "x"}}')
    (drive / "tekken.json").write_text('{"config": {"player": "Jin"}}')
    (drive / "word2vec.model").write_bytes(b"\x80\x04\x95 a pickle of gensim")
    (drive / "text.model").write_text("\n\n\nlines of text, which begin with a newline\n")
    (drive / "keys.tiktoken").write_text("not ranks\n")
    modelhub("scan", drive)
    assert modelhub("ls", "--json").json == []


def test_there_is_nothing_to_convert(tmp_path: Path, modelhub: Modelhub) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(tiktoken())
    ended = modelhub("convert", path, "--to", "safetensors", "-o", tmp_path / "x.safetensors", status=3)
    assert "no tensors" in ended.stderr
    assert "neither has tensors" in modelhub("diff", path, path, status=3).stderr
    assert not modelhub("verify", path, "--against", path, "--json", status=1).json[0]["ok"]


# --- what is broken -------------------------------------------------------------------------------------------------


def verified(modelhub: Modelhub, path: Path) -> str:
    ended = modelhub("verify", path, "--json", status=1)
    return " ".join(item["message"] for item in ended.json[0]["findings"] if item["severity"] == "error")


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], Any]) -> str:
    document = json.loads(tokenizer.to_str())
    change(document)
    return json.dumps(document)


def lose_token(document: dict[str, Any]) -> None:
    document["model"]["vocab"] = {token: number for token, number in document["model"]["vocab"].items() if token != "the"}


BROKEN: dict[str, tuple[Callable[[], Tokenizer], Callable[[dict[str, Any]], Any], str]] = {
    "merge": (bpe, lambda document: document["model"]["merges"].append(["q", "nowhere"]), "'nowhere', which is no token"),
    "merged": (bpe, lambda document: document["model"]["merges"].append(["q", "x"]), "makes a token that the vocabulary has not"),
    "lost": (bpe, lose_token, "makes a token that the vocabulary has not"),
    "same id": (wordpiece, lambda document: document["model"]["vocab"].update({"twice": 7}), "have the same id, 7"),
    "unknown": (wordlevel, lambda document: document["model"].update(unk_token="<none>"), "'<none>', is not in the vocabulary"),
    "unk_id": (unigram, lambda document: document["model"].update(unk_id=10**6), "unk_id is 1000000"),
    "added": (bpe, lambda document: document["added_tokens"][0].update(id=5), "has the id of"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_fails_its_verification(name: str, tmp_path: Path, modelhub: Modelhub) -> None:
    make, change, said = BROKEN[name]
    home = tmp_path / "mine"
    home.mkdir()
    (home / "tokenizer.json").write_text(changed(make(), change))
    assert said in verified(modelhub, home)


def test_bytes_without_tokens_are_a_warning_where_the_library_loads_them(tmp_path: Path, modelhub: Modelhub) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    text = changed(bpe(), lambda document: document["model"].update(byte_fallback=True))
    Tokenizer.from_str(text)
    (home / "tokenizer.json").write_text(text)
    (finding,) = modelhub("verify", home, "--json").json[0]["findings"]
    assert (finding["severity"], "no token for 256 of the 256" in finding["message"]) == ("warning", True)


def test_the_library_refuses_the_merges_that_verify_refuses(tmp_path: Path) -> None:
    for name in ("merge", "merged", "lost", "unk_id"):
        make, change, _ = BROKEN[name]
        with pytest.raises(Exception, match=r"."):
            Tokenizer.from_str(changed(make(), change))


def test_sentencepiece_models_that_the_library_refuses_fail(tmp_path: Path, piece_model: bytes, modelhub: Modelhub) -> None:
    extra = b"\n\x08\n\x01a\x15" + bytes(4)[:3]  # one field short
    twice = piece_model + b"\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03"
    unknown = piece_model + b"\n\x0e\n\x05<uk2>\x15\0\0\0\0\x18\x02"
    for data, said in ((twice, "more than once"), (unknown, "2 pieces stand for what is unknown"), (piece_model + extra, "")):
        with pytest.raises((RuntimeError, ValueError, OSError)):
            sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(data)
        path = tmp_path / "broken.model"
        path.write_bytes(data)
        assert said in verified(modelhub, path)


def test_ranks_that_are_wrong_fail(tmp_path: Path, modelhub: Modelhub) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(tiktoken() + base64.b64encode(b"zz") + b" 7\n")
    assert "the rank of another" in verified(modelhub, path)
    path.write_bytes(b"".join(tiktoken().splitlines(keepends=True)[1:]))
    assert "0x00" in verified(modelhub, path)
    document = tekken()
    document["config"]["default_vocab_size"] = 400
    other = tmp_path / "tekken.json"
    path.unlink()
    other.write_text(json.dumps(document))
    assert "lists 259 tokens, its settings ask for 397" in verified(modelhub, other)
    document["vocab"][7]["token_bytes"] = "\ud800"
    other.write_text(json.dumps(document))
    assert "token 7: " in verified(modelhub, other)


def test_documents_that_contradict_the_file_are_told(tmp_path: Path, modelhub: Modelhub) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    tokenizer = bpe()
    tokenizer.save(str(home / "tokenizer.json"))
    decoder = {"5": {"content": "<|end|>", "special": True}}
    (home / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "pad_token": "<none>"}))
    (home / "config.json").write_text(json.dumps({"vocab_size": 100}))
    messages = [item["message"] for item in modelhub("verify", home, "--json", status=1).json[0]["findings"]]
    assert any("has the id 5" in message for message in messages)
    assert any("the pad token, '<none>'" in message for message in messages)
    assert any("100 rows" in message for message in messages)


STEPS = '{"type":"Sequence","normalizers":['


def test_hostile_files_are_told_in_bounded_time(tmp_path: Path, modelhub: Modelhub) -> None:
    drive = tmp_path / "drive"
    start = '{"version":"1.0","truncation":null,"model":'
    files = {
        "deep": start + '{"type":"BPE","vocab":' + "[" * 100_000,
        "cut": bpe().to_str()[:-200],
        "odd": start + '{"type":"Magic","vocab":{}}}',
        "ids": start + '{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
        "huge": start + '{"type":"WordLevel","vocab":{"a":99999999999999999999}}}',
        "list": start + '{"type":"BPE","vocab":[1,2]}}',
        "steps": start + '{"type":"WordLevel","vocab":{"a":0}},"normalizer":' + STEPS * 200 + "]}" * 200 + "}",
    }  # fmt: skip
    for name, text in files.items():
        (drive / name).mkdir(parents=True)
        (drive / name / "tokenizer.json").write_text(text)
    started = time.monotonic()
    modelhub("scan", drive)
    assert time.monotonic() - started < 20
    states = {row["name"]: row["state"] for row in modelhub("ls", "--json").json}
    assert states == dict.fromkeys(files, "invalid") | {"steps": "ready"}


def test_thousands_of_pieces_files_in_one_directory_are_not_asked_about_each_other(
    tmp_path: Path, piece_model: bytes, modelhub: Modelhub
) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / "0.spm").write_bytes(piece_model)
    for number in range(1, 300):
        shutil.copy(drive / "0.spm", drive / f"{number}.spm")
    modelhub("scan", drive)
    assert len(modelhub("ls", "--json").json) == 300

"""Special tokens, what is put around a text, chat templates, families' own rules; and whatever a document holds in place of what
it should is said, never a crash. The expected keys were recorded from llama.cpp's converter run on the same documents."""

from __future__ import annotations

import json
from base64 import b64encode
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import FileProblem, InvalidFile, UnsupportedFile
from modelhub_gguf.documents import Documents
from modelhub_gguf.fields import string
from modelhub_gguf.tokenizers import documents, fields
from modelhub_gguf.tokenizers.sentencepiece import parse

from tests.plugins.gguf.vocabularies import LLAMA, added, back, save, to_gguf, train_pieces, unlike

SIGNS = {"<s>": 259, "</s>": 260, "<sep>": 261, "<turn>": 262}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def bytewise(post_processor: Any = None, *extra: dict[str, Any]) -> dict[str, Any]:
    """A byte-level BPE of the bytes, one merge, and four signs."""
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "Ġt"]
    return {
        "added_tokens": [added(0, "<|endoftext|>"), *(added(number, sign) for sign, number in SIGNS.items()), *extra],
        "normalizer": None,
        "pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": False},
        "post_processor": post_processor,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": [["t", "h"]]},
    }


def around(single: str, pair: str) -> dict[str, Any]:
    """A post-processor of templates: "<s> A </s>"."""

    def entries(template: str) -> list[dict[str, Any]]:
        return [
            {"Sequence": {"id": word, "type_id": 0}} if word in "AB" else {"SpecialToken": {"id": word, "type_id": 0}}
            for word in template.split()
        ]

    return {"type": "TemplateProcessing", "single": entries(single), "pair": entries(pair), "special_tokens": {}}


ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
CASES: dict[str, tuple[Any, dict[str, Any] | None, dict[str, Any], dict[str, Any]]] = {
    "the post-processor rules over the flags": (
        BYTE_LEVEL,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": True},
        {},
        {"bos_token_id": 0, "eos_token_id": 0, "add_bos_token": False, "add_eos_token": False},
    ),
    "a bos": (
        around("<s> A", "<s> A <s> B"),
        {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "pad_token": "<turn>"},
        {},
        {"bos_token_id": 259, "eos_token_id": 260, "padding_token_id": 262, "add_bos_token": True, "add_sep_token": False},
    ),
    "bos and eos, a pad from config.json": (
        around("<s> A </s>", "<s> A </s> <s> B </s>"),
        ENDS,
        {"pad_token_id": 261},
        {
            "bos_token_id": 259, "eos_token_id": 260, "padding_token_id": 261,
            "add_bos_token": True, "add_eos_token": True, "add_sep_token": False,
        },
    ),
    "another end than the eos": (
        around("<s> A <turn>", "<s> A <turn> B <turn>"),
        ENDS,
        {},
        {
            "bos_token_id": 259, "eos_token_id": 262, "eot_token_id": 260,
            "add_bos_token": True, "add_eos_token": True, "add_sep_token": False,
        },
    ),
    "cls and sep": (
        around("<s> A <sep>", "<s> A <sep> B <sep>"),
        {"cls_token": "<s>", "sep_token": "<sep>", "mask_token": "<turn>"},
        {},
        {
            "bos_token_id": 259, "eos_token_id": 261, "seperator_token_id": 261, "mask_token_id": 262,
            "add_bos_token": True, "add_eos_token": True, "add_sep_token": False,
        },
    ),
    "a sep between two texts": (
        around("<s> A", "<s> A <sep> B"),
        {**ENDS, "sep_token": "<sep>"},
        {},
        {"bos_token_id": 259, "eos_token_id": 260, "seperator_token_id": 261, "add_bos_token": True, "add_sep_token": True},
    ),
    "two ends between two texts": (
        around("<s> A </s>", "<s> A </s> </s> B </s>"),
        ENDS,
        {},
        {
            "bos_token_id": 259, "eos_token_id": 260, "seperator_token_id": 260,
            "add_bos_token": True, "add_eos_token": True, "add_sep_token": True,
        },
    ),
    "a sequence of post-processors": (
        {"type": "Sequence", "processors": [BYTE_LEVEL, around("<s> A", "<s> A <s> B")]},
        {**ENDS, "add_eos_token": False},
        {},
        {"bos_token_id": 259, "eos_token_id": 260, "add_bos_token": True, "add_eos_token": False, "add_sep_token": False},
    ),
    "a first token of no name": (
        around("<turn> A", "<turn> A <turn> B"),
        {**ENDS, "cls_token": "<sep>"},
        {},
        {"bos_token_id": 259, "eos_token_id": 260, "add_bos_token": False, "add_sep_token": False},
    ),
    "ids that lie deeper, and a list of ends": (
        None,
        None,
        {"bos_token_id": 259, "eos_token_id": [260, 262], "text_config": {"pad_token_id": 261}},
        {"bos_token_id": 259, "padding_token_id": 261},
    ),
    "ids past the last row": (None, ENDS, {"pad_token_id": 4000}, {"bos_token_id": 259, "eos_token_id": 260}),
    "named chat templates": (
        None,
        {"bos_token": "<s>", "chat_template": [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]},
        {"eos_token_id": 260},
        {
            "bos_token_id": 259, "eos_token_id": 260,
            "chat_template.tool_use": "T", "chat_templates": ["tool_use"], "chat_template": "D",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_special_tokens(name: str, tmp_path: Path) -> None:
    post_processor, tokenizer_config, config, expected = CASES[name]
    save(tmp_path, tokenizer_json=bytewise(post_processor))
    if tokenizer_config is not None:
        save(tmp_path, tokenizer_config_json=tokenizer_config)
    keys = to_gguf(tmp_path, "gpt2", 264, **config)
    mine = {key.removeprefix("tokenizer.").removeprefix("ggml."): field.value for key, field in keys.items()}
    for key in ("model", "pre", "tokens", "token_type", "merges"):
        del mine[key]
    assert mine == expected
    back(tmp_path / "back", keys)
    lost = unlike(keys, to_gguf(tmp_path / "back", "gpt2", 264))
    # Hugging Face's documents have no name for the end of a turn; and that nothing is put between two texts goes without saying.
    assert {*lost} <= {"tokenizer.ggml.eot_token_id", *(key for key in lost if keys[key].value is False)}


def test_chat_templates_in_files_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, tokenizer_json=bytewise(), tokenizer_config_json=ENDS, chat_template_jinja="main")
    save(tmp_path / "additional_chat_templates", rag_jinja="from documents", tool_jinja="with tools")
    keys = to_gguf(tmp_path)
    assert keys["tokenizer.chat_template"].value == "main"
    assert keys["tokenizer.chat_template.rag"].value == "from documents"
    assert keys["tokenizer.chat_templates"].value == ["rag", "tool"]
    assert back(tmp_path / "back", keys).chat_template == {"default": "main", "rag": "from documents", "tool": "with tools"}


def test_a_chat_template_in_a_json_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, tokenizer_json=bytewise(), chat_template_json={"chat_template": "from json"})
    assert to_gguf(tmp_path)["tokenizer.chat_template"].value == "from json"


@pytest.mark.parametrize(
    ("architecture", "signs", "expected"),
    [
        ("glm4", ("<|endoftext|>", "<|user|>"), {"bos": 0, "eos": 0, "unknown": 0, "eot": 263}),
        ("glm4moe", ("[gMASK]", "<|user|>", "<|observation|>"), {"bos": 263, "eot": 264, "unknown": 0, "eom": 265}),
        ("chatglm", ("<|user|>",), {"eos": 0, "eot": 263, "unknown": 0}),
    ],
)
def test_families_that_name_more_tokens(
    architecture: str, signs: tuple[str, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    new = [added(263 + number, sign) for number, sign in enumerate(sign for sign in signs if sign != "<|endoftext|>")]
    keys = to_gguf(save(tmp_path, tokenizer_json=bytewise(None, *new)), architecture)
    assert {name: keys[f"tokenizer.ggml.{name}_token_id"].value for name in expected} == expected


def test_internlm2(tmp_path: Path) -> None:
    model = train_pieces("bpe", **LLAMA, user_defined_symbols=["[UNUSED_TOKEN_1]", "<|im_end|>"])
    keys = to_gguf(save(tmp_path, tokenizer_model=model), "internlm2", bos_token_id=1, eos_token_id=2)
    assert keys["tokenizer.ggml.eos_token_id"].value == 4
    assert keys["tokenizer.ggml.token_type"].value[3:5] == [5, 4]
    assert keys["tokenizer.ggml.add_space_prefix"].value is True


def test_ranks_of_tiktoken(tmp_path: Path) -> None:
    ranks = b"".join(b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    save(tmp_path, tokenizer_model=ranks)
    with pytest.raises(UnsupportedFile, match="lists 256 tokens as tiktoken does"):
        to_gguf(tmp_path)


def test_ranks_of_llama_3_are_merges(tmp_path: Path) -> None:
    """128,000 made-up ranks: pairs, triples and quadruples of bytes, so that every one can be merged from others."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [first + second for first in tokens[:256] for second in tokens[:256]]
    tokens += [pair + tokens[number % 256] for number, pair in enumerate(tokens[256 : 256 + 128_000 - len(tokens)])]
    assert len(tokens) == len({*tokens}) == 128_000
    save(tmp_path, tokenizer_model=b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    keys = to_gguf(tmp_path, vocab_size=128_256)
    merges = keys["tokenizer.ggml.merges"].value
    assert (keys["tokenizer.ggml.pre"].value, len(keys["tokenizer.ggml.tokens"].value)) == ("llama-bpe", 128_256)
    assert merges[:2] == ["Ā Ā", "Ā ā"]
    assert len(merges) == 65_536 + 2 * (128_000 - 256 - 65_536)  # a triple may be merged in either order
    assert keys["tokenizer.ggml.tokens"].value[128_000] == "<|begin_of_text|>"
    assert keys["tokenizer.ggml.eot_token_id"].value == 128_009
    assert keys["tokenizer.ggml.add_bos_token"].value is True


# --- what is wrong is said ----------------------------------------------------------------------------------------


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFile, match="no tokenizer beside the weights") as caught:
        to_gguf(save(tmp_path, config_json={}))
    assert "tokenizer.model" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "'a' and 'b' have the same id, 0"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "-1 is not the id of a token"),
        ({"model": {"type": "BPE", "vocab": {"a": 10**12}, "merges": []}}, "1000000000000 is not the id of a token"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "the vocabulary is empty"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b"]]}}, "piece 1 is \\['b'\\]"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "WordLevel that llama.cpp has no notation for"),
        ({"added_tokens": [{"id": 7, "content": "th"}]}, "the tokens 7 and 257 are both 'th'"),
        ({"added_tokens": [{"id": "7", "content": "x"}]}, "'x' with the id '7' is not an added token"),
        ({"added_tokens": [{"id": 1 << 30, "content": "x"}]}, "is not an added token"),
    ],
)
def test_broken_documents(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=message):
        to_gguf(save(tmp_path, tokenizer_json={**bytewise(), **change}))


def test_documents_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="not JSON"):
        to_gguf(save(tmp_path / "a", tokenizer_json="{"))
    with pytest.raises(InvalidFile, match="JSON list"):
        to_gguf(save(tmp_path / "b", tokenizer_json="[]"))
    with pytest.raises(InvalidFile, match="not UTF-8: byte 1"):
        to_gguf(save(tmp_path / "c", tokenizer_json=bytewise(), chat_template_jinja=b"a\xff"))
    with pytest.raises(InvalidFile, match="not a SentencePiece model"):
        to_gguf(save(tmp_path / "d", tokenizer_model=b"\0" * 100))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.just([[1, 2]]), st.just({"type": "Sequence"}), st.just([{"id": 3}]), st.just("ByteLevel"), st.just(1 << 70),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_document_is_no_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tokenizer = deepcopy(bytewise(around("<s> A </s>", "<s> A </s> B </s>")))
    settings_ = {
        **ENDS,
        "added_tokens_decoder": {"263": added(263, "<x>")},
        "chat_template": [{"name": "default", "template": "D"}],
    }
    tokenizer["model"]["byte_fallback"] = data.draw(st.booleans())
    tokenizer["model"]["type"] = data.draw(st.sampled_from(["BPE", "BPE", "Unigram", "WordPiece"]))
    if tokenizer["model"]["type"] == "Unigram":
        tokenizer["model"]["vocab"] = [[token, -1.0] for token in tokenizer["model"]["vocab"]]
    for document in (tokenizer, settings_):
        place: Any = document
        for _ in range(data.draw(st.integers(1, 5))):
            names = [*place] if isinstance(place, dict) else [*range(len(place))]
            if not names:
                break
            name = data.draw(st.sampled_from(names[:40]))
            if isinstance(place[name], (dict, list)) and data.draw(st.booleans()):
                place = place[name]
                continue
            place[name] = deepcopy(data.draw(JUNK))
            break
    directory = tmp_path_factory.mktemp("junk")
    save(directory, tokenizer_json=json.dumps(tokenizer), tokenizer_config_json=json.dumps(settings_))
    files = [str(path) for path in directory.iterdir()]
    try:
        keys = fields(Documents(files), {"eos_token_id": data.draw(JUNK)}, architecture="llama", vocab_size=0)
    except FileProblem:
        return
    assert len(keys["tokenizer.ggml.tokens"].value) == len(keys["tokenizer.ggml.token_type"].value)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_pieces("bpe", **LLAMA, size=500)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_model_is_no_crash(model: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(model) - 1))
    damaged = data.draw(
        st.sampled_from([model[:at], model[:at] + bytes([data.draw(st.integers(0, 255))]) + model[at + 1 :], model[at:]])
    )
    try:
        found = parse(damaged, "tokenizer.model")
    except InvalidFile:
        return
    assert len(found.pieces) == len(found.scores) == len(found.types)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": string("rwkv")}, "tokenizer.ggml.model is 'rwkv'"),
        ({"tokenizer.ggml.pre": string("unheard-of")}, "how that cuts text is not known here"),
        ({"tokenizer.ggml.tokens": string("a")}, "tokenizer.ggml.tokens is string, an array of strings"),
        ({"tokenizer.ggml.merges": None}, ""),
        ({"tokenizer.ggml.model": string("llama")}, "tokenizer.ggml.scores has 0 items for"),
        ({"tokenizer.ggml.model": string("none")}, ""),
    ],
)
def test_headers_that_cannot_go_back(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    keys = {**to_gguf(save(tmp_path, tokenizer_json=bytewise())), **changes}
    keys = {key: field for key, field in keys.items() if field is not None}
    if message:
        with pytest.raises(FileProblem, match=message):
            documents(keys)
    else:
        assert set(documents(keys)) == (
            set() if changes.get("tokenizer.ggml.model") else {"tokenizer.json", "tokenizer_config.json"}
        )

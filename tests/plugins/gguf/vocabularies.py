"""Small tokenizers of every kind for the tests: trained here by the libraries that trained the real ones, written as a GGUF that
llama.cpp loads, and asked of llama.cpp and of Hugging Face's library, which must agree on hard text.
"""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from modelhub_gguf.documents import Documents
from modelhub_gguf.fields import ARRAY, Field
from modelhub_gguf.tokenizers import documents, fields

from tests.plugins.gguf.logits import quiet, served

MARKS = "កាន់តែពិសេសអាចខលចេញ हिन्दी"
"""Scripts whose vowels are marks on the letter before."""
KOREAN = "日本語のテキスト、カタカナ。한국어 텍스트"
DECOMPOSED = "re\u0301sume\u0301 A\u0308pfel"
MIXED_DIGITS = "我想在apple工作1314151天～"
HARD = (
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", "\r\n",
    "Hello world", " Hello world", "  Hello World!  ", "Hello, world!", "    Hello\n    Hello", "trailing   ", "a  b   c    d",
    "3", "33", "333", "3333", "33333", "333333", "3333333", "3.14159, 1e-10 and 0x1F", "w048 7tuijk dsdfhu", "ied 4 ½ months ²³",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL", "' era", "\n =", " (",
    "def f(x):\n\treturn x ** 2  # comment\n\n\nclass A:\n    pass\n", "x=1;y=[1,2,3];z={'a':1.5e-10}",
    "for (i=0;i<n;++i) {\r\n\t}\r\n",
    "CamelCaseWORDSAndNumbers123abc", "`ticks` ``` ~~~ ------ ====== //// /* */ <tag> $x ^_^ !!!!!!", "https://a.b/c?d=e&f=%20#g",
    "Äpfel, résumé, naïve, ñandú, Cửa Việt", "нещо на Български", "ΑΒΓ αβγ ς", "العربية עברית ไทย",
    "this is 🦙.cpp 😶\u200d🌫️ 🚀✅",
    "a\u00a0b\u2003c\u200bd\u3000e", MARKS, KOREAN, DECOMPOSED, MIXED_DIGITS,
)  # fmt: skip
"""Digits, code, emoji, scripts with and without spaces, accents in both forms, and every way in which white space can stand."""


def corpus() -> list[str]:
    """What the tokenizers are trained on: the hard text, so that it has tokens of its own, and a page of English."""
    page = Path(__file__).parents[3].joinpath("docs", "plugins.md").read_text(encoding="utf-8")
    return [text for text in HARD if text.strip()] * 20 + page.split("\n\n")


def train_bytewise(
    pre_tokenizer: Mapping[str, Any],
    *,
    special: Sequence[str] = ("<|endoftext|>",),
    ignore_merges: bool = False,
    normalizer: Mapping[str, Any] | None = None,
    post_processor: Mapping[str, Any] | None = None,
    size: int = 1000,
) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE that cuts text as ``pre_tokenizer`` says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    parts = {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "decoder": decoder}
    tokenizer = Tokenizer.from_str(
        json.dumps({**json.loads(Tokenizer(models.BPE(ignore_merges=ignore_merges)).to_str()), **parts})
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return {**json.loads(tokenizer.to_str()), "post_processor": post_processor}


def train_pieces(kind: str, *, size: int = 900, **settings: Any) -> bytes:
    """A SentencePiece model of ``kind`` ("bpe", "unigram"), the same each time: sums that threads share round as they come, and
    pieces that are as likely as each other are cut differently by different programs. ``settings``: of the trainer."""
    import sentencepiece

    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=output,
        vocab_size=size,
        model_type=kind,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return output.getvalue()


LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
"""How Llama's own SentencePiece model was trained."""


def llama_tokenizer(model: bytes, *, prefix: bool = True) -> dict[str, Any]:
    """The tokenizer.json that Hugging Face published for Llama 2 (without ``prefix``: Gemma), over the pieces of ``model``."""
    import sentencepiece
    from transformers.convert_slow_tokenizer import generate_merges

    reader = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = range(reader.vocab_size())
    vocabulary = {reader.id_to_piece(number): number for number in count}
    special = [number for number in count if reader.is_control(number) or reader.is_unknown(number)]
    scores = {piece: reader.get_score(number) for piece, number in vocabulary.items()}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    return {
        "version": "1.0",
        "added_tokens": [added(number, reader.id_to_piece(number)) for number in special],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "post_processor": template("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": generate_merges(vocabulary, scores),
        },
    }


def added(number: int, content: str, *, special: bool = True) -> dict[str, Any]:
    """An entry of ``added_tokens``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def template(bos: str, number: int) -> dict[str, Any]:
    """A post-processor that puts ``bos`` before a text."""
    first: dict[str, Any] = {"SpecialToken": {"id": bos, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": at}} for at, name in enumerate("AB"))
    special = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, first, two], "special_tokens": special}


# --- both sides ---------------------------------------------------------------------------------------------------


def save(directory: Path, **contents: Any) -> Path:
    """A directory of documents: ``tokenizer_json={...}`` is written as tokenizer.json; bytes and text as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        stem, _, suffix = name.rpartition("_")
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        directory.joinpath(f"{stem}.{suffix}").write_bytes(data)
    return directory


def to_gguf(directory: Path, architecture: str = "llama", vocab_size: int = 0, pre: str = "", **config: Any) -> dict[str, Field]:
    """The keys that modelhub makes of a directory's documents."""
    found = Documents([str(path) for path in directory.rglob("*") if path.is_file()])
    return fields(found, config, architecture=architecture, vocab_size=vocab_size, pre=pre)


def back(directory: Path, keys: Mapping[str, Field]) -> Any:
    """What ``AutoTokenizer`` makes of the documents that modelhub makes of ``keys``."""
    return auto_tokenizer(save(directory, **{name.replace(".", "_"): data for name, data in documents(keys).items()}))


def auto_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    quiet()
    return AutoTokenizer.from_pretrained(directory)


def tokenizer_of(tokenizer: Mapping[str, Any]) -> Any:
    """Hugging Face's tokenizer of a tokenizer.json."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(tokenizer))


def write(path: Path, keys: Mapping[str, Field]) -> Path:
    """A GGUF with these keys and a Llama of one tiny layer of zeros, by gguf-py's writer."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("context_length", 512), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 32)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, field in keys.items():
        if field.type != ARRAY:
            writer.add_key_value(key, field.value, gguf.GGUFValueType(field.type))
        elif len(field.value):
            writer.add_key_value(key, field.value, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType(field.item))
    rows = len(keys["tokenizer.ggml.tokens"].value)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Tokenize = Callable[[str, bool], list[int]]
"""From a text to token ids; whether special tokens are put around it."""


@contextmanager
def llama_cpp(path: Path) -> Iterator[Tokenize]:
    """llama.cpp's tokenizer of a GGUF. Special tokens in a text are found there."""
    with served(path) as server:

        def tokenize(text: str, special: bool) -> list[int]:
            body = json.dumps({"content": text, "add_special": special, "parse_special": True}).encode()
            request = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                ids: list[int] = json.loads(answer.read())["tokens"]
                return ids

        yield tokenize


def differing(one: Tokenize, other: Tokenize, texts: Iterable[str] = HARD, weigh: Callable[[list[int]], Any] = list) -> set[str]:
    """The texts that two tokenizers do not cut alike, with or without special tokens around them. ``weigh``: what of a text's
    tokens must be equal."""
    return {text for text in texts if any(weigh(one(text, special)) != weigh(other(text, special)) for special in (False, True))}


def likelihood(model: bytes, *, shift: int = 0) -> Callable[[list[int]], tuple[str, float]]:
    """For `differing`: the text and the score of a Unigram model's tokens. Of two ways to cut "~~~" that are as likely, each
    library takes another, and how the scores are rounded in training decides whether there are two."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    size = processor.vocab_size()

    def weigh(ids: list[int]) -> tuple[str, float]:
        own = [number - shift for number in ids if shift <= number < size + shift]
        strange = [f"<{number}>" for number in ids if not shift <= number < size + shift]
        return "".join([*map(processor.id_to_piece, own), *strange]), round(sum(map(processor.get_score, own)), 3)

    return weigh


def unlike(one: Mapping[str, Field], other: Mapping[str, Field]) -> list[str]:
    """The keys of ``one`` whose values ``other`` has not."""
    return [key for key, field in one.items() if key not in other or list_of(other[key]) != list_of(field)]


def list_of(field: Field) -> Any:
    return list(field.value) if field.type == ARRAY else field.value


def encoder(tokenizer: Any) -> Tokenize:
    """Of Hugging Face's library, or of transformers."""

    def tokenize(text: str, special: bool) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=special)
        return list(getattr(found, "ids", found))

    return tokenize

"""Which files are a tokenizer, and when it stands alone.

A directory with one of the usual names (`tokenizer.json`, `tokenizer.model`, `vocab.json` with `merges.txt`, ...) is one
tokenizer, with what stands around it; files with names of their own (`qwen.tiktoken`, `tekken_240911.json`) are one each. Content
decides: a list of words that is called `vocab.txt` is none.

Beside a model a tokenizer is the model's: in the same directory as weights, above a directory of them (Meta's layout, `onnx/`),
or in a directory `tokenizer` of a pipeline. It is not listed then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from modelhub import Detection, File, FileProblem, Listing

from modelhub_tokenizers import library, plain, ranks, sentencepiece
from modelhub_tokenizers.contents import Tokenizer

Parser: TypeAlias = "Callable[[File, bool], Tokenizer]"

SUFFIXES = (".json", ".model", ".spm", ".tiktoken", "vocab.txt", "merges.txt", "vocab.bpe")
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm")
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
SINGLE = (library.NAME, *PIECES, "tekken.json", "vocab.txt")
USUAL = frozenset((*SINGLE, *(name for pair in PAIRS for name in pair)))
SETTINGS = "tokenizer_config.json"
CONFIDENCE = 92

_AROUND = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|tokenizer_config|chat_template|config|generation_config|vocab|tekken|normalizer|"
    r"(pre)?processor_config)\.json|merges\.txt|vocab\.(txt|bpe)|encoder\.json|tokenizer\.model|(spiece|sentencepiece(\.bpe)?)\.model|"
    r"(source|target)\.spm|tokenization_\w+\.py|chat_template\.jinja|readme\.md|license(\.\w+)?|\.gitattributes",
    re.IGNORECASE,
)
"""What belongs to a directory's tokenizer."""
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".keras", ".msgpack", ".tflite",
    ".pb", ".npz", ".mlmodel", ".pdparams", ".pdmodel", ".nemo", ".engine", ".pte", ".mnn", ".param", ".ot", ".llamafile",
    ".index", ".index.json",
)  # fmt: skip
_HOLDERS = {
    "onnx", "openvino", "gguf", "ggml", "coreml", "tflite", "mlx", "weights", "model", "models", "checkpoints", "variables",
}  # fmt: skip
"""Directories of a model, which stand below its tokenizer."""
_PARTS = re.compile(r"tokenizer(_\d+)?|(pre)?processor|feature_extractor|assets|vocab(ulary)?", re.IGNORECASE)
"""Directories that are part of a model, or say nothing by their names."""
_VERSION = re.compile(r"\.model\.v\d+\w*", re.IGNORECASE)
MAX_DIRECTORIES = 64


def detect_directory(listing: Listing) -> Detection | None:
    """A directory with a tokenizer of the usual names, and no model."""
    if USUAL.isdisjoint(listing.files) or _has_weights(listing.files):  # names alone tell nearly always
        return None
    mains = _mains(listing)
    if not mains or _is_a_models(listing.path, mains[0], listing.files):
        return None
    files = [*mains, *(name for name in listing.files if name not in mains and _AROUND.fullmatch(name))]
    above = os.path.basename(os.path.dirname(listing.path))
    name = f"{above}/{listing.name}" if above and _PARTS.fullmatch(listing.name) else ""
    return Detection([listing.join(file) for file in files], confidence=CONFIDENCE, name=name)


def _mains(listing: Listing) -> list[str]:
    for name in SINGLE:
        if name in listing and _is_tokenizer(listing.file(name)):
            return [name]
    for vocabulary, merges in PAIRS:
        if vocabulary in listing and merges in listing and _is_pair(listing.file(vocabulary), listing.file(merges)):
            return [vocabulary, merges]
    if "vocab.json" in listing and SETTINGS in listing and _safely(plain.is_ids, listing.file("vocab.json")):
        return ["vocab.json"]
    return []


def detect(file: File) -> Detection | None:
    """A tokenizer in a file of its own name; a file that was asked for, also beside a model."""
    name = file.name
    files = _files(file)
    if not files:
        return None
    directory = os.path.dirname(file.path)
    if not file.asked and _is_a_models(directory, name, file.siblings):
        return None
    called = (
        name if _VERSION.search(name) else re.sub(r"(?<=.)[-_.](vocab|encoder)\.json$", "", files[0]) if len(files) > 1 else ""
    )
    return Detection([os.path.join(directory, each) for each in files], confidence=CONFIDENCE, name=called)


def _files(file: File) -> list[str]:
    """The names of the files of the tokenizer that ``file`` is one of, the vocabulary first."""
    for ending, other in (pair for one, two in PAIRS for pair in ((one, two), (two, one))):
        if file.name.endswith(ending):
            partner = file.name.removesuffix(ending) + other
            if partner not in file.siblings:
                continue
            with File(os.path.join(os.path.dirname(file.path), partner), file.siblings[partner]) as second:
                ids, merges = (file, second) if ending.endswith(".json") else (second, file)
                if _is_pair(ids, merges):
                    return [ids.name, merges.name]
    return [file.name] if _is_tokenizer(file) else []


def parser_of(file: File) -> Parser | None:
    """What reads a tokenizer that is one file; None where it is none."""
    name = file.name.lower()
    if name.endswith(".json"):
        if name.endswith(library.NAME):
            return library.parse if library.is_library(file) else None
        return ranks.tekken if "tekken" in name and ranks.is_tekken(file) else None
    if name.endswith("vocab.txt"):
        return plain.wordpiece if plain.is_wordpiece(file) else None
    if name.endswith((".tiktoken", ".model")) and ranks.is_tiktoken(file):
        return ranks.tiktoken
    return sentencepiece.parse if sentencepiece.is_model(file) else None


def _is_tokenizer(file: File) -> bool:
    return _safely(lambda file: parser_of(file) is not None, file)


def _is_pair(vocabulary: File, merges: File) -> bool:
    return _safely(plain.is_ids, vocabulary) and _safely(plain.is_merges, merges)


def _safely(look: Callable[[File], bool], file: File) -> bool:
    try:
        return look(file)
    except (FileProblem, OSError):
        return False


# --- what is beside -----------------------------------------------------------------------------------------------


_last: tuple[Mapping[str, int], bool, bool] = {}, False, False


def _is_a_models(directory: str, main: str, names: Mapping[str, int]) -> bool:
    """Whether there are weights that this tokenizer is for: beside it, below its directory, or beside or above a directory that
    is a part. The last answer is kept: thousands of files may lie in one directory, and each of them asks."""
    global _last
    is_metas = main == "tokenizer.model"
    if _last[0] is not names or _last[1] != is_metas:
        _last = names, is_metas, _has_weights(names) or _is_near(directory, is_metas or "config.json" in names)
    return _last[2]


def _is_near(directory: str, anywhere: bool) -> bool:
    """``anywhere``: any directory below is looked into, else those alone that are called as a model's parts are."""
    above = os.path.dirname(directory)
    if _PARTS.fullmatch(os.path.basename(directory)) and (_has_weights(_names(above)[0]) or _any_below(above, anywhere=True)):
        return True
    return _any_below(directory, anywhere=anywhere)


def _any_below(directory: str, *, anywhere: bool) -> bool:
    below = [name for name in _names(directory)[1] if anywhere or name.lower() in _HOLDERS][:MAX_DIRECTORIES]
    return any(_has_weights(_names(os.path.join(directory, name))[0]) for name in below)


def _has_weights(names: Iterable[str]) -> bool:
    return any(name.lower().endswith(_WEIGHTS) for name in names)


def _names(directory: str) -> tuple[list[str], list[str]]:
    """(files, directories) of a directory that is not the one which is looked at; nothing where it cannot be listed."""
    try:
        with os.scandir(directory) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        return [], []
    return [name for name, is_directory in listed if not is_directory], [name for name, is_directory in listed if is_directory]

"""What is wrong with a GGUF file that can be read: rules of ggml's own reader that are stricter than the format, keys that are
missing or contradict the tensors, tokenizer tables that do not fit together.

Rules: ``ggml/src/gguf.cpp`` (``gguf_init_from_reader``), the GGUF specification ("Required", "LLM", "Tokenizer"), and
``src/llama-vocab.cpp``. Whether a model runs is `modelhub_gguf.runnable`'s question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modelhub import Checkpoint, Finding, Table

from modelhub_gguf import keys, splits
from modelhub_gguf.fields import ARRAY, STRING, Field, describe
from modelhub_gguf.header import Header, parse
from modelhub_gguf.types import BY_NAME
from modelhub_gguf.writer import MAX_DIMENSIONS, MAX_TENSOR_NAME

NAME = "gguf-structure"
_BLOCK = re.compile(r"blk\.(\d{1,6})\.", re.ASCII)
_NEEDED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
"""Of a language model (GGUF specification, "LLM"); all but the first two may be a list, one item a block."""
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask")
_UNSET = (-1, 0xFFFFFFFF)
_TABLES = ("scores", "token_type")


def run(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """The findings of one checkpoint, file by file and then as a whole."""
    files = [file for file in checkpoint if file.head.startswith(b"GGUF")]
    headers = [parse(file) for file in files]
    for header, file in zip(headers, files, strict=True):
        yield from _layout(header, file.name, file.size)
    fields, lengths = splits.merged(headers)
    shapes = {tensor.name: tensor.shape for tensor in table.stored}
    whole = _Whole(fields, lengths, shapes, [tensor.dtype for tensor in table.stored])
    for message, severe in (*_general(whole), *_language_model(whole), *_tokenizer(whole)):
        yield Finding(NAME, "error" if severe else "warning", message)


class _Whole(NamedTuple):
    """The keys of a checkpoint, the lengths of its arrays, its tensors' shapes by name, and their dtypes in the same order."""

    fields: Mapping[str, Field]
    lengths: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Sequence[str]

    def number(self, key: str) -> int | None:
        return splits.count_of(self.fields, key)

    def text(self, key: str) -> str:
        value = keys.plain(self.fields.get(key))
        return value if isinstance(value, str) else ""


_Said = Iterator[tuple[str, bool]]
"""(message, whether it is an error)."""


def _layout(header: Header, name: str, size: int) -> Iterator[Finding]:
    """What ggml refuses though the format allows it, and bytes that are nobody's."""
    end = 0
    gaps = False
    for tensor, shape, offset, nbytes in zip(
        header.columns.names, header.columns.shapes, header.columns.offsets, header.columns.nbytes, strict=True
    ):
        length = len(tensor.encode("utf-8", "surrogateescape"))
        if length > MAX_TENSOR_NAME:
            message = f"its name is {length} bytes long; ggml takes {MAX_TENSOR_NAME} and refuses the file"
            yield Finding(NAME, "error", message, tensor=tensor, file=name)
        if len(shape) > MAX_DIMENSIONS:
            message = f"it has {len(shape)} dimensions; ggml takes {MAX_DIMENSIONS} and refuses the file"
            yield Finding(NAME, "error", message, tensor=tensor, file=name)
        start = offset - header.data_start
        if start != end and not gaps:
            gaps = True  # those behind it are off as well
            message = f"it starts at {start} of the data, {end} was expected: ggml wants tensors in order and without holes"
            yield Finding(NAME, "error", message, tensor=tensor, file=name)
        end = start + nbytes + -nbytes % header.alignment
    if header.alignment % 8:
        yield Finding(NAME, "warning", f"general.alignment is {header.alignment}, a multiple of 8 was expected", file=name)
    used = max((o + n for o, n in zip(header.columns.offsets, header.columns.nbytes, strict=True)), default=header.data_start)
    rest = size - used
    if rest > header.alignment:
        yield Finding(NAME, "warning", f"{rest} bytes behind the last tensor belong to nothing", file=name)


def _general(whole: _Whole) -> _Said:
    kind = whole.text("general.type") or "model"
    if "general.architecture" not in whole.fields:
        if kind == "model":
            yield "general.architecture is missing: nothing knows how to load it", True
    elif whole.fields["general.architecture"].type != STRING:
        yield f"general.architecture is a {describe(whole.fields['general.architecture'])}, a string was expected", True
    quantized = any(name in BY_NAME and BY_NAME[name].block > 1 for name in whole.dtypes)
    version = whole.number("general.quantization_version")
    if quantized and version is None:
        yield "general.quantization_version is missing, and there are quantized tensors", False
    elif quantized and version != 2:
        yield f"general.quantization_version is {version}: blocks as they have been since May 2023 are version 2", False
    claimed = keys.file_type(whole.fields)
    most = keys.main_dtype(list(whole.shapes), whole.dtypes, list(whole.shapes.values()))
    if claimed and most and most not in claimed.dtypes:
        yield f"general.file_type says {claimed.label}, most of the weights are {most}", False


def _language_model(whole: _Whole) -> _Said:
    """The keys that a language model cannot do without, against its tensors."""
    architecture = whole.text("general.architecture")
    if not architecture or "token_embd.weight" not in whole.shapes:
        return
    for key in _NEEDED:
        if f"{architecture}.{key}" not in whole.fields and not (key == "feed_forward_length" and _no_feed_forward(whole)):
            yield f"{architecture}.{key} is missing", key in ("context_length", "embedding_length", "block_count")
    embedding = whole.shapes["token_embd.weight"]
    width = whole.number(f"{architecture}.embedding_length")
    apart = f"{architecture}.features_length" in whole.fields  # what goes in is then of another width
    if width is not None and len(embedding) == 2 and embedding[1] != width and not apart:
        yield f"{architecture}.embedding_length is {width}, token_embd.weight has {embedding[1]} columns", True
    tokens = whole.lengths.get("tokenizer.ggml.tokens")
    if tokens is not None and len(embedding) == 2 and embedding[0] != tokens:
        yield f"there are {tokens} tokens, and token_embd.weight has {embedding[0]} rows", True
    blocks = whole.number(f"{architecture}.block_count")
    there = {int(match[1]) for name in whole.shapes if (match := _BLOCK.match(name))}
    if blocks is not None and there:
        missing = sorted(set(range(min(blocks, 100_000))) - there)
        if missing:
            # Some architectures leave blocks out; none its last ones.
            yield (
                f"{architecture}.block_count is {blocks}, and there is no tensor of block {missing[0]}",
                missing[-1] > max(there),
            )
        if max(there) >= blocks:
            yield f"{architecture}.block_count is {blocks}, and there are tensors of block {max(there)}", False


def _no_feed_forward(whole: _Whole) -> bool:
    return not any(".ffn_" in name for name in whole.shapes)


def _tokenizer(whole: _Whole) -> _Said:
    prefix = "tokenizer.ggml."
    if f"{prefix}tokens" not in whole.fields:
        if whole.text(f"{prefix}model") not in ("", "none", "no_vocab"):
            yield f"{prefix}model is {whole.text(f'{prefix}model')}, and there are no {prefix}tokens", True
        return
    field, count = whole.fields[f"{prefix}tokens"], whole.lengths.get(f"{prefix}tokens", 0)
    if field.type != ARRAY or field.item != STRING:
        yield f"{prefix}tokens is a {describe(field)}, an array of string was expected", True
        return
    if f"{prefix}model" not in whole.fields:
        yield f"{prefix}model is missing, and there are {count} tokens", True
    for name in _TABLES:
        length = whole.lengths.get(prefix + name)
        if length is not None and length != count:
            yield f"{prefix}{name} has {length} items for {count} tokens", True
    if whole.text(f"{prefix}model") == "gpt2" and f"{prefix}merges" not in whole.fields:
        yield f"{prefix}merges is missing: byte-level BPE cannot do without", True
    for name in _SPECIAL:
        number = whole.number(f"{prefix}{name}_token_id")
        if number is not None and not 0 <= number < count and number not in _UNSET:
            yield f"{prefix}{name}_token_id is {number}, and there are {count} tokens", True
    declared = whole.number(f"{whole.text('general.architecture')}.vocab_size")
    if declared is not None and declared != count:
        yield f"{whole.text('general.architecture')}.vocab_size is {declared}, and there are {count} tokens", False

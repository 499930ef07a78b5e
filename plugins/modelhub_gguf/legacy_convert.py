"""llama.cpp's files before GGUF -> GGUF: new names, keys from hyper-parameters and shapes, the vocabulary; the bytes of the
tensors stay as they are.

What the old files do not say is taken as llama.cpp's ``convert_llama_ggml_to_gguf.py`` takes it, and can be given with ``--set``:
the context length (2048) and the epsilon of the norms (5e-06: between LLaMA's 1e-06 and Llama 2's 1e-05). The number of heads of
keys and values, which that tool asks for, follows from a shape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelhub import Conversion, File, ModelhubError, Table, Tensor

from modelhub_gguf import fields as typed
from modelhub_gguf.fields import F32, I32, STRING, Field
from modelhub_gguf.legacy import Legacy, parse, vocabulary

CONTEXT_LENGTH = 2048
EPSILON = 5e-06
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

_NAMES = {
    "tok_embeddings": "token_embd", "norm": "output_norm", "output": "output", "attention.wq": "attn_q", "attention.wk": "attn_k",
    "attention.wv": "attn_v", "attention.wo": "attn_output", "attention_norm": "attn_norm", "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up", "ffn_norm": "ffn_norm",
}  # fmt: skip
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)", re.ASCII)


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The same tensors as GGUF has them. `ModelhubError` where the file is not a llama of llama.cpp's, or holds blocks of a
    layout that is no longer read."""
    if len(sources) != 1 or len(sources[0].files) != 1:
        raise ModelhubError("one file of llama.cpp's from before GGUF is converted at a time")
    source = sources[0]
    path = source.files[0]
    with File(path) as file:
        legacy = parse(file)
        if legacy.family != "llama":
            raise ModelhubError(
                f"{file.name} is a model of whisper.cpp's, which reads its own format and no GGUF", "safetensors can hold it"
            )
        tokens = vocabulary(file, legacy)
    old = next((tensor for tensor in source.logical if tensor.value is None), None)
    if old:
        raise ModelhubError(
            f"{os.path.basename(path)} ({legacy.title}): tensor {old.name} is a {old.unsupported}",
            "convert the original model instead; llama.cpp of that time could requantize it from its F16 file",
        )
    tensors = tuple(tensor._replace(name=_renamed(tensor.name)) for tensor in source.logical if tensor.name != "rope.freqs")
    native = _keys(legacy, tensors, os.path.basename(path)) | _tokenizer(tokens)
    return replace(source, tensors=tensors, metadata=replace(source.metadata, native=native, stored={}))


def _renamed(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    match = _LAYER.fullmatch(stem)
    known = _NAMES.get(match[2] if match else stem)
    if known is None or ending not in ("weight", "bias"):
        raise ModelhubError(f"tensor {name[:200]!r} is none of a llama's")
    return f"blk.{int(match[1])}.{known}.{ending}" if match else f"{known}.{ending}"


def _keys(legacy: Legacy, tensors: Sequence[Tensor], name: str) -> dict[str, Field]:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    numbers: Mapping[str, Any] = legacy.numbers
    width, heads, layers = numbers["embedding_length"], numbers["head_count"], numbers["block_count"]
    size = width // heads
    for needed, columns in (("token_embd.weight", width), ("blk.0.ffn_gate.weight", width), ("blk.0.attn_k.weight", width)):
        if needed not in shapes or len(shapes[needed]) != 2 or shapes[needed][1] != columns:
            raise ModelhubError(
                f"{name}: {needed} has the shape {list(shapes.get(needed, ()))}, {columns} columns were expected: it is one part "
                "of a model of several files, or none of llama's",
                "convert the original model instead",
            )
    rows = shapes["blk.0.attn_k.weight"][0]
    if rows % size:
        raise ModelhubError(f"{name}: keys of {rows} rows do not divide into heads of {size}")
    return {
        "general.architecture": typed.string("llama"),
        "general.name": typed.string(name),
        "general.description": typed.string(f"converted from legacy {legacy.title.replace(' ', ' v')}"),
        "general.file_type": typed.u32(numbers["file_type"]),
        "general.quantization_version": typed.u32(2),
        "llama.context_length": typed.u32(CONTEXT_LENGTH),
        "llama.embedding_length": typed.u32(width),
        "llama.block_count": typed.u32(layers),
        "llama.feed_forward_length": typed.u32(shapes["blk.0.ffn_gate.weight"][0]),
        "llama.rope.dimension_count": typed.u32(size),
        "llama.attention.head_count": typed.u32(heads),
        "llama.attention.head_count_kv": typed.u32(rows // size),
        "llama.attention.layer_norm_rms_epsilon": typed.f32(EPSILON),
    }


def _tokenizer(tokens: Sequence[tuple[bytes, float]]) -> dict[str, Field]:
    """A SentencePiece vocabulary as GGUF has it: three special tokens, 256 bytes, then pieces whose spaces are marked."""
    if len(tokens) < 3:
        raise ModelhubError(f"a vocabulary of {len(tokens)} tokens is none: at least 3 were expected")
    texts: list[str | bytes] = []
    kinds: list[int] = []
    for number, (data, _) in enumerate(tokens):
        text, kind = _token(number, data)
        try:
            texts.append(text.decode())
        except UnicodeDecodeError:
            texts.append(text)
        kinds.append(kind)
    return {
        "tokenizer.ggml.model": typed.string("llama"),
        "tokenizer.ggml.pre": typed.string("default"),
        "tokenizer.ggml.tokens": typed.array(STRING, texts),
        "tokenizer.ggml.scores": typed.array(F32, [score for _, score in tokens]),
        "tokenizer.ggml.token_type": typed.array(I32, kinds),
        "tokenizer.ggml.unknown_token_id": typed.u32(0),
        "tokenizer.ggml.bos_token_id": typed.u32(1),
        "tokenizer.ggml.eos_token_id": typed.u32(2),
    }


def _token(number: int, data: bytes) -> tuple[bytes, int]:
    if number < 3:
        return (b"<unk>", b"<s>", b"</s>")[number], _UNKNOWN if number == 0 else _CONTROL
    if not data:
        return data, _CONTROL
    if number <= 258 and len(data) == 1:
        return b"<0x%02X>" % data[0], _BYTE
    return data.replace(b" ", "▁".encode()), _NORMAL


CONVERSION = Conversion(name="ggml-to-gguf", source="ggml", target="gguf", derive=derive)

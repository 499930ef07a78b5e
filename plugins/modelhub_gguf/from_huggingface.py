"""Hugging Face directories as GGUF: a table derived from the directory's, by the row of its architecture. Reads documents, never
weights.

The keys and tensors are those of llama.cpp's converter (``convert_hf_to_gguf.py`` and ``conversion/``); which architectures there
are is said in `modelhub_gguf.architectures.rows`, and how tokenizers are said in `modelhub_gguf.tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from modelhub import Conversion, InvalidFile, Metadata, ModelhubError, Table, Tensor, UnsupportedFile

from modelhub_gguf import fields, tokenizers
from modelhub_gguf.architectures.carry import Carrier, plain_dtype
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.general import general
from modelhub_gguf.architectures.keys import FILE_TYPES, fields_of
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows import by_class, rows
from modelhub_gguf.documents import Documents, items, mapping, text
from modelhub_gguf.fields import Field

PRE = "tokenizer.ggml.pre"
QUANTIZATION_VERSION = 2
"""``GGML_QNT_VERSION``: of the block layouts."""


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The GGUF table of a Hugging Face directory. ``options``: what the user sets; `PRE` names the pre-tokenizer where the
    documents cannot say.

    `UnsupportedFile` names an architecture, a tensor or a tokenizer that has no place there; `InvalidFile` what contradicts
    itself."""
    table = sources[0]
    documents = Documents(table.files, table.documents)
    raw = documents.json("config.json")
    if raw is None:
        raise ModelhubError(
            "GGUF needs to know a model's shape, and there is no config.json",
            "put the model's config.json and its tokenizer beside the weights, and convert the directory",
        )
    row = row_of(raw)
    _refuse_packed(raw, table)
    config = Config(raw, documents, row.defaults)
    if row.config:
        row.config(config)
    tensors = _tensors(row, config, table)
    native = _native(row, config, table, tensors, options)
    values = {**table.metadata.values, "architecture": row.name}
    return Table(tuple(tensors), Metadata(values=values, native=native), table.files)


def row_of(raw: Mapping[str, Any]) -> Architecture:
    """The row for what ``config.json`` says that the model is. `UnsupportedFile` names it, and what there is."""
    said = [name for name in items(raw.get("architectures")) if isinstance(name, str)]
    table = by_class()
    for name in said:
        for row in table.get(name, ()):
            if row.applies is None or row.applies(raw):
                return row
    kind = text(raw.get("model_type"))
    if not said:
        by_type = {row.model_type: row for row in reversed(rows())}
        if kind in by_type:
            return by_type[kind]
    name = said[0] if said else kind
    if not name:
        raise UnsupportedFile("config.json says neither architectures nor model_type: what model this is cannot be told")
    close = get_close_matches(name, table, n=3, cutoff=0.75)
    like = f"; names like it are {', '.join(close)}" if close else ""
    raise UnsupportedFile(
        f"the architecture {name:.80} has no row for GGUF{like}. There are: "
        f"{', '.join(sorted({row.name for row in rows()}))}. If it is one of these under another name, set architectures in "
        "config.json; else convert to safetensors instead"
    )


def _refuse_packed(raw: Mapping[str, Any], table: Table) -> None:
    """Packed weights (GPTQ, AWQ, bitsandbytes, ...) are carried as what they stand for; where that is not known, refused."""
    said = mapping(raw.get("quantization_config")) or mapping(raw.get("compression_config"))
    method = text(said.get("quant_method")) or ("mlx" if raw.get("quantization") else "")
    packed = [tensor for tensor in table.logical if tensor.dtype in ("I32", "U8", "I8", "U32", "F8_E4M3", "F8_E5M2")]
    if method and packed:
        raise UnsupportedFile(
            f"the weights are quantized ({method}), and {packed[0].name} ({packed[0].dtype}) stays packed "
            "(`modelhub verify` says why): convert the model that they were made from"
        )


def _tensors(row: Architecture, config: Config, table: Table) -> list[Tensor]:
    """Extra tensors first, then the checkpoint's in its order, as the reference writes them."""
    carrier = Carrier(row, config)
    try:
        made = list(row.generated(config)) if row.generated else []
    except ValueError as error:
        raise InvalidFile(str(error)) from error
    carried = carrier.carry(_without_tied_output(table))
    known = {tensor.name for tensor in carried}
    tensors = [tensor for tensor in made if tensor.name not in known] + carried
    _check_blocks(tensors, config)
    return tensors


def _without_tied_output(table: Table) -> list[Tensor]:
    """The tensors but an output that is the token embedding itself: GGUF's readers take the embedding where none is."""
    ties = table.ties
    return [tensor for tensor in table.logical if not (tensor.name in ties and tensor.name.startswith("lm_head."))]


def _check_blocks(tensors: Sequence[Tensor], config: Config) -> None:
    """Each block that the configuration counts is there, and no other; and there are embeddings."""
    names = {tensor.name for tensor in tensors}
    if "token_embd.weight" not in names:
        raise InvalidFile("there is no tensor of token embeddings: the checkpoint is not whole, or no language model")
    found = {int(number) for name in names if name.startswith("blk.") and (number := name.split(".")[1]).isdecimal()}
    missing = next((number for number in range(config.blocks) if number not in found), None)
    if missing is not None:
        raise InvalidFile(f"config.json counts {config.blocks} layers; of layer {missing} there is no tensor")
    if found and max(found) >= config.blocks:
        raise InvalidFile(f"config.json counts {config.blocks} layers; there are tensors of layer {max(found)}")


def _native(
    row: Architecture, config: Config, table: Table, tensors: Sequence[Tensor], options: Mapping[str, str]
) -> dict[str, Field]:
    documents = config.documents
    repository = text(table.metadata.values.get("repository"))
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    if len(embedding.shape) != 2:
        raise InvalidFile(f"the token embeddings have the shape {list(embedding.shape)}: two sides were expected")
    said = config.find("vocab_size")
    vocabulary = embedding.shape[0]
    if said is not None and config.whole(said, "vocab_size") > vocabulary:
        raise InvalidFile(f"config.json counts {said} tokens, there are {vocabulary} embeddings")
    native = {
        "general.architecture": fields.string(row.name),
        "general.type": fields.string("model"),
        **general(documents, config.raw, tensors, repository),
        **fields_of(row, config),
        "general.file_type": fields.u32(FILE_TYPES[plain_dtype(tensors)]),
        "general.quantization_version": fields.u32(QUANTIZATION_VERSION),
    }
    pre = options.get(PRE, "") or row.hints.get("pre", "")
    native.update(tokenizers.fields(documents, config.raw, architecture=row.name, vocab_size=vocabulary, pre=pre))
    return native


CONVERSION = Conversion(name="huggingface-to-gguf", source="huggingface", target="gguf", derive=derive)

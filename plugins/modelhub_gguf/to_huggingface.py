"""GGUF as a Hugging Face directory: a table derived from the file's, by the row of its architecture; with the documents that
transformers wants, made from the header. Reads headers, never weights (but for a vector that says the rotary embeddings).

The inverse of `modelhub_gguf.from_huggingface`. Tensors of plain dtypes keep them; blocks become 16-bit floats, unless a recipe
says otherwise.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from modelhub import Conversion, Metadata, Node, Table, Tensor, UnsupportedFile, dtypes

from modelhub_gguf import fields as typed
from modelhub_gguf import tokenizers
from modelhub_gguf.architectures.card import written
from modelhub_gguf.architectures.carry import Carrier
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.general import SAMPLING
from modelhub_gguf.architectures.given import Given, config_of, special
from modelhub_gguf.architectures.keys import json_of, pooling_documents
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.rows import by_name, rows
from modelhub_gguf.architectures.transforms import as_dtype
from modelhub_gguf.documents import Documents
from modelhub_gguf.fields import Field
from modelhub_gguf.reader import read_headers

TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What torch calls the dtypes that a whole model may have."""
_HUB = "https://huggingface.co/"
_MAX_PARENTS = 64


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The Hugging Face table of a GGUF checkpoint, its documents with it. ``options``: ``tokenizer.*`` keys that stand in for the
    header's own.

    `UnsupportedFile` names an architecture, a tensor or a tokenizer that has no way back; `InvalidFile` what is missing."""
    table = sources[0]
    fields = dict(table.metadata.native) or read_headers(table.files)[0]
    fields.update({key: typed.string(text) for key, text in options.items() if key.startswith("tokenizer.ggml.pre")})
    row = row_of(fields)
    given = Given(row, fields, table.logical)
    config = config_of(given)
    tensors = _plain(_carried(row, config, table.logical))
    notes = []
    config["torch_dtype"] = TORCH[_main_dtype(tensors, ("F64", "F32", "F16", "BF16"))]
    documents = {
        "config.json": json_of(config),
        **_generation(given),
        **tokenizers.documents(fields),
        **pooling_documents(given),
        "README.md": _card(given, table).encode("utf-8", "surrogateescape"),
    }
    if "tokenizer.json" not in documents:
        notes.append("the header has no tokenizer: neither has the directory")
    if row.name == "bert":
        notes.append("GGUF has no pooler: transformers makes a random one, take last_hidden_state")
    metadata = Metadata(values={**table.metadata.values, "architectures": config["architectures"]})
    return Table(tuple(tensors), metadata, table.files, documents, tuple(notes))


def row_of(fields: Mapping[str, Field]) -> Architecture:
    """The row of what a header says that the model is. `UnsupportedFile` names it, and what has a way back."""
    kind, name = fields.get("general.type"), fields.get("general.architecture")
    if kind is not None and kind.value != "model":
        raise UnsupportedFile(f"general.type is {kind.value!r:.40}: a whole model was expected")
    row = by_name().get(name.value) if name is not None and isinstance(name.value, str) else None
    if row is None or row.back is None:
        said = f"{name.value!r:.60}" if name is not None else "missing"
        raise UnsupportedFile(
            f"general.architecture is {said}, which has no way back to Hugging Face; there is one for "
            f"{', '.join(sorted(row.name for row in rows() if row.back))}",
            "--to safetensors:f32 keeps the tensors under GGUF's names; the model that the file was made from may be had",
        )
    return row


def _carried(row: Architecture, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    back = row.back
    assert back is not None
    kept = [tensor for tensor in tensors if not any(fnmatchcase(tensor.name, glob) for glob in back.spare)]
    found = Carrier(row, Config(config, Documents(()), row.defaults), back=True).carry(kept)
    if not back.prefix:
        return found
    return [tensor if tensor.name.startswith("lm_head.") else tensor._replace(name=back.prefix + tensor.name) for tensor in found]


# --- dtypes -------------------------------------------------------------------------------------------------------


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with blocks as 16-bit floats: F16 where most of the file is, else BF16, which holds whatever blocks hold."""
    most = sum(prod(tensor.shape) for tensor in tensors) / 2
    halves = sum(prod(tensor.shape) for tensor in tensors if tensor.dtype == "F16" and not _blocks(tensor)) > most
    return [as_dtype(tensor, "F16" if halves else "BF16") if _blocks(tensor) else tensor for tensor in tensors]


def _blocks(tensor: Tensor) -> str:
    """The dtype that packs a tensor's elements together, or from which it was unpacked on the way; else ""."""
    if dtypes.get(tensor.dtype).block > 1:
        return tensor.dtype
    return next((source for source in _unpacked(tensor.value) if dtypes.get(source).block > 1), "")


def _unpacked(value: object) -> Iterator[str]:
    while isinstance(value, Node):
        if value.op == "cast":
            yield value.args["source"]
        value = value.inputs[0] if value.inputs else None


def _main_dtype(tensors: Sequence[Tensor], among: Sequence[str]) -> str:
    count: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in among:
            count[tensor.dtype] += prod(tensor.shape)
    return count.most_common(1)[0][0] if count else "F32"


# --- documents ----------------------------------------------------------------------------------------------------


def _generation(given: Given) -> dict[str, bytes]:
    """``generation_config.json``: the tokens that a text begins and ends with, and the sampling that the file asks for."""
    found: dict[str, Any] = {}
    for name, short in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        if (number := special(given, name)) is not None:
            found[f"{short}_token_id"] = number
    turn = special(given, "eot")
    if turn is not None and found.get("eos_token_id") not in (None, turn):
        found["eos_token_id"] = [found["eos_token_id"], turn]
    sampling = {keys[-1]: given.field(f"general.sampling.{name}") for name, _, keys in SAMPLING}
    said = {name: value for name, value in sampling.items() if value is not None}
    if said:
        found.update(do_sample=True, **said)
    return {"generation_config.json": json_of(found)} if found else {}


def _card(given: Given, table: Table) -> str:
    """The model card: what the header knows of where the model comes from, under the names that the way there reads."""
    text = given.text
    values: dict[str, str | Sequence[str]] = {
        "license": text("general.license"),
        "license_name": text("general.license.name"),
        "license_link": text("general.license.link"),
        "base_model": _parents(given, "base_model"),
        "datasets": _parents(given, "dataset"),
        "language": given.texts("general.languages"),
        "tags": given.texts("general.tags"),
        **{
            f"model_{name}": text(f"general.{name}")
            for name in ("name", "author", "version", "organization", "finetune", "basename", "description")
        },
    }
    title = " ".join((text("general.name") or given.row.name).split())
    source = os.path.basename(table.files[0])
    return f"{written(values)}\n# {title}\n\nMade from `{source}` (GGUF) by modelhub.\n"


def _parents(given: Given, kind: str) -> list[str]:
    found = []
    for number in range(_MAX_PARENTS):
        key = f"general.{kind}.{number}"
        url, name, organization = given.text(f"{key}.repo_url"), given.text(f"{key}.name"), given.text(f"{key}.organization")
        if not url and not name:
            break
        found.append(url.removeprefix(_HUB).strip("/") if url else f"{organization}/{name}" if organization else name)
    return found


CONVERSION = Conversion(name="gguf-to-huggingface", source="gguf", target="huggingface", derive=derive)

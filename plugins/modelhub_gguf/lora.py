"""LoRA adapters of peft as GGUF adapters, which llama.cpp applies to a model while it runs. Reads documents, never weights.

Keys and names are those of llama.cpp's ``convert_lora_to_gguf.py``: the names of the tensors that are changed, with ``.lora_a``
and ``.lora_b``. Two things that it leaves to chance are carried through. llama.cpp scales by ``adapter.lora.alpha`` over the
rank, so the alpha of rsLoRA is said as what has that effect; where modules differ, their factor is put into ``lora_b``. And
matrices that transformers keeps transposed have factors that are not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelhub import Conversion, InvalidFile, Metadata, ModelhubError, Table, Tensor, UnsupportedFile, ops

from modelhub_gguf import fields
from modelhub_gguf.architectures.carry import PLAIN, Carrier, plain_dtype
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import FILE_TYPES
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.architectures.transforms import TRANSPOSE, as_dtype, node_of, with_node
from modelhub_gguf.documents import Documents, mapping, text
from modelhub_gguf.fields import Field
from modelhub_gguf.from_huggingface import QUANTIZATION_VERSION, row_of

BASE = "base"
"""The option that names the base model's directory: what its tensors are called in GGUF is said by its configuration."""
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?", re.DOTALL
)
_BASE_LAYER = re.compile(r".*\.base_layer\.(weight|bias)", re.DOTALL)
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")
_BY_ROWS = ("heads interleaved", "rows reordered", "first rows left out")
"""Transforms that move whole rows of a matrix, and so those of its second factor."""
_ADVICE = "merge it into its base, and convert that: modelhub merge BASE --adapter ADAPTER --to gguf"


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The GGUF adapter of an adapter's table. ``options``: `BASE`. `UnsupportedFile` says what llama.cpp cannot apply."""
    table = sources[0]
    values = table.metadata.values
    method = text(values.get("method"))
    if method not in ("lora", "rslora"):
        raise UnsupportedFile(f"GGUF holds LoRA adapters, and this is {method or 'none'}: {_ADVICE}")
    if why := text(values.get("cannot_be_merged")):
        raise UnsupportedFile(f"what cannot be merged, llama.cpp cannot apply either: {why}")
    documents = _documents(options.get(BASE, ""), text(values.get("base_model")))
    raw = documents.object("config.json")
    row = row_of(raw)
    config = Config(raw, documents, row.defaults)
    if row.config:
        row.config(config)
    tensors, alpha = _tensors(row, config, table)
    base = os.path.basename(text(values.get("base_model")).rstrip("/")) or os.path.basename(documents.directory)
    native: dict[str, Field] = {
        "general.architecture": fields.string(row.name),
        "general.type": fields.string("adapter"),
        "adapter.type": fields.string("lora"),
        "general.name": fields.string(os.path.basename(os.path.dirname(table.files[0])) if table.files else "adapter"),
        **({"general.base_model.count": fields.u32(1), "general.base_model.0.name": fields.string(base)} if base else {}),
        "general.file_type": fields.u32(FILE_TYPES[plain_dtype(tensors)]),
        "adapter.lora.alpha": fields.f32(alpha),
        "general.quantization_version": fields.u32(QUANTIZATION_VERSION),
    }
    return Table(tuple(tensors), Metadata(values={**values, "architecture": row.name}, native=native), table.files)


def _documents(given: str, said: str) -> Documents:
    """The documents of the base: of the directory that is ``given``, else of the one that the adapter names."""
    for directory in (given, said):
        if directory and os.path.isfile(os.path.join(directory, "config.json")):
            names = sorted(os.listdir(directory))
            return Documents(os.path.join(directory, name) for name in names if name.endswith((".json", ".md", ".jinja", ".txt")))
    raise ModelhubError(
        "what the tensors of an adapter are called in GGUF is said by its base's config.json, and there is none"
        + (f" in {given}" if given else f": the base is called {said:.120}" if said else ""),
        "--base MODEL names the Hugging Face directory of the base",
    )


def _tensors(row: Architecture, config: Config, table: Table) -> tuple[list[Tensor], float]:
    """The factors under GGUF's names, and the alpha that holds for all of them."""
    found: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    for tensor in table.logical:
        match = _FACTOR.fullmatch(tensor.name)
        if match is None:
            if _BASE_LAYER.fullmatch(tensor.name) or _is_only_saved(tensor, table):
                continue
            raise UnsupportedFile(f"{tensor.name} is no factor of a LoRA, and llama.cpp applies nothing else: {_ADVICE}")
        found.setdefault(match["module"], {})[match["side"]] = tensor
        if match["embedding"]:
            embeddings.add(match["module"])
    if not found:
        raise UnsupportedFile("the adapter holds no factors of a LoRA")
    tied = config.flag("tie_word_embeddings", default=True)  # transformers leaves out what is so by default
    tensors: list[Tensor] = []
    alpha: float | None = None
    for module, sides in found.items():
        if set(sides) != {"A", "B"} or any(len(side.shape) != 2 for side in sides.values()) or not sides["A"].shape[0]:
            raise UnsupportedFile(f"{module} has not two factors that are matrices: {_ADVICE}")
        if tied and module.rsplit(".", 1)[-1] == "lm_head":
            raise UnsupportedFile(f"{module} is tied to the embeddings, and has no tensor of its own in GGUF: {_ADVICE}")
        if tied and module in embeddings:  # it takes the factors for those of a matrix as well, and ends itself over their shapes
            raise UnsupportedFile(
                f"{module} is the model's output too, and llama.cpp cannot apply its factors to that: {_ADVICE}"
            )
        if _EXPERTS.search(module):
            raise UnsupportedFile(f"{module} is of all experts at once, and its factors are not taken apart: {_ADVICE}")
        rank = sides["A"].shape[0]
        own = _scale(table.metadata.values, module, rank) * rank
        alpha = own if alpha is None else alpha
        second = sides["B"]
        if not math.isclose(own, alpha, rel_tol=1e-6):
            second = with_node(second, ops.affine(node_of(second), own / alpha if alpha else 0.0))
        tensors += _named(row, config, module, sides["A"], second, module in embeddings)
    return tensors, alpha or 0.0


def _is_only_saved(tensor: Tensor, table: Table) -> bool:
    """Whether it is an embedding that peft put beside the factors, though nobody trained it."""
    return tensor.name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")) and not table.metadata.values.get(
        "modules_to_save"
    )


def _scale(values: Mapping[str, Any], module: str, rank: int) -> float:
    """peft's factor of a module's product (``tuners/lora/layer.py``)."""
    alpha = values.get("alpha", 1)
    alphas = mapping(values.get("alphas"))  # what patterns that are more than names come to
    if alphas:
        alpha = alphas.get(f"base_model.model.{module}", alphas.get(module, alpha))
    else:
        ends = (value for key, value in mapping(values.get("alpha_pattern")).items() if f".{module}".endswith(f".{key}"))
        alpha = next(ends, alpha)
    return float(alpha) / (math.sqrt(rank) if values.get("method") == "rslora" else rank)


def _named(row: Architecture, config: Config, module: str, first: Tensor, second: Tensor, embedding: bool) -> list[Tensor]:
    """A pair under the names that the row gives the matrix that it changes; what moves its rows moves the second factor's."""
    moving = {glob: each for glob, each in row.transforms.items() if each is not TRANSPOSE}
    name = f"{module}.weight"
    try:
        carried = Carrier(replace(row, transforms=moving, full=()), config).carry([second._replace(name=name)])
    except InvalidFile as error:
        raise UnsupportedFile(
            f"{module} becomes part of another tensor in GGUF, and its factors cannot ({error}): {_ADVICE}"
        ) from error
    pairs = []
    for made in carried:
        strange = [each.name for glob, each in moving.items() if _fits(glob, made.name) and each.name not in _BY_ROWS]
        if strange or len(made.shape) != 2 or made.shape[1] != second.shape[1]:
            raise UnsupportedFile(
                f"{module} is changed on its way to GGUF ({', '.join(strange) or 'cut'}), and its factors cannot be: {_ADVICE}"
            )
        a = first._replace(name=f"{made.name}.lora_a")
        a = as_dtype(a, a.dtype if a.dtype in PLAIN else "F32")
        if embedding:  # llama.cpp takes the rows of tokens
            a = with_node(a, ops.transpose(node_of(a)))
        pairs += [a, made._replace(name=f"{made.name}.lora_b")]
    return pairs


def _fits(glob: str, name: str) -> bool:
    pattern = re.escape(glob).replace(r"\*", ".*").replace(r"\{b\}", r"\d+").replace(r"\{e\}", r"\d+")
    return re.fullmatch(rf"{pattern}(\.weight)?", name) is not None


CONVERSION = Conversion(name="peft-to-gguf", source="peft", target="gguf", derive=derive)

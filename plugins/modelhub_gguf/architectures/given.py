"""A GGUF header as the table's rows ask it on the way back, and the ``config.json`` that their keys give.

The inverse of `modelhub_gguf.architectures.keys` and `config`: which key is what in ``config.json`` is said by the same `Key`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from modelhub import Extent, File, Inline, InvalidFile, Node, Tensor, UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import USUAL_ROPE_BASE
from modelhub_gguf.architectures.records import Architecture
from modelhub_gguf.fields import ARRAY, F32, TYPE_NAMES, Field
from modelhub_gguf.keys import single

_MAX_VECTOR = 1 << 16
_SCALING = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_ext_factor": "extrapolation_factor",
    "rope.scaling.yarn_attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
"""Settings of YaRN; the inverse of `modelhub_gguf.architectures.keys.ROPE`."""


class Given:
    """What a file says: ``fields`` of its header, and its tensors by their GGUF names. Every key is one of the architecture's
    (``block_count``: ``llama.block_count``) unless it is asked for with `field`."""

    def __init__(self, row: Architecture, fields: Mapping[str, Field], tensors: Sequence[Tensor]) -> None:
        self.row, self.fields = row, fields
        self.tensors = {tensor.name: tensor for tensor in tensors}

    def key(self, name: str) -> Any:
        """The value of a key, floats as the shortest number that is the same; None where it is not there. `UnsupportedFile` for
        an array: what differs from layer to layer has no place in ``config.json``."""
        return self.field(f"{self.row.name}.{name}")

    def field(self, name: str) -> Any:
        """The same by the key's full name."""
        field = self.fields.get(name)
        if field is None:
            return None
        if field.type == ARRAY or isinstance(field.value, Extent):
            raise UnsupportedFile(f"{name} is an array: what differs from layer to layer has no place in config.json")
        if isinstance(field.value, float):
            if not isfinite(field.value):
                raise InvalidFile(f"{name} is {field.value}: a number was expected")
            return single(field.value) if field.type == F32 else field.value
        return field.value

    def count(self, name: str) -> int:
        """A key that must be there, and be a count."""
        value = self.key(name)
        if value is None:
            raise InvalidFile(f"the header has no {self.row.name}.{name}: what the model is cannot be told without it")
        if type(value) is not int or value < 0:
            kind = TYPE_NAMES[self.fields[f"{self.row.name}.{name}"].type]
            raise InvalidFile(f"{self.row.name}.{name} is {value!r:.40} ({kind}); a count was expected")
        return value

    def text(self, name: str) -> str:
        """A key by its full name, where it is a text; else ""."""
        field = self.fields.get(name)
        return field.value if field is not None and isinstance(field.value, str) else ""

    def texts(self, name: str) -> list[str]:
        """The same for an array of texts."""
        field = self.fields.get(name)
        values = field.value if field is not None and field.type == ARRAY and isinstance(field.value, list) else []
        return [value for value in values if isinstance(value, str)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; () where there is none of the name."""
        tensor = self.tensors.get(name)
        return tensor.shape if tensor else ()

    def together(self, *names: str) -> bool:
        """Whether the first block has these tensors: all of them, or none. `UnsupportedFile` for some."""
        there = [name for name in names if f"blk.0.{name}" in self.tensors]
        if there and len(there) != len(names):
            missing = next(name for name in names if name not in there)
            raise UnsupportedFile(f"there is a tensor blk.0.{there[0]}, and no blk.0.{missing}: transformers has both or none")
        return bool(there)

    def floats(self, name: str) -> tuple[float, ...]:
        """The values of a short F32 vector that says a setting; () where it is not there."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return ()
        value, order = tensor.value, "<"
        if isinstance(value, Node) and value.op == "byteswap":
            value, order = value.inputs[0], ">"
        if tensor.dtype != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MAX_VECTOR:
            raise UnsupportedFile(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}; a vector of F32 was expected")
        if isinstance(value, Extent):
            with File(value.file) as file:
                data = file.read(value.offset, value.nbytes)
        elif isinstance(value, Inline):
            data = value.data
        else:
            raise UnsupportedFile(f"tensor {name} cannot be read here: it is computed")
        return struct.unpack(f"{order}{tensor.shape[0]}f", data)


def config_of(given: Given) -> dict[str, Any]:
    """``config.json`` of what a file says: the class, what the row's keys say, and what the row adds. `InvalidFile` where a key
    is missing, `UnsupportedFile` where the class has no way to say it."""
    row = given.row
    if row.back is None:
        raise UnsupportedFile(f"{row.name} has no way back")
    kind, model_type = row.back.kind(given) if row.back.kind else (row.hf[0], row.model_type)
    config: dict[str, Any] = {"architectures": [kind], "model_type": model_type}
    said: dict[str, str] = {}
    for needed in ("context_length", "embedding_length", "attention.head_count"):
        given.count(needed)
    _check_blocks(given)
    for key in row.keys:
        name = key.back or (key.source[0] if isinstance(key.source, tuple) else "")
        value = given.field(full) if name and (full := key.name.format(arch=row.name)) else None
        if value is None:
            continue
        if name in config and config[name] != value:
            raise UnsupportedFile(
                f"{said[name]} is {config[name]!r:.40} and {full} is {value!r:.40}; in config.json both are {name}"
            )
        config[name], said[name] = value, full
    embedding = given.shape("token_embd.weight")
    if len(embedding) != 2:
        raise InvalidFile(f"token_embd.weight has the shape {list(embedding)}: two sides were expected")
    config["vocab_size"] = embedding[0]
    config["tie_word_embeddings"] = "output.weight" not in given.tensors
    row.back.settings(given, config)
    for name, short in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        config[f"{short}_token_id"] = special(given, name)
    return config


def _check_blocks(given: Given) -> None:
    """Every block that the header counts has tensors, and no other: what is made for each block is bounded by the file."""
    count = given.count("block_count")
    found = {int(number) for name in given.tensors if name.startswith("blk.") and (number := name.split(".")[1]).isdecimal()}
    missing = next((number for number in range(min(count, len(found) + 1)) if number not in found), None)
    if missing is not None or len(found) != count:
        where = f"of block {missing} there is no tensor" if missing is not None else f"there are tensors of block {max(found)}"
        raise InvalidFile(f"{given.row.name}.block_count is {count}; {where}")


def special(given: Given, name: str) -> int | None:
    """The id of a special token, where there is an embedding for it."""
    number = given.field(f"tokenizer.ggml.{name}_token_id")
    return number if type(number) is int and 0 <= number < given.shape("token_embd.weight")[0] else None


def rope(given: Given, config: dict[str, Any]) -> None:
    """``rope_theta`` and ``rope_scaling``, which every version of transformers reads."""
    base, kind = given.key("rope.freq_base"), given.key("rope.scaling.type")
    config["rope_theta"] = USUAL_ROPE_BASE if base is None else base
    linear = given.key("rope.scale_linear")  # as files of 2023 said it
    factor = given.key("rope.scaling.factor")
    if kind is None and linear not in (None, 1.0):
        kind, factor = "linear", linear
    if kind in (None, "none"):
        return
    if kind not in ("linear", "yarn") or factor is None:
        raise UnsupportedFile(f"{given.row.name}.rope.scaling.type is {kind!r:.40}: linear and yarn have a way back")
    config["rope_scaling"] = {"rope_type": kind, "factor": factor}
    for key, name in _SCALING.items() if kind == "yarn" else ():
        if (value := given.key(key)) is not None:
            config["rope_scaling"][name] = value


def whole_heads(given: Given, config: dict[str, Any]) -> None:
    """All of a head is rotated, and its size is said or follows from the width. `UnsupportedFile` where it is not so."""
    size = config.get("head_dim") or Config.whole(config["hidden_size"] // max(config["num_attention_heads"], 1), "head_dim")
    rotated = given.key("rope.dimension_count")
    if rotated not in (None, size):
        raise UnsupportedFile(
            f"{given.row.name}.rope.dimension_count is {rotated}, and a head has {size} elements: transformers' "
            f"{config['architectures'][0]} rotates all of them"
        )

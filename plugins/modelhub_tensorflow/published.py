"""Which models the published checkpoints of BERT and GPT-2 are: their variables' names, and what transformers calls them.

Facts: ``modeling.py`` of google-research/bert and ``src/model.py`` of openai/gpt-2; transformers' ``load_tf_weights_in_bert`` and
``load_tf_weights_in_gpt2`` (in its versions before 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from modelhub import InvalidFile

AS_IS, TURNED, SQUEEZED = "as it is", "turned", "squeezed"
"""What becomes of a tensor: its bytes stay; rows and columns change places; a first side of 1 goes."""
IGNORED = ("global_step",)


class Target(NamedTuple):
    """The name that transformers has, and what becomes of the values."""

    name: str
    how: str = AS_IS


_BERT_LAYER = re.compile(r"bert/encoder/layer_(\d{1,4})/(.+)", re.ASCII)
_GPT2_LAYER = re.compile(r"model/h(\d{1,4})/(.+)", re.ASCII)

NORM = {"gamma": "weight", "beta": "bias"}
BERT_PARTS = {
    **{
        f"{part}/kernel": Target(f"{part.replace('/', '.')}.weight", TURNED)
        for part in (
            "attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense", "intermediate/dense",
            "output/dense",
        )
    },
    **{
        f"{part}/bias": Target(f"{part.replace('/', '.')}.bias")
        for part in (
            "attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense", "intermediate/dense",
            "output/dense",
        )
    },
    **{
        f"{part}/LayerNorm/{theirs}": Target(f"{part.replace('/', '.')}.LayerNorm.{ours}")
        for part in ("attention/output", "output")
        for theirs, ours in NORM.items()
    },
}  # fmt: skip
_BERT = {
    "bert/embeddings/word_embeddings": Target("bert.embeddings.word_embeddings.weight"),
    "bert/embeddings/position_embeddings": Target("bert.embeddings.position_embeddings.weight"),
    "bert/embeddings/token_type_embeddings": Target("bert.embeddings.token_type_embeddings.weight"),
    "bert/embeddings/LayerNorm/gamma": Target("bert.embeddings.LayerNorm.weight"),
    "bert/embeddings/LayerNorm/beta": Target("bert.embeddings.LayerNorm.bias"),
    "bert/pooler/dense/kernel": Target("bert.pooler.dense.weight", TURNED),
    "bert/pooler/dense/bias": Target("bert.pooler.dense.bias"),
    "cls/predictions/output_bias": Target("cls.predictions.bias"),
    "cls/predictions/transform/dense/kernel": Target("cls.predictions.transform.dense.weight", TURNED),
    "cls/predictions/transform/dense/bias": Target("cls.predictions.transform.dense.bias"),
    "cls/predictions/transform/LayerNorm/gamma": Target("cls.predictions.transform.LayerNorm.weight"),
    "cls/predictions/transform/LayerNorm/beta": Target("cls.predictions.transform.LayerNorm.bias"),
    "cls/seq_relationship/output_weights": Target("cls.seq_relationship.weight"),
    "cls/seq_relationship/output_bias": Target("cls.seq_relationship.bias"),
    # what run_squad.py and run_classifier.py train on top; their matrices have a row for each label
    "cls/squad/output_weights": Target("qa_outputs.weight"),
    "cls/squad/output_bias": Target("qa_outputs.bias"),
    "output_weights": Target("classifier.weight"),
    "output_bias": Target("classifier.bias"),
}
_GPT2_PARTS = {
    f"{part}/{theirs}": Target(f"{part.replace('/', '.')}.{ours}", SQUEEZED if theirs == "w" else AS_IS)
    for part, sides in {
        "ln_1": {"g": "weight", "b": "bias"}, "ln_2": {"g": "weight", "b": "bias"},
        "attn/c_attn": {"w": "weight", "b": "bias"}, "attn/c_proj": {"w": "weight", "b": "bias"},
        "mlp/c_fc": {"w": "weight", "b": "bias"}, "mlp/c_proj": {"w": "weight", "b": "bias"},
    }.items()
    for theirs, ours in sides.items()
}  # fmt: skip
"""Transformers keeps GPT-2's matrices with a row for each input, as its authors have them."""
_GPT2 = {
    "model/wte": Target("transformer.wte.weight"),
    "model/wpe": Target("transformer.wpe.weight"),
    "model/ln_f/g": Target("transformer.ln_f.weight"),
    "model/ln_f/b": Target("transformer.ln_f.bias"),
}


def sides(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """The sides of a matrix; `InvalidFile` where it is none, or not there."""
    shape = shapes.get(name, ())
    if len(shape) != 2:
        raise InvalidFile(f"a matrix {name} was expected, it is {list(shape) if shape else 'not there'}")
    return shape[0], shape[1]


def counted(shapes: Iterable[str], prefix: str) -> int:
    """How many layers have tensors called ``prefix`` and a number; `InvalidFile` where one is left out."""
    there = {int(name[len(prefix) :].partition(".")[0]) for name in shapes if name.startswith(prefix)}
    if lost := set(range(max(there, default=0) + 1)) - there:
        raise InvalidFile(f"{prefix}{min(lost)} is not there")
    return len(there)


BERT_MARK, GPT2_MARK = "bert/embeddings/word_embeddings", "model/wte"


def bert(name: str) -> Target | None:
    """What a variable of BERT becomes; None for one that no BERT has."""
    if match := _BERT_LAYER.fullmatch(name):
        part = BERT_PARTS.get(match[2])
        return part and part._replace(name=f"bert.encoder.layer.{int(match[1])}.{part.name}")
    return _BERT.get(name)


def gpt2(name: str) -> Target | None:
    """What a variable of GPT-2 becomes; None for one that no GPT-2 has."""
    if match := _GPT2_LAYER.fullmatch(name):
        part = _GPT2_PARTS.get(match[2])
        return part and part._replace(name=f"transformer.h.{int(match[1])}.{part.name}")
    return _GPT2.get(name)

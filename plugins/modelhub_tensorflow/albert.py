"""The published checkpoints of ALBERT: their variables' names, and what transformers calls them.

Facts: ``modeling.py`` of google-research/albert; transformers' ``load_tf_weights_in_albert`` (in its versions before 5), which
leaves scopes out that hold one thing. TensorFlow Hub's modules have ``module/`` before every name.
"""

from __future__ import annotations

import re

from modelhub_tensorflow.published import AS_IS, NORM, TURNED, Target

MARK = "bert/encoder/embedding_hidden_mapping_in/kernel"
_HUB = "module/"
_LAYER = re.compile(r"bert/encoder/transformer/group_(\d{1,4})/inner_group_(\d{1,4})/(.+)", re.ASCII)


def _dense(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}/kernel": Target(f"{ours}.weight", TURNED), f"{theirs}/bias": Target(f"{ours}.bias")}


def _norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}/{name}": Target(f"{ours}.{mine}") for name, mine in NORM.items()}


_PARTS = {
    **{
        name: target
        for part in ("query", "key", "value")
        for name, target in _dense(f"attention_1/self/{part}", f"attention.{part}").items()
    },
    **_dense("attention_1/output/dense", "attention.dense"),
    **_norm("LayerNorm", "attention.LayerNorm"),
    **_norm("LayerNorm_1", "full_layer_layer_norm"),
    **_dense("ffn_1/intermediate/dense", "ffn"),
    **_dense("ffn_1/intermediate/output/dense", "ffn_output"),
}
_OTHERS = {
    **{
        f"bert/embeddings/{part}_embeddings": Target(f"albert.embeddings.{part}_embeddings.weight")
        for part in ("word", "position", "token_type")
    },
    **_norm("bert/embeddings/LayerNorm", "albert.embeddings.LayerNorm"),
    **_dense("bert/encoder/embedding_hidden_mapping_in", "albert.encoder.embedding_hidden_mapping_in"),
    **_dense("bert/pooler/dense", "albert.pooler"),
    **_dense("cls/predictions/transform/dense", "predictions.dense"),
    **_norm("cls/predictions/transform/LayerNorm", "predictions.LayerNorm"),
    "cls/predictions/output_bias": Target("predictions.bias"),
    "cls/seq_relationship/output_weights": Target("sop_classifier.classifier.weight", AS_IS),
    "cls/seq_relationship/output_bias": Target("sop_classifier.classifier.bias"),
    "output_weights": Target("classifier.weight"),
    "output_bias": Target("classifier.bias"),
}


def target(name: str) -> Target | None:
    """What a variable of ALBERT becomes; None for one that no ALBERT has."""
    name = name.removeprefix(_HUB)
    if match := _LAYER.fullmatch(name):
        part = _PARTS.get(match[3])
        at = f"albert.encoder.albert_layer_groups.{int(match[1])}.albert_layers.{int(match[2])}"
        return part and part._replace(name=f"{at}.{part.name}")
    return _OTHERS.get(name)


def is_one(names: frozenset[str]) -> bool:
    return MARK in names or _HUB + MARK in names

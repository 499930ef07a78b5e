"""ALBERT as google-research published it: the mapping that transformers had in its ``load_tf_weights_in_albert`` (before
version 5) is written out here as the outside truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Modelhub
from tests.plugins.tensorflow.test_to_huggingface import Arrays, check_same, checkpoint, filled

WIDTH, HIDDEN, INNER, WORDS, POSITIONS, GROUPS = 8, 16, 20, 60, 32, 2
CONFIG = {
    "attention_probs_dropout_prob": 0, "hidden_act": "gelu", "hidden_dropout_prob": 0, "embedding_size": WIDTH,
    "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
    "num_attention_heads": 2, "num_hidden_layers": 4, "num_hidden_groups": GROUPS, "net_structure_type": 0, "gap_size": 0,
    "num_memory_blocks": 0, "inner_group_num": 1, "down_scale_factor": 1, "type_vocab_size": 2, "vocab_size": WORDS,
}  # fmt: skip
_REPLACED = {
    "module/": "", "ffn_1": "ffn", "bert/": "albert/", "attention_1": "attention", "transform/": "",
    "LayerNorm_1": "full_layer_layer_norm", "LayerNorm": "attention/LayerNorm", "transformer/": "", "intermediate/dense/": "",
    "ffn/intermediate/output/dense/": "ffn_output/", "/output/": "/", "/self/": "/", "pooler/dense": "pooler",
    "cls/predictions": "predictions", "predictions/attention": "predictions", "embeddings/attention": "embeddings",
    "inner_group_": "albert_layers/", "group_": "albert_layer_groups/",
    "cls/seq_relationship/output_": "sop_classifier/classifier/output_",
}  # fmt: skip


def variables(scope: str, *, classes: int) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (WORDS, WIDTH),
        "bert/embeddings/token_type_embeddings": (2, WIDTH),
        "bert/embeddings/position_embeddings": (POSITIONS, WIDTH),
    }
    dense = {"bert/encoder/embedding_hidden_mapping_in": (WIDTH, HIDDEN), "bert/pooler/dense": (HIDDEN, HIDDEN)}
    norms = {"bert/embeddings/LayerNorm": WIDTH}
    for group in range(GROUPS):
        at = f"bert/encoder/transformer/group_{group}/inner_group_0"
        for part in ("self/query", "self/key", "self/value", "output/dense"):
            dense[f"{at}/attention_1/{part}"] = (HIDDEN, HIDDEN)
        dense |= {f"{at}/ffn_1/intermediate/dense": (HIDDEN, INNER), f"{at}/ffn_1/intermediate/output/dense": (INNER, HIDDEN)}
        norms |= {f"{at}/LayerNorm": HIDDEN, f"{at}/LayerNorm_1": HIDDEN}
    if classes:
        shapes |= {"output_weights": (classes, HIDDEN), "output_bias": (classes,)}
    else:
        dense["cls/predictions/transform/dense"] = (HIDDEN, WIDTH)
        norms["cls/predictions/transform/LayerNorm"] = WIDTH
        shapes |= {"cls/predictions/output_bias": (WORDS,), "cls/seq_relationship/output_weights": (2, HIDDEN)}
        shapes["cls/seq_relationship/output_bias"] = (2,)
    for name, sides in dense.items():
        shapes |= {f"{name}/kernel": sides, f"{name}/bias": sides[1:]}
    for name, side in norms.items():
        shapes |= {f"{name}/gamma": (side,), f"{name}/beta": (side,)}
    return filled({scope + name: shape for name, shape in shapes.items()})


def as_transformers_loaded(found: Arrays) -> Arrays:
    wanted = {}
    for name, array in found.items():
        for old, new in _REPLACED.items():
            name = name.replace(old, new)
        name = f"classifier/{name}" if "/" not in name else name
        last = name.rpartition("/")[2]
        name = re.sub("/(kernel|gamma|output_weights)$", "/weight", name)
        name = re.sub("/(beta|output_bias)$", "/bias", name)
        name += "/weight" if last.endswith("_embeddings") else ""
        wanted[name.replace("/", ".")] = array.T if last == "kernel" else array
    return wanted


@pytest.mark.parametrize(
    ("scope", "classes", "kind"),
    [("", 0, "AlbertForPreTraining"), ("module/", 0, "AlbertForPreTraining"), ("", 3, "AlbertForSequenceClassification")],
)
def test_albert_is_what_transformers_made_of_it(
    scope: str, classes: int, kind: str, tmp_path: Path, tensorflow: Any, modelhub: Modelhub
) -> None:
    import transformers

    found = variables(scope, classes=classes)
    documents = {"albert_config.json": json.dumps(CONFIG)}
    source = checkpoint(tmp_path / "tiny", tensorflow, found, documents, "model.ckpt-best")
    done = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out")
    assert "no 30k-clean.model" in done.stdout + done.stderr
    check_same(tmp_path / "out", as_transformers_loaded(found))
    model, told = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.config.architectures == [kind]
    assert model.config.num_labels == (classes or 2)


def test_a_configuration_that_is_another_model_s_is_refused(tmp_path: Path, tensorflow: Any, modelhub: Modelhub) -> None:
    documents = {"albert_config.json": json.dumps({**CONFIG, "num_hidden_groups": 1})}
    source = checkpoint(tmp_path / "tiny", tensorflow, variables("", classes=0), documents, "model.ckpt-best")
    refused = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out", status=3)
    assert "counts 1 layers; there are tensors of layer 1" in refused.stderr

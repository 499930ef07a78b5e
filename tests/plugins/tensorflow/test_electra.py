"""ELECTRA as google-research published it: the mapping that transformers had in its ``load_tf_weights_in_electra`` (before
version 5) is written out here as the outside truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Modelhub
from tests.plugins.tensorflow.test_to_huggingface import (
    HIDDEN,
    WORDS,
    Arrays,
    as_transformers_loaded_bert,
    bert_variables,
    check_same,
    checkpoint,
    filled,
)


def widened(found: Arrays) -> Arrays:
    """With a hidden side of 64, which is one head."""
    return filled({name: tuple(2 * side if side == HIDDEN else side for side in array.shape) for name, array in found.items()})


def variables(*, width: int) -> Arrays:
    """The encoder has BERT's parts, and no pooler; where embeddings are narrower than it, they are projected."""
    wide = 2 * HIDDEN
    encoder = {
        name.replace("bert/", "electra/"): array
        for name, array in widened(bert_variables(heads=False)).items()
        if "pooler" not in name
    }
    shapes = {name: (*array.shape[:-1], width) for name, array in encoder.items() if "electra/embeddings/" in name}
    if width != wide:
        shapes |= {"electra/embeddings_project/kernel": (width, wide), "electra/embeddings_project/bias": (wide,)}
    for name, sides in {"dense": (wide, wide), "dense_1": (wide, 1)}.items():
        at = f"discriminator_predictions/{name}"
        shapes |= {f"{at}/kernel": sides, f"{at}/bias": sides[1:]}
    return encoder | filled(shapes)


def as_transformers_loaded(found: Arrays) -> Arrays:
    # ``dense_1`` of the head is "dense_prediction"; all else goes by the rules of BERT's
    return as_transformers_loaded_bert({name.replace("dense_1/", "dense_prediction/"): array for name, array in found.items()})


@pytest.mark.parametrize("width", [16, 2 * HIDDEN])
def test_electra_is_what_transformers_made_of_it(width: int, tmp_path: Path, tensorflow: Any, modelhub: Modelhub) -> None:
    import transformers

    found = variables(width=width)
    others = {"global_step": np.asarray(7), "generator_predictions/output_bias": np.zeros(len(WORDS), "f4")}
    others |= {"generator/encoder/layer_0/output/dense/bias": np.zeros(16, "f4")}
    documents = {"vocab.txt": "\n".join(WORDS) + "\n"}
    source = checkpoint(tmp_path / "tiny", tensorflow, {**found, **others}, documents, "electra_small")
    done = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out")
    assert "the generator's 2 tensors are left behind" in done.stdout + done.stderr
    check_same(tmp_path / "out", as_transformers_loaded(found))
    model, told = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert (model.config.num_attention_heads, model.config.embedding_size, model.config.vocab_size) == (1, width, len(WORDS))
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("The models run fast.")["input_ids"]
    assert [WORDS[number] for number in ids] == ["[CLS]", "the", "model", "##s", "run", "fast", ".", "[SEP]"]


def test_heads_that_cannot_be_told_are_refused(tmp_path: Path, tensorflow: Any, modelhub: Modelhub) -> None:
    found = {name.replace("bert/", "electra/"): array for name, array in bert_variables(heads=False).items()}
    found = {name: array for name, array in found.items() if "pooler" not in name}
    source = checkpoint(tmp_path / "tiny", tensorflow, found, {}, "model.ckpt")
    refused = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out", status=3)
    assert "32 wide has no heads of 64" in refused.stderr

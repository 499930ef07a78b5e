"""The published checkpoints of ELECTRA: the discriminator, which is the model, as a Hugging Face directory. No configuration
stands beside them: how the model is built follows from its variables' shapes, with heads of 64 as all of them have.

Facts: ``model/modeling.py`` and ``configure_pretraining.py`` of google-research/electra; transformers'
``load_tf_weights_in_electra`` (in its versions before 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelhub import InvalidFile

from modelhub_tensorflow.published import BERT_PARTS, NORM, TURNED, Target, counted, sides

MARK = "electra/embeddings/word_embeddings"
UNUSED = re.compile(r"generator(?:_predictions)?/.+", re.DOTALL)
"""What made up the words that the discriminator told from real ones."""
HEAD = 64
_LAYER = re.compile(r"electra/encoder/layer_(\d{1,4})/(.+)", re.ASCII)
_DENSE = {
    "electra/embeddings_project": "electra.embeddings_project",
    "discriminator_predictions/dense": "discriminator_predictions.dense",
    "discriminator_predictions/dense_1": "discriminator_predictions.dense_prediction",
}
_OTHERS = {
    **{
        f"electra/embeddings/{part}_embeddings": Target(f"electra.embeddings.{part}_embeddings.weight")
        for part in ("word", "position", "token_type")
    },
    **{f"electra/embeddings/LayerNorm/{name}": Target(f"electra.embeddings.LayerNorm.{ours}") for name, ours in NORM.items()},
    **{f"{name}/kernel": Target(f"{ours}.weight", TURNED) for name, ours in _DENSE.items()},
    **{f"{name}/bias": Target(f"{ours}.bias") for name, ours in _DENSE.items()},
}


def target(name: str) -> Target | None:
    """What a variable of ELECTRA's discriminator becomes; None for one that it does not have."""
    if match := _LAYER.fullmatch(name):
        part = BERT_PARTS.get(match[2])
        return part and part._replace(name=f"electra.encoder.layer.{int(match[1])}.{part.name}")
    return _OTHERS.get(name)


def configuration(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration, by the tensors' shapes under their names in transformers. `InvalidFile` where these contradict it."""
    vocabulary, width = sides(shapes, "electra.embeddings.word_embeddings.weight")
    positions, _ = sides(shapes, "electra.embeddings.position_embeddings.weight")
    types, _ = sides(shapes, "electra.embeddings.token_type_embeddings.weight")
    inner, hidden = sides(shapes, "electra.encoder.layer.0.intermediate.dense.weight")
    if hidden % HEAD:
        raise InvalidFile(f"a model that is {hidden} wide has no heads of {HEAD}, as every published ELECTRA has")
    head = "ElectraForPreTraining" if "discriminator_predictions.dense.weight" in shapes else "ElectraModel"
    return {
        "architectures": [head], "model_type": "electra", "vocab_size": vocabulary, "embedding_size": width,
        "hidden_size": hidden, "num_hidden_layers": counted(shapes, "electra.encoder.layer."),
        "num_attention_heads": hidden // HEAD, "intermediate_size": inner, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": positions, "type_vocab_size": types,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip

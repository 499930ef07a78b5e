"""BERT, for embeddings and classification. Facts: llama.cpp ``conversion/bert.py`` (``BertModel``)."""

from __future__ import annotations

from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.given import Given
from modelhub_gguf.architectures.keys import BASE, POOLING, computed
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.records import Architecture, Back
from modelhub_gguf.documents import mapping
from modelhub_gguf.fields import BOOL, STRING

ENDS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
    "classifier": "cls.output",
}
BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def old_norms(names: dict[str, str]) -> dict[str, str]:
    """Norms as TensorFlow called them: gamma and beta."""
    both = {}
    for hf, gguf in names.items():
        both[hf] = gguf
        if "LayerNorm" in hf:
            both.update({f"{hf}.gamma": f"{gguf}.weight", f"{hf}.beta": f"{gguf}.bias"})
    return both


def labels(config: Config) -> list[str] | None:
    """What a classifier tells apart, where it is one: transformers gives every model two dummies."""
    found = mapping(config.raw.get("id2label"))
    if not found or (len(found) == 2 and found.get("0") == "LABEL_0"):
        return None
    if not all(isinstance(key, str) and key.isdecimal() and isinstance(value, str) for key, value in found.items()):
        return None
    return [found[key] for key in sorted(found, key=int)]


def returned(given: Given, config: dict[str, Any]) -> None:
    heads = [name for name in given.tensors if name.startswith("cls.")]
    if heads:
        raise UnsupportedFile(
            f"tensor {heads[0]} is a classifier's, which rests on a pooler that GGUF does not hold: encoders have a way back"
        )
    kinds = given.shape("token_types.weight")
    if kinds:
        config["type_vocab_size"] = kinds[0]
    del config["tie_word_embeddings"]  # an encoder has no output


ROWS = (
    Architecture(
        name="bert",
        hf=("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
        model_type="bert",
        defaults={"": {"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2}},
        keys=(
            *BASE,
            computed("attention.causal", BOOL, lambda config: False),
            *POOLING,
            computed("classifier.output_labels", STRING, labels),
        ),
        names=old_norms(decoder(BLOCK, ends=ENDS, layer="encoder.layer.{b}.")),
        prefixes=("bert.",),
        ignored=(r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)", r"cls\.(predictions|seq_relationship).*"),
        back=Back(returned),
    ),
)

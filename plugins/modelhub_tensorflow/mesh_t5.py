"""T5 as it was trained with Mesh TensorFlow, as a Hugging Face directory. How the model is built follows from its variables'
shapes: the configuration of such checkpoints is a program (``operative_config.gin``), and not read.

Facts: ``mesh_tensorflow/transformer`` (names of layers), transformers' ``load_tf_weights_in_t5`` (in its versions before 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelhub import InvalidFile

from modelhub_tensorflow.published import TURNED, Target, counted, sides

MARK = "shared/embedding"
PIECES = ("sentencepiece.model", "spiece.model")
_BLOCK = re.compile(r"(encoder|decoder)/block_(\d{1,4})/layer_(\d{1,4})/(.+)", re.ASCII)
_ATTENTION = re.compile(r"(?:SelfAttention|EncDecAttention)/(?:[qkvo]|relative_attention_bias)", re.ASCII)
_DENSE = re.compile(r"DenseReluDense/(?:wi|wi_0|wi_1|wo)/kernel", re.ASCII)
_OTHERS = {
    MARK: Target("shared.weight"),
    "decoder/logits/kernel": Target("lm_head.weight", TURNED),
    **{
        f"{stack}/{norm}/scale": Target(f"{stack}.final_layer_norm.weight")
        for stack in ("encoder", "decoder")
        for norm in ("final_layer_norm", "rms_norm")
    },
}
UNUSED = re.compile(r"decoder/block_\d{1,4}/layer_\d{1,4}/EncDecAttention/relative_attention_bias", re.ASCII)
"""T5 does not use these, and transformers leaves them out."""


def target(name: str) -> Target | None:
    """What a variable of T5 becomes; None for one that no T5 has."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _OTHERS.get(name)
    at = f"{match[1]}.block.{int(match[2])}.layer.{int(match[3])}"
    if _ATTENTION.fullmatch(match[4]) or _DENSE.fullmatch(match[4]):
        return Target(f"{at}.{match[4].removesuffix('/kernel').replace('/', '.')}.weight", TURNED)
    return Target(f"{at}.layer_norm.weight") if match[4] == "layer_norm/scale" else None


def configuration(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration, by the tensors' shapes under their names in transformers. `InvalidFile` where these contradict it."""
    vocabulary, width = sides(shapes, "shared.weight")
    first = "encoder.block.0.layer.0.SelfAttention"
    inner = sides(shapes, f"{first}.q.weight")[0]
    buckets, heads = sides(shapes, f"{first}.relative_attention_bias.weight")
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    hidden = sides(shapes, f"encoder.block.0.layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight")[0]
    if not heads or inner % heads:
        raise InvalidFile(f"{first}: {inner} rows do not divide among {heads} heads")
    return {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": vocabulary, "d_model": width,
        "d_kv": inner // heads, "d_ff": hidden, "num_heads": heads, "num_layers": counted(shapes, "encoder.block."),
        "num_decoder_layers": counted(shapes, "decoder.block."), "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128, "feed_forward_proj": "gated-gelu" if gated else "relu", "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True, "tie_word_embeddings": "lm_head.weight" not in shapes,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip

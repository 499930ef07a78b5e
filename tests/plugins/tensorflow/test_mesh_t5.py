"""T5 as Mesh TensorFlow trained it: the mapping that transformers had in its ``load_tf_weights_in_t5`` (before version 5) is
written out here as the outside truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Modelhub
from tests.plugins.tensorflow.test_to_huggingface import Arrays, check_same, checkpoint, filled

WORDS, WIDTH, HEADS, KEYS, INNER, BUCKETS = 60, 16, 2, 6, 20, 32
BLOCKS = {"encoder": 2, "decoder": 3}
UNUSED = "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"


def variables(*, gated: bool) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"shared/embedding": (WORDS, WIDTH)}
    for stack, blocks in BLOCKS.items():
        attentions = ["SelfAttention", "EncDecAttention"][: 1 + (stack == "decoder")]
        for block in range(blocks):
            for layer, kind in enumerate([*attentions, "DenseReluDense"]):
                at = f"{stack}/block_{block:03d}/layer_{layer:03d}"
                shapes[f"{at}/layer_norm/scale"] = (WIDTH,)
                if kind == "DenseReluDense":
                    inward = ("wi_0", "wi_1") if gated else ("wi",)
                    shapes |= {f"{at}/{kind}/{one}/kernel": (WIDTH, INNER) for one in inward}
                    shapes[f"{at}/{kind}/wo/kernel"] = (INNER, WIDTH)
                    continue
                shapes |= {f"{at}/{kind}/{one}": (WIDTH, HEADS * KEYS) for one in "qkv"}
                shapes[f"{at}/{kind}/o"] = (HEADS * KEYS, WIDTH)
                if not block and kind == "SelfAttention":
                    shapes[f"{at}/{kind}/relative_attention_bias"] = (HEADS, BUCKETS)
        shapes[f"{stack}/{'rms_norm' if gated else 'final_layer_norm'}/scale"] = (WIDTH,)
    if gated:
        shapes["decoder/logits/kernel"] = (WIDTH, WORDS)
    return filled(shapes)


def as_transformers_loaded(found: Arrays) -> Arrays:
    wanted = {}
    for name, array in found.items():
        *scopes, last = name.replace("rms_norm", "final_layer_norm").replace("decoder/logits", "lm_head").split("/")
        parts = [part for scope in scopes for part in re.sub(r"^(block|layer)_0*(\d+)$", r"\1/\2", scope).split("/")]
        parts += ["weight"] if last in ("kernel", "scale", "embedding") else [last, "weight"]
        wanted[".".join(parts)] = array if last == "embedding" else array.T
    return wanted


@pytest.mark.parametrize("gated", [False, True])
def test_t5_is_what_transformers_made_of_it(gated: bool, tmp_path: Path, tensorflow: Any, modelhub: Modelhub) -> None:
    """The first, and version 1.1; with the state of Adafactor, and a variable that is never used."""
    import transformers

    found = variables(gated=gated)
    others = {f"{name}_slot_v{letter}": np.zeros(3, "f4") for name in found for letter in "rc"}
    others |= {"global_step": np.asarray(7), UNUSED: np.zeros((HEADS, BUCKETS), "f4")}
    source = checkpoint(tmp_path / "tiny", tensorflow, {**found, **others}, {}, "model.ckpt-1000000")
    modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out")
    check_same(tmp_path / "out", as_transformers_loaded(found))
    model, told = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    config = model.config
    assert (config.d_kv, config.num_heads, config.num_layers, config.num_decoder_layers) == (KEYS, HEADS, 2, 3)
    # version 5 keeps what "tie_word_embeddings" says under another name
    assert (config.feed_forward_proj, config.scale_decoder_outputs) == (("gated-gelu", False) if gated else ("relu", True))
    output = found["decoder/logits/kernel"].T if gated else found["shared/embedding"]
    assert np.array_equal(model.lm_head.weight.detach().numpy(), output)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("decoder/block_001", "decoder.block.1 is not there"),
        ("encoder/block_000/layer_000/SelfAttention/relative_attention_bias", "relative_attention_bias.weight was expected"),
    ],
)
def test_what_lacks_a_part_is_refused(lost: str, told: str, tmp_path: Path, tensorflow: Any, modelhub: Modelhub) -> None:
    found = {name: array for name, array in variables(gated=False).items() if not name.startswith(lost)}
    source = checkpoint(tmp_path / "tiny", tensorflow, found, {}, "model.ckpt")
    refused = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out", status=3)
    assert told in refused.stderr

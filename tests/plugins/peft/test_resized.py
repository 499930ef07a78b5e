"""Tokens that a training added: adapters bring embeddings of another size than the base's, under the names of whatever peft put
around them."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import transformers

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import llama, merged_model, trained, worst

TOKENS = 163
KINDS: dict[str, tuple[bool, peft.LoraConfig]] = {
    "trained tokens": (False, peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 161])),
    "trained tokens, tied": (True, peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 161])),
    "saved and kept tied": (
        True,
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "both of two that are tied": (True, peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"])),
}


def resized(base: Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(TOKENS, mean_resizing=False)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_has_the_new_tokens(kind: str, tmp_path: Path, modelhub: Modelhub) -> None:
    tied, config = KINDS[kind]
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    adapter = trained(resized(tmp_path / "base"), config, tmp_path / "adapter")
    modelhub("merge", tmp_path / "base", "--adapter", adapter, "-o", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == TOKENS
    name, far = worst(dict(model.state_dict()), dict(merged_model(resized(tmp_path / "base"), adapter).state_dict()))
    assert far < 3e-6, name


def test_an_output_that_was_resized_and_not_saved_is_missed(tmp_path: Path, modelhub: Modelhub) -> None:
    llama().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"])
    adapter = trained(resized(tmp_path / "base"), config, tmp_path / "adapter")
    refused = modelhub("merge", tmp_path / "base", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert "its embedding has 163 tokens, the base's lm_head.weight 160" in refused.stderr

"""Hugging Face directories exported to ONNX: they compute what transformers computes, under the names that runtimes know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from modelhub.files import Checkpoint
from modelhub_onnx import export
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import Modelhub


def test_a_decoder_with_its_cache(tmp_path: Path, modelhub: Modelhub) -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, vocab_size=50
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "tiny")
    report = modelhub("convert", tmp_path / "tiny", "--to", "onnx", "--atol", "1e-4", "--json").json
    assert [row["name"] for row in report["compared"]] == ["logits", "present.0.key", "present.0.value"]
    assert report["compared"][0]["max_error"] < 1e-5
    shown = modelhub("show", report["output"], "--json").json["metadata"]
    assert shown["inputs"] == {
        "input_ids": "int64[batch, sequence]",
        "attention_mask": "int64[batch, total_sequence]",
        "past_key_values.0.key": "float32[batch, 1, past_sequence, 8]",
        "past_key_values.0.value": "float32[batch, 1, past_sequence, 8]",
    }
    assert list(shown["outputs"]) == ["logits", "present.0.key", "present.0.value"]
    session = onnxruntime.InferenceSession(report["output"])
    assert [one.shape for one in session.get_inputs()][2:] == [["batch", 1, "past_sequence", 8]] * 2
    # Token by token, from an empty cache, is the same as all at once.
    ids = np.array([[3, 1, 4, 1, 5, 9]])
    key = value = np.zeros((1, 1, 0, 8), np.float32)
    steps = []
    for number, token in enumerate(ids[0]):
        feed = {"input_ids": np.array([[token]]), "attention_mask": np.ones((1, number + 1), np.int64)}
        cache = {"past_key_values.0.key": key, "past_key_values.0.value": value}
        logits, key, value = session.run(None, feed | cache)
        steps.append(logits[0, -1])
    with torch.no_grad():
        whole = model(torch.from_numpy(ids)).logits[0].numpy()
    np.testing.assert_allclose(np.stack(steps), whole, atol=1e-5)
    # And onnxruntime's tools and checks take it.
    assert modelhub("verify", report["output"], "--level", "runnable", "--json").json[0]["ok"]
    small = modelhub("quantize", report["output"], "int8", "--json").json
    assert small["compared"][0]["cosine"] > 0.99


def test_an_encoder(tmp_path: Path) -> None:
    """Of an architecture that stands on top of a known one, and without weights that transformers makes up: both are noted."""
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    configure(tmp_path / "bert", architectures=["MyBertForEverything"])
    path = str(tmp_path / "bert")
    checkpoint = Checkpoint(path, [f"{path}/model.safetensors", f"{path}/config.json"])
    result = export.run(checkpoint, str(tmp_path / "bert.onnx"), {"atol": "1e-4"})
    assert [row["name"] for row in result.compared] == ["last_hidden_state", "pooler_output"]
    assert max(row["max_error"] for row in result.compared) < 1e-5
    assert "transformers has no MyBertForEverything: exported as BertModel, without what stands on top of that" in result.notes
    assert any(note.startswith("2 weights are not in the checkpoint") and "pooler.dense.bias" in note for note in result.notes)
    assert [one.name for one in onnxruntime.InferenceSession(str(tmp_path / "bert.onnx")).get_inputs()] == [
        "input_ids", "attention_mask", "token_type_ids",
    ]  # fmt: skip


def test_a_mask_is_part_of_what_is_compared() -> None:
    """An export that forgot it would compute something else on the inputs that are made up."""
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = BertModel(config).eval()
    feed = export._feed(model, False, *export.SHAPES[1], seed=1, padded=True)
    blind = feed | {"attention_mask": np.ones_like(feed["attention_mask"])}
    first, other = (export._compute(model, one)[0] for one in (feed, blind))
    assert np.array_equal(first[0], other[0])
    assert np.abs(first[1] - other[1]).max() > 1e-4


def test_what_transformers_does_not_know_is_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    """And the code beside it is not run."""
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path / "new")
    (tmp_path / "new/mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    configure(tmp_path / "new", model_type="brand-new", auto_map={"AutoConfig": "mine.C", "AutoModel": "mine.M"})
    done = modelhub("convert", tmp_path / "new", "--to", "onnx", status=3)
    assert "does not know models of the type 'brand-new'" in done.stderr
    assert not (tmp_path / "ran").exists()


def configure(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_takes_two_models_is_refused(tmp_path: Path, modelhub: Modelhub) -> None:
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    done = modelhub("convert", tmp_path / "t5", "--to", "onnx", status=3)
    assert "has an encoder and a decoder" in done.stderr
    static = modelhub("convert", tmp_path / "t5", "--to", "onnx:int8-static", status=2)
    assert "needs inputs to calibrate with" in static.stderr
    peft = modelhub("convert", tmp_path / "t5/model.safetensors", "--to", "onnx:int8", status=2)
    assert "onnx:int8 is made of huggingface, onnx" in peft.stderr


def test_exported_and_quantized_in_one_command(tmp_path: Path, modelhub: Modelhub) -> None:
    """The error is that of the whole way, against torch."""
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=60, n_positions=32, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    report = modelhub("convert", tmp_path / "gpt2", "--to", "onnx:int4", "--json").json
    output = Path(report["output"])
    assert (output.name, report["route"]) == ("gpt2.int4.onnx", ["huggingface", "onnx"])
    assert {row["name"] for row in report["compared"]} == {"logits", "present.0.key", "present.0.value"}
    assert all(1e-3 < row["max_error"] < 0.3 for row in report["compared"])
    assert any("the export alone is off by at most" in note for note in report["notes"])
    assert not any("half precision" in note for note in report["notes"])
    assert modelhub("show", output, "--json").json["metadata"]["quantization"]["weights"] == "INT4"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["gpt2", "gpt2.int4.onnx"]

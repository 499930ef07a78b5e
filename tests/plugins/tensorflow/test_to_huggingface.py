"""Checkpoints as google-research and OpenAI published them become Hugging Face directories: the mapping that transformers had in
its ``load_tf_weights_in_bert`` and ``load_tf_weights_in_gpt2`` (until version 4) is written out here as the outside truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 2, 64, 48
WORDS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "model", "##s", "run", "fast", "."]
BERT = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": HIDDEN,
    "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "type_vocab_size": 2, "vocab_size": len(WORDS), "directionality": "bidi",
}  # fmt: skip


def filled(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    random = np.random.default_rng(5)
    return {name: random.standard_normal(shape).astype("f4") * np.float32(0.1) for name, shape in shapes.items()}


def bert_variables(*, heads: bool = True) -> Arrays:
    """The variables of ``modeling.py``'s ``BertModel`` and ``run_pretraining.py``'s heads."""
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (len(WORDS), HIDDEN),
        "bert/embeddings/token_type_embeddings": (2, HIDDEN),
        "bert/embeddings/position_embeddings": (POSITIONS, HIDDEN),
        "bert/pooler/dense/kernel": (HIDDEN, HIDDEN),
        "bert/pooler/dense/bias": (HIDDEN,),
    }
    norms = ["bert/embeddings"]
    for layer in range(LAYERS):
        at = f"bert/encoder/layer_{layer}"
        dense = {"attention/self/query": (HIDDEN, HIDDEN), "attention/self/key": (HIDDEN, HIDDEN),
                 "attention/self/value": (HIDDEN, HIDDEN), "attention/output/dense": (HIDDEN, HIDDEN),
                 "intermediate/dense": (HIDDEN, INNER), "output/dense": (INNER, HIDDEN)}  # fmt: skip
        for part, shape in dense.items():
            shapes |= {f"{at}/{part}/kernel": shape, f"{at}/{part}/bias": shape[1:]}
        norms += [f"{at}/attention/output", f"{at}/output"]
    if heads:
        shapes |= {
            "cls/predictions/transform/dense/kernel": (HIDDEN, HIDDEN), "cls/predictions/transform/dense/bias": (HIDDEN,),
            "cls/predictions/output_bias": (len(WORDS),), "cls/seq_relationship/output_weights": (2, HIDDEN),
            "cls/seq_relationship/output_bias": (2,),
        }  # fmt: skip
        norms.append("cls/predictions/transform")
    for norm in norms:
        shapes |= {f"{norm}/LayerNorm/gamma": (HIDDEN,), f"{norm}/LayerNorm/beta": (HIDDEN,)}
    return filled(shapes)


def as_transformers_loaded_bert(variables: Arrays) -> Arrays:
    """``load_tf_weights_in_bert``: scopes become attributes, ``kernel`` a transposed weight."""
    found = {}
    for name, array in variables.items():
        *scopes, last = name.split("/")
        parts = []
        for scope in scopes:
            stem, _, number = scope.rpartition("_")
            parts += [stem, number] if number.isdigit() else [scope]
        if last in ("kernel", "gamma", "output_weights"):
            parts.append("weight")
        elif last in ("beta", "output_bias", "bias"):
            parts.append("bias")
        else:
            parts += [last, "weight"]
        found[".".join(parts)] = array.T if last == "kernel" else array
    return found


def check_same(directory: Path, wanted: Arrays) -> None:
    from safetensors.numpy import load_file

    found = load_file(directory / "model.safetensors")
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def checkpoint(directory: Path, tensorflow: Any, variables: Arrays, documents: dict[str, str], stem: str) -> Path:
    directory.mkdir()
    for name, text in documents.items():
        (directory / name).write_text(text)
    tensorflow.save(str(directory / stem), variables)
    return directory / f"{stem}.index"


def test_bert_is_what_transformers_made_of_it(tmp_path: Path, tensorflow, modelhub) -> None:
    variables = bert_variables()
    extra = {"global_step": np.int64(7), "bert/pooler/dense/bias/adam_m": np.zeros(HIDDEN, "f4")}
    documents = {"bert_config.json": json.dumps(BERT), "vocab.txt": "\n".join(WORDS) + "\n"}
    source = checkpoint(tmp_path / "tiny", tensorflow, {**variables, **extra}, documents, "bert_model.ckpt")
    output = tmp_path / "bert"
    modelhub("convert", source, "--to", "huggingface", "-o", output)
    check_same(output, as_transformers_loaded_bert(variables))

    from transformers import AutoModelForPreTraining, AutoTokenizer

    model, told = AutoModelForPreTraining.from_pretrained(output, output_loading_info=True)
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    ids = AutoTokenizer.from_pretrained(output)("The models run fast.")["input_ids"]
    assert [WORDS[number] for number in ids] == ["[CLS]", "the", "model", "##s", "run", "fast", ".", "[SEP]"]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).prediction_logits[0].numpy()
    np.testing.assert_allclose(logits, bert_by_hand(variables, ids), atol=2e-5)
    # and on, in one pass, to where only a Hugging Face directory leads
    modelhub("convert", source, "--to", "gguf", "-o", tmp_path / "bert.gguf")
    assert modelhub("show", tmp_path / "bert.gguf", "--json").json["metadata"]["architecture"] == "bert"


def bert_by_hand(variables: Arrays, ids: list[int]) -> NDArray[Any]:
    """The forward pass of ``modeling.py``, over the variables as TensorFlow has them."""
    from math import erf

    at = variables.__getitem__

    def norm(x: NDArray[Any], scope: str) -> NDArray[Any]:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * at(f"{scope}/LayerNorm/gamma") + at(
            f"{scope}/LayerNorm/beta"
        )

    def dense(x: NDArray[Any], scope: str) -> NDArray[Any]:
        return x @ at(f"{scope}/kernel") + at(f"{scope}/bias")

    def gelu(x: NDArray[Any]) -> NDArray[Any]:
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    words = at("bert/embeddings/word_embeddings")
    x = words[ids] + at("bert/embeddings/position_embeddings")[: len(ids)] + at("bert/embeddings/token_type_embeddings")[0]
    x = norm(x, "bert/embeddings")
    for layer in range(LAYERS):
        scope = f"bert/encoder/layer_{layer}"
        q, k, v = (
            dense(x, f"{scope}/attention/self/{part}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(HIDDEN / HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(x + dense(mixed, f"{scope}/attention/output/dense"), f"{scope}/attention/output")
        x = norm(x + dense(gelu(dense(x, f"{scope}/intermediate/dense")), f"{scope}/output/dense"), f"{scope}/output")
    x = norm(gelu(dense(x, "cls/predictions/transform/dense")), "cls/predictions/transform")
    return x @ words.T + at("cls/predictions/output_bias")


GPT2 = {"n_vocab": 260, "n_ctx": 32, "n_embd": 24, "n_head": 2, "n_layer": 2}


def gpt2_variables() -> Arrays:
    width = GPT2["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "model/wte": (GPT2["n_vocab"], width), "model/wpe": (GPT2["n_ctx"], width),
        "model/ln_f/g": (width,), "model/ln_f/b": (width,),
    }  # fmt: skip
    for layer in range(GPT2["n_layer"]):
        at = f"model/h{layer}"
        for part, out in {"attn/c_attn": 3 * width, "attn/c_proj": width, "mlp/c_fc": 4 * width, "mlp/c_proj": width}.items():
            shapes |= {f"{at}/{part}/w": (1, 4 * width if part == "mlp/c_proj" else width, out), f"{at}/{part}/b": (out,)}
        for part in ("ln_1", "ln_2"):
            shapes |= {f"{at}/{part}/g": (width,), f"{at}/{part}/b": (width,)}
    return filled(shapes)


def as_transformers_loaded_gpt2(variables: Arrays) -> Arrays:
    """``load_tf_weights_in_gpt2``: squeezed; ``w`` and ``g`` are weights, ``b`` a bias, ``wte`` and ``wpe`` have one."""
    found = {}
    for name, array in variables.items():
        parts = name.removeprefix("model/").replace("h0/", "h/0/").replace("h1/", "h/1/").split("/")
        ends = {"w": ["weight"], "g": ["weight"], "b": ["bias"], "wte": ["wte", "weight"], "wpe": ["wpe", "weight"]}
        found["transformer." + ".".join([*parts[:-1], *ends[parts[-1]]])] = array.squeeze()
    return found


def test_gpt2_is_what_transformers_made_of_it(tmp_path: Path, tensorflow, modelhub) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values(), "th", "the", "Ġthe", "<|endoftext|>"]
    documents = {
        "hparams.json": json.dumps(GPT2),
        "encoder.json": json.dumps({text: number for number, text in enumerate(letters)}),
        "vocab.bpe": "#version: 0.2\nt h\nth e\nĠ the\n",
    }
    variables = gpt2_variables()
    source = checkpoint(tmp_path / "tiny", tensorflow, variables, documents, "model.ckpt")
    output = tmp_path / "gpt2"
    modelhub("convert", source, "--to", "huggingface", "-o", output)
    check_same(output, as_transformers_loaded_gpt2(variables))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, told = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert (not told["unexpected_keys"], not told["missing_keys"]) == (True, True)
    assert (model.config.n_head, model.config.eos_token_id) == (2, 259)
    assert AutoTokenizer.from_pretrained(output)("the the")["input_ids"] == [letters.index("the"), letters.index("Ġthe")]
    modelhub("convert", source, "--to", "gguf", "-o", tmp_path / "gpt2.gguf")
    assert modelhub("show", tmp_path / "gpt2.gguf", "--json").json["metadata"]["architecture"] == "gpt2"


def test_a_model_fine_tuned_by_its_scripts(tmp_path: Path, tensorflow, modelhub) -> None:
    variables = bert_variables(heads=False) | filled({"output_weights": (3, HIDDEN), "output_bias": (3,)})
    documents = {"bert_config.json": json.dumps(BERT), "vocab.txt": "\n".join([*WORDS[:-1], "Fast"]) + "\n"}
    source = checkpoint(tmp_path / "tiny", tensorflow, variables, documents, "model.ckpt-100")
    modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out")

    from transformers import AutoModelForSequenceClassification

    model, told = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (not told["missing_keys"], model.config.num_labels) == (True, 3)
    np.testing.assert_array_equal(model.classifier.weight.detach().numpy(), variables["output_weights"])
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["do_lower_case"] is False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drop": "bert_config.json"}, "there is no bert_config.json"),
        ({"config": {**BERT, "num_hidden_layers": 3}}, "bert_config.json asks for bert.encoder.layer.2"),
        ({"config": {**BERT, "num_hidden_layers": 1}}, "counts 1 layers; there are tensors of layer 1"),
        ({"config": {**BERT, "hidden_size": -1}}, "a whole number above zero was expected"),
        ({"add": "bert/adapter/kernel"}, "has no place in the published BERT"),
        ({"only": "dense/kernel"}, "not those of the published BERT, ALBERT, ELECTRA, GPT-2 or T5"),
    ],
)
def test_what_is_no_such_model_is_refused(change: dict[str, Any], told: str, tmp_path: Path, tensorflow, modelhub) -> None:
    variables = bert_variables(heads=False)
    if "only" in change:
        variables = {change["only"]: np.ones((2, 3), "f4")}
    elif "add" in change:
        variables[change["add"]] = np.ones((2, 3), "f4")
    documents = {"bert_config.json": json.dumps(change.get("config", BERT)), "vocab.txt": "\n".join(WORDS)}
    documents.pop(change.get("drop", ""), None)
    source = checkpoint(tmp_path / "tiny", tensorflow, variables, documents, "bert_model.ckpt")
    refused = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out", status=3)
    assert told in refused.stderr
    assert not (tmp_path / "out").exists()

"""Hugging Face directories with weights for TensorFlow and Flax: read by the names that PyTorch has, and what comes of them is
what transformers 4 made of such files (``frameworks_names.txt`` says so) and what transformers 5 opens."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from tests.conftest import Modelhub
from tests.plugins.flax.test_flax import to_bytes

NAMES = Path(__file__).with_name("frameworks_names.txt")
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
CONFIGS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {"model_type": "bert", "vocab_size": 99, **BERT},
    "GPT2LMHeadModel": {
        "model_type": "gpt2", "vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40,
    },
    "T5ForConditionalGeneration": {
        "model_type": "t5", "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4,
    },
    "ViTForImageClassification": {"model_type": "vit", "image_size": 30, "patch_size": 2, **BERT},
    "Wav2Vec2ForCTC": {
        "model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20,
        "conv_dim": [32, 32], "conv_stride": [4, 4], "conv_kernel": [8, 8], "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2, "vocab_size": 32, "mask_time_prob": 0.0,
    },
    "BartForConditionalGeneration": {
        "model_type": "bart", "vocab_size": 99, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37,
        "max_position_embeddings": 40,
    },
    "ResNetForImageClassification": {
        "model_type": "resnet", "embedding_size": 10, "hidden_sizes": [10, 20, 30, 40], "depths": [1, 1, 2, 1],
        "num_labels": 3,
    },
}  # fmt: skip


def sides(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x"))) if text != "-" else ()


def rows(case: str) -> list[list[str]]:
    section = NAMES.read_text().split(f"[{case}]\n")[1].split("[")[0]
    return [line.split() for line in section.splitlines()]


def made(directory: Path, case: str, *, shards: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """A directory as transformers 4 saved it. Returns what PyTorch has."""
    framework, model = case.split("/")
    random = np.random.default_rng(5)
    torch: dict[str, np.ndarray[Any, Any]] = {}
    theirs: list[tuple[str, str, np.ndarray[Any, Any]]] = []
    for layer, weight, shape, name, axes, wanted in rows(case):
        if name not in torch:
            torch[name] = random.standard_normal(sides(wanted), np.float32)
        turned = torch[name].reshape([sides(shape)[axis] for axis in sides(axes)])
        theirs.append((layer, weight, np.ascontiguousarray(turned.transpose(np.argsort(sides(axes)).tolist()))))
        assert theirs[-1][2].shape == sides(shape)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [model], **CONFIGS[model]}))
    (directory / "tokenizer.json").write_text("{}")
    if framework == "flax":
        tree: dict[str, Any] = {}
        for _, path, array in theirs:
            *above, last = path.split("/")
            node = tree
            for key in above:
                node = node.setdefault(key, {})
            node[last] = array
        (directory / "flax_model.msgpack").write_bytes(to_bytes(tree))
    elif shards == 1:
        with h5py.File(directory / "tf_model.h5", "w") as file:
            layers = list(dict.fromkeys(layer for layer, _, _ in theirs))
            file.attrs.update(layer_names=layers, backend="tensorflow", keras_version="2.17.0")
            for layer in layers:
                group = file.create_group(layer)
                group.attrs["weight_names"] = [weight for of, weight, _ in theirs if of == layer]
            for layer, weight, array in theirs:
                file[layer].create_dataset(weight, data=array)
    else:  # transformers saves shared weights once, and leaves the scope out of all but the index
        once = [(weight, array) for layer, weight, array in theirs if layer != "mlm___cls" or "/mlm___cls/" in weight]
        index = {}
        for number in range(shards):
            name = f"tf_model-{number + 1:05}-of-{shards:05}.h5"
            part = once[number::shards]
            with h5py.File(directory / name, "w") as file:
                file.attrs["layer_names"] = [weight.partition("/")[2] for weight, _ in part]
                for weight, array in part:
                    file.create_dataset(weight.partition("/")[2], data=array)
                    index[weight] = name
        (directory / "tf_model.h5.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return torch


CASES = [line.strip()[1:-1] for line in NAMES.read_text().splitlines() if line.startswith("[")]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_pytorch(modelhub: Modelhub, tmp_path: Path, case: str) -> None:
    source, model = tmp_path / "old", case.split("/")[1]
    wanted = made(source, case)
    shown = modelhub("show", str(source), "--json").json
    assert (shown["format"], shown["container"], shown["state"]) == (
        "huggingface",
        "flax" if case.startswith("flax") else "keras",
        "ready",
    )
    assert shown["parameters"] == sum(prod(array.shape) for array in wanted.values()) + sum("_mean" in name for name in wanted)
    modelhub("convert", str(source), "--to", "huggingface", "-o", str(tmp_path / "new"))
    found = load_file(tmp_path / "new" / "model.safetensors")
    counters = {name for name in found if name.endswith("num_batches_tracked")}
    assert set(found) - counters == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert all(found[name] == 0 for name in counters)
    _, loaded = getattr(transformers, model).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loaded


def test_parts_and_their_index(modelhub: Modelhub, tmp_path: Path) -> None:
    source = tmp_path / "parts"
    wanted = made(source, "tf/BertForMaskedLM", shards=3)
    modelhub("convert", str(source), "--to", "safetensors", "-o", str(tmp_path / "out.safetensors"))
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    modelhub("verify", str(source))
    index = source / "tf_model.h5.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["tf_bert_for_masked_lm/bert/lost/kernel:0"] = "tf_model-00001-of-00003.h5"
    index.write_text(json.dumps(told))
    answer = modelhub("verify", str(source), status=1)
    assert "'tf_bert_for_masked_lm/bert/lost/kernel:0'" in answer.stdout
    (source / "tf_model-00002-of-00003.h5").unlink()
    shown = modelhub("show", str(source), "--json").json
    assert (shown["state"], shown["format"]) == ("incomplete", "huggingface")


def test_beside_weights_for_pytorch(modelhub: Modelhub, tmp_path: Path) -> None:
    """The directory's weights are PyTorch's; the file for the other framework is a checkpoint by itself, of the same weights."""
    source = tmp_path / "both"
    wanted = made(source, "flax/GPT2LMHeadModel")
    save_file(wanted, source / "model.safetensors")
    assert modelhub("show", str(source), "--json").json["container"] == "safetensors"
    flax = source / "flax_model.msgpack"
    assert modelhub("show", str(flax), "--json").json["format"] == "flax"
    modelhub("convert", str(flax), "--to", "huggingface", "-o", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    modelhub("diff", str(source), str(tmp_path / "out"))


def test_without_a_configuration(modelhub: Modelhub, tmp_path: Path) -> None:
    source = tmp_path / "alone"
    made(source, "tf/GPT2LMHeadModel")
    (source / "config.json").unlink()
    answer = modelhub("convert", str(source / "tf_model.h5"), "--to", "huggingface", status=3)
    assert "no config.json beside it" in answer.stderr
    assert "--to safetensors" in answer.stderr


def test_its_export_to_onnx_names_the_way(modelhub: Modelhub, tmp_path: Path) -> None:
    source = tmp_path / "old"
    made(source, "flax/GPT2LMHeadModel")
    answer = modelhub("convert", str(source), "--to", "onnx", "-o", str(tmp_path / "out.onnx"), status=3)
    assert "for TensorFlow or Flax" in answer.stderr
    assert "--to huggingface" in answer.stderr

"""Stores as their own programs lay them out: each model is listed once, in place, by the name its users call it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save

from tests.conftest import Modelhub

OLD, NEW = "a" * 40, "b" * 40
CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()


def layer(number: int) -> bytes:
    return save({f"model.layers.{number}.w": np.full((8, 8), number, np.float32)})


def download(hub: Path, repo: str, revision: str, files: dict[str, bytes]) -> None:
    """What huggingface_hub leaves: blobs by digest, links to them from the snapshot, and a ref that names it."""
    for name, data in files.items():
        blob = hub / repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = hub / repo / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    ref = hub / repo / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    ref.write_text(revision)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    hub = tmp_path / "drive" / "hub"
    whole = {"config.json": CONFIG, "model.safetensors": layer(0)}
    download(hub, "models--org--plain", OLD, whole)
    download(hub, "models--org--plain", NEW, {**whole, "README.md": b"later"})
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {f"model.layers.{number}.w": shard for number, shard in enumerate(shards, 1)}
    index = json.dumps({"metadata": {"total_size": 512}, "weight_map": weight_map}).encode()
    parts = {shard: layer(number) for number, shard in enumerate(shards, 1)}
    download(hub, "models--org--sharded", OLD, {"config.json": CONFIG, "model.safetensors.index.json": index, **parts})
    download(hub, "datasets--org--data", OLD, {"data.json": b"{}"})
    download(hub, "models--org--partial", OLD, {"config.json": CONFIG})
    (hub / "models--org--partial" / "blobs" / ("c" * 64 + ".incomplete")).write_bytes(layer(3)[:100])
    return hub


def test_each_revision_of_a_cached_repository_is_one_checkpoint_and_nothing_else_is(hub: Path, modelhub: Modelhub) -> None:
    before = sorted(hub.rglob("*"))
    modelhub("scan", hub.parent)
    listed = json.loads(modelhub("ls", "--json").stdout)
    assert sorted((row["name"], row["path"].split("/")[-1], row["parameters"], row["state"]) for row in listed) == [
        ("org/plain", OLD, 64, "ready"),
        ("org/plain", NEW, 64, "ready"),
        ("org/sharded", OLD, 128, "ready"),
    ]
    assert sorted(hub.rglob("*")) == before


def test_tags_of_one_blob_and_models_of_several_are_each_one_checkpoint(tmp_path: Path, modelhub: Modelhub) -> None:
    store = tmp_path / "drive" / "models"
    (store / "blobs").mkdir(parents=True)

    def blob(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(data)
        return "sha256:" + digest

    def weights(number: int, architecture: str) -> str:
        writer = gguf.GGUFWriter(tmp_path / "weights.gguf", architecture)
        writer.add_tensor(f"blk.{number}.weight", np.full((32, 4), number, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return blob((tmp_path / "weights.gguf").read_bytes())

    model, adapter, projector = weights(0, "llama"), weights(1, "llama"), weights(2, "clip")
    models = {
        "plain/latest": {"model": model, "template": blob(b"{{ .Prompt }}")},
        "plain/8b": {"model": model},
        "tuned/latest": {"model": model, "adapter": adapter},
        "vision/latest": {"model": model, "projector": projector},
    }
    for name, layers in models.items():
        manifest = store / "manifests" / "registry.ollama.ai" / "library" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        entries = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest} for kind, digest in layers.items()]
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": entries}))

    modelhub("scan", store.parent)
    listed = json.loads(modelhub("ls", "--json").stdout)
    assert sorted(row["name"] for row in listed) == ["plain:8b", "plain:latest", "tuned:latest", "vision:latest"]
    shared = "models/blobs/" + model.replace(":", "-")
    assert all(shared in row["files"] and row["state"] == "ready" for row in listed)


def test_files_of_a_cached_repository_have_its_name_before_theirs(tmp_path: Path, modelhub: Modelhub) -> None:
    """Every repository has its ``onnx/model.onnx`` or its ``model-Q4_K_M.gguf``: the file's name alone tells nobody anything."""
    hub = tmp_path / "drive" / "hub"
    download(hub, "models--org--many", OLD, {"small-Q4.safetensors": layer(1), "half/model.safetensors": layer(2)})
    modelhub("scan", hub.parent)
    assert sorted(row["name"] for row in json.loads(modelhub("ls", "--json").stdout)) == [
        "org/many/half/model",
        "org/many/small-Q4",
    ]
    assert modelhub("show", "org/many/half/model", "--json").json["parameters"] == 64

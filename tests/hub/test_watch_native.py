"""The kernel's events become hints at directories: every one that matters, and none that does not. Real files, real inotify."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modelhub.watch.native import NativeWatch
from modelhub.watch.pending import Hint

from tests.hub.mounting import in_user_namespace, mounting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


class Heard:
    """A watch of a directory, and what it told. ``hold``: while it is set, the watch's thread is kept from reading on."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.all: list[Hint | None] = []
        self.hold = threading.Event()
        self.watch = NativeWatch(str(root), self._notify, **options)

    def _notify(self, root: str, hint: Hint | None) -> None:
        assert root == str(self.root)
        self.all.append(hint)
        while self.hold.is_set():
            time.sleep(0.005)

    def start(self) -> Heard:
        self.watch.start()
        self.until(lambda: self.watch.ready and self.all)
        assert self.all == [None], "all is watched, and the root is to be looked at"
        self.all.clear()
        return self

    def until(self, true: Callable[[], Any], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"never so; heard {self.all}, {self.watch.failed}"
            time.sleep(0.005)

    def take(self, quiet: float = 0.1) -> set[Hint | None]:
        """What was heard until now, once it is quiet."""
        count = -1
        while count != len(self.all):
            count = len(self.all)
            time.sleep(quiet)
        found = set(self.all)
        self.all.clear()
        return found

    def only(self, *hints: Hint) -> bool:
        """Whether these were heard, however late, and no others."""
        self.until(lambda: set(hints) <= set(self.all))
        return self.take(0.06) == set(hints)

    def sees(self, directory: str) -> bool:
        """Whether a new file in ``directory`` is told of, under that name."""
        path = self.root / directory / "probe"
        path.write_bytes(b"x")
        found = self.only(Hint(os.fsencode(directory), False))
        path.unlink()
        self.until(lambda: self.all)
        return found and self.take(0.06) == {Hint(os.fsencode(directory), False)}


@contextlib.contextmanager
def watched(root: Path, **options: Any) -> Iterator[Heard]:
    heard = Heard(root, **options)
    try:
        yield heard.start()
    finally:
        heard.hold.clear()
        assert heard.watch.stop(5.0)


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    root = tmp_path / "root"
    (root / "llama" / "v1").mkdir(parents=True)
    (root / "llama" / "model.safetensors").write_bytes(b"weights")
    (root / "other").mkdir()
    with watched(root) as heard:
        yield heard


HERE, DEEP = Hint(b"llama", False), Hint(b"llama", True)


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
    assert heard.watch.watches == 4


def test_rule_19_reading_says_nothing(heard: Heard) -> None:
    """Or a scan would cause the next one."""
    (heard.root / "llama" / "model.safetensors").read_bytes()
    for _, _, _ in os.walk(heard.root):
        pass
    os.stat(heard.root / "other")
    assert heard.take() == set()


def test_a_directory_made_whole_is_published_by_its_rename(heard: Heard) -> None:
    scratch = heard.root / ".modelhub-out"
    (scratch / "sub").mkdir(parents=True)
    (scratch / "sub" / "model.gguf").write_bytes(b"x")
    assert heard.take() == set()
    scratch.rename(heard.root / "converted")
    assert Hint(b"converted", True) in heard.take()
    assert heard.sees("converted/sub")


def test_rule_1_what_is_made_in_a_new_directory_before_it_is_watched_is_looked_at(heard: Heard) -> None:
    for number in range(30):
        deepest = heard.root / f"new{number}" / "a" / "b" / "c"
        deepest.mkdir(parents=True)
        (deepest / "model.gguf").write_bytes(b"x")
    hints = heard.take()
    for number in range(30):
        tops = [f"new{number}", f"new{number}/a", f"new{number}/a/b", f"new{number}/a/b/c"]
        assert any(Hint(top.encode(), True) in hints for top in tops) or Hint(tops[-1].encode(), False) in hints
        assert not any(hint and hint.path.startswith(b"..") for hint in hints)
    assert heard.watch.watches == 4 + 4 * 30
    assert heard.sees("new17/a/b/c")
    assert heard.sees("new29/a")


def test_a_directory_renamed_in_the_root_is_watched_under_its_new_name(heard: Heard) -> None:
    (heard.root / "llama").rename(heard.root / "other" / "mistral")
    hints = heard.take()
    assert {Hint(b"other/mistral", True), Hint(b"", False)} <= hints
    assert heard.watch.watches == 4
    assert heard.sees("other/mistral/v1")
    assert heard.sees("other/mistral")


def test_a_directory_moved_out_of_the_root_is_no_longer_watched(heard: Heard, tmp_path: Path) -> None:
    (heard.root / "llama").rename(tmp_path / "outside")
    assert heard.only(Hint(b"", False))
    assert heard.watch.watches == 2
    (tmp_path / "outside" / "v1" / "x").write_bytes(b"x")
    (tmp_path / "outside" / "y").mkdir()
    assert heard.take() == set()
    (tmp_path / "outside").rename(heard.root / "back")
    assert heard.only(Hint(b"back", True))
    assert heard.watch.watches == 5
    assert heard.sees("back/v1")


def test_a_directory_that_is_removed_hints_at_the_one_that_held_it(heard: Heard) -> None:
    shutil.rmtree(heard.root / "llama")
    assert Hint(b"", False) in heard.take()
    assert heard.watch.watches == 2
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
    assert Hint(b"llama", True) in heard.take()
    assert heard.watch.watches == 4
    assert heard.sees("llama/sub")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_directories_each_is_watched_under_the_name_it_has(tmp_path: Path, seed: int) -> None:
    """A storm of mkdir, rename and rmdir, in and out of the root, faster than it can be followed."""
    rng = random.Random(seed)
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    with watched(root) as heard:
        for _ in range(800):
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
        heard.take()
        there = [os.path.relpath(place, root) for place, _, _ in os.walk(root)]
        assert heard.watch.watches == len(there)
        for place in rng.sample(there, min(12, len(there))):
            assert heard.sees("" if place == "." else place), place


def test_rule_3_events_lost_by_the_kernel_are_made_up_for(tmp_path: Path) -> None:
    """20,000 creates while the watch may not read: more than the kernel keeps. What was made meanwhile is watched after it."""
    with watched(tmp_path) as heard:
        heard.hold.set()
        (tmp_path / "first").mkdir()
        heard.until(lambda: heard.all)
        for number in range(20_000):
            os.mknod(tmp_path / f"f{number}")
        (tmp_path / "lost" / "below").mkdir(parents=True)
        (tmp_path / "first").rename(tmp_path / "lost" / "first")
        heard.all.clear()
        heard.hold.clear()
        heard.until(lambda: None in heard.all)
        heard.take()
        assert heard.watch.watches == 4
        assert heard.sees("lost/below")
        assert heard.sees("lost/first")
        assert heard.watch.alive


def test_60_000_creates_in_a_burst(tmp_path: Path) -> None:
    """More than watchdog's and the kernel's queues hold, by four processes: each directory is hinted at, or all of them are."""
    for number in range(100):
        (tmp_path / f"d{number}").mkdir()
    program = "import os, sys\nfor i in range(15000): os.mknod(f'{sys.argv[1]}/d{i % 100}/{sys.argv[2]}-{i}')"
    with watched(tmp_path) as heard:
        writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(k)]) for k in range(4)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
        heard.until(lambda: None in heard.all or len(set(heard.all)) == 100)
        assert len(heard.all) < 60_000
        heard.take()
        assert heard.sees("d42")


def test_ten_thousand_directories(tmp_path: Path) -> None:
    for number in range(10_000):
        os.makedirs(tmp_path / f"org{number // 1000}" / f"model{number}")
    heard = Heard(tmp_path)
    heard.watch.start()
    heard.until(lambda: heard.watch.ready, 20)
    assert heard.watch.watches == 10_011
    heard.take()
    assert heard.sees("org9/model9999")
    used = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - used < 0.05, "nothing runs while nothing happens"
    (tmp_path / "org0").rename(tmp_path / "moved")
    assert Hint(b"moved", True) in heard.take()
    assert heard.watch.watches == 10_011
    assert heard.watch.stop(5.0)


@pytest.mark.parametrize("how", ["removed", "moved away", "unmounted"])
def test_rule_20_a_watch_whose_root_goes_ends_and_says_so(tmp_path: Path, how: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with mounting() as mounts:
        if how == "unmounted":
            mounts.tmpfs(root)
        (root / "a").mkdir()
        with watched(root) as heard:
            if how == "removed":
                shutil.rmtree(root)
            elif how == "moved away":
                root.rename(tmp_path / "elsewhere")
            else:
                mounts.unmount(root)
            heard.until(lambda: not heard.watch.alive)
            assert heard.watch.failed == f"{root} was {how}"
            assert heard.watch.gone
            heard.until(lambda: None in heard.all)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    heard = Heard(tmp_path / "none")
    heard.watch.start()
    heard.until(lambda: heard.all == [None])
    assert not heard.watch.alive
    assert heard.watch.failed == f"{tmp_path / 'none'} cannot be watched: No such file or directory"
    assert heard.watch.gone
    assert not heard.watch.ready


def test_what_is_unmounted_below_the_root_is_looked_at_and_the_rest_goes_on(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    with mounting() as mounts:
        mounts.tmpfs(inner)
        (inner / "x" / "y").mkdir(parents=True)
        with watched(tmp_path) as heard:
            assert heard.watch.watches == 5
            assert heard.sees("a/inner/x/y")
            mounts.unmount(inner)
            assert Hint(b"a/inner", True) in heard.take()
            assert heard.watch.watches == 3
            assert heard.sees("a/inner")
            assert heard.sees("a")


def test_what_is_mounted_twice_is_watched_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    with mounting() as mounts:
        mounts.bind(tmp_path / "a", tmp_path / "b")
        with watched(tmp_path) as heard:
            assert heard.watch.watches == 3
            (tmp_path / "b" / "x" / "new").mkdir()
            assert heard.take()
            assert heard.watch.watches == 4


def test_rule_2_what_is_watched_by_other_means_is_not_gone_into(tmp_path: Path) -> None:
    (tmp_path / "a" / "share" / "x").mkdir(parents=True)
    with watched(tmp_path, skip=[b"a/share"]) as heard:
        assert heard.watch.watches == 2
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
        assert heard.watch.watches == 2
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
    with watched(tmp_path, exclude=["skip/"]) as heard:
        assert heard.watch.watches == 5
        (tmp_path / "skip" / "x" / "f").write_bytes(b"")
        (tmp_path / "skip" / "new").mkdir()
        (tmp_path / ".git" / "objects" / "new").mkdir()
        assert Hint(b"skip", True) not in heard.take()
        assert heard.watch.watches == 5
        (tmp_path / ".modelhubignore").write_text("cache/\n")
        assert None in heard.take()
        assert heard.watch.watches == 3
        (tmp_path / "keep").rename(tmp_path / "skip2")
        heard.take()
        assert heard.watch.watches == 3
        assert heard.sees("skip2/x")
        (tmp_path / "skip2").rename(tmp_path / "cache")
        heard.take()
        assert heard.watch.watches == 1, "renamed to what is excluded"
        (tmp_path / ".modelhubignore").unlink()
        assert None in heard.take()
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


def test_ends_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"d{number}").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for wait in (0.0, 0.001, 0.05):
        for _ in range(10):
            watch = NativeWatch(str(tmp_path), lambda root, hint: None)
            watch.start()
            time.sleep(wait)
            assert watch.stop(2.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


PROGRAM = """
    import json, os, sys, threading, time
    from modelhub.watch.native import NativeWatch
    heard = []
    told = threading.Event()
    def notify(root, hint):
        heard.append(hint)
        told.set()
    watch = NativeWatch(sys.argv[1], notify)
    def until(true):
        deadline = time.monotonic() + 10
        while not true():
            assert time.monotonic() < deadline, (heard, watch.failed)
            time.sleep(0.01)
"""


def in_namespace(program: str, *words: object, root: bool) -> Any:
    """Run a program after `PROGRAM` where other limits or permissions apply; what it printed, as JSON."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(program)
    command = in_user_namespace(sys.executable, "-c", code, *map(str, words), root=root)
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_rule_17_a_directory_that_may_not_be_read_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").chmod(0)
    program = """
        watch.start()
        until(lambda: watch.ready)
        found = [watch.alive, watch.watches, watch.blind]
        heard.clear()
        open(sys.argv[1] + "/open/f", "w").close()
        until(lambda: (b"open", False) in heard)
        os.chmod(sys.argv[1] + "/closed", 0o755)
        until(lambda: (b"closed", True) in heard)
        print(json.dumps(found + [watch.watches, watch.blind]))
    """
    try:
        assert in_namespace(program, tmp_path, root=False) == [True, 2, 1, 4, 0]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_rule_3_too_few_watches_are_said_with_what_to_do(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"d{number}").mkdir()
    program = """
        open("/proc/sys/user/max_inotify_watches", "w").write("20")
        watch.start()
        until(lambda: not watch.alive)
        until(lambda: heard == [None])
        print(json.dumps([watch.failed, watch.limited, watch.gone]))
    """
    failed, limited, gone = in_namespace(program, tmp_path, root=True)
    assert limited
    assert not gone
    assert failed.startswith(f"{tmp_path} has 51 directories, of which 20 could be watched: user.max_inotify_watches is 20")
    assert "sysctl user.max_inotify_watches=" in failed


def test_rule_3_too_few_watches_for_a_new_directory(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"d{number}").mkdir()
    program = """
        open("/proc/sys/user/max_inotify_watches", "w").write("8")
        watch.start()
        until(lambda: watch.ready)
        for number in range(10):
            os.mkdir(f"{sys.argv[1]}/new{number}")
        until(lambda: not watch.alive)
        print(json.dumps([watch.limited, heard[-1]]))
    """
    assert in_namespace(program, tmp_path, root=True) == [True, None]


def test_rule_3_too_few_instances_are_said_with_what_to_do(tmp_path: Path) -> None:
    program = """
        open("/proc/sys/user/max_inotify_instances", "w").write("0")
        watch.start()
        until(lambda: not watch.alive)
        print(json.dumps([watch.limited, watch.failed]))
    """
    limited, failed = in_namespace(program, tmp_path, root=True)
    assert limited
    assert "user.max_inotify_instances is 0" in failed

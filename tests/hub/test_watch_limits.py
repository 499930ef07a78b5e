"""How a watch ends: with its root, for want of watches, or when it is told to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from modelhub.watch.native import NativeWatch

from tests.hub.hearing import Heard, watched
from tests.hub.mounting import in_user_namespace, mounting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


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
    # Not "==": what tests before this one have left may come to its end meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() <= threads


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

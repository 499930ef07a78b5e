"""Each root is watched or polled, whatever becomes of its watch. The clock is the test's; files, threads and mounts are real."""

from __future__ import annotations

import json
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
from modelhub import ignore
from modelhub.mounts import Mount, mounts
from modelhub.watch import supervise
from modelhub.watch.pending import NEVER, Hint
from modelhub.watch.supervise import Supervisor

from tests.hub.mounting import in_user_namespace, mounting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="drives real inotify and real mounts")


class Loop:
    """Stands where the daemon's loop does: it has the time, and hears."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard: list[tuple[str, Hint | None]] = []
        self.made: list[Supervisor] = []

    def supervisor(self, *roots: Path, **options: Any) -> Supervisor:
        made = Supervisor(lambda root, hint: self.heard.append((root, hint)), clock=lambda: self.now, **options)
        self.made.append(made)
        made.set_roots(map(str, roots))
        return made

    def take(self) -> list[tuple[str, Hint | None]]:
        found, self.heard[:] = list(self.heard), []
        return found

    def until(self, true: Callable[[], Any], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"never so; heard {self.heard}"
            time.sleep(0.005)

    def ready(self, supervisor: Supervisor, root: Path) -> None:
        """Wait until all of a root is watched, and that was told."""
        self.until(lambda: alive(supervisor, root))
        self.until(lambda: (str(root), None) in self.heard)

    def tick(self, supervisor: Supervisor, *, to: float | None = None) -> None:
        """Go to the time when something is due, or to another."""
        self.now = to if to is not None else max(self.now, supervisor.next_due())
        supervisor.tick(self.now)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    for supervisor in loop.made:
        supervisor.close(5.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "llama").mkdir(parents=True)
    return root


def status(supervisor: Supervisor, root: Path) -> Any:
    return supervisor.status(str(root))


def alive(supervisor: Supervisor, root: Path) -> bool:
    watch = supervisor.roots[str(root)].watch
    return watch is not None and watch.alive and watch.ready


def test_rule_2_a_root_says_how_it_is_watched(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root)
    loop.until(lambda: loop.heard)
    fstype = status(supervisor, root)["reason"]
    assert status(supervisor, root) == {
        "observer": "events", "reason": fstype, "watches": 2, "blind": 0, "restarts": 0, "error": "",
    }  # fmt: skip
    polled = loop.supervisor(root, poll=7.0)
    assert status(polled, root) == {
        "observer": "poll", "reason": "every 7 s, as asked for", "watches": 0, "blind": 0, "restarts": 0, "error": "",
    }  # fmt: skip


def test_rule_3_a_root_is_reconciled_at_start_and_by_the_clock(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root, reconcile=3600.0)
    loop.until(lambda: loop.heard)
    assert loop.take() == [(str(root), None)]
    assert supervisor.next_due() == loop.now + 3600
    loop.tick(supervisor, to=loop.now + 3599)
    assert loop.take() == []
    loop.tick(supervisor)
    assert loop.take() == [(str(root), None)]
    assert supervisor.next_due() == loop.now + 3600
    (root / "llama" / "f").write_bytes(b"x")
    loop.until(lambda: loop.heard == [(str(root), Hint(b"llama", False))])


def test_rule_2_a_poll_is_a_reconcile_at_once_and_then_so_often(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root, poll=10.0)
    assert supervisor.next_due() == loop.now
    loop.tick(supervisor)
    began = loop.now
    assert loop.take() == [(str(root), None)]
    supervisor.done(str(root), 0.5, began + 1)
    assert supervisor.next_due() == began + 10
    loop.tick(supervisor)
    assert loop.take() == [(str(root), None)]
    assert threading.active_count() == 1 or not any("watch" in thread.name for thread in threading.enumerate())


def test_a_poll_never_follows_on_another_that_is_still_under_way(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root, poll=10.0)
    loop.tick(supervisor)
    began = loop.now
    loop.take()
    for later in (10, 50, 100):
        loop.tick(supervisor, to=began + later)
    # The end of a scan that had begun before the poll was asked for.
    supervisor.done(str(root), 200.0, began + 110)
    assert loop.take() == []
    assert supervisor.next_due() > began + 1000
    supervisor.done(str(root), 100.0, began + 120)
    assert supervisor.next_due() == began + 500, "five times what it takes"
    loop.tick(supervisor, to=began + 499)
    assert loop.take() == []
    loop.tick(supervisor)
    assert loop.take() == [(str(root), None)]


def test_rule_20_a_dead_watch_is_started_again_a_minute_to_an_hour_apart(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root, interval=30.0)
    loop.ready(supervisor, root)
    shutil.rmtree(root)
    loop.until(lambda: not alive(supervisor, root))
    started = loop.now
    loop.tick(supervisor, to=loop.now + 1)
    found = status(supervisor, root)
    assert (found["observer"], found["reason"]) == ("poll", "not watched at the moment")
    assert found["error"] == f"{root} was removed"
    gaps: list[float] = []
    while len(gaps) < 9:
        before = status(supervisor, root)["restarts"]
        loop.tick(supervisor)
        if status(supervisor, root)["restarts"] > before:
            gaps.append(loop.now - started)
            started = loop.now
            loop.until(lambda: not alive(supervisor, root) and supervisor.roots[str(root)].watch is not None)
            loop.until(lambda: not supervisor.roots[str(root)].watch.alive)  # type: ignore[union-attr]
            loop.tick(supervisor, to=loop.now)
        supervisor.done(str(root), 0.1, loop.now + 0.2)
    assert gaps == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    # Meanwhile it was polled.
    assert loop.take().count((str(root), None)) > 100
    # It is there again.
    root.mkdir()
    while status(supervisor, root)["restarts"] == 9:
        loop.take()
        loop.tick(supervisor)
        supervisor.done(str(root), 0.1, loop.now + 0.2)
    loop.ready(supervisor, root)
    loop.tick(supervisor, to=loop.now + 1)
    assert status(supervisor, root)["error"] == ""
    assert status(supervisor, root)["observer"] == "events"
    # After an hour of health it begins anew: at once, and then a minute later.
    shutil.rmtree(root)
    loop.until(lambda: not alive(supervisor, root))
    restarts, died = status(supervisor, root)["restarts"], loop.now + 3600
    loop.tick(supervisor, to=died)
    loop.until(lambda: not alive(supervisor, root))
    assert status(supervisor, root)["restarts"] == restarts + 1
    loop.until(lambda: not supervisor.roots[str(root)].watch.alive)  # type: ignore[union-attr]
    loop.tick(supervisor, to=died + 1)
    loop.tick(supervisor, to=died + 59)
    assert status(supervisor, root)["restarts"] == restarts + 1
    loop.tick(supervisor, to=died + 60)
    assert status(supervisor, root)["restarts"] == restarts + 2


def test_rule_3_a_root_that_takes_long_to_be_watched_is_looked_at_meanwhile(
    loop: Loop, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: one whose listing does not come back until it may."""
    may = threading.Event()

    def slow(root: bytes) -> list[str]:
        may.wait(10)
        return []

    monkeypatch.setattr(ignore, "read_patterns", slow)
    supervisor = loop.supervisor(root)
    loop.tick(supervisor, to=loop.now + 9)
    assert loop.take() == []
    loop.tick(supervisor)
    assert loop.now == 1010.0
    assert loop.take() == [(str(root), None)]
    assert supervisor.next_due() > loop.now + 3000
    may.set()
    loop.until(lambda: loop.heard == [(str(root), None)])


def test_rule_20_a_root_that_comes_back_is_watched_anew(loop: Loop, root: Path, tmp_path: Path) -> None:
    """Nothing is heard of the directory above it: that it went is found by a scan, and that it is back, by another."""
    supervisor = loop.supervisor(root)
    loop.ready(supervisor, root)
    root.rename(tmp_path / "away")
    loop.until(lambda: not alive(supervisor, root))
    loop.tick(supervisor, to=loop.now + 1)
    supervisor.there(str(root), False, loop.now)
    (root / "new").mkdir(parents=True)
    loop.now += 5
    loop.take()
    supervisor.there(str(root), True, loop.now)
    loop.ready(supervisor, root)
    assert loop.take() == [(str(root), None)]
    (root / "new" / "f").write_bytes(b"x")
    loop.until(lambda: (str(root), Hint(b"new", False)) in loop.heard)


def test_rule_3_what_is_mounted_at_a_root_is_watched_and_what_was_there_before(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root)
    loop.ready(supervisor, root)
    loop.take()
    with mounting() as mounted:
        for act, directory in ((mounted.tmpfs, "mounted"), (mounted.unmount, "llama")):
            act(root)
            (root / directory).mkdir(exist_ok=True)
            loop.now += 1
            supervisor.mounts_changed(loop.now)
            loop.ready(supervisor, root)
            loop.take()
            (root / directory / "f").write_bytes(b"x")
            loop.until(lambda: (str(root), Hint(directory.encode(), False)) in loop.heard)  # noqa: B023 - called here
            loop.take()
    assert status(supervisor, root)["error"] == ""


def test_mounts_that_are_no_business_of_a_root_change_nothing(loop: Loop, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    supervisor = loop.supervisor(root)
    loop.ready(supervisor, root)
    loop.take()
    watch = supervisor.roots[str(root)].watch
    with mounting() as mounted:
        mounted.tmpfs(tmp_path / "elsewhere")
        supervisor.mounts_changed(loop.now)
    supervisor.mounts_changed(loop.now)
    assert supervisor.roots[str(root)].watch is watch
    assert loop.take() == []


def test_rule_3_what_is_mounted_inside_a_root_is_watched_too(loop: Loop, root: Path) -> None:
    supervisor = loop.supervisor(root)
    loop.ready(supervisor, root)
    loop.take()
    with mounting() as mounted:
        mounted.tmpfs(root / "llama")
        (root / "llama" / "v2").mkdir()
        supervisor.mounts_changed(loop.now)
        loop.ready(supervisor, root)
        loop.take()
        (root / "llama" / "v2" / "f").write_bytes(b"x")
        loop.until(lambda: (str(root), Hint(b"llama/v2", False)) in loop.heard)


def test_rule_2_a_network_drive_mounted_inside_a_root_is_polled_alone(
    loop: Loop, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "net" / "deep").mkdir(parents=True)
    table = [*mounts(), Mount(str(root / "net"), "nfs4", "server:/x", "0:99")]
    monkeypatch.setattr(supervise, "mounts", lambda: table)
    supervisor = loop.supervisor(root, interval=60.0)
    loop.ready(supervisor, root)
    assert status(supervisor, root)["watches"] == 2
    assert loop.take() == [(str(root), None)]
    loop.tick(supervisor)
    began = loop.now
    assert loop.take() == [(str(root), Hint(b"net", True))]
    supervisor.done(str(root), 20.0, began + 21)
    assert supervisor.next_due() == began + 100
    # Were the root itself on such a drive, it would be polled; and watched again when it is not.
    table[:] = [*mounts(), Mount(str(root), "nfs4", "server:/x", "0:99")]
    supervisor.mounts_changed(loop.now)
    assert status(supervisor, root)["observer"] == "poll"
    loop.tick(supervisor)
    assert loop.take() == [(str(root), None)]
    table[:] = mounts()
    supervisor.mounts_changed(loop.now)
    assert status(supervisor, root)["observer"] == "events"
    loop.until(lambda: (str(root), None) in loop.heard)


def test_roots_come_and_go(loop: Loop, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    supervisor = loop.supervisor(root)
    loop.ready(supervisor, root)
    watch = supervisor.roots[str(root)].watch
    supervisor.set_roots([str(other), str(root)])
    assert list(supervisor.roots) == [str(other), str(root)]
    assert supervisor.roots[str(root)].watch is watch
    loop.ready(supervisor, other)
    supervisor.set_roots([str(other)])
    assert list(supervisor.roots) == [str(other)]
    assert watch is not None
    loop.until(lambda: not watch.alive)
    supervisor.done(str(root), 1.0, loop.now)
    supervisor.there(str(root), True, loop.now)
    supervisor.close(5.0)
    assert supervisor.next_due() == NEVER
    assert not [thread for thread in threading.enumerate() if thread.name == f"watch {other}"]


def test_other_settings_count_at_once(loop: Loop, root: Path) -> None:
    (root / "llama" / "cache").mkdir()
    supervisor = loop.supervisor(root, reconcile=3600.0)
    loop.ready(supervisor, root)
    supervisor.configure(interval=60.0, reconcile=600.0)
    assert supervisor.next_due() == loop.now + 600
    supervisor.configure(interval=60.0, reconcile=600.0, exclude=["cache/"])
    loop.ready(supervisor, root)
    assert status(supervisor, root)["watches"] == 2


def test_rule_3_a_root_with_too_few_watches_is_polled_and_tried_again(root: Path) -> None:
    for number in range(50):
        (root / f"d{number}").mkdir()
    program = """
        import json, sys, time
        from modelhub.watch.supervise import Supervisor
        limit = lambda number: open("/proc/sys/user/max_inotify_watches", "w").write(str(number))
        limit(20)
        root, heard, found, now = sys.argv[1], [], [], 1000.0
        supervisor = Supervisor(lambda root, hint: heard.append(hint), clock=lambda: now, interval=60.0)
        def until(true):
            deadline = time.monotonic() + 10
            while not true():
                assert time.monotonic() < deadline, (heard, supervisor.status(root))
                time.sleep(0.01)
                supervisor.tick(now)
        supervisor.set_roots([root])
        until(lambda: supervisor.status(root)["error"])
        found.append(supervisor.status(root))
        heard.clear()
        now += 61
        supervisor.tick(now)
        found.append(list(heard))
        now += 3600
        until(lambda: supervisor.status(root)["restarts"] == 1)
        until(lambda: supervisor.roots[root].watch is None)
        found.append(supervisor.status(root))
        limit(1000)
        now += 3600
        until(lambda: supervisor.status(root)["observer"] == "events")
        found.append(supervisor.status(root))
        supervisor.close(5)
        print(json.dumps(found))
    """
    command = in_user_namespace(sys.executable, "-c", textwrap.dedent(program), str(root), root=True)
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    limited, heard, still, again = json.loads(output)
    assert (limited["observer"], limited["reason"], limited["watches"]) == ("poll", "too few watches", 0)
    assert "user.max_inotify_watches is 20" in limited["error"]
    assert heard == [None]
    assert still == {**limited, "restarts": 1}
    assert (again["observer"], again["error"], again["watches"], again["restarts"]) == ("events", "", 52, 2)

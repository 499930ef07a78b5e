"""The daemon's parts by themselves: its lock, its log, how it talks to workers, how it tells that one hangs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelhub.catalog import Catalog
from modelhub.daemon.lock import DaemonLock, alive, holder_of
from modelhub.daemon.logs import Log
from modelhub.daemon.wire import Lines, pack
from modelhub.daemon.worker import Process
from modelhub.errors import CatalogError

HOLD = """
import sys, time
from modelhub.catalog import Catalog
from modelhub.daemon.lock import DaemonLock
lock = DaemonLock(Catalog.open(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_daemon_is_told_who_the_first_is(tmp_path: Path) -> None:
    place = str(tmp_path / "catalog.db")
    with Catalog.open(place) as catalog:
        assert holder_of(catalog) is None
        first = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True)
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            holder = holder_of(catalog)
            assert holder is not None
            assert holder.pid == first.pid
            with pytest.raises(
                CatalogError, match=rf"process {first.pid} on {os.uname().nodename}, since 20.*stop that one first"
            ):
                DaemonLock(catalog).acquire()
        finally:
            first.kill()
            first.communicate()
        assert not alive(catalog)  # whatever it died of
        lock = DaemonLock(catalog)
        lock.acquire()
        assert alive(catalog)
        lock.release()


def test_a_catalog_has_one_lock_whatever_path_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Catalog.open(str(tmp_path / "real" / "c.db")) as one, Catalog.open(str(tmp_path / "link" / "c.db")) as other:
        lock = DaemonLock(one)
        lock.acquire()
        with pytest.raises(CatalogError, match="another modelhub watch"):
            DaemonLock(other).acquire()
        lock.release()


def test_log_lines_can_be_read_by_people_and_by_programs() -> None:
    out = io.StringIO()
    Log("text", stream=out).info("scanned", root="/mnt/my models", seconds=0.25, new=3, nothing="", strange="a\nb\udcff")
    (line,) = out.getvalue().splitlines()
    assert line.endswith('info    scanned root="/mnt/my models" seconds=0.25 new=3 strange="a\\nb\\\\xff"')
    out = io.StringIO()
    Log("json", stream=out).error("scan", root="/mnt/\udcff", error="no\nway")
    found = json.loads(out.getvalue())
    assert (found["level"], found["event"], found["root"], found["error"]) == ("error", "scan", "/mnt/\\xff", "no\nway")
    assert found["time"].endswith("Z")
    out = io.StringIO()
    Log("text", "info", out).debug("scanned")
    assert out.getvalue() == ""


def test_messages_come_whole_however_they_are_cut() -> None:
    read, write = os.pipe()
    lines = Lines(read)
    data = pack({"path": os.fsdecode(b"/mnt/\xff"), "n": 1}) + b"not json\n" + pack({"n": 2})
    found = []
    for start in range(0, len(data), 7):
        os.write(write, data[start : start + 7])
        found += list(lines.read())
    assert [message["n"] for message in found] == [1, 2]
    assert os.fsencode(found[0]["path"]) == b"/mnt/\xff"
    assert not lines.ended
    os.close(write)
    assert list(lines.read()) == []
    assert lines.ended
    os.close(read)


def test_a_worker_that_stands_still_is_noticed_and_one_that_works_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "standing.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "working.py").write_text("while True: pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    standing, working = Process("standing"), Process("working")
    try:
        time.sleep(0.5)  # started
        for process in (standing, working):
            process.stalled(time.monotonic())
        time.sleep(0.7)
        now = time.monotonic()
        assert working.stalled(now) < 0.1
        assert standing.stalled(now) > 0.5
    finally:
        for process in (standing, working):
            process.kill()
            process.process.wait(5)
            process.close()
    assert standing.ended() == -9

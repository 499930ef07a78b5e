"""The pool of parsing workers: what crashes, hangs or devours memory costs one checkpoint, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from modelhub import plugins
from modelhub.errors import InvalidFile, ModelNotFound, PluginError
from modelhub.files import list_directory
from modelhub.workers import BATCH, ParsePool, Result, Task
from safetensors.numpy import save_file

EVIL = """
    import ctypes, os, time
    from modelhub import Detection, Format, Tensor, hookimpl

    def detect(file):
        if "detect" in file.name:
            misbehave(file)
        return Detection([file.path], 90)

    def read(checkpoint):
        if "read" in checkpoint.name:
            misbehave(checkpoint.primary)
        return ()

    def misbehave(file):
        if file.name.startswith("crash"):
            ctypes.string_at(0)
        elif file.name.startswith("exit"):
            os._exit(3)
        elif file.name.startswith("hang"):
            while True:
                try:
                    time.sleep(60)
                except Exception:
                    pass
        elif file.name.startswith("eat"):
            bytearray(1 << 40)
        elif file.name.startswith("once"):
            if not os.path.exists(file.path + ".seen"):
                open(file.path + ".seen", "w").close()
                os.kill(os.getpid(), 9)
        elif file.name.startswith("print"):
            print("noise from a plugin")

    @hookimpl
    def modelhub_formats():
        yield Format(name="evil", title="Evil", suffixes=(".evil",), detect=detect, read=read)
"""


@pytest.fixture
def evil(make_plugin) -> None:
    make_plugin("evil", EVIL)
    plugins.use(plugins.load())


def children() -> set[int]:
    out = subprocess.run(
        ["ps", "-o", "pid=,stat=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    ).stdout
    return {int(line.split()[0]) for line in out.splitlines() if " ps" not in line}


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def task(directory: Path, **fields) -> Task:
    listing = list_directory(str(directory))
    return Task(listing.path, tuple(listing.files.items()), tuple(listing.directories), **fields)


def states(results: list[Result]) -> dict[str, str]:
    return {os.path.basename(found.path): found.state for result in results for found in result.found}


def test_a_drive_of_small_and_big_directories(tmp_path: Path) -> None:
    tensors = {"w": np.ones((2, 2), np.float32)}
    wanted = set()
    for number in range(3 * BATCH + 7):
        for name in (f"small{number % 40}/m{number}.safetensors", f"big/m{number}.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            save_file(tensors, tmp_path / name)
            wanted.add(str(tmp_path / name))
    (tmp_path / "big" / "readme.txt").write_text("hello")
    tasks = [task(path) for path in sorted(tmp_path.iterdir())]
    with ParsePool(2) as pool:
        results = list(pool.inspect(iter(tasks)))
    found = [item for result in results for item in result.found]
    assert {item.path for item in found} == wanted
    assert len(found) == len(wanted)
    assert all(item.state == "ready" and item.parameters == 4 for item in found)
    big = [result for result in results if result.directory == str(tmp_path / "big")]
    assert [result.last for result in big].count(True) == 1
    assert [result.unknown for result in big if result.last] == [("readme.txt",)]
    assert sum(result.last for result in results) == len(tasks)
    assert found[0].load_table().by_name["w"].shape == (2, 2)


def test_a_group_that_lies_across_batches_is_reported_once(tmp_path: Path) -> None:
    count = 2 * BATCH + 5
    weight_map = {}
    for number in range(count):
        name = f"m-{number + 1:05}-of-{count:05}.safetensors"
        save_file({f"w{number}": np.ones(2, np.float32)}, tmp_path / name)
        weight_map[f"w{number}"] = name
    with ParsePool(2) as pool:
        results = list(pool.inspect([task(tmp_path)]))
    (found,) = [item for result in results for item in result.found]
    assert (found.state, found.tensors, len(found.files)) == ("ready", count, count)


@pytest.mark.parametrize("where", ["detect", "read"])
@pytest.mark.parametrize(("how", "says"), [("crash", "SIGSEGV"), ("exit", "exit"), ("hang", "hung"), ("eat", "memory")])
def test_a_culprit_costs_itself_only(evil: None, tmp_path: Path, how: str, says: str, where: str) -> None:
    names = [f"{letter}.evil" for letter in "abcdefyz"] + [f"{how}-{where}.evil"]
    for name in names:
        (tmp_path / name).write_bytes(b"1234")
    start = time.monotonic()
    with ParsePool(1, seconds=1) as pool:
        results = list(pool.inspect([task(tmp_path)]))
    assert time.monotonic() - start < 10
    got = states(results)
    assert got.pop(f"{how}-{where}.evil") == "invalid"
    assert got == dict.fromkeys(names[:-1], "ready")
    (culprit,) = [item for result in results for item in result.found if item.state == "invalid"]
    assert [finding.check for finding in culprit.findings] == ["plugin"]
    assert "the plugin of evil" in culprit.reason or "says the plugin of evil" in culprit.reason


def test_several_culprits_in_several_directories(evil: None, tmp_path: Path) -> None:
    names = ["crash-detect.evil", "hang-read.evil", "ok.evil", "crash-read.evil"]
    for directory in ("one", "two", "three"):
        (tmp_path / directory).mkdir()
        for name in names:
            (tmp_path / directory / name).write_bytes(b"1234")
    with ParsePool(2, seconds=0.5) as pool:
        results = list(
            pool.inspect(task(path) for path in sorted(tmp_path.iterdir()) if path.is_dir() and path.name != "site-packages")
        )
    found = [(item.path, item.state) for result in results for item in result.found]
    assert len(found) == 12
    assert sorted(os.path.basename(path) for path, state in found if state == "ready") == ["ok.evil"] * 3


def test_one_unlucky_death_is_no_verdict_on_the_file(evil: None, tmp_path: Path) -> None:
    for name in ("a.evil", "once-read.evil"):
        (tmp_path / name).write_bytes(b"1234")
    with ParsePool(1) as pool:
        assert states(list(pool.inspect([task(tmp_path)]))) == {"a.evil": "ready", "once-read.evil": "ready"}


def test_what_a_plugin_prints_in_a_worker_is_not_on_stdout(evil: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "print-read.evil").write_bytes(b"1")
    with ParsePool(1) as pool:
        assert states(list(pool.inspect([task(tmp_path)]))) == {"print-read.evil": "ready"}
    assert capfd.readouterr().out == ""


def test_a_path_through_a_worker(evil: None, tmp_path: Path) -> None:
    (tmp_path / "a.evil").write_bytes(b"1")
    (tmp_path / "crash-read.evil").write_bytes(b"1")
    with ParsePool(1, seconds=1) as pool:
        assert pool.inspect_path(str(tmp_path / "a.evil")).state == "ready"
        with pytest.raises(PluginError, match=r"crashed \(SIGSEGV\) in the plugin of evil at .*crash-read.evil"):
            pool.inspect_path(str(tmp_path / "crash-read.evil"))
        with pytest.raises(ModelNotFound):
            pool.inspect_path(str(tmp_path / "none.evil"))
        assert pool.inspect_path(str(tmp_path / "a.evil")).state == "ready"


def double(number: int) -> int:
    return number * 2


def fail(kind: str) -> None:
    if kind == "file":
        raise InvalidFile("bad", "do this")
    if kind == "hang":
        time.sleep(60)
    raise ValueError("other")


def big(nbytes: int) -> int:
    return len(bytearray(nbytes))


def test_calls(make_plugin) -> None:
    with ParsePool(1, memory=256 << 20, seconds=2.5) as pool:
        assert pool.call(double, 21) == 42
        with pytest.raises(InvalidFile, match="bad; do this"):
            pool.call(fail, "file")
        with pytest.raises(PluginError, match="ValueError: other"):
            pool.call(fail, "other")
        with pytest.raises(PluginError, match=r"stood still for 2.5 s"):
            pool.call(fail, "hang")
        with pytest.raises(PluginError, match=r"stood still for 0.2 s"):
            pool.call(fail, "hang", seconds=0.2)
        assert pool.call(big, 1 << 20) == 1 << 20
        with pytest.raises(PluginError, match="MemoryError"):
            pool.call(big, 1 << 30)


def test_calls_while_results_are_awaited(tmp_path: Path) -> None:
    for number in range(BATCH * 3):
        save_file({"w": np.ones(2, np.float32)}, tmp_path / f"m{number:03}.safetensors")
    count = 0
    with ParsePool(2) as pool:
        for result in pool.inspect([task(tmp_path)]):
            count += len(result.found)
            assert pool.call(double, 4) == 8
    assert count == BATCH * 3


def test_leaving_early_and_errors_in_the_consumer_leave_nothing(evil: None, tmp_path: Path) -> None:
    for number in range(BATCH * 6):
        (tmp_path / f"m{number:03}.evil").write_bytes(b"1")
    before = children()
    with ParsePool(2) as pool:
        for _ in pool.inspect([task(tmp_path)]):
            break
        assert len(states(list(pool.inspect([task(tmp_path)])))) == BATCH * 6
        results = pool.inspect([task(tmp_path)])
        next(results)
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert children() <= before


def test_a_process_with_threads_spawns_its_workers(make_plugin, tmp_path: Path) -> None:
    make_plugin("evil", EVIL)
    plugins.use(None)
    for name in ("a.evil", "crash-detect.evil"):
        (tmp_path / name).write_bytes(b"1")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with ParsePool(1) as pool:
            assert states(list(pool.inspect([task(tmp_path)]))) == {"a.evil": "ready", "crash-detect.evil": "invalid"}
    finally:
        stop.set()
        thread.join()


FORKED = """
import json, os, sys
from modelhub.files import list_directory
from modelhub.workers import ParsePool, Task

listing = list_directory(sys.argv[1])
with ParsePool(2, seconds=0.5) as pool:
    results = list(pool.inspect([Task(listing.path, tuple(listing.files.items()))]))
    words = [open(f"/proc/{pid}/cmdline").read() for pid in ("self", pool.call(os.getpid))]
    forked = words[0] == words[1]  # a spawned one is started with a program of its own
print(json.dumps([forked, {found.name: found.state for result in results for found in result.found}]))
"""


def test_a_process_with_one_thread_forks_its_workers(make_plugin, tmp_path: Path) -> None:
    """As the command line does, which has imported neither NumPy nor anything else that starts threads."""
    make_plugin("evil", EVIL)
    names = ["a", "b", "crash-detect", "crash-read", "exit-read", "hang-detect", "eat-read", "once-detect"]
    for name in names:
        (tmp_path / f"{name}.evil").write_bytes(b"1234")
    done = subprocess.run([sys.executable, "-c", FORKED, tmp_path], capture_output=True, text=True, check=True, timeout=60)
    forked, got = json.loads(done.stdout)
    assert forked
    assert {name for name, state in got.items() if state == "ready"} == {"a", "b", "once-detect"}
    assert set(got) == set(names)


SCANNER = """
import os, sys, time
from modelhub.workers import ParsePool
with ParsePool(2) as pool:
    pool.call(os.getpid)
    print(*[slot.worker.pid for slot in pool._slots], flush=True)
    pool.call(time.sleep, 60, seconds=100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCANNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as scanner:
        assert scanner.stdout
        pids = [int(word) for word in scanner.stdout.readline().split()]
        time.sleep(0.2)
        scanner.send_signal(number)
        scanner.wait(10)
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pids
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_cannot_live_are_not_started_for_ever(make_plugin, tmp_path: Path) -> None:
    """A plugin that ends the process when it is imported, which no guard can stop: an error that says so, in bounded time."""
    (tmp_path / "a.safetensors").write_bytes(b"1")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    plugins.use(plugins.load())
    make_plugin("deadly", "import os; os._exit(9)")
    thread.start()
    try:
        with ParsePool(1) as pool, pytest.raises(PluginError, match="parsing workers keep dying at their start"):
            list(pool.inspect([task(tmp_path)]))
    finally:
        stop.set()
        thread.join()

"""Watching: what a daemon costs, and how soon it knows.

    python benchmarks/watching.py [latency] [idle] [memory] [poll] [rules] [soak] [SECONDS]

latency: from the last byte of a new checkpoint to its row in the catalog, beyond the settle time, 10,000 directories watched.
idle: processor time of the daemon and all it started over a minute with nothing to do. memory: resident memory of the same with
100,000 checkpoints, after the first look and after changes. poll: one look at a root of 50,000 unchanged files, against ``find``.
rules: dispatching three rules to 10,000 checkpoints. soak: SECONDS (600) of steady change on a drive, memory and descriptors
once a minute. Without words: all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness import MODELHUB, environment, small_safetensors, workspace

SETTLE = 2.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Measured(NamedTuple):
    """Processor seconds of the daemon and all that it started; resident bytes of the daemon, of all, of all with what processes
    share counted once; open descriptors of all."""

    cpu: float
    own: int
    family: int
    once: int
    descriptors: int


class Daemon:
    """A running ``modelhub watch``."""

    def __init__(self, home: Path, *words: str, config: str = "") -> None:
        home.mkdir(exist_ok=True, parents=True)
        (home / "config.toml").write_text(f"{config}\n[watch]\nsettle = {SETTLE}\nlongest_wait = 20\n")
        self.home = home
        self.log = home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [MODELHUB, "watch", "--verbose", *words], env=environment(home), stdout=subprocess.DEVNULL, stderr=log
            )

    def lines(self, pattern: str) -> list[re.Match[str]]:
        return list(re.finditer(pattern, self.log.read_text(), re.MULTILINE))

    def wait(self, pattern: str, count: int = 1, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while len(self.lines(pattern)) < count:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"no {pattern!r} in the log:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def family(self) -> list[int]:
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    parents[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
        found, wave = [self.process.pid], [self.process.pid]
        while wave:
            wave = [child for child, parent in parents.items() if parent in wave]
            found += wave
        return found

    def measure(self) -> Measured:
        cpu, resident, once, descriptors = 0.0, {}, 0, 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                cpu += sum(map(int, fields[11:15])) / TICKS
                resident[pid] = int(fields[21]) * PAGE
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
                once += 1024 * int(re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]
        return Measured(cpu, resident.get(self.process.pid, 0), sum(resident.values()), once, descriptors)

    def count(self) -> int:
        with contextlib.closing(sqlite3.connect(self.home / "catalog.db")) as catalog:
            return int(catalog.execute("SELECT count(*) FROM checkpoint WHERE missing=0").fetchone()[0])

    def stop(self) -> float:
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started


@contextlib.contextmanager
def daemon(home: Path, *words: str, config: str = "") -> Iterator[Daemon]:
    running = Daemon(home, *words, config=config)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def settled(running: Daemon, scans: int = 1) -> None:
    """Wait until the first looks are done and the workers have gone home."""
    running.wait(r" scanned ", scans)
    deadline = time.monotonic() + 120
    while len(running.family()) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)


def latency(place: Path, directories: int = 10_000, times: int = 12) -> None:
    drive = place / "latency"
    for number in range(directories):
        (drive / f"{number // 100:03}" / f"{number % 100:02}").mkdir(parents=True)
    with daemon(place / "home-latency", str(drive)) as running:
        settled(running)
        took = []
        for number in range(times):
            folder = drive / f"{random.randrange(directories // 100):03}" / f"{random.randrange(100):02}"
            before = running.count()
            small_safetensors(folder / f"new{number}.safetensors", number)
            written = time.monotonic()
            while running.count() == before and time.monotonic() < written + 60:
                time.sleep(0.01)
            took.append(time.monotonic() - written - SETTLE)
            time.sleep(random.random() * 2 if (number + 1) % 6 else 35.0)  # sometimes its worker has gone home
        worst = max(took)
        print(
            f"\nEvent to catalog, {directories:,} directories watched: settle + {statistics.median(took):.2f} s "
            f"(the slowest of {times}: {worst:.2f} s)"
        )


def idle(place: Path, directories: int = 10_000, seconds: float = 60) -> None:
    drive = place / "idle"
    for number in range(directories):
        (drive / f"{number // 100:03}" / f"{number % 100:02}").mkdir(parents=True)
    with daemon(place / "home-idle", str(drive)) as running:
        settled(running)
        time.sleep(2)
        before = running.measure()
        time.sleep(seconds)
        after = running.measure()
        share = 100 * (after.cpu - before.cpu) / seconds
        print(f"\nIdle, {directories:,} directories watched, {seconds:.0f} s: {share:.2f} % of a core")


def memory(place: Path, checkpoints: int = 100_000) -> None:
    drive = place / "memory"
    template = place / "template.safetensors"
    small_safetensors(template, 0)
    data = template.read_bytes()
    for number in range(checkpoints):
        folder = drive / f"{number // 100:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"model-{number:06}.safetensors").write_bytes(data)
    env = environment(place / "home-memory")
    subprocess.run([MODELHUB, "scan", str(drive)], env=env, check=True, stdout=subprocess.DEVNULL)
    with daemon(place / "home-memory", str(drive)) as running:
        look = _highest(running, lambda: running.lines(r" scanned "), 120)
        settled(running)
        quiet = running.measure().own
        for number in range(200):
            small_safetensors(drive / f"{number:04}" / f"fresh-{number}.safetensors", number)
        new = _highest(running, lambda: running.count() == checkpoints + 200, 60)
        most = max(look.own, new.own)
        print(
            f"\nMemory, {checkpoints:,} checkpoints: the daemon {quiet / 1e6:.0f} MB at rest, {most / 1e6:.0f} MB at most; with "
            f"its workers {look.family / 1e6:.0f} MB ({look.once / 1e6:.0f} MB, what they share counted once) in a full look, "
            f"{new.family / 1e6:.0f} MB ({new.once / 1e6:.0f} MB) while 200 new ones are taken in"
        )


def _highest(running: Daemon, done: Callable[[], object], seconds: float) -> Measured:
    """The highest of each figure until ``done()``."""
    found = running.measure()
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        found = Measured(*map(max, found, running.measure()))
        time.sleep(0.05)
    return found


def poll(place: Path, files: int = 50_000, times: int = 15) -> None:
    drive = place / "poll"
    for number in range(files):
        folder = drive / f"{number // 500:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number:05}.dat").write_bytes(b"x" * (number % 50))
    with daemon(place / "home-poll", "--poll", "3", str(drive)) as running:
        running.wait(r" scanned .*seconds=", 3)
        pairs = []
        for _ in range(times):
            have = len(running.lines(r" scanned .*seconds="))
            running.wait(r" scanned .*seconds=", have + 1)
            mine = float(re.search(r"seconds=([\d.]+)", running.lines(r" scanned .*seconds=.*$")[-1][0])[1])  # type: ignore[index]
            started = time.perf_counter()
            subprocess.run(["find", str(drive), "-printf", "%s %T@ %p\\n"], stdout=subprocess.DEVNULL, check=True)
            pairs.append((mine, time.perf_counter() - started))
        ratios = [mine / find for mine, find in pairs]
        best = [min(side) for side in zip(*pairs, strict=True)]
        print(
            f"\nOne poll of {files:,} unchanged files: {statistics.median(mine for mine, _ in pairs):.3f} s, "
            f"{statistics.median(ratios):.2f} times find ({min(ratios):.2f} to {max(ratios):.2f}); the quickest of {times} "
            f"against the quickest of find: {best[0]:.3f} s, {best[0] / best[1]:.2f} times"
        )


DISPATCH = """
import json, sys, time
from modelhub.catalog import Catalog
from modelhub.rules.read import load
from modelhub import home
from modelhub.rules.dispatch import dispatch
with Catalog.open() as catalog:
    rules = load(home.read_config())
    catalog.roots()
    started = time.perf_counter(); jobs = dispatch(catalog, rules); first = time.perf_counter() - started
    started = time.perf_counter(); again = dispatch(catalog, rules); second = time.perf_counter() - started
    print(json.dumps([len(jobs), first, len(again), second]))
"""

RULES = """
[[rules]]
where = ["format=safetensors", "size<1GB"]
convert = "pytorch"
output = "{root}/.converted/{dir}/{stem}{ext}"
[[rules]]
where = ["precision=BF16"]
convert = "safetensors:f32"
output = "{root}/.f32/{dir}/{stem}{ext}"
[[rules]]
where = ["*"]
verify = "structure"
"""


def rules(place: Path, checkpoints: int = 10_000) -> None:
    drive, home = place / "rules", place / "home-rules"
    home.mkdir()
    for number in range(checkpoints):
        folder = drive / f"{number // 100:04}"
        folder.mkdir(parents=True, exist_ok=True)
        small_safetensors(folder / f"model-{number:05}.safetensors", number // 100, tensors=20)
    env = environment(home)
    subprocess.run([MODELHUB, "scan", str(drive)], env=env, check=True, stdout=subprocess.DEVNULL)
    (home / "config.toml").write_text(RULES)
    done = subprocess.run([sys.executable, "-c", DISPATCH], env=env, check=True, capture_output=True, text=True)
    jobs, first, again, second = json.loads(done.stdout)
    print(
        f"\nRules, three on {checkpoints:,} checkpoints: {jobs:,} jobs in {first:.2f} s, {1e6 * first / checkpoints:.0f} us a "
        f"checkpoint; nothing left to do ({again} jobs): {second:.3f} s, {1e6 * second / checkpoints:.1f} us"
    )


def soak(place: Path, seconds: float) -> None:
    """Steady work: files come, move, change and go; each minute stands for more than two hours of a busy drive."""
    drive = place / "soak"
    dice = random.Random(3)
    drive.mkdir()
    with daemon(place / "home-soak", str(drive), config='[[rules]]\nwhere = ["*"]\nverify = "structure"\n') as running:
        print(f"\nSoak, {seconds:.0f} s: minute, daemon MB, all MB, all MB counted once, descriptors, checkpoints, jobs")
        there: list[Path] = []
        started = minute = time.monotonic()
        number = 0
        rows = []
        while time.monotonic() - started < seconds:
            number += 1
            folder = drive / f"{dice.randrange(200):03}"
            folder.mkdir(exist_ok=True)
            path = folder / f"m{number}.safetensors"
            small_safetensors(path, number, tensors=20)
            there.append(path)
            if len(there) > 2_000:
                there.pop(dice.randrange(len(there))).unlink()
            if number % 3 == 0:
                at = dice.randrange(len(there))
                target = drive / f"{dice.randrange(200):03}"
                target.mkdir(exist_ok=True)
                there[at] = there[at].rename(target / f"r{number}.safetensors")
            if number % 5 == 0:
                small_safetensors(there[dice.randrange(len(there))], -number, tensors=20)
            time.sleep(0.05)
            if time.monotonic() - minute >= 60:
                minute = time.monotonic()
                now = running.measure()
                with contextlib.closing(sqlite3.connect(running.home / "catalog.db")) as catalog:
                    jobs = catalog.execute("SELECT count(*) FROM job").fetchone()[0]
                rows.append(now)
                sizes = "  ".join(f"{size / 1e6:6.1f}" for size in (now.own, now.family, now.once))
                print(f"  {len(rows):3}  {sizes}  {now.descriptors:4}  {running.count():6,}  {jobs:6,}", flush=True)
        print(f"  ended in {running.stop():.2f} s")


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.isdecimal()]
    seconds = next((float(word) for word in sys.argv[1:] if word.isdecimal()), 600.0)
    wanted = words or ["latency", "idle", "memory", "poll", "rules", "soak"]
    with workspace("watching") as place:
        for word in wanted:
            if word == "soak":
                soak(place, seconds)
            else:
                {"latency": latency, "idle": idle, "memory": memory, "poll": poll, "rules": rules}[word](place)
            for folder in place.iterdir():
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


if __name__ == "__main__":
    main()

"""Killing a daemon and its workers, over and over, while rules have it convert; and what must be so afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

from tests.watching import Watching

RULE = """
[[rules]]
name = "pickles become safetensors"
where = ["format=pytorch"]
convert = "safetensors"
output = "{root}/.converted/{dir}/{stem}{ext}"
"""


def models(root: Path, number: int, megabytes: float) -> list[Path]:
    """PyTorch checkpoints, each with tensors of its own."""
    import torch

    made = []
    for index in range(number):
        path = root / f"team{index % 5}" / f"model{index:03d}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(index)
        torch.save({f"layer{i}.weight": torch.randn(int(megabytes * 250_000 / 4)) for i in range(4)}, path)
        made.append(path)
    return made


def descendants(pid: int) -> list[int]:
    """Every process that ``pid`` started, and those they did."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                text = Path(f"/proc/{name}/stat").read_bytes()
                parents[int(name)] = int(text.rpartition(b")")[2].split()[1])
    found, wave = [], [pid]
    while wave:
        wave = [child for child, parent in parents.items() if parent in wave]
        found += wave
    return found


def torment(daemon: Watching, kills: int, seed: int = 7, shortest: float = 0.2, longest: float = 2.0) -> dict[str, int]:
    """Kill the daemon, or a process of its, ``kills`` times; the daemon is started again. How often each was hit."""
    dice = random.Random(seed)
    hit = {"daemon": 0, "worker": 0}
    for _ in range(kills):
        time.sleep(dice.uniform(shortest, longest))
        workers = descendants(daemon.pid)
        if dice.random() < 0.3 or not workers:
            os.kill(daemon.pid, signal.SIGKILL)
            assert daemon.process is not None
            daemon.process.wait()
            hit["daemon"] += 1
            daemon.start()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
            hit["worker"] += 1
    return hit


def leftovers(root: Path) -> list[str]:
    """Scratch of ours below ``root``."""
    return [
        os.path.join(place, name)
        for place, directories, files in os.walk(root)
        for name in directories + files
        if name.startswith(".modelhub-")
    ]


def damage(home: Path) -> list[str]:
    """What SQLite finds wrong with the catalog."""
    with contextlib.closing(sqlite3.connect(home / "catalog.db")) as connection:
        found = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
        return found + [str(row) for row in connection.execute("PRAGMA foreign_key_check")]

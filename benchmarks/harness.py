"""Whole processes, timed from outside and in turn: A B A B ..., so that a slow minute of the machine hits both sides alike."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODELHUB = str(Path(sys.executable).with_name("modelhub"))


@dataclass(frozen=True)
class Run:
    """One finished process: seconds of wall, user and system time, peak resident memory in bytes."""

    wall: float
    cpu: float
    rss: int


@dataclass(frozen=True)
class Side:
    """A command to time; ``before`` prepares each run and is not timed."""

    name: str
    command: Sequence[str]
    before: Callable[[], None] | None = None
    allowed: tuple[int, ...] = (0,)


def run(side: Side, env: Mapping[str, str] | None = None) -> Run:
    if side.before:
        side.before()
    started = time.perf_counter()
    process = subprocess.Popen(side.command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in side.allowed:
        raise SystemExit(f"{side.name}: {' '.join(side.command)} ended with {process.returncode}\n{complaint.decode()}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def compare(
    title: str, sides: Sequence[Side], *, runs: int = 7, warmup: int = 1, env: Mapping[str, str] | None = None
) -> dict[str, list[Run]]:
    """Run all sides in turn; print medians, and ratios to the last side, pair by pair."""
    results: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number in range(-warmup, runs):
        for side in sides:
            result = run(side, env)
            if number >= 0:
                results[side.name].append(result)
    print(f"\n{title} ({runs} interleaved runs)")
    base = results[sides[-1].name]
    for side in sides:
        mine = results[side.name]
        ratios = sorted(a.wall / b.wall for a, b in zip(mine, base, strict=True))
        print(
            f"  {side.name:42} {statistics.median(r.wall for r in mine):8.3f} s  cpu "
            f"{statistics.median(r.cpu for r in mine):7.3f} s"
            f"  peak {max(r.rss for r in mine) / 1e6:7.0f} MB  ratio {statistics.median(ratios):5.2f} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})"
        )
    return results


def median(runs: Sequence[Run]) -> float:
    return statistics.median(run.wall for run in runs)


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """A scratch directory on the disk that the project is on (or in $BENCH_DIR), gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=os.environ.get("BENCH_DIR", Path(__file__).parent.parent)))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """The environment of a modelhub with an empty home of its own. Its modules are compiled once, as those of what pip installs
    are, and not by each of its processes."""
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MODELHUB_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**keep, "MODELHUB_HOME": str(home)}


def remove(*paths: Path) -> Callable[[], None]:
    """Deletes files or directories and syncs, so that a run pays for its own writing only."""

    def go() -> None:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        os.sync()

    return go


def small_safetensors(path: Path, seed: int, tensors: int = 100, *, alike: bool = True) -> None:
    """A valid file of ``tensors`` tiny tensors under names as long as real ones. Another ``seed`` gives another header: other
    metadata and one of three tables, as the checkpoints of one training run have it, or with ``alike=False`` other names."""
    import json
    import struct

    header: dict[str, object] = {"__metadata__": {"format": "pt", "seed": str(seed)}}
    offset = 0
    for number in range(tensors):
        kind = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")[number % 4]
        shape = [2 + (seed + number) % 3, 2]
        size = shape[0] * shape[1] * 2
        start = "model" if alike else f"model{seed}"
        header[f"{start}.layers.{number // 4}.{kind}"] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))

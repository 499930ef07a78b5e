"""A process that publishes and kills itself at its N-th step, one that sweeps and kills itself at its M-th: for every N and M.

Run as a program, because it forks hundreds of times: out of a process as large as one that runs tests, with all that those have
imported, each time would take a hundred times as long. Steps are the calls that change a directory or order its writes.

    python -m tests.hub.killing CASE new|force able|simple PLACE       prints {"steps": ..., "runs": ..., "states": [...]}
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from modelhub import scratch
from modelhub.scratch import PREFIX, Scratch, sweep

STEPS = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "fsync")
Tree = dict[str, str]

FILE = (["m.bin"], {"m.bin": "new"}, {"m.bin": "old"})
SHARDS = (
    ["m-1.bin", "m-2.bin", "m-3.bin", "m.json"],
    {"m-1.bin": "new 1", "m-2.bin": "new 2", "m-3.bin": "new 3", "m.json": "new index"},
    {"m-1.bin": "old 1", "m-2.bin": "old 2", "m.json": "old index"},
)
DIRECTORY = (
    ["m"],
    {"m/config.json": "new", "m/w/1.bin": "new 1"},
    {"m/config.json": "old", "m/w/2.bin": "old 2", "m/x": "old x"},
)
# A directory is replaced as one: nothing of the old one stays. Of several files those that have no successor do.
CASES = {"file": FILE, "shards": SHARDS, "directory": DIRECTORY}


def read(place: Path) -> Tree:
    """Every file below ``place`` that is no scratch."""
    return {
        str(path.relative_to(place)): path.read_text()
        for path in place.rglob("*")
        if path.is_file() and PREFIX not in str(path.relative_to(place))
    }


def write(place: Path, tree: Tree) -> None:
    for name, text in tree.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def left_in(place: Path) -> list[str]:
    return [name for name in os.listdir(place) if name.startswith(PREFIX)]


def unable(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def publish(place: Path, names: list[str], new: Tree, replace: bool) -> None:
    with Scratch(str(place)) as made:
        write(Path(made.output), new)
        made.publish(names, replace=replace)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that kills itself right before its ``step``-th step. False where it ended before that."""
    child = os.fork()
    if child == 0:
        try:
            count = [0]

            def counted(function: Callable[..., object], real: bool = True) -> Callable[..., object]:
                def call(*args: object, **kwargs: object) -> object:
                    count[0] += 1
                    if count[0] == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs) if real else None

                return call

            for name in STEPS:  # a power failure is not what is tested: what was written is there
                setattr(os, name, counted(getattr(os, name), real=name != "fsync"))
            scratch.exchange = counted(scratch.exchange)
            work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def every_step(kind: str, replace: bool, able: bool, top: Path) -> dict[str, object]:
    """Publish and sweep, killed at every pair of steps; how far that went, and which states (new or not) came of it. ``able``:
    on a file system that knows hard links and swapping two names."""
    names, new, old = CASES[kind]
    if not able:
        os.link = scratch.exchange = unable  # type: ignore[assignment]
    before = {"other": "untouched"} | (old if replace else {})
    after = {"other": "untouched"} | new
    seen = set()
    step = count = 0
    killed = True
    while killed:
        step += 1
        again = 0
        swept_dead = True
        while swept_dead and killed:  # for every step of the sweep: from the start
            again += 1 if able else 3
            count += 1
            place = top / f"{step}-{again}"
            write(place, before)
            killed = killed_at(step, lambda place=place: publish(place, names, new, replace))  # type: ignore[misc]
            if kind == "file" or (kind == "directory" and able):  # one step: there is no in between, swept or not
                assert read(place) in (before, after)
            swept_dead = killed and killed_at(again, lambda place=place: sweep(str(place)))  # type: ignore[misc]
            sweep(str(place))
            assert left_in(place) == []
            state = read(place)
            assert state in (before, after), f"killed at step {step}, its sweep at {again}: {state}"
            seen.add(state == after)
    return {"steps": step, "runs": count, "states": sorted(seen)}


if __name__ == "__main__":
    print(json.dumps(every_step(sys.argv[1], sys.argv[2] == "force", sys.argv[3] == "able", Path(sys.argv[4]))))

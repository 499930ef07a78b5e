"""A storm on a drive: processes that create, grow, rename, replace and delete checkpoints all at once, and the truth afterwards.

Every content is unique: its safetensors header names it. What a process owns only that process touches, so that at the end it
is known which content came from where by renames alone. Nothing of modelhub is used here: the truth is an independent walk.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


def checkpoint(uid: str, floats: int = 64) -> bytes:
    """A whole safetensors file whose metadata says ``uid``."""
    header = json.dumps(
        {
            "__metadata__": {"uid": uid},
            "weight": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    data = random.Random(uid).randbytes(4 * floats)
    return struct.pack("<Q", len(header)) + header + data


@dataclass
class Log:
    """What one process did. ``there``: path -> uid, at the end. ``tagged``: uids that were on the drive before the storm and
    that only renames have touched since."""

    there: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def populate(root: Path, number: int, directories: int = 50) -> dict[str, str]:
    """``number`` checkpoints, 10 to a directory or so; path -> uid."""
    made = {}
    for index in range(number):
        place = root / f"before{index % directories:03d}"
        place.mkdir(exist_ok=True, parents=True)
        path = place / f"m{index:05d}.safetensors"
        path.write_bytes(checkpoint(f"before-{index}"))
        made[str(path)] = f"before-{index}"
    return made


class Storm:
    """One process's part: ``mine`` are the files that it may touch."""

    def __init__(self, root: str, number: int, mine: dict[str, str], creates: int, seed: int, pause: float) -> None:
        self.root = root
        self.number = number
        self.mine = dict(mine)
        self.untouched = dict(mine)
        self.creates = creates
        self.random = random.Random(seed)
        self.pause = pause
        self.counts: dict[str, int] = {}
        self.serial = 0

    def run(self) -> Log:
        actions = (
            [self.create] * 6 + [self.grow] * 2 + [self.rename] * 5 + [self.replace] * 2 + [self.delete] * 2 + [self.rename_dir]
        )
        made = 0
        while made < self.creates:
            action = self.random.choice(actions)
            action()
            self.counts[action.__name__] = self.counts.get(action.__name__, 0) + 1
            made = self.counts.get("create", 0) + self.counts.get("grow", 0)
            if self.pause:
                time.sleep(self.random.random() * 2 * self.pause)
        kept = {path: uid for path, uid in self.untouched.items() if self.mine.get(path) == uid}
        return Log(dict(self.mine), kept, self.counts)

    def fresh(self) -> tuple[str, str]:
        self.serial += 1
        uid = f"p{self.number}-{self.serial}"
        place = os.path.join(self.root, f"p{self.number}", f"d{self.random.randrange(60):02d}")
        if self.random.random() < 0.2:
            place = os.path.join(place, f"e{self.random.randrange(10)}")
        os.makedirs(place, exist_ok=True)
        return os.path.join(place, f"{uid}.safetensors"), uid

    def create(self) -> None:
        path, uid = self.fresh()
        with open(path, "wb") as file:
            file.write(checkpoint(uid))
        self.mine[path] = uid

    def grow(self) -> None:
        path, uid = self.fresh()
        data = checkpoint(uid, 4096)
        with open(path, "wb") as file:
            for start in range(0, len(data), 5000):
                file.write(data[start : start + 5000])
                file.flush()
                if self.pause:
                    time.sleep(self.pause)
        self.mine[path] = uid

    def pick(self) -> str | None:
        return self.random.choice(list(self.mine)) if self.mine else None

    def rename(self) -> None:
        path = self.pick()
        if path is None:
            return
        target, _ = self.fresh()
        os.rename(path, target)
        self._moved(path, target)

    def _moved(self, path: str, target: str) -> None:
        uid = self.mine[target] = self.mine.pop(path)
        if self.untouched.pop(path, None) is not None:
            self.untouched[target] = uid

    def rename_dir(self) -> None:
        path = self.pick()
        if path is None or f"/p{self.number}/" not in path:
            return
        place = os.path.dirname(path)
        self.serial += 1
        target = os.path.join(self.root, f"p{self.number}", f"moved{self.serial}")
        os.rename(place, target)
        for name in [name for name in self.mine if name.startswith(place + "/")]:
            self._moved(name, target + name[len(place) :])

    def replace(self) -> None:
        path = self.pick()
        if path is None:
            return
        self.serial += 1
        uid = f"p{self.number}-{self.serial}"
        with open(path + ".tmp", "wb") as file:
            file.write(checkpoint(uid))
        os.replace(path + ".tmp", path)
        self.mine[path] = uid
        self.untouched.pop(path, None)

    def delete(self) -> None:
        path = self.pick()
        if path is None:
            return
        os.unlink(path)
        del self.mine[path]
        self.untouched.pop(path, None)


def _run(arguments: tuple[str, int, dict[str, str], int, int, float]) -> Log:
    return Storm(*arguments).run()


def storm(root: Path, before: dict[str, str], creates: int, *, processes: int = 4, seed: int = 1, pause: float = 0.0) -> Log:
    """Let it rage; what all did."""
    shares: list[dict[str, str]] = [{} for _ in range(processes)]
    for index, (path, uid) in enumerate(sorted(before.items())):
        shares[index % processes][path] = uid
    work = [(str(root), number, shares[number], creates // processes, seed + number, pause) for number in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        logs = pool.map(_run, work)
    whole = Log()
    for log in logs:
        whole.there |= log.there
        whole.kept |= log.kept
        for name, number in log.counts.items():
            whole.counts[name] = whole.counts.get(name, 0) + number
    return whole


def renames(root: str, number: int, seconds: float) -> None:
    """Move the files of process ``number`` (``pNUMBER-...``) about, and now and then whole directories, as fast as it goes."""
    dice = random.Random(number)
    places = [os.path.join(place, name) for place, _, names in os.walk(root) for name in names if name.startswith(f"p{number}-")]
    end, serial = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        serial += 1
        index = dice.randrange(len(places))
        if dice.random() < 0.97:
            folder = os.path.join(root, f"d{dice.randrange(40):02}")
            target = os.path.join(folder, f"p{number}-{serial}.safetensors")
            try:
                os.makedirs(folder, exist_ok=True)
                os.rename(places[index], target)
                places[index] = target
            except FileNotFoundError:  # its directory, or the one it was to go to, has another name meanwhile
                name = os.path.basename(places[index])
                for folder in os.listdir(root):
                    if os.path.exists(os.path.join(root, folder, name)):
                        places[index] = os.path.join(root, folder, name)
        else:
            with contextlib.suppress(OSError):
                os.rename(os.path.dirname(places[index]), os.path.join(root, f"moved{number}-{dice.randrange(10)}"))
        if dice.random() < 0.3:
            time.sleep(dice.random() / 200)


def truth(root: Path) -> dict[str, tuple[int, str]]:
    """Path relative to ``root`` -> (size, uid), of every checkpoint there, by a walk of its own."""
    return dict(_truth(str(root)))


def _truth(root: str) -> Iterator[tuple[str, tuple[int, str]]]:
    for place, _, names in os.walk(root):
        for name in names:
            if name.endswith(".safetensors"):
                path = os.path.join(place, name)
                with open(path, "rb") as file:
                    (length,) = struct.unpack("<Q", file.read(8))
                    header = json.loads(file.read(length))
                yield os.path.relpath(path, root), (os.path.getsize(path), header["__metadata__"]["uid"])


def difference(rows: list[dict[str, object]], root: Path) -> list[str]:
    """How a listing (`ls --json`) differs from the truth on the drive, in words."""
    real = truth(root)
    here = {str(row["path"]): row for row in rows if row["state"] not in ("missing", "offline")}
    found = [f"not in the catalog: {path}" for path in real.keys() - here.keys()]
    found += [f"in the catalog, not on the drive: {path} ({here[path]['state']})" for path in here.keys() - real.keys()]
    for path in real.keys() & here.keys():
        row, (size, _) = here[path], real[path]
        if row["state"] != "ready" or row["size"] != size:
            found.append(f"{path} is {row['state']} with {row['size']} bytes, it is ready with {size}")
    return sorted(found)


def lost(rows: list[dict[str, object]], root: Path, before: dict[str, str], ids: dict[str, str], log: Log) -> list[str]:
    """What was only moved, and has another id than before."""
    here = {str(row["path"]): row["id"] for row in rows if row["state"] not in ("missing", "offline")}
    uid_ids = {uid: ids[path] for path, uid in before.items()}
    moved = {os.path.relpath(full, root): uid for full, uid in log.kept.items()}
    return [f"{path} ({uid})" for path, uid in sorted(moved.items()) if here.get(path) != uid_ids[uid]]


if __name__ == "__main__":
    renames(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

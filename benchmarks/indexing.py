"""Indexing: a drive of many small checkpoints, scanned for the first time and again.

    python benchmarks/indexing.py [FILES] [UNCHANGED]

The first scan (empty catalog) against a loop of ``safetensors.safe_open`` that reads names and shapes; a rescan of unchanged
files, beyond start-up, against ``find -printf``. Headers are in the page cache for both sides.
"""

from __future__ import annotations

import subprocess
import sys

from harness import MODELHUB, Side, compare, environment, median, remove, small_safetensors, workspace

LOOP = """
import sys, pathlib
from safetensors import safe_open
for path in pathlib.Path(sys.argv[1]).rglob("*.safetensors"):
    with safe_open(path, "np") as file:
        for name in file.keys():
            file.get_slice(name).get_shape()
"""


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    unchanged = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    with workspace("indexing") as place:
        drive, home = place / "drive", place / "home"
        env = environment(home)
        for what, kinds, alike in (
            ("no two tables alike", files, False),
            ("no two headers alike", files, True),
            ("a hundred checkpoints of each training run", files // 100, True),
        ):
            for number in range(files):
                folder = drive / f"{number // 100:04}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"model-{number:05}.safetensors"
                small_safetensors(path, number * kinds // files, alike=alike)
            scan = Side(f"modelhub scan, {files:,} files", [MODELHUB, "scan", str(drive), "--json"], remove(home))
            loop = Side("safe_open, names and shapes", [sys.executable, "-c", LOOP, str(drive)])
            compare(f"First index, catalog written; {what}", [scan, loop], runs=5, env=env)

        many, empty = place / "many", place / "empty"
        empty.mkdir()
        for number in range(unchanged):
            folder = many / f"{number // 500:04}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"file-{number:05}.dat").write_bytes(b"x" * (number % 50))
        subprocess.run([MODELHUB, "scan", str(many)], env=env, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([MODELHUB, "scan", str(empty)], env=env, check=True, stdout=subprocess.DEVNULL)
        sides = [
            Side(f"modelhub scan, {unchanged:,} unchanged files", [MODELHUB, "scan", str(many)]),
            Side("modelhub scan of an empty directory", [MODELHUB, "scan", str(empty)]),
            Side("find -printf '%s %T@ %p\\n'", ["find", str(many), "-printf", "%s %T@ %p\\n"]),
        ]
        results = compare("Rescan", sides, runs=9, env=env)
        again, start, find = (median(results[side.name]) for side in sides)
        print(f"  beyond start-up: {again - start:.3f} s, {(again - start) / find:.2f} times find")


if __name__ == "__main__":
    main()

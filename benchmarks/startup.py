"""What a command costs before it does anything, and the catalog at scale.

    python benchmarks/startup.py [CHECKPOINTS] [LARGE]

``modelhub --help`` and ``modelhub ls`` on CHECKPOINTS checkpoints against ``hf version`` in the same environment; then a
catalog of LARGE checkpoints of 100 tensors each: its size, and ``ls --where`` beyond start-up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, median, small_safetensors, workspace

HF = str(Path(sys.executable).with_name("hf"))


def fill(drive: Path, count: int) -> None:
    for number in range(count):
        folder = drive / f"{number // 100:04}"
        folder.mkdir(parents=True, exist_ok=True)
        small_safetensors(folder / f"model-{number:06}.safetensors", number)


def main() -> None:
    checkpoints = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    large = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    with workspace("startup") as place:
        env = environment(place / "home")
        fill(place / "drive", checkpoints)
        subprocess.run([MODELHUB, "scan", str(place / "drive")], env=env, check=True, stdout=subprocess.DEVNULL)
        sides = [
            Side("modelhub --help", [MODELHUB, "--help"]),
            Side(f"modelhub ls, {checkpoints:,} checkpoints", [MODELHUB, "ls"]),
            Side("hf version", [HF, "version"]),
        ]
        compare("Start-up", sides, runs=15, env=env)

        env = environment(place / "large")
        fill(place / "many", large)
        subprocess.run([MODELHUB, "scan", str(place / "many")], env=env, check=True, stdout=subprocess.DEVNULL)
        size = sum(path.stat().st_size for path in (place / "large").rglob("*") if path.is_file())
        print(f"\nA catalog of {large:,} checkpoints, 100 tensors each: {size / 1e6:.0f} MB")
        ls = [MODELHUB, "ls", "--json", "--limit", "20"]
        sides = [
            Side("ls --where 'size>6KB' 'precision=BF16' --limit 20", [*ls, "--where", "size>6KB", "--where", "precision=BF16"]),
            Side("ls --where 'name~model-09999'", [*ls, "--where", "name~model-09999"]),
            Side("ls --where 'tensor~layers.24.mlp'", [*ls, "--where", "tensor~layers.24.mlp"]),
            Side("ls --where name=none (start-up)", [*ls, "--where", "name=none"]),
            Side("modelhub --help", [MODELHUB, "--help"]),
        ]
        results = compare("Queries", sides, runs=7, env=env)
        start = median(results[sides[-1].name])
        for side in sides[:-1]:
            print(f"  {side.name}: {median(results[side.name]) - start:.3f} s beyond --help")


if __name__ == "__main__":
    main()

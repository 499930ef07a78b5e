"""``verify --level digest`` of a large page-cached file, beyond start-up, against ``openssl dgst -sha256``; and of two files on
two cores.

python benchmarks/digests.py [GIGABYTES]
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, median, small_safetensors, workspace


def big_safetensors(path: Path, nbytes: int) -> None:
    header = json.dumps({"weight": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        block = os.urandom(1 << 20)
        for start in range(0, nbytes, len(block)):
            file.write(block[: nbytes - start])


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    with workspace("digests") as place:
        drive = place / "drive"
        drive.mkdir()
        first, second = drive / "first.safetensors", drive / "second.safetensors"
        big_safetensors(first, int(gigabytes * 1e9))
        big_safetensors(second, int(gigabytes * 1e9))
        small_safetensors(drive / "tiny.safetensors", 0, 1)
        env = environment(place / "home")
        subprocess.run([MODELHUB, "scan", str(drive)], env=env, check=True, stdout=subprocess.DEVNULL)
        verify = [MODELHUB, "verify", "--level", "digest"]
        sides = [
            Side("modelhub verify --level digest", [*verify, str(first)]),
            Side("two files of that size", [*verify, str(first), str(second)]),
            Side("a file of a few bytes (start-up)", [*verify, str(drive / "tiny.safetensors")]),
            Side("openssl dgst -sha256", ["openssl", "dgst", "-sha256", str(first)]),
        ]
        results = compare(f"SHA-256 of {gigabytes} GB, page-cached", sides, runs=5, env=env)
        one, two, start, openssl = (median(results[side.name]) for side in sides)
        print(
            f"  beyond start-up: {(one - start) / openssl:.2f} times openssl; two files {(two - start) / openssl:.2f} "
            "times one of openssl's"
        )


if __name__ == "__main__":
    main()

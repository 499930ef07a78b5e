"""An Orbax checkpoint to safetensors, against Orbax's own restore and safetensors' save.

    python benchmarks/orbax_checkpoints.py [GIGABYTES] [RUNS]

The checkpoint is Orbax's usual one (OCDBT, zarr, Zstandard), of random weights, which do not compress. Needs orbax-checkpoint and
safetensors, of the test extras. Sources are in the page cache; every output is on the disk when its run ends.
"""

from __future__ import annotations

import subprocess
import sys

from harness import MODELHUB, Side, compare, environment, remove, workspace

MAKE = """
import sys, numpy as np, orbax.checkpoint as ocp
random, layers = np.random.default_rng(0), int(float(sys.argv[2]) * 1e9 / (4096 * 2048 * 4)) or 1
tree = {"params": {f"layer_{n}": {"kernel": random.standard_normal((4096, 2048), "f4"),
                                  "bias": random.standard_normal(2048, "f4")} for n in range(layers)}}
ocp.PyTreeCheckpointer().save(sys.argv[1], tree)
"""
PEER = """
import os, sys, numpy as np, orbax.checkpoint as ocp
from safetensors.numpy import save_file
tree = ocp.PyTreeCheckpointer().restore(sys.argv[1])
save_file({f"params/{layer}/{name}": np.asarray(array) for layer, part in tree["params"].items() for name, array in part.items()},
          sys.argv[2])
fd = os.open(sys.argv[2], os.O_RDONLY); os.fsync(fd)
"""
SAME = """
import sys
from safetensors.numpy import load_file
ours, theirs = load_file(sys.argv[1]), load_file(sys.argv[2])
print("equal:", set(ours) == set(theirs) and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours))
"""


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with workspace("orbax") as place:
        source, target, other = place / "step", place / "out.safetensors", place / "peer.safetensors"
        home = environment(place / "home")
        subprocess.run([sys.executable, "-c", MAKE, str(source), str(gigabytes)], check=True)
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        print(f"{size:,} bytes, F32, OCDBT with Zstandard, in the page cache; outputs fsynced")
        convert = [MODELHUB, "convert", str(source), "--to", "safetensors", "-o", str(target)]
        clean = remove(target)
        sides = [
            Side("modelhub convert --no-verify", [*convert, "--no-verify"], clean),
            Side("modelhub convert (read back and compared)", convert, clean),
            Side("orbax restore + safetensors save", [sys.executable, "-c", PEER, str(source), str(other)], remove(other)),
        ]
        compare("Orbax -> safetensors", sides, runs=runs, env=home)
        clean()
        subprocess.run(convert, env=home, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(sides[-1].command, check=True)
        subprocess.run([sys.executable, "-c", SAME, str(target), str(other)], check=True)


if __name__ == "__main__":
    main()

"""A 1 GB TensorFlow checkpoint to safetensors and back: against copying its data file, and against TensorFlow + safetensors doing
the same work.

    python benchmarks/tensorflow_checkpoints.py [GIGABYTES] [PAIRS] [--with-tensorflow]

The checkpoint is written by modelhub, so TensorFlow is needed for the last side alone (`--with-tensorflow`: tensorflow-cpu and
safetensors, of the test extras). Sources are in the page cache; every output is on the disk when its run ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, median, remove, workspace

MAKE = """
import sys, numpy as np
from safetensors.numpy import save_file
path, left = sys.argv[1], int(float(sys.argv[2]) * 1e9 / 4)
random, state, layer = np.random.default_rng(0), {}, 0
while left > 0:
    for name, shape in (("attention/query/kernel", (2048, 2048)), ("attention/output/kernel", (2048, 2048)),
                        ("intermediate/kernel", (2048, 5504)), ("output/kernel", (5504, 2048)), ("LayerNorm/gamma", (2048,))):
        state[f"encoder/layer_{layer}/{name}"] = random.standard_normal(shape, "f4")
        left -= state[f"encoder/layer_{layer}/{name}"].size
    layer += 1
save_file(state, path)
"""
PEER = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from safetensors.numpy import save_file
reader = tf.train.load_checkpoint(sys.argv[1])
save_file({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, sys.argv[2])
fd = os.open(sys.argv[2], os.O_RDONLY); os.fsync(fd)
"""
SAME = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from safetensors.numpy import load_file
reader, found = tf.train.load_checkpoint(sys.argv[1]), load_file(sys.argv[2])
names = reader.get_variable_to_shape_map()
print("equal:", set(names) == set(found) and all(reader.get_tensor(n).tobytes() == found[n].tobytes() for n in names))
"""


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    gigabytes = float(words[0]) if words else 1.0
    pairs = int(words[1]) if len(words) > 1 else 7
    with workspace("tensorflow") as place:
        first, index, target = place / "made.safetensors", place / "model.index", place / "out.safetensors"
        data, back = place / "model.data-00000-of-00001", place / "back.index"
        home = environment(place / "home")
        subprocess.run([sys.executable, "-c", MAKE, str(first), str(gigabytes)], check=True)
        made = [MODELHUB, "convert", str(first), "--to", "tensorflow", "-o", str(index)]
        subprocess.run(made, env=home, check=True, stdout=subprocess.DEVNULL)
        print(f"{data.stat().st_size:,} bytes, F32, in the page cache; outputs fsynced")
        ours = [MODELHUB, "convert", str(index), "--to", "safetensors", "-o", str(target)]
        clean = remove(target)
        copy = f"cp --reflink=never '{data}' '{target}' && sync '{target}'"
        sides = [
            Side("modelhub convert --no-verify", [*ours, "--no-verify"], clean),
            Side("modelhub convert (read back and compared)", ours, clean),
        ]
        if "--with-tensorflow" in sys.argv:
            peer = [sys.executable, "-c", PEER, str(place / "model"), str(target)]
            sides.append(Side("tf.train.load_checkpoint + save_file + fsync", peer, clean))
        sides.append(Side("cp --reflink=never; sync FILE", ["sh", "-c", copy], clean))
        results = compare("TensorFlow checkpoint -> safetensors", sides, runs=pairs, env=home)
        for side in sides[2:-1]:
            print(
                f"  it takes {median(results[side.name]) / median(results[sides[1].name]):.2f} times as long as {sides[1].name}"
            )

        clean_back = remove(back, place / "back.data-00000-of-00001")
        copy = f"cp --reflink=never '{first}' '{target}' && sync '{target}'"
        written = [MODELHUB, "convert", str(first), "--to", "tensorflow", "-o", str(back)]
        sides = [
            Side("modelhub convert (with CRC-32C, read back)", written, clean_back),
            Side("cp --reflink=never; sync FILE", ["sh", "-c", copy], clean),
        ]
        compare("safetensors -> TensorFlow checkpoint", sides, runs=pairs, env=home)
        if "--with-tensorflow" in sys.argv:
            clean()
            subprocess.run(ours, env=home, check=True, stdout=subprocess.DEVNULL)
            subprocess.run([sys.executable, "-c", SAME, str(place / "model"), str(target)], check=True)


if __name__ == "__main__":
    Path(__file__).resolve()
    main()

"""A 4 GB PyTorch checkpoint to safetensors: against copying the file, and against torch + safetensors doing the same work.

    python benchmarks/conversion.py [GIGABYTES] [PAIRS]

Needs the test extras (torch, safetensors). The source is in the page cache; every output is on the disk when its run ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, median, remove, workspace

MAKE = """
import sys, torch
path, gigabytes = sys.argv[1], float(sys.argv[2])
layers = max(1, round(gigabytes * 1e9 / 2 / 90e6 / 4.44))
gen = torch.Generator().manual_seed(0)
state = {"model.embed_tokens.weight": torch.randn(32000, 2048, generator=gen).bfloat16()}
left = int(gigabytes * 1e9 / 2) - 32000 * 2048
index = 0
while left > 0:
    for name, shape in (("self_attn.q_proj", (2048, 2048)), ("self_attn.o_proj", (2048, 2048)), ("mlp.up_proj", (5504, 2048)),
                        ("mlp.down_proj", (2048, 5504)), ("input_layernorm", (2048,))):
        state[f"model.layers.{index}.{name}.weight"] = torch.randn(*shape, generator=gen).bfloat16()
        left -= state[f"model.layers.{index}.{name}.weight"].numel()
    index += 1
torch.save(state, path)
"""
TORCH = """
import sys, os, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], map_location="cpu", weights_only=True), sys.argv[2], metadata={"format": "pt"})
fd = os.open(sys.argv[2], os.O_RDONLY); os.fsync(fd)
"""


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    with workspace("conversion") as place:
        source, target = place / "pytorch_model.bin", place / "out.safetensors"
        subprocess.run([sys.executable, "-c", MAKE, str(source), str(gigabytes)], check=True)
        print(f"{source.stat().st_size:,} bytes, bf16, contiguous, in the page cache; outputs fsynced")
        ours = [MODELHUB, "convert", str(source), "--to", "safetensors", "-o", str(target)]
        clean = remove(target)
        sides = [
            Side("modelhub convert --no-verify", [*ours, "--no-verify"], clean),
            Side("modelhub convert (read back and compared)", ours, clean),
            Side("torch.load + safetensors save_file + fsync", [sys.executable, "-c", TORCH, str(source), str(target)], clean),
            Side(
                "cp --reflink=never; sync FILE",
                ["sh", "-c", f"cp --reflink=never '{source}' '{target}' && sync '{target}'"],
                clean,
            ),
        ]
        results = compare("PyTorch -> safetensors", sides, runs=pairs, env=environment(place / "home"))
        torch = median(results[sides[2].name])
        for side in sides[:2]:
            print(f"  torch takes {torch / median(results[side.name]):.2f} times as long as {side.name}")
        clean()
        subprocess.run(ours, env=environment(place / "home"), check=True, stdout=subprocess.DEVNULL)
        same = (
            "import sys, torch; from safetensors.torch import load_file; "
            "a = torch.load(sys.argv[1], weights_only=True, mmap=True); b = load_file(sys.argv[2]); "
            "print('equal:', a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a))"
        )
        subprocess.run([sys.executable, "-c", same, str(source), str(target)], check=True)


if __name__ == "__main__":
    Path(__file__).resolve()
    main()

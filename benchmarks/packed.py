"""Quantized Hugging Face checkpoints to plain safetensors, against transformers with the library that packed them.

    python benchmarks/packed.py [LAYERS] [PAIRS]

A Llama of 1024 x 2816 (LAYERS of them, 12.8 M parameters each) in bfloat16 is packed as compressed-tensors INT4 and FP8 by
modelhub's recipes, and as NF4 by bitsandbytes. Each is then made plain: by ``modelhub convert`` (which reads its output back),
and by ``from_pretrained`` with the weights dequantized, and safetensors. Needs the test extras. Both sides' tensors are compared.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, remove, workspace

MAKE = """
import sys, torch, transformers
path, layers = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
config = transformers.LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
    vocab_size=4096, tie_word_embeddings=False)
transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
"""
NF4 = """
import sys, torch, transformers
config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config, dtype=torch.bfloat16,
    device_map="cpu")
model.save_pretrained(sys.argv[2])
"""
PEER = """
import os, sys, torch, transformers
from safetensors.torch import save_file
given = {}
if sys.argv[3] == "compressed":
    given = {"quantization_config": transformers.CompressedTensorsConfig(run_compressed=False)}
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map="cpu", **given)
if sys.argv[3] == "bitsandbytes":
    model = model.dequantize()
save_file({name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    if "weight" in name and "weight_" not in name}, sys.argv[2])
fd = os.open(sys.argv[2], os.O_RDONLY); os.fsync(fd)
"""
SAME = """
import sys, torch
from safetensors.torch import load_file
a, b = load_file(sys.argv[1]), load_file(sys.argv[2])
shared = a.keys() & b.keys()
print("  tensors equal:", sum(torch.equal(a[name], b[name]) for name in shared), "of", len(a))
"""


def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with workspace("packed") as place:
        home = {**environment(place / "home"), "HF_HUB_OFFLINE": "1"}
        plain = place / "plain"
        subprocess.run([sys.executable, "-c", MAKE, str(plain), str(layers)], check=True, env=home)
        for name, library in (("w4a16", "compressed"), ("fp8", "compressed"), ("nf4", "bitsandbytes")):
            packed = place / name
            if library == "bitsandbytes":
                subprocess.run([sys.executable, "-c", NF4, str(plain), str(packed)], check=True, env=home)
            else:
                made = [MODELHUB, "convert", str(plain), "--to", f"huggingface:{name}", "-o", str(packed)]
                subprocess.run(made, check=True, env=home, stdout=subprocess.DEVNULL)
            _compare(name, library, packed, place, pairs, home)


def _compare(name: str, library: str, packed: Path, place: Path, pairs: int, home: dict[str, str]) -> None:
    ours, theirs = place / "ours.safetensors", place / "theirs.safetensors"
    peer = [sys.executable, "-c", PEER, str(packed), str(theirs), library]
    convert = [MODELHUB, "convert", str(packed), "--to", "safetensors", "-o", str(ours)]
    sides = [Side("modelhub convert", convert, remove(ours)), Side(f"transformers + {library}", peer, remove(theirs))]
    compare(f"{name} -> safetensors (BF16)", sides, runs=pairs, env=home)
    subprocess.run([sys.executable, "-c", SAME, str(ours), str(theirs)], check=True)


if __name__ == "__main__":
    main()

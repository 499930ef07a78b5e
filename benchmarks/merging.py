"""A LoRA adapter merged into a base model: against peft loading both, merging, and saving.

    python benchmarks/merging.py [PARAMETERS] [PAIRS] [DTYPE]

PARAMETERS: about how many the base has (1e9); DTYPE: bfloat16 or float32. Needs the test extras (torch, transformers, peft). The
adapter has rank 16 on every linear layer of every block. All is in the page cache before; every output is on the disk when its
run ends. The last line says how far the two outputs are apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from harness import MODELHUB, Side, compare, environment, median, remove, workspace

MAKE = """
import sys, peft, torch, transformers
base, adapter, parameters, dtype = sys.argv[1], sys.argv[2], float(sys.argv[3]), getattr(torch, sys.argv[4])
width, inner, tokens = 2048, 5632, 32000
if parameters < 3e8:
    width, inner, tokens = 512, 1408, 8000
layer = 2 * width * width + 2 * width * width // 4 + 3 * width * inner
layers = max(1, round((parameters - 2 * tokens * width) / layer))
torch.manual_seed(0)
torch.set_default_dtype(dtype)
config = transformers.LlamaConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, vocab_size=tokens,
                                  num_attention_heads=width // 64, num_key_value_heads=width // 256)
model = transformers.LlamaForCausalLM(config)
model.save_pretrained(base)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets))
with torch.no_grad():
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.normal_(0, 0.02)
adapted.save_pretrained(adapter)
print(f"{sum(value.numel() for value in model.parameters()):,} parameters with the adapter's, {layers} layers")
"""
PEFT = """
import os, sys, peft, torch, transformers
base, adapter, output = sys.argv[1:4]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)
for name in os.listdir(output):
    fd = os.open(os.path.join(output, name), os.O_RDONLY); os.fsync(fd)
"""
APART = """
import glob, sys
from safetensors import safe_open
def tensors(path):
    files = [safe_open(one, "pt") for one in sorted(glob.glob(path + "/*.safetensors"))]
    return {name: file for file in files for name in file.keys()}
ours, theirs = tensors(sys.argv[1]), tensors(sys.argv[2])
assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
worst, unequal, count = 0.0, 0, 0
for name in ours:
    a, b = ours[name].get_tensor(name), theirs[name].get_tensor(name)
    worst = max(worst, float((a.float() - b.float()).abs().max() / b.float().abs().max()))
    unequal += int((a != b).sum()); count += a.numel()
print(f"apart by at most {worst:.2e} of a tensor's largest value; {unequal / count:.1e} of all values differ")
"""


def main() -> None:
    parameters = sys.argv[1] if len(sys.argv) > 1 else "1e9"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    dtype = sys.argv[3] if len(sys.argv) > 3 else "bfloat16"
    with workspace("merging") as place:
        base, adapter, ours, theirs = (str(place / name) for name in ("base", "adapter", "ours", "theirs"))
        subprocess.run([sys.executable, "-c", MAKE, base, adapter, parameters, dtype], check=True, stderr=subprocess.DEVNULL)
        env = environment(place / "home")
        command = [MODELHUB, "merge", base, "--adapter", adapter, "-o", ours]
        sides = [
            Side("modelhub merge --no-verify", [*command, "--no-verify"], remove(place / "ours")),
            Side("modelhub merge (read back and compared)", command, remove(place / "ours")),
            Side("peft: load, merge, save, fsync", [sys.executable, "-c", PEFT, base, adapter, theirs], remove(place / "theirs")),
        ]
        results = compare(f"LoRA merged, {dtype}", sides, runs=pairs, env=env)
        theirs_runs = results[sides[2].name]
        for side in sides[:2]:
            mine = results[side.name]
            work = statistics.median(run.cpu for run in theirs_runs) / statistics.median(run.cpu for run in mine)
            longer = median(theirs_runs) / median(mine)
            print(f"  peft takes {longer:.2f} times as long as {side.name}, and {work:.2f} times its CPU seconds")
        subprocess.run([sys.executable, "-c", APART, ours, theirs], check=True)


if __name__ == "__main__":
    main()

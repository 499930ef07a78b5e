"""A bfloat16 Llama directory to GGUF: against llama.cpp's two steps, and against copying the bytes.

    LLAMA_CPP=/path/to/llama.cpp [LLAMA_CPP_BIN=/path/to/its/bin] python benchmarks/quantization.py [LAYERS] [PAIRS]

22 layers (the default) are 1.1 billion parameters, in sharded ``pytorch_model-*.bin``; 44 are the model of twice the layers.
Without LLAMA_CPP (a checkout of llama.cpp, built) its two steps are left out, and the rest is measured. Needs the test extras.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import MODELHUB, Side, compare, environment, remove, workspace

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 32, 4, 32000
MAKE = """
import json, sys, torch
from pathlib import Path
place, layers, hidden, inner, kv, vocabulary = Path(sys.argv[1]), *map(int, sys.argv[2:])
gen = torch.Generator().manual_seed(0)
def weights(*shape):
    return (torch.randn(*shape, generator=gen) * 0.02).bfloat16()
def layer(i):
    name = f"model.layers.{i}."
    return {
        name + "self_attn.q_proj.weight": weights(hidden, hidden), name + "self_attn.k_proj.weight": weights(kv, hidden),
        name + "self_attn.v_proj.weight": weights(kv, hidden), name + "self_attn.o_proj.weight": weights(hidden, hidden),
        name + "mlp.gate_proj.weight": weights(inner, hidden), name + "mlp.up_proj.weight": weights(inner, hidden),
        name + "mlp.down_proj.weight": weights(hidden, inner),
        name + "input_layernorm.weight": weights(hidden) + 1, name + "post_attention_layernorm.weight": weights(hidden) + 1,
    }
shards = [{"model.embed_tokens.weight": weights(vocabulary, hidden)}]
for i in range(layers):
    if len(shards[-1]) > 90:
        torch.save(shards[-1], place / f"shard-{len(shards)}.tmp"); shards[-1] = list(shards[-1]); shards.append({})
    shards[-1].update(layer(i))
shards[-1].update({"model.norm.weight": weights(hidden) + 1, "lm_head.weight": weights(vocabulary, hidden)})
torch.save(shards[-1], place / f"shard-{len(shards)}.tmp"); shards[-1] = list(shards[-1])
index = {}
for number, names in enumerate(shards, 1):
    file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
    (place / f"shard-{number}.tmp").rename(place / file)
    index.update(dict.fromkeys(names, file))
(place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
"""


def make_model(place: Path, layers: int) -> int:
    """A directory of OpenLLaMA's kind with random weights; the bytes of its weights."""
    place.mkdir(parents=True)
    sizes = [str(number) for number in (layers, HIDDEN, INNER, HIDDEN // HEADS * KV_HEADS, VOCABULARY)]
    subprocess.run([sys.executable, "-c", MAKE, str(place), *sizes], check=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))
    drive = Path(__file__).parent.parent / "sample" / "drive"
    subprocess.run([sys.executable, str(drive.parent.parent / "examples" / "sample_drive.py"), str(drive)], check=True)
    (found,) = drive.rglob("tokenizer.model.v1")
    shutil.copy(found, place / "tokenizer.model")
    return sum(file.stat().st_size for file in place.glob("*.bin"))


def reference(model: Path, work: Path, recipe: str) -> list[Side]:
    """llama.cpp's two steps as one command, where it is there."""
    home = os.environ.get("LLAMA_CPP")
    if not home:
        return []
    binary = Path(os.environ.get("LLAMA_CPP_BIN", Path(home) / "build" / "bin")) / "llama-quantize"
    middle, output = work / "reference-bf16.gguf", work / "reference.gguf"
    convert = f"'{sys.executable}' '{home}/convert_hf_to_gguf.py' '{model}' --outtype bf16 --outfile '{middle}'"
    both = f"{convert} && '{binary}' '{middle}' '{output}' {recipe.upper()} 2 && sync '{output}'"
    return [Side(f"convert_hf_to_gguf.py + llama-quantize {recipe}", ["sh", "-c", both], remove(middle, output))]


def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 22
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with workspace("quantization") as place:
        model, output = place / "model", place / "model.gguf"
        size = make_model(model, layers)
        print(f"{size:,} bytes of bfloat16 in {len(list(model.glob('*.bin')))} shards, {layers} layers")
        env = environment(place / "home")
        ours = [MODELHUB, "convert", str(model), "-o", str(output), "--threads", "2", "--force", "--json", "--to"]
        subprocess.run([*ours, "gguf:q4_k_m"], env=env, check=True, stdout=subprocess.DEVNULL)  # kernels are compiled once
        sides = [Side("modelhub convert --to gguf:q4_k_m", [*ours, "gguf:q4_k_m"], remove(output))]
        compare("Q4_K_M", sides + reference(model, place, "q4_k_m"), runs=pairs, env=env)
        report = json.loads(subprocess.run([*ours, "gguf:q4_k_m"], env=env, check=True, capture_output=True).stdout)
        print("  stages", report["stages"], "threads", report["thread_seconds"])
        shards = " ".join(f"'{file}'" for file in sorted(model.glob("*.bin")))
        copied = place / "copied"
        for recipe in ("bf16", "q8_0"):
            subprocess.run([*ours, f"gguf:{recipe}"], env=env, check=True, stdout=subprocess.DEVNULL)
            copies = [
                Side(
                    "cp of the output; sync",
                    ["sh", "-c", f"cp --reflink=never '{output}' '{copied}' && sync '{copied}'"],
                    remove(copied),
                ),
                Side(
                    "cp of the input; sync",
                    ["sh", "-c", f"mkdir '{copied}' && cp --reflink=never {shards} '{copied}' && sync"],
                    remove(copied),
                ),
            ]
            for copy in copies:
                target = place / f"{recipe}.gguf"
                mine = [*ours[:3], "-o", str(target), *ours[5:], f"gguf:{recipe}"]
                compare(recipe, [Side(f"modelhub convert --to gguf:{recipe}", mine, remove(target)), copy], runs=pairs, env=env)
                copy.before and copy.before()


if __name__ == "__main__":
    main()

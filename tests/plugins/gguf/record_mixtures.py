"""Records what ``llama-quantize`` makes of the models of `mixed_models`. Not a test: run it by hand, with the path of a
``llama-quantize`` that knows ``--dry-run`` and what it says of its version, when llama.cpp has changed its mixtures:

    python tests/plugins/gguf/record_mixtures.py /path/to/llama-quantize "0.5.0" > tests/plugins/gguf/mixtures.json

The file holds facts: for each model and mixture, the type of each tensor. ``kept``: tensors that no mixture changed. A mixture
that is missing fails. The others
by name, ``*`` for the number of the block, one letter for each block in order (or one for all); those that are all of the
mixture's own type are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.plugins.gguf.mixed_models import MODELS, Spec

LETTERS = {
    "F32": "F", "F16": "H", "BF16": "B", "Q8_0": "8", "Q6_K": "6", "Q5_K": "5", "Q4_K": "4", "Q3_K": "3", "Q2_K": "2",
    "Q4_0": "c", "Q4_1": "d", "Q5_0": "e", "Q5_1": "f", "IQ4_NL": "n", "IQ4_XS": "x", "TQ1_0": "t", "TQ2_0": "u", "MXFP4": "m",
    "Q2_0": "r", "Q1_0": "s",
}  # fmt: skip
OVERRIDES = {
    "": (),
    "attn_v=q8_0 ffn_down=q3_k": (("attn_v", "q8_0"), ("ffn_down", "q3_k")),
    "blk\\.[0-3]\\.ffn_(up|down)=q6_k token_embd=q8_0": (("blk\\.[0-3]\\.ffn_(up|down)", "q6_k"), ("token_embd", "q8_0")),
}
"""Overrides by how they are called: tried on `OVERRIDDEN`."""
OVERRIDDEN = ("llama of 8 layers", "rows that 256 does not divide, tied")
WEIGHED = ("llama of 8 layers", "llama of 32 layers, no shared heads", "mixtral", "falcon of 32 layers")
"""Models that are also tried with an importance matrix."""

_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\S+), size = .*?MiB(?: -> +[0-9.]+ MiB \((\S+)\))?")


def write_model(path: Path, spec: Spec) -> None:
    """A GGUF whose weights are a hole: nothing reads them."""
    writer = gguf.GGUFWriter(path, spec.architecture)
    for key, field in spec.fields.items():
        if key != "general.architecture":
            kind = gguf.GGUFValueType(field.type)
            writer.add_key_value(key, field.value, kind, gguf.GGUFValueType(field.item) if field.item >= 0 else None)
    total = 0
    for name, shape, dtype in spec.tensors():
        size = {"F32": 4, "F16": 2}[dtype] * int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float32 if dtype == "F32" else np.float16), size)
        total += size + -size % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 64 + total)


def write_imatrix(path: Path) -> None:
    """That there is one is all that a dry run looks at."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_v.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_v.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types_of(program: str, model: Path, mixture: str, *options: str) -> tuple[dict[str, str], float] | None:
    """Tensor -> its type, and the bits per weight, as a dry run says them; None where no type fits the model's rows."""
    done = subprocess.run([program, *options, "--dry-run", str(model), mixture], capture_output=True, text=True)
    if "no tensor type fallback is defined" in done.stderr:
        return None
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        if match := _LINE.match(line):
            found[match[1]] = (match[3] or match[2]).upper()
    if done.returncode or not found:
        raise SystemExit(f"{model} {mixture}: {done.stderr[-2000:]}")
    bits = re.search(r"quant size *= .*\((\S+) BPW\)", done.stdout + done.stderr)
    assert bits
    return found, float(bits[1])


def compact(types: dict[str, str]) -> dict[str, str]:
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    for name, dtype in types.items():
        found = re.match(r"blk\.(\d+)\.", name)
        groups[re.sub(r"^blk\.\d+\.", "blk.*.", name)][int(found[1]) if found else 0] = LETTERS[dtype]
    texts = {name: "".join(letters[layer] for layer in sorted(letters)) for name, letters in groups.items()}
    return {name: text[0] if len({*text}) == 1 else text for name, text in texts.items()}


def record(program: str, made_by: str) -> dict[str, Any]:
    from modelhub_gguf.recipes.file_types import MIXTURES

    runs: dict[str, dict[str, dict[str, str]]] = {}
    kept: dict[str, list[str]] = {}
    bits: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        imatrix = Path(folder, "imatrix.gguf")
        write_imatrix(imatrix)
        for name, make in MODELS.items():
            model = Path(folder, "model.gguf")
            spec = make()
            write_model(model, spec)
            sources = {tensor: dtype for tensor, _, dtype in spec.tensors()}
            ways = {"": (), **({"with importance": ("--imatrix", str(imatrix))} if name in WEIGHED else {})}
            if name in OVERRIDDEN:
                ways |= {way: tuple(x for pair in way.split() for x in ("--tensor-type", pair)) for way in OVERRIDES if way}
            results = {
                (way, mixture.name): types_of(program, model, mixture.name, *options)
                for way, options in ways.items()
                for mixture in MIXTURES.values()
            }
            types = {run: result[0] for run, result in results.items() if result}
            bits[name] = {mixture: result[1] for (way, mixture), result in results.items() if result and not way}
            same = [t for t in sources if all(found[t] == sources[t] for found in types.values())]
            kept[name] = sorted({re.sub(r"^blk\.\d+\.", "blk.*.", tensor) for tensor in same})
            for (way, mixture_name), found in types.items():
                changed = compact({tensor: dtype for tensor, dtype in found.items() if tensor not in same})
                own = LETTERS[MIXTURES[mixture_name].base]
                label = f"{name}; {way}" if way else name
                runs.setdefault(label, {})[mixture_name] = {tensor: text for tensor, text in changed.items() if text != own}
            model.unlink()
    return {"made_by": made_by, "letters": LETTERS, "kept": kept, "bits": bits, "types": runs}


def lines(data: dict[str, Any]) -> str:
    """JSON with a line for each model and mixture."""
    kept = ",\n".join(f"{json.dumps(name)}: {json.dumps(names)}" for name, names in sorted(data["kept"].items()))
    types = ",\n".join(
        f"{json.dumps(label)}: {{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(groups, sort_keys=True)}" for name, groups in runs.items())
        + "\n}"
        for label, runs in sorted(data["types"].items())
    )
    bits = ",\n".join(f"{json.dumps(name)}: {json.dumps(runs)}" for name, runs in sorted(data["bits"].items()))
    return (
        f'{{"made_by": {json.dumps(data["made_by"])},\n"letters": {json.dumps(data["letters"])},\n'
        f'"kept": {{\n{kept}\n}},\n"bits": {{\n{bits}\n}},\n"types": {{\n{types}\n}}}}'
    )


if __name__ == "__main__":
    print(lines(record(*sys.argv[1:3])))

"""Quantizing by the command: types, importance weights and keys arrive in the file, and its blocks are those of libggml."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from modelhub_gguf.codecs import signatures
from numpy.typing import NDArray

from tests.plugins.gguf import ggml
from tests.plugins.gguf.importance_files import Sums, measured, write_gguf
from tests.plugins.gguf.logits import tiny
from tests.plugins.gguf.mixed_models import MODELS, Spec

Modelhub = Callable[..., Any]
MIXTRAL, ODD = "mixtral of 2 layers", "rows that 256 does not divide, tied"


def write(path: Path, spec: Spec) -> dict[str, NDArray[np.float32]]:
    """A model with made-up weights; answers with them."""
    random = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, spec.architecture)
    for key, field in spec.fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, field.value, gguf.GGUFValueType(field.type))
    weights = {}
    for name, shape, dtype in spec.tensors():
        values = (random.standard_t(5, shape) * np.exp(random.normal(-4, 0.7))).astype(
            np.float32 if dtype == "F32" else np.float16
        )
        writer.add_tensor(name, values)
        weights[name] = values.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def blocks(dtype: str, values: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """A tensor encoded by libggml, each matrix of a stack with weights of its own."""
    stack = values.reshape(-1, *values.shape[-2:])
    parts = [ggml.quantize(dtype, one, None if importance is None else importance[n]) for n, one in enumerate(stack)]
    return np.concatenate([part.reshape(-1) for part in parts])


def check(path: Path, weights: dict[str, NDArray[np.float32]], entries: Sums) -> dict[str, str]:
    """Every tensor of a file is what libggml makes of its weights; answers with the types."""
    types = {}
    for tensor in gguf.GGUFReader(path).tensors:
        types[tensor.name] = dtype = tensor.tensor_type.name
        found = np.asarray(tensor.data).view(np.uint8).reshape(-1)
        if dtype in ("F32", "F16"):
            expected = weights[tensor.name].astype(np.float32 if dtype == "F32" else np.float16).view(np.uint8).reshape(-1)
        else:
            sums, counts = entries.get(tensor.name, (None, None))
            importance = None if sums is None or counts is None else sums / counts[:, None]
            expected = blocks(dtype, weights[tensor.name], importance)
        np.testing.assert_array_equal(found, expected, err_msg=f"{tensor.name} {dtype}")
    return types


@pytest.mark.parametrize("mixture", ["q4_k_m", "iq4_xs", "q2_k_s"])
def test_experts_are_encoded_with_weights_of_their_own(mixture: str, modelhub: Modelhub, tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    weights, entries = write(tmp_path / "model.gguf", spec), measured(spec.shapes)
    imatrix = write_gguf(tmp_path / "imatrix.gguf", entries, dataset="wiki.txt", chunks=40)
    output = tmp_path / "out.gguf"
    modelhub("convert", tmp_path / "model.gguf", "--to", f"gguf:{mixture}", "--imatrix", imatrix, "-o", output)
    types = check(output, weights, entries)
    assert types["blk.0.attn_v.weight"] == types["blk.1.attn_k.weight"] == "Q8_0"
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    keys = {name: field.contents() for name, field in gguf.GGUFReader(output).fields.items() if not name.startswith("GGUF.")}
    assert keys["general.file_type"] == {"q4_k_m": 15, "iq4_xs": 30, "q2_k_s": 21}[mixture]
    assert keys["general.quantization_version"] == 2
    assert keys["quantize.imatrix.file"] == str(imatrix)[:127]
    assert keys["quantize.imatrix.dataset"] == "wiki.txt"
    assert keys["quantize.imatrix.entries_count"] == len(entries)
    assert keys["quantize.imatrix.chunks_count"] == 40


def test_fallbacks_are_shown_and_strict_refuses_them(modelhub: Modelhub, tmp_path: Path) -> None:
    spec = MODELS[ODD]()
    weights = write(tmp_path / "model.gguf", spec)
    output = tmp_path / "out.gguf"
    command = ("convert", tmp_path / "model.gguf", "--to", "gguf:q4_k_m", "-o", output)
    plan = modelhub(*command, "--dry-run", "--json").json
    assert plan["fallbacks"]["blk.0.attn_q.weight"] == "rows of 224 do not divide by 256: Q5_0 in place of Q4_K"
    assert "rows of 224 do not divide by 256: Q8_0 in place of Q6_K" in modelhub(*command, "--dry-run").stdout
    refused = modelhub(*command, "--strict", status=3)
    assert "rows of 224 do not divide by 256" in refused.stderr
    assert not output.exists()
    modelhub(*command)
    assert {*check(output, weights, {}).values()} == {"Q5_0", "Q8_0", "F32"}


def test_a_file_of_the_size_that_was_asked_for(modelhub: Modelhub, tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    weights = write(tmp_path / "model.gguf", spec)
    output = tmp_path / "out.gguf"
    result = modelhub("convert", tmp_path / "model.gguf", "--to", "gguf:auto", "--target-size", "2MB", "-o", output)
    assert 1_980_000 < output.stat().st_size <= 2_000_000
    assert len({*check(output, weights, {}).values()}) > 3
    assert "less than the best fixed mixture that fits" in result.stdout
    modelhub("convert", tmp_path / "model.gguf", "--to", "gguf:auto", "-o", tmp_path / "none.gguf", status=2)


def test_single_tensors_as_asked(modelhub: Modelhub, tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    weights = write(tmp_path / "model.gguf", spec)
    output = tmp_path / "out.gguf"
    options = ("--tensor-type", "attn_q=q5_k", "--tensor-type", r"^output\.weight$=q8_0")
    modelhub("convert", tmp_path / "model.gguf", "--to", "gguf:q8_0", *options, "-o", output)
    types = check(output, weights, {})
    assert types["blk.1.attn_q.weight"] == "Q5_K"
    assert types["output.weight"] == types["blk.1.attn_output.weight"] == "Q8_0"


def test_plain_types_leave_vectors_and_routers(modelhub: Modelhub, tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    weights = write(tmp_path / "model.gguf", spec)
    for recipe in ("f16", "f32"):
        output = tmp_path / f"{recipe}.gguf"
        modelhub("convert", tmp_path / "model.gguf", "--to", f"gguf:{recipe}", "-o", output)
        types = check(output, weights, {})
        assert types["blk.0.attn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
        assert types["blk.0.ffn_up_exps.weight"] == recipe.upper()


def test_a_quantized_file_beside_the_directory_it_came_from(modelhub: Modelhub, tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    tiny(tmp_path / "llama", "LlamaForCausalLM", config)
    for recipe in ("q8_0", "f32"):
        modelhub("convert", tmp_path / "llama", "--to", f"gguf:{recipe}", "-o", tmp_path / f"{recipe}.gguf")
    done = modelhub("diff", tmp_path / "q8_0.gguf", tmp_path / "llama", "--json", status=1).json
    assert (done["names"], done["only_a"], done["only_b"]) == ("gguf", [], [])
    figures = {tensor["name"]: tensor for tensor in done["tensors"]}
    assert 0 < figures["blk.0.attn_q.weight"]["rmse"] < 0.01
    assert figures["blk.0.attn_norm.weight"]["same"]
    modelhub("diff", tmp_path / "llama", tmp_path / "f32.gguf")


def test_compiling_is_said_when_it_is_done(modelhub: Modelhub, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", MODELS[ODD]())
    words = ("convert", tmp_path / "model.gguf", "--to", "gguf:q4_0", "--force", "--json", "-o", tmp_path / "out.gguf")
    first, second = (modelhub(*words, NUMBA_CACHE_DIR=str(tmp_path / "kernels")) for _ in range(2))
    (line,) = first.stderr.splitlines()
    assert line.startswith("modelhub: compiling kernels")
    assert str(tmp_path / "kernels") in line
    assert first.json["verified"]
    assert second.stderr == ""


def test_it_is_said_that_numpy_is_slower(modelhub: Modelhub, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", MODELS[ODD]())
    words = ("convert", tmp_path / "model.gguf", "--to", "gguf:q8_0", "--json", "-o", tmp_path / "out.gguf")
    assert "without numba (the extra 'fast'), which is disabled" in modelhub(*words, NUMBA_DISABLE_JIT="1").stderr


def test_weighing_kernels_are_ready_before_threads_want_them(tmp_path: Path) -> None:
    """Nothing is compiled, or read from the cache, by the encoding that follows."""
    script = """
from modelhub_gguf.codecs import CODECS, signatures
import numpy as np
(codec,) = [codec for codec in CODECS if codec.dtype == "Q4_0"]
codec.prepare("weigh")
before = signatures._compiled.cache_info().misses
codec.transcode(np.zeros(1024, np.uint8), "F32", 256, np.ones(256, np.float32))
assert before and signatures._compiled.cache_info().misses == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_place_of_what_is_no_number_is_counted_from_the_first_row(modelhub: Modelhub, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    values = np.zeros((40_000, 256), np.float32)  # more than a thread takes at once
    values[39_001, 7] = -np.inf
    writer.add_tensor("token_embd.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    failed = modelhub("convert", tmp_path / "model.gguf", "--to", "gguf:q8_0", "-o", tmp_path / "out.gguf", status=3)
    assert "token_embd.weight cannot be encoded as Q8_0: -infinity at row 39001, column 7" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_interruption_is_heard_though_a_compiler_is_called_back() -> None:
    """What a handler raises while LLVM calls Python is lost: it is kept until the compiler is done."""
    done: list[str] = []

    def compile_something() -> None:
        with signatures.undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("compiled")

    with pytest.raises(KeyboardInterrupt):
        compile_something()
    assert done
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_weights_of_an_unknown_model_are_copied_and_that_is_said(modelhub: Modelhub, tmp_path: Path, sample_drive: Path) -> None:
    source = sample_drive / "silero-vad/data/silero_vad_16k.safetensors"
    done = modelhub("convert", source, "--to", "gguf", "--dry-run", "-o", tmp_path / "out.gguf")
    assert "safetensors does not say which model they make" in done.stdout

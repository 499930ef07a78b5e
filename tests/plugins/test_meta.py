"""Checkpoints as Meta ships them: parts for several GPUs are one model, and that is the one which Hugging Face's layout holds."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelhub import plugins
from modelhub.cli.app import run
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from modelhub.found import Found
from modelhub.testing import FormatConformance

from tests.plugins.gguf.logits import quiet
from tests.plugins.gguf.vocabularies import train_pieces

DIM, HEADS, KEYS, LAYERS, WIDE, HEAD = 32, 4, 2, 2, 48, 8
PIECES = 320
PARAMS = {
    "dim": DIM,
    "multiple_of": 16,
    "n_heads": HEADS,
    "n_kv_heads": KEYS,
    "n_layers": LAYERS,
    "norm_eps": 1e-05,
    "vocab_size": -1,
}
OUTPUT = ("wq", "wk", "wv", "w1", "w3", "output")
INPUT = ("wo", "w2")


def whole(vocabulary: int = PIECES, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A random Llama under Meta's names."""
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (vocabulary, DIM), "norm": (DIM,), "output": (vocabulary, DIM)}
    for layer in range(LAYERS):
        matrices = {
            "attention.wq": (DIM, DIM), "attention.wk": (KEYS * HEAD, DIM), "attention.wv": (KEYS * HEAD, DIM),
            "attention.wo": (DIM, DIM), "feed_forward.w1": (WIDE, DIM), "feed_forward.w2": (DIM, WIDE),
            "feed_forward.w3": (WIDE, DIM), "attention_norm": (DIM,), "ffn_norm": (DIM,),
        }  # fmt: skip
        shapes.update({f"layers.{layer}.{name}": shape for name, shape in matrices.items()})
    torch.manual_seed(1)
    return {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def save(directory: Path, parts: int, weights: Mapping[str, torch.Tensor], *, by_tokens: bool = False, **params: Any) -> Path:
    """As `torch.save` wrote it on each of so many GPUs, with the frequencies that every one of them kept."""
    directory.mkdir()
    for part in range(parts):
        mine: dict[str, torch.Tensor] = {}
        for name, tensor in weights.items():
            kind = name.split(".")[-2]
            axis = 0 if kind in OUTPUT or (kind == "tok_embeddings" and by_tokens) else 1
            cut = kind in (*OUTPUT, *INPUT, "tok_embeddings")
            pieces = min(parts, KEYS) if kind in ("wk", "wv") else parts  # more parts than heads share them
            mine[name] = tensor.chunk(pieces, axis)[part * pieces // parts].clone() if cut else tensor.clone()
        mine["rope.freqs"] = torch.arange(HEAD // 2).to(torch.bfloat16)
        torch.save(mine, directory / f"consolidated.{part:02}.pth")
    (directory / "params.json").write_text(json.dumps({**PARAMS, **params}))
    return directory


def as_huggingface(directory: Path, weights: Mapping[str, torch.Tensor], tokenizer: bytes) -> Any:
    """The same model as transformers holds it: its rows of queries and keys in transformers' order."""
    import transformers

    quiet()
    config = transformers.LlamaConfig(
        vocab_size=PIECES, hidden_size=DIM, intermediate_size=WIDE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, rms_norm_eps=1e-5, max_position_embeddings=4096, rope_theta=10000.0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)

    def halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
        return tensor.view(heads, tensor.shape[0] // heads // 2, 2, DIM).transpose(1, 2).reshape(tensor.shape)

    names = {
        "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    state = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for layer in range(LAYERS):
        meta, hf = f"layers.{layer}.", f"model.layers.{layer}."
        state[f"{hf}self_attn.q_proj.weight"] = halves(weights[f"{meta}attention.wq.weight"], HEADS)
        state[f"{hf}self_attn.k_proj.weight"] = halves(weights[f"{meta}attention.wk.weight"], KEYS)
        state.update({f"{hf}{theirs}.weight": weights[f"{meta}{ours}.weight"] for ours, theirs in names.items()})
    model.load_state_dict(state)
    model.save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **ends}))
    return model.eval()


def forward(weights: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """What Meta's own code computes (meta-llama/llama ``llama/model.py``): pairs of neighbours are rotated as complex numbers."""

    def matrix(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].float().T

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"].float()

    def rotated(x: torch.Tensor) -> torch.Tensor:
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, HEAD, 2).float() / HEAD)
        angles = torch.outer(torch.arange(len(tokens)).float(), frequencies)
        turned = (
            torch.view_as_complex(x.reshape(len(tokens), -1, HEAD // 2, 2))
            * torch.polar(torch.ones_like(angles), angles)[:, None]
        )
        return torch.view_as_real(turned).flatten(2)

    x = weights["tok_embeddings.weight"].float()[tokens]
    hidden = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)
    for layer in range(LAYERS):
        name, y = f"layers.{layer}", norm(f"layers.{layer}.attention_norm", x)
        q = rotated(matrix(f"{name}.attention.wq", y)).transpose(0, 1)
        k = rotated(matrix(f"{name}.attention.wk", y)).repeat_interleave(HEADS // KEYS, 1).transpose(0, 1)
        v = matrix(f"{name}.attention.wv", y).view(-1, KEYS, HEAD).repeat_interleave(HEADS // KEYS, 1).transpose(0, 1)
        seen = torch.softmax(q @ k.transpose(1, 2) / HEAD**0.5 + hidden, -1) @ v
        x = x + matrix(f"{name}.attention.wo", seen.transpose(0, 1).flatten(1))
        y = norm(f"{name}.ffn_norm", x)
        gate = torch.nn.functional.silu(matrix(f"{name}.feed_forward.w1", y)) * matrix(f"{name}.feed_forward.w3", y)
        x = x + matrix(f"{name}.feed_forward.w2", gate)
    return matrix("output", norm("norm", x))


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def convert(source: Path, to: str, output: Path) -> Path:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = run(["convert", str(source), "--to", to, "-o", str(output)])
    assert status == 0, said.getvalue()
    return output


class TestMeta(FormatConformance):
    """One part, with any tensors: what must hold of every format."""

    format = "meta"

    def write(self, path: Path, tensors: Mapping[str, Any]) -> None:
        path.mkdir()
        torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, path / "consolidated.00.pth")
        (path / "params.json").write_text(json.dumps(PARAMS))


@pytest.fixture(scope="module")
def pieces() -> bytes:
    return train_pieces("bpe", size=PIECES)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("by_tokens", [False, True])
def test_parts_are_one_model(tmp_path: Path, parts: int, by_tokens: bool) -> None:
    weights = whole()
    found = look(save(tmp_path / "7B", parts, weights, by_tokens=by_tokens))
    assert (found.format, found.state, found.name, len(found.files)) == ("meta", "ready", "7B", parts + 1)
    table = found.load_table()
    tensors = {tensor.name: tensor for tensor in table.logical}
    assert tensors.keys() == {*weights, "rope.freqs"}
    for name, tensor in weights.items():
        assert tensors[name].shape == tuple(tensor.shape)
        assert np.array_equal(read_tensor(tensors[name]).view("<i2"), tensor.view(torch.int16).numpy().reshape(-1)), name
    said = table.metadata.values
    assert (said["head_count"], said["head_count_kv"], said["feed_forward_length"], said["parts"]) == (HEADS, KEYS, WIDE, parts)
    assert table.parameters == sum(tensor.numel() for tensor in weights.values()) + HEAD // 2


def test_a_listing_has_one_row_and_what_is_shown_is_the_whole(tmp_path: Path, modelhub: Callable[..., Any]) -> None:
    save(tmp_path / "7B", 2, whole())
    shown = modelhub("show", tmp_path / "7B", "--tensors").stdout
    assert "meta (pytorch)" in shown
    assert f"{DIM}x{DIM}" in shown
    assert "BF16" in shown
    done = modelhub("verify", tmp_path / "7B", "--level", "values")
    assert done.returncode == 0, done.stdout + done.stderr


def test_safetensors_holds_the_whole_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = whole()
    found = load_file(convert(save(tmp_path / "7B", 2, weights), "safetensors", tmp_path / "7B.safetensors"))
    assert found.keys() == {*weights, "rope.freqs"}
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("parts", [1, 2])
def test_hugging_face_gets_the_model_that_its_own_converter_makes(tmp_path: Path, parts: int, pieces: bytes) -> None:
    import transformers

    (tmp_path / "tokenizer.model").write_bytes(pieces)  # above, where Llama 1 and 2 have it
    weights = whole()
    model = as_huggingface(tmp_path / "hf", weights, pieces)
    output = convert(save(tmp_path / "7B", parts, weights), "huggingface", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(output)
    assert again.dtype == torch.bfloat16
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tokens = torch.tensor([1, 5, 200, 17, 90, 33, 250])
    with torch.no_grad():
        torch.testing.assert_close(again.float()(tokens[None]).logits[0], forward(weights, tokens), rtol=1e-4, atol=1e-3)
    for key in ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "head_dim", "bos_token_id", "eos_token_id"):
        assert getattr(again.config, key) == getattr(model.config, key), key
    assert (output / "tokenizer.model").read_bytes() == pieces
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert tokenizer("Hello world, this is 33")["input_ids"] == [1, *processor.encode("Hello world, this is 33")]


def test_gguf_is_the_one_that_hugging_faces_layout_gives(tmp_path: Path, pieces: bytes) -> None:
    from gguf import GGUFReader

    weights = whole()
    as_huggingface(tmp_path / "tiny", weights, pieces)
    (tmp_path / "meta").mkdir()
    source = save(tmp_path / "meta" / "tiny", 2, weights)
    (source / "tokenizer.model").write_bytes(pieces)
    wanted = GGUFReader(convert(tmp_path / "tiny", "gguf", tmp_path / "wanted.gguf"))
    found = GGUFReader(convert(source, "gguf", tmp_path / "found.gguf"))
    assert {key: field.contents() for key, field in found.fields.items()} == {
        key: field.contents() for key, field in wanted.fields.items()
    }
    tensors = {tensor.name: tensor for tensor in wanted.tensors}
    assert len(tensors) == len(found.tensors)
    for tensor in found.tensors:
        assert tensor.tensor_type == tensors[tensor.name].tensor_type
        assert tensor.data.tobytes() == tensors[tensor.name].data.tobytes(), tensor.name


def test_llama_3s_settings_follow_from_its_own(tmp_path: Path) -> None:
    source = save(tmp_path / "8B", 1, whole(), rope_theta=500000.0, use_scaled_rope=True)
    (source / "LICENSE").write_text("mine")
    output = convert(source, "huggingface", tmp_path / "out")
    config = json.loads((output / "config.json").read_text())
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert (config["max_position_embeddings"], config["rope_theta"]) == (131072, 500000.0)
    assert (output / "LICENSE").read_text() == "mine"


def ranks() -> dict[bytes, int]:
    """As many tokens as Llama 3 has: bytes, a few words with what leads to them, then all pairs and some threes of bytes."""
    found = dict.fromkeys(bytes([byte]) for byte in range(256))
    for word in (b" hello", b"hello", b" world", b"!!", b"123", "né".encode()):
        found.update(dict.fromkeys(word[start : start + 2] for start in range(len(word) - 1)))
        found.update(dict.fromkeys(word[:end] for end in range(2, len(word) + 1)))
    found.update(dict.fromkeys(bytes([one, two]) for one in range(256) for two in range(256)))
    for number in range(1 << 16):
        found.setdefault(bytes([97 + number % 26, number >> 8, number & 255]))
    return {token: number for number, token in enumerate(list(found)[:128000])}


def merged(word: bytes, table: Mapping[bytes, int]) -> list[int]:
    """What tiktoken does: the neighbours of the lowest rank become one, until none are a token."""
    parts = [bytes([byte]) for byte in word]
    while word not in table or parts != [word]:
        pairs = [(table[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in table]
        if not pairs:
            break
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [table[part] for part in parts]


def test_llama_3s_tokenizer_comes_with_it(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    table = ranks()
    assert len(table) == 128000
    source = save(tmp_path / "8B", 1, whole(128256), rope_theta=500000.0, use_scaled_rope=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in table.items())
    (source / "tokenizer.model").write_text("".join(lines))
    output = convert(source, "huggingface", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(output)
    words = ("hello", " world", "!!", "12", "345", "né", "zz日")
    wanted = [part for word in words[:2] for part in merged(word.encode(), table)]
    assert tokenizer("hello world")["input_ids"] == [128000, *wanted]
    for word in words:
        assert tokenizer(word, add_special_tokens=False)["input_ids"] == merged(word.encode(), table), word
    assert tokenizer("<|eot_id|><|python_tag|>", add_special_tokens=False)["input_ids"] == [128009, 128010]
    assert tokenizer.decode(tokenizer("hello né 日!!", add_special_tokens=False)["input_ids"]) == "hello né 日!!"
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [128001, 128008, 128009]
    fields = GGUFReader(convert(source, "gguf", tmp_path / "8B.gguf")).fields
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert len(fields["tokenizer.ggml.tokens"].data) == 128256
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 128000


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "7B", 4, whole())
    (source / "consolidated.01.pth").unlink()
    found = look(source)
    assert (found.state, "consolidated.01.pth" in found.reason) == ("incomplete", True)
    (source / "consolidated.02.pth").unlink()
    (source / "consolidated.03.pth").unlink()
    found = look(source)  # nothing but the shapes tells now
    assert found.state == "incomplete"
    assert "4 heads of 8 were expected: parts after consolidated.00.pth are missing" in found.reason
    (source / "checklist.chk").write_text("".join(f"{part:032x}  consolidated.{part:02}.pth\n" for part in range(2)))
    assert "consolidated.01.pth" in look(source).reason


@pytest.mark.parametrize(
    ("params", "state", "message"),
    [
        ({"n_layers": 3}, "ready", "counts 3 layers; of layer 2 there are no tensors"),
        ({"n_kv_heads": 4}, "ready", "says 4 heads of 8 for keys; there are 16 rows"),
        ({"moe": {}}, "ready", "a mixture of experts"),
        ({"n_heads": "four"}, "invalid", "n_heads is 'four', a count was expected"),
        ({"norm_eps": -1}, "invalid", "norm_eps is -1, a positive number"),
    ],
)
def test_what_params_json_contradicts_is_said(
    tmp_path: Path, modelhub: Callable[..., Any], params: dict[str, Any], state: str, message: str
) -> None:
    source = save(tmp_path / "7B", 1, whole(), **params)
    assert look(source).state == state
    done = modelhub("convert", source, "--to", "huggingface", "-o", tmp_path / "out", status=None)
    assert done.returncode
    assert message in done.stderr


def test_parts_of_two_models_are_no_model(tmp_path: Path) -> None:
    source = save(tmp_path / "7B", 2, whole())
    part = torch.load(source / "consolidated.01.pth")
    torch.save({**part, "layers.0.attention.wo.weight": torch.zeros(3, 3)}, source / "consolidated.01.pth")
    assert "is F32 [3, 3] in consolidated.01.pth, and BF16 [32, 16] in consolidated.00.pth" in look(source).reason
    torch.save({**part, "more.weight": torch.zeros(3, 3)}, source / "consolidated.01.pth")
    assert "'more.weight' stands in consolidated.01.pth, and not in consolidated.00.pth" in look(source).reason


def test_what_every_part_has_must_be_the_same(tmp_path: Path, modelhub: Callable[..., Any]) -> None:
    source = save(tmp_path / "7B", 2, whole())
    part = torch.load(source / "consolidated.01.pth")
    part["layers.1.ffn_norm.weight"][3] += 1
    torch.save(part, source / "consolidated.01.pth")
    done = modelhub("verify", source, "--level", "values", status=1)
    assert "layers.1.ffn_norm.weight" in done.stdout + done.stderr
    assert "consolidated.01.pth differs from the one in the first part" in done.stdout + done.stderr


def test_what_a_pickle_names_is_reported(tmp_path: Path) -> None:
    source = save(tmp_path / "7B", 1, whole())

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save({**torch.load(source / "consolidated.00.pth"), "x": Evil()}, source / "consolidated.00.pth")
    assert any(finding.severity == "unsafe" for finding in look(source).findings)


def test_another_params_json_is_none_of_ours(tmp_path: Path) -> None:
    source = save(tmp_path / "7B", 1, whole())
    (source / "params.json").write_text('{"learning_rate": 1}')
    assert look(source).format == "pytorch"

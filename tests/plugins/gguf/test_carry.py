"""Rows applied to tables: what has no place is said, parts are gathered, and the way back undoes the way there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import Extent, FileProblem, Inline, Table, Tensor, dtypes
from modelhub.engine import read_tensor
from modelhub_gguf.architectures.carry import Carrier
from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.names import Index
from modelhub_gguf.architectures.rows import by_class, by_name, rows
from modelhub_gguf.architectures.transforms import ADD_ONE, join, reorder_rows, split
from modelhub_gguf.documents import Documents
from modelhub_gguf.from_huggingface import derive, row_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (6, 8), "model.norm.weight": (8,), "lm_head.weight": (6, 8),
    "model.layers.0.input_layernorm.weight": (8,), "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8), "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (12, 8), "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
}  # fmt: skip
MOE = {f"model.layers.0.block_sparse_moe.experts.{e}.w{n}.weight": (4, 8) for n in (1, 2, 3) for e in range(12)}
GPT2 = {"wte.weight": (6, 8), "wpe.weight": (4, 8), "h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_attn.bias": (24,)}


def made(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> list[Tensor]:
    """Tensors with numbers that occur once."""
    found, count = [], 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        values = np.arange(count, count + size, dtype="<f4")
        data = values.tobytes() if dtype == "F32" else np.zeros(dtypes.get(dtype).nbytes(shape), np.uint8).tobytes()
        found.append(Tensor(name, dtype, shape, Inline(data)))
        count += size
    return found


def settled(kind: str, changes: dict[str, Any] | None = None) -> Config:
    row = by_class()[kind][0]
    config = Config({**CONFIG, **(changes or {})}, Documents(()), row.defaults)
    if row.config:
        row.config(config)
    return config


def directory(path: Path, config: dict[str, Any], tensors: list[Tensor]) -> Table:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return Table(tuple(tensors), files=(str(path / "config.json"),))


@pytest.mark.parametrize(
    ("kind", "shapes", "changes"),
    [
        ("LlamaForCausalLM", SHAPES, {}),
        ("MixtralForCausalLM", {**SHAPES, **MOE}, {"model_type": "mixtral", "num_local_experts": 12}),
        ("GPT2LMHeadModel", GPT2, {}),
    ],
)
def test_the_way_back_undoes_the_way_there(kind: str, shapes: dict[str, tuple[int, ...]], changes: dict[str, Any]) -> None:
    config, row, tensors = settled(kind, changes), by_class()[kind][0], made(shapes)
    there = Carrier(row, config).carry(tensors)
    back = {tensor.name: tensor for tensor in Carrier(row, config, back=True).carry(there)}
    prefix = "" if kind != "GPT2LMHeadModel" else "transformer."
    assert {f"{prefix}{name}" for name in back} >= {f"{prefix}{tensor.name}" for tensor in tensors}
    for tensor in tensors:
        found = back[tensor.name]
        assert found.shape == tensor.shape
        assert read_tensor(found).tobytes() == read_tensor(tensor).tobytes(), tensor.name


def test_experts_are_stacked_by_their_numbers() -> None:
    config = settled("MixtralForCausalLM", {"model_type": "mixtral", "num_local_experts": 12})
    tensors = sorted(made(MOE), key=lambda tensor: tensor.name)  # 10 and 11 come before 2
    (gate, *_) = Carrier(by_name()["llama"], config).carry(tensors)
    assert (gate.name, gate.shape) == ("blk.0.ffn_gate_exps.weight", (12, 4, 8))
    values = read_tensor(gate).view("<f4").reshape(12, 4, 8)
    assert np.array_equal(values[:, 0, 0], np.arange(12) * 32)


def test_a_missing_part_is_named() -> None:
    config = settled("MixtralForCausalLM", {"model_type": "mixtral", "num_local_experts": 12})
    with pytest.raises(FileProblem, match=r"blk.0.ffn_gate_exps.weight is made of 12 tensors, 11"):
        Carrier(by_name()["llama"], config).carry(made(MOE)[1:])


def test_what_is_no_matrix_and_what_ggml_lacks_is_f32() -> None:
    tensors = [tensor._replace(dtype="F16", value=Inline(b"\0" * (2 * int(np.prod(tensor.shape))))) for tensor in made(SHAPES)]
    odd = tensors[0]._replace(dtype="F64", value=Inline(b"\0" * 384))
    found = {
        tensor.name: tensor.dtype
        for tensor in Carrier(by_name()["llama"], settled("LlamaForCausalLM")).carry([odd, *tensors[1:]])
    }
    assert found["token_embd.weight"] == "F32"
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert found["blk.0.attn_q.weight"] == "F16"


def cases() -> Iterator[Any]:
    strange = {**SHAPES, "model.layers.0.self_attn.r_proj.weight": (8, 8)}
    yield {}, strange, r"tensor model.layers.0.self_attn.r_proj.weight \[8, 8\] has no place in llama"
    yield {"architectures": ["LlamaForCausalLN"]}, SHAPES, r"LlamaForCausalLN has no row.*LlamaForCausalLM"
    yield {"architectures": None, "model_type": None}, SHAPES, "neither architectures nor model_type"
    yield {"num_hidden_layers": 2}, SHAPES, "counts 2 layers; of layer 1 there is no tensor"
    yield {"num_hidden_layers": 0}, SHAPES, "counts 0 layers; there are tensors of layer 0"
    yield {"num_attention_heads": 3}, SHAPES, r"q_proj.weight \[8, 8\]: 8 rows are not those of 3 heads"
    yield {"num_attention_heads": "two"}, SHAPES, "num_attention_heads is 'two', a count was expected"
    yield {"hidden_size": None}, SHAPES, "has no hidden_size"
    yield {"vocab_size": 7}, SHAPES, "counts 7 tokens, there are 6 embeddings"
    yield {}, {"model.norm.weight": (8,)}, "no tensor of token embeddings"
    yield {"rope_scaling": {"rope_type": "llama3", "factor": -1}}, SHAPES, "factor of the rotary embeddings is -1"
    yield {"rms_norm_eps": "small"}, SHAPES, "'small' was found for llama.attention.layer_norm_rms_epsilon"


@pytest.mark.parametrize(("changes", "shapes", "message"), list(cases()))
def test_what_cannot_be_is_said(tmp_path: Path, changes: dict[str, Any], shapes: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None or key == "hidden_size"}
    with pytest.raises(FileProblem, match=message):
        derive([directory(tmp_path / "model", config, made(shapes))], {})


def test_every_row_is_whole() -> None:
    """Rows that share a class say when they apply; each name of a row is found by its own pattern."""
    for name, found in by_class().items():
        assert all(row.applies for row in found[:-1]), name
    for row in rows():
        targets = {*row.names.values(), *(name for rule in row.rules for name in rule.gguf)}
        assert "token_embd" in targets
        for hf in row.names:
            name = hf.replace("{b}", "3").replace("{e}", "11") + ".weight"
            found = Index(row.names).find(name)
            assert found, name
            assert found.pattern == hf
        assert row.applies or row_of({"architectures": [row.hf[0]]}) is row


def test_names_are_looked_up_with_their_numbers() -> None:
    index = Index(["model.layers.{b}.mlp.experts.{e}.up_proj", "model.norm", "model.layers.{b}.bias_alone.bias"])
    found = index.find("model.layers.10.mlp.experts.7.up_proj.bias")
    assert found
    assert (found.numbers, found.suffix) == ({"b": 10, "e": 7}, ".bias")
    assert index.find("model.layers.x.mlp.experts.7.up_proj.bias") is None
    assert index.find("model.norm.weight.weight") is None
    assert index.find("model.layers.1.bias_alone.bias")
    assert index.find("model.layers.1.bias_alone.weight") is None


def test_a_tied_output_is_left_to_the_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "model"
    tensors = made(SHAPES)
    shared = Extent(str(path / "weights"), 0, 192)
    tensors = [
        tensor._replace(value=shared) if tensor.name in ("model.embed_tokens.weight", "lm_head.weight") else tensor
        for tensor in tensors
    ]
    from modelhub_gguf.from_huggingface import _without_tied_output

    names = {tensor.name for tensor in _without_tied_output(directory(path, CONFIG, tensors))}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_reordered_rows_come_back() -> None:
    tensor = made({"blk.0.attn_qkv.weight": (24, 2)})[0]
    transform = reorder_rows(lambda config, rows: (2, 3, rows // 6), (1, 0, 2))
    config = settled("LlamaForCausalLM")
    there = transform.forward(tensor, config)
    values = read_tensor(tensor).view("<f4").reshape(2, 3, 4, 2)
    assert read_tensor(there).tobytes() == np.ascontiguousarray(values.swapaxes(0, 1)).tobytes()
    assert read_tensor(transform.backward(there, config)).tobytes() == read_tensor(tensor).tobytes()


def test_matrices_are_joined_and_cut() -> None:
    config = settled("LlamaForCausalLM")
    parts = made({"q": (4, 6), "k": (2, 6), "v": (2, 6)})
    sizes = join(3, lambda shape, config, count: (4, 2, 2))
    (whole,) = sizes.forward(parts, config)
    assert read_tensor(whole).tobytes() == b"".join(read_tensor(part).tobytes() for part in parts)
    assert [read_tensor(part).tobytes() for part in sizes.backward([whole], config)] == [read_tensor(p).tobytes() for p in parts]
    gate, up = split(2, axis=1).forward([parts[0]], config)
    assert (gate.shape, up.shape) == ((4, 3), (4, 3))
    with pytest.raises(ValueError, match="does not divide"):
        split(5).forward([parts[0]], config)
    assert read_tensor(ADD_ONE.backward(ADD_ONE.forward(parts[0], config), config)).tobytes() == read_tensor(parts[0]).tobytes()

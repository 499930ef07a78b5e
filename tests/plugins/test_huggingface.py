"""Hugging Face directories, as transformers writes them and opens them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from modelhub import ModelhubError, Table, WriteOptions, ops, plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.engine.values import read_tensor
from modelhub.engine.write import write_checkpoint
from modelhub.files import list_directory
from modelhub.found import Found

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
INDEX = "model.safetensors.index.json"


def llama(**more: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **more))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llama`` (one file), ``sharded``, ``tied`` and ``bert``, each saved once."""
    root = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(root / "llama")
    llama().save_pretrained(root / "sharded", max_shard_size="20KB")
    llama(tie_word_embeddings=True).save_pretrained(root / "tied")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    transformers.BertModel(transformers.BertConfig(**sizes)).to(torch.bfloat16).save_pretrained(root / "bert")
    for directory in root.iterdir():
        (directory / "tokenizer.json").write_text("{}")
        (directory / "tokenizer.model").write_bytes(b"\n\x0b")
    return root


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Any:
    def make(name: str) -> Path:
        return Path(shutil.copytree(saved / name, tmp_path / name))

    return make


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def all_in(directory: Path) -> list[Found]:
    return inspect_listing(list_directory(str(directory)), plugins.get().formats).found


def names(found: Found) -> set[str]:
    return {str(Path(path).relative_to(found.path)) for path in found.files}


def edit(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def as_torch_files(directory: Path, shards: int = 1) -> Path:
    """Put the weights into ``pytorch_model*.bin``, as older versions of transformers wrote them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    for path in directory.glob("model*.safetensors*"):
        path.unlink()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return directory
    weight_map = {}
    for i in range(shards):
        name = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(state.items())[i::shards])
        torch.save(part, directory / name)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return directory


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_directory_is_one_checkpoint(saved: Path) -> None:
    (found,) = all_in(saved / "llama")
    assert (found.path, found.name) == (str(saved / "llama"), "llama")
    assert (found.format, found.container, found.state) == ("huggingface", "safetensors", "ready")
    assert names(found) == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"}
    assert (found.architecture, found.precision) == ("llama", "F32")
    assert found.parameters == llama().num_parameters()
    values = {key: found.metadata[key] for key in LLAMA_VALUES}
    assert values == LLAMA_VALUES


LLAMA_VALUES = {
    "architectures": ["LlamaForCausalLM"],
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "block_count": 2,
    "head_count": 4,
    "head_count_kv": 2,
    "vocab_size": 128,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}


def test_shards_of_a_directory(saved: Path) -> None:
    found = look(saved / "sharded")
    assert (found.state, found.container) == ("ready", "safetensors")
    assert INDEX in names(found)
    assert sum(name.endswith(".safetensors") for name in names(found)) > 2
    assert found.parameters == llama().num_parameters()
    state = llama().state_dict()
    table = found.load_table()
    assert table.by_name.keys() == state.keys()
    for name in ("lm_head.weight", "model.norm.weight"):
        assert bytes(read_tensor(table.by_name[name])) == state[name].numpy().tobytes()


def test_a_missing_shard_is_named(copy: Any) -> None:
    directory = copy("sharded")
    gone = sorted(directory.glob("*.safetensors"))[1]
    gone.unlink()
    found = look(directory)
    assert (found.format, found.state) == ("huggingface", "incomplete")
    assert found.missing == (gone.name,)
    for path in directory.glob("*.safetensors"):
        path.unlink()
    found = look(directory)
    assert (found.format, found.state, found.architecture) == ("huggingface", "incomplete", "llama")
    assert gone.name in found.missing


def test_a_broken_index_is_said(copy: Any) -> None:
    directory = copy("sharded")
    (directory / INDEX).write_text('{"weight_map": {"a": "../x"}}')
    found = look(directory)
    assert (found.format, found.state) == ("huggingface", "invalid")
    assert INDEX in found.reason
    for path in directory.glob("*.safetensors"):
        path.unlink()
    found = look(directory)
    assert (found.format, found.state) == ("huggingface", "invalid")
    assert INDEX in found.reason


def test_tied_weights_are_what_the_file_holds(saved: Path) -> None:
    found = look(saved / "tied")
    assert found.metadata["tie_word_embeddings"] is True
    assert "lm_head.weight" not in found.load_table().by_name
    assert found.parameters == llama(tie_word_embeddings=True).num_parameters()


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files(copy: Any, shards: int) -> None:
    directory = as_torch_files(copy("llama"), shards)
    (found,) = all_in(directory)
    assert (found.format, found.container, found.state) == ("huggingface", "pytorch", "ready"), found.reason
    assert found.parameters == llama().num_parameters()
    assert found.architecture == "llama"


def test_a_second_container_is_a_checkpoint_of_its_own(copy: Any, saved: Path) -> None:
    directory = as_torch_files(copy("llama"), 2)
    shutil.copy(saved / "llama" / "model.safetensors", directory)
    by_format = {found.format: found for found in all_in(directory)}
    assert by_format["huggingface"].container == "safetensors"
    assert not any(".bin" in name for name in names(by_format["huggingface"]))
    assert len(by_format["pytorch"].files) == 3
    (directory / "model.safetensors").unlink()
    shutil.copy(saved / "sharded" / INDEX, directory)
    (found,) = all_in(directory)  # an index whose shards were never fetched does not hide the weights that are there
    assert (found.container, found.state) == ("pytorch", "ready")


def test_a_hostile_pickle_is_reported_through_the_directory(copy: Any) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            import os

            return os.system, ("true",)

    directory = copy("llama")
    (directory / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(2), "x": Payload()}, directory / "pytorch_model.bin")
    found = look(directory)
    assert found.format == "huggingface"
    assert any(finding.severity == "unsafe" and "system" in finding.message for finding in found.findings)


def test_without_weights_there_is_no_checkpoint(copy: Any) -> None:
    directory = copy("llama")
    (directory / "model.safetensors").unlink()
    assert all_in(directory) == []


def test_a_readers_notes(copy: Any) -> None:
    directory = copy("bert")
    (directory / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model: google/bert\ntags:\n- a\n- 'b c'\nlanguage: [en, \"de\"]\nwidget:\n- text: "
        "hello\n---\n# Card\nlicense: mit\n"
    )
    (directory / "LICENSE").write_text("Apache")
    found = look(directory)
    assert found.metadata["license"] == "apache-2.0"
    assert found.metadata["base_model"] == "google/bert"
    assert found.metadata["tags"] == ["a", "b c"]
    assert found.metadata["languages"] == ["en", "de"]
    assert {"README.md", "LICENSE"} <= names(found)
    assert (found.architecture, found.precision, found.metadata["torch_dtype"]) == ("bert", "BF16", "bfloat16")


def test_a_sentence_transformer_with_its_modules(sample_drive: Path) -> None:
    (config,) = sample_drive.rglob("modules.json")
    found = look(config.parent)
    assert (found.format, found.architecture, found.parameters) == ("huggingface", "bert", 22_713_728)
    assert found.metadata["context_length"] == 512
    assert found.metadata["license"] == "apache-2.0"
    assert {"1_Pooling/config.json", "vocab.txt", "sentence_bert_config.json"} <= names(found)


def test_a_cache_snapshot_has_the_name_that_people_type(saved: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny-llama"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted((saved / "llama").iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    found = look(snapshot)
    assert (found.name, found.state) == ("org/tiny-llama", "ready")
    assert found.metadata["revision"] == "0123abcd"


def test_variants_and_unusual_names(copy: Any) -> None:
    directory = copy("llama")
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")
    assert look(directory).format == "huggingface"
    (directory / "model.fp16.safetensors").rename(directory / "gptq_model-4bit-128g.safetensors")
    assert look(directory).format == "huggingface"
    (directory / "config.json").write_text("{}")  # names no model: whatever this is, it is not ours to claim
    assert look(directory).format == "safetensors"


QUANTIZED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        "GPTQ-INT4 g128",
        {"group_size": 128, "desc_act": True},
    ),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, "AWQ-INT4 g64", {"bits": 4}),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "BNB-NF4", {"bits": 4}),
    ({"load_in_8bit": True}, "BNB-INT8", {"method": "bitsandbytes"}),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8", {"bits": 8}),
    ({"quant_method": "mxfp4"}, "MXFP4", {"bits": 4}),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}},
        "INT8",
        {"bits": 8},
    ),
    ({"quant_method": "hqq", "nbits": 3}, "HQQ-INT3", {"bits": 3}),
    ({"quant_method": "compressed-tensors", "config_groups": [1]}, "COMPRESSED-TENSORS", {}),
    ({"quant_method": ["gptq"], "bits": "4", "group_size": {}}, "QUANTIZED", {}),
]


@pytest.mark.parametrize(("config", "precision", "settings"), QUANTIZED)
def test_quantized_checkpoints_have_the_name_people_use(copy: Any, config: dict[str, Any], precision: str, settings: Any) -> None:
    found = look(edit(copy("bert"), quantization_config=config))
    assert (found.state, found.precision) == ("ready", precision)
    assert settings.items() <= found.metadata["quantization"].items()


def test_older_quantization_files(copy: Any) -> None:
    directory = copy("bert")
    (directory / "quantize_config.json").write_text('{"bits": 3, "group_size": -1, "desc_act": false}')
    assert look(directory).precision == "GPTQ-INT3"
    (directory / "quantize_config.json").unlink()
    (directory / "quant_config.json").write_text('{"zero_point": true, "q_group_size": 128, "w_bit": 4}')
    found = look(directory)
    assert (found.precision, found.metadata["quantization"]["group_size"]) == ("AWQ-INT4 g128", 128)


def test_nested_configurations(copy: Any) -> None:
    inner = {"model_type": "llama", "hidden_size": 77, "num_hidden_layers": 3, "max_position_embeddings": 4096, "vocab_size": 9}
    directory = copy("bert")
    config = {"model_type": "Gemma3", "architectures": ["X"], "text_config": inner, "vocab_size": 10}
    (directory / "config.json").write_text(json.dumps(config))
    found = look(directory)
    values = found.metadata
    assert (found.architecture, values["embedding_length"], values["context_length"], values["vocab_size"]) == (
        "gemma3",
        77,
        4096,
        10,
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"hidden_size": 1e400, "vocab_size": NaN, "model_type": "bert", "n_layer": Infinity}',
        '{"hidden_size": "32", "vocab_size": true, "model_type": ["bert"], "architectures": {"a": 1}}',
        '{"hidden_size": -1, "vocab_size": 99999999999999999999999, "model_type": null, "architectures": [1, null, "A"]}',
        '{"text_config": {"text_config": {"text_config": []}}, "quantization_config": [], "rope_scaling": "x"}',
        '{"model_type": "' + "x" * 100_000 + '", "architectures": "One"}',
        '\ufeff{"model_type": "bert"}',
    ],
)
def test_strange_configurations_cost_nothing_but_their_values(copy: Any, text: str) -> None:
    directory = copy("bert")
    (directory / "config.json").write_text(text)
    found = look(directory)
    assert (found.format, found.state, found.findings) == ("huggingface", "ready", ())
    assert found.parameters
    assert all(type(found.metadata.get(key, 1)) is int for key in ("embedding_length", "vocab_size", "block_count"))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 100_000, "\0" * 100])
def test_a_configuration_that_is_none_is_said(copy: Any, text: str) -> None:
    directory = copy("bert")
    (directory / "config.json").write_text(text)
    found = look(directory)
    assert (found.format, found.state) == ("huggingface", "invalid")
    assert "config.json" in found.reason


def test_a_container_without_its_plugin_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = plugins.load(disable={"safetensors"})
    monkeypatch.setattr(plugins, "get", lambda: loaded)
    found = inspect_path(str(saved / "llama"), loaded.formats)
    assert (found.format, found.state) == ("huggingface", "unsupported")
    assert "safetensors" in found.reason


# --- writing ------------------------------------------------------------------------------------------------------


def write(found: Found, output: Path, table: Table | None = None, **options: Any) -> list[str]:
    table = table or found.load_table()
    return write_checkpoint(plugins.get().formats["huggingface"], table, str(output), WriteOptions(name="x", **options)).files


@pytest.mark.parametrize(("name", "shard"), [("llama", 0), ("llama", 30_000), ("sharded", 0), ("tied", 0), ("bert", 0)])
def test_transformers_opens_what_is_written(saved: Path, tmp_path: Path, name: str, shard: int) -> None:
    found = look(saved / name)
    files = write(found, tmp_path / "out", max_shard_size=shard)
    assert (INDEX in files) == bool(shard)
    kind = transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM
    before, after = kind.from_pretrained(saved / name), kind.from_pretrained(tmp_path / "out")
    assert after.dtype == before.dtype
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(tensor.equal(after.state_dict()[key]) for key, tensor in before.state_dict().items())
    for document in ("config.json", "tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "out" / document).read_bytes() == (saved / name / document).read_bytes()
    again = look(tmp_path / "out")
    assert (again.state, again.findings) == ("ready", ())


def test_pytorch_shards_become_safetensors(copy: Any, saved: Path, tmp_path: Path) -> None:
    found = look(as_torch_files(copy("llama"), 2))
    files = write(found, tmp_path / "out")
    assert sorted(files) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    before, after = (transformers.AutoModelForCausalLM.from_pretrained(path) for path in (saved / "llama", tmp_path / "out"))
    assert all(tensor.equal(after.state_dict()[key]) for key, tensor in before.state_dict().items())


def test_a_recipe_changes_the_configurations_dtype(saved: Path, tmp_path: Path) -> None:
    found = look(saved / "llama")
    table = found.load_table()
    tensors = tuple(t._replace(dtype="BF16", value=ops.cast(t.value, t.dtype, t.shape, "BF16")) for t in table.tensors)
    write(found, tmp_path / "out", Table(tensors, table.metadata, table.files))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.equal(llama().lm_head.weight.to(torch.bfloat16))


def test_without_a_configuration_it_is_refused(saved: Path, tmp_path: Path) -> None:
    found = look(saved / "llama" / "model.safetensors")
    with pytest.raises(ModelhubError, match=r"config\.json"):
        write(found, tmp_path / "out")


def test_text_that_no_encoding_has_is_written_as_it_was_read(copy: Any, tmp_path: Path) -> None:
    found = look(edit(copy("llama"), note="\udfff"))
    table = found.load_table()
    tensors = tuple(t._replace(dtype="BF16", value=ops.cast(t.value, t.dtype, t.shape, "BF16")) for t in table.tensors)
    write(found, tmp_path / "out", Table(tensors, table.metadata, table.files))  # which changes the configuration
    assert json.loads((tmp_path / "out" / "config.json").read_text())["note"] == "\udfff"
    assert look(tmp_path / "out").state == "ready"

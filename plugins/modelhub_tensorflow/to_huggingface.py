"""The published checkpoints of BERT, ALBERT, ELECTRA, GPT-2 and T5 as Hugging Face directories: a table derived from theirs, with
the configuration and the vocabulary that stand beside them. Reads no weights.

Other models' variables have names that nobody wrote down with their meaning: they go to safetensors under their own names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from modelhub import (
    Conversion,
    Extent,
    File,
    InvalidFile,
    Metadata,
    ModelhubError,
    Table,
    Tensor,
    UnsupportedFile,
    ops,
    read_json,
)

from modelhub_tensorflow import albert, electra, mesh_t5, published
from modelhub_tensorflow.published import SQUEEZED, TURNED

BERT_CONFIG, ALBERT_CONFIG, GPT2_CONFIG = "bert_config.json", "albert_config.json", "hparams.json"
MAX_CONFIG, MAX_VOCABULARY = 1 << 20, 64 << 20
_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BERT_KEYS = (
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size",
)  # fmt: skip
_ALBERT_KEYS = (*_BERT_KEYS, "embedding_size", "num_hidden_groups", "inner_group_num")
_GPT2_KEYS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
_ALBERT_HEADS = {
    "AlbertForSequenceClassification": "classifier.weight",
    "AlbertForPreTraining": "sop_classifier.classifier.weight",
    "AlbertForMaskedLM": "predictions.bias",
}
_ALBERT_PIECES = ("30k-clean.model", "spiece.model")
_END_OF_TEXT = "<|endoftext|>"


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The Hugging Face table. `UnsupportedFile` where the variables are none of these models', `InvalidFile` where they
    contradict the configuration, `ModelhubError` where there is none."""
    table = sources[0]
    names = frozenset(tensor.name for tensor in table.logical)
    if albert.is_one(names):
        return _albert(table)
    if published.BERT_MARK in names:
        return _bert(table)
    if published.GPT2_MARK in names:
        return _gpt2(table)
    if electra.MARK in names:
        return _electra(table)
    if mesh_t5.MARK in names:
        return _t5(table)
    raise UnsupportedFile(
        "its variables are not those of the published BERT, ALBERT, ELECTRA, GPT-2 or T5, whose places in transformers are known",
        "--to safetensors keeps all tensors under their names",
    )


def _bert(table: Table) -> Table:
    directory, raw = _config_beside(table, BERT_CONFIG)
    tensors = list(_renamed(table, published.bert, "BERT"))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    hidden, layers = _count(raw, "hidden_size", BERT_CONFIG), _count(raw, "num_hidden_layers", BERT_CONFIG)
    vocabulary = _count(raw, "vocab_size", BERT_CONFIG)
    _expect(shapes, "bert.embeddings.word_embeddings.weight", (vocabulary, hidden), BERT_CONFIG)
    inner = _count(raw, "intermediate_size", BERT_CONFIG)
    for layer in range(layers):
        _expect(shapes, f"bert.encoder.layer.{layer}.attention.self.query.weight", (hidden, hidden), BERT_CONFIG)
        _expect(shapes, f"bert.encoder.layer.{layer}.intermediate.dense.weight", (inner, hidden), BERT_CONFIG)
    _no_more_layers(shapes, "bert.encoder.layer.", layers, BERT_CONFIG)
    config: dict[str, Any] = {"architectures": [_architecture(shapes)], "model_type": "bert"}
    config |= {key: raw[key] for key in _BERT_KEYS if key in raw}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, "torch_dtype": _dtype(tensors)}
    config |= _labels(shapes)
    documents = {"config.json": _json(config)}
    words, notes = _word_pieces(directory, "BertTokenizer", config.get("max_position_embeddings", 512))
    return Table(tuple(tensors), Metadata(values=table.metadata.values), table.files, documents | words, notes)


def _electra(table: Table) -> Table:
    used = replace(table, tensors=tuple(tensor for tensor in table.logical if not electra.UNUSED.fullmatch(tensor.name)))
    tensors = tuple(_renamed(used, electra.target, "ELECTRA"))
    config = electra.configuration({tensor.name: tensor.shape for tensor in tensors}) | {"torch_dtype": _dtype(tensors)}
    words, notes = _word_pieces(os.path.dirname(table.files[0]), "ElectraTokenizer", config["max_position_embeddings"])
    if left := len(table.logical) - len(used.tensors):
        notes = (*notes, f"the discriminator is the model; the generator's {left} tensors are left behind")
    return Table(tensors, Metadata(values=table.metadata.values), table.files, {"config.json": _json(config)} | words, notes)


def _albert(table: Table) -> Table:
    directory, raw = _config_beside(table, ALBERT_CONFIG)
    tensors = list(_renamed(table, albert.target, "ALBERT"))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    vocabulary, width, hidden, inner, groups = (
        _count(raw, key, ALBERT_CONFIG)
        for key in ("vocab_size", "embedding_size", "hidden_size", "intermediate_size", "num_hidden_groups")
    )
    _expect(shapes, "albert.embeddings.word_embeddings.weight", (vocabulary, width), ALBERT_CONFIG)
    _expect(shapes, "albert.encoder.embedding_hidden_mapping_in.weight", (hidden, width), ALBERT_CONFIG)
    for group in range(groups):
        at = f"albert.encoder.albert_layer_groups.{group}.albert_layers.0"
        _expect(shapes, f"{at}.attention.query.weight", (hidden, hidden), ALBERT_CONFIG)
        _expect(shapes, f"{at}.ffn.weight", (inner, hidden), ALBERT_CONFIG)
    _no_more_layers(shapes, "albert.encoder.albert_layer_groups.", groups, ALBERT_CONFIG)
    head = next((name for name, mark in _ALBERT_HEADS.items() if mark in shapes), "AlbertModel")
    config: dict[str, Any] = {"architectures": [head], "model_type": "albert"}
    config |= {key: raw[key] for key in _ALBERT_KEYS if key in raw}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "torch_dtype": _dtype(tensors)}
    config |= {"classifier_dropout_prob": 0.1, **_labels(shapes)}
    if config.get("hidden_act") == "gelu":  # as ALBERT computes it, and as transformers' own configurations of it say
        config["hidden_act"] = "gelu_new"
    documents = {"config.json": _json(config)}
    pieces = next((text for name in _ALBERT_PIECES if (text := _content(directory, name)) is not None), None)
    if pieces is None:
        notes: tuple[str, ...] = (f"there is no {' or '.join(_ALBERT_PIECES)} beside it: the directory has no tokenizer",)
        return Table(tuple(tensors), Metadata(values=table.metadata.values), table.files, documents, notes)
    settings = {"tokenizer_class": "AlbertTokenizer", "do_lower_case": True}
    settings |= {"model_max_length": config.get("max_position_embeddings", 512)}
    documents |= {"spiece.model": pieces, "tokenizer_config.json": _json(settings)}
    return Table(tuple(tensors), Metadata(values=table.metadata.values), table.files, documents)


def _gpt2(table: Table) -> Table:
    directory, raw = _config_beside(table, GPT2_CONFIG)
    tensors = list(_renamed(table, published.gpt2, "GPT-2"))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    vocabulary, context, width, heads, layers = (_count(raw, key, GPT2_CONFIG) for key in _GPT2_KEYS)
    _expect(shapes, "transformer.wte.weight", (vocabulary, width), GPT2_CONFIG)
    _expect(shapes, "transformer.wpe.weight", (context, width), GPT2_CONFIG)
    for layer in range(layers):
        _expect(shapes, f"transformer.h.{layer}.attn.c_attn.weight", (width, 3 * width), GPT2_CONFIG)
    _no_more_layers(shapes, "transformer.h.", layers, GPT2_CONFIG)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocabulary, "n_positions": context,
        "n_ctx": context, "n_embd": width, "n_head": heads, "n_layer": layers, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "bos_token_id": vocabulary - 1, "eos_token_id": vocabulary - 1,
        "torch_dtype": _dtype(tensors),
    }  # fmt: skip
    documents: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    pieces, merges = _content(directory, "encoder.json"), _content(directory, "vocab.bpe")
    if pieces is None or merges is None:
        notes = ("there are no encoder.json and vocab.bpe beside it: the directory has no tokenizer",)
    else:
        settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context}
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT)
        documents |= {"vocab.json": pieces, "merges.txt": merges, "tokenizer_config.json": _json(settings)}
    documents["config.json"] = _json(config)
    return Table(tuple(tensors), Metadata(values=table.metadata.values), table.files, documents, notes)


def _t5(table: Table) -> Table:
    used = replace(table, tensors=tuple(tensor for tensor in table.logical if not mesh_t5.UNUSED.fullmatch(tensor.name)))
    tensors = tuple(_renamed(used, mesh_t5.target, "T5"))
    config = mesh_t5.configuration({tensor.name: tensor.shape for tensor in tensors}) | {"torch_dtype": _dtype(tensors)}
    documents = {"config.json": _json(config)}
    directory = os.path.dirname(table.files[0])
    pieces = next((text for name in mesh_t5.PIECES if (text := _content(directory, name)) is not None), None)
    notes: tuple[str, ...] = ()
    if pieces is None:
        notes = (f"there is no {' or '.join(mesh_t5.PIECES)} beside it: the directory has no tokenizer",)
    else:
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
        documents |= {"spiece.model": pieces, "tokenizer_config.json": _json(settings)}
    return Table(tensors, Metadata(values=table.metadata.values), table.files, documents, notes)


# --- tensors --------------------------------------------------------------------------------------------------------


def _renamed(table: Table, target_of: Any, model: str) -> Iterator[Tensor]:
    for tensor in table.logical:
        if tensor.name in published.IGNORED or tensor.value is None:
            continue
        target = target_of(tensor.name)
        if target is None:
            raise UnsupportedFile(
                f"variable {tensor.name[:200]!r} {list(tensor.shape)} has no place in the published {model}",
                "--to safetensors keeps all tensors under their names",
            )
        changed = tensor
        if target.how == TURNED:
            if len(tensor.shape) != 2:
                raise InvalidFile(f"variable {tensor.name!r} is {list(tensor.shape)}: a matrix was expected")
            turned = ops.transpose(ops.typed(tensor.value, tensor.dtype, tensor.shape))
            changed = tensor._replace(value=turned, shape=turned.shape)
        elif target.how == SQUEEZED and tensor.shape[:1] == (1,) and len(tensor.shape) == 3:
            shape = tensor.shape[1:]
            plain = isinstance(tensor.value, Extent)
            value = tensor.value if plain else ops.reshape(tensor.value, tensor.dtype, shape)
            changed = tensor._replace(value=value, shape=shape)
        yield changed._replace(name=target.name, view="both")


def _expect(shapes: Mapping[str, tuple[int, ...]], name: str, shape: tuple[int, ...], config: str) -> None:
    if shapes.get(name) != shape:
        found = list(shapes[name]) if name in shapes else "not there"
        raise InvalidFile(f"{config} asks for {name} of {list(shape)}; it is {found}")


def _no_more_layers(shapes: Mapping[str, object], prefix: str, layers: int, config: str) -> None:
    there = {int(name[len(prefix) :].partition(".")[0]) for name in shapes if name.startswith(prefix)}
    if there and max(there) >= layers:
        raise InvalidFile(f"{config} counts {layers} layers; there are tensors of layer {max(there)}, counted from 0")


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "qa_outputs.weight" in shapes:
        return "BertForQuestionAnswering"
    if "classifier.weight" in shapes:
        return "BertForSequenceClassification"
    if "cls.predictions.bias" in shapes:
        return "BertForMaskedLM"  # as the published config.json of these very models says, though both heads are there
    return "BertModel"


def _labels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a classifier's labels are called where nobody says."""
    if "classifier.weight" not in shapes:
        return {}
    names = [f"LABEL_{label}" for label in range(shapes["classifier.weight"][0])]
    return {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": dict(zip(names, range(len(names)), strict=True)),
    }


def _dtype(tensors: Sequence[Tensor]) -> str:
    count: Counter[str] = Counter()
    for tensor in tensors:
        count[tensor.dtype] += prod(tensor.shape)
    return _TORCH.get(count.most_common(1)[0][0], "float32")


# --- documents ------------------------------------------------------------------------------------------------------


def _config_beside(table: Table, name: str) -> tuple[str, dict[str, Any]]:
    """The directory of the checkpoint, and the configuration that stands there."""
    directory = os.path.dirname(table.files[0])
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise ModelhubError(f"there is no {name} in {directory}, which says how the model is built", "put the model's there")
    with File(path) as file:
        return directory, read_json(file, limit=MAX_CONFIG)


def _count(raw: Mapping[str, Any], key: str, config: str) -> int:
    value = raw.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InvalidFile(f"{config} says {key} {value!r:.50}: a whole number above zero was expected")
    return value


def _content(directory: str, name: str) -> bytes | None:
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        return None
    with File(path) as file:
        if file.size > MAX_VOCABULARY:
            raise InvalidFile(f"{name} is {file.size} bytes long; no vocabulary needs more than {MAX_VOCABULARY}")
        return file.read(0, file.size)


def _word_pieces(directory: str, tokenizer: str, positions: Any) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The documents of a tokenizer whose words stand in ``vocab.txt``, and a word where there is none."""
    text = _content(directory, "vocab.txt")
    if text is None:
        return {}, ("there is no vocab.txt beside it: the directory has no tokenizer",)
    settings = {"tokenizer_class": tokenizer, "do_lower_case": _is_lower(text), "model_max_length": positions}
    return {"vocab.txt": text, "tokenizer_config.json": _json(settings)}, ()


def _is_lower(vocabulary: bytes) -> bool:
    """Whether the model knows small letters only: no token, but for those in brackets, has a capital."""
    text = vocabulary.decode("utf-8", "replace")
    return not any(token != token.lower() for token in text.splitlines() if not (token.startswith("[") and token.endswith("]")))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


CONVERSIONS = tuple(
    Conversion(name=f"{source}-to-huggingface", source=source, target="huggingface", derive=derive)
    for source in ("tensorflow", "tensorflow-v1")
)

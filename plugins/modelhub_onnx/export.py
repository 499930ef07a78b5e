"""Hugging Face directories exported to ONNX, by transformers' and torch's own exporter; encoders, and decoders with their cache.

Names are those that runtimes know: ``input_ids``, ``attention_mask``, ``past_key_values.N.key`` and ``.value`` in, ``logits`` and
``present.N.key`` and ``.value`` out; batch, sequence and past are of any size. It has to compute what torch computes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from modelhub import Checkpoint, ModelhubError, Program, ProgramResult, Table, UsageError

from modelhub_onnx import compare, given, prepared, smaller

if TYPE_CHECKING:
    import onnx

SHAPES = ((1, 5, 3), (2, 9, 6), (3, 1, 12), (1, 7, 0))
"""(batch, new positions, positions in the cache) that the exported model is compared on; none of them is the traced one."""
TRACED = (2, 8, 4)
BASE = 3 << 30
DECODERS = ("ForCausalLM", "LMHeadModel")


REQUIRES = ("torch", "transformers", "onnxscript", "onnx", "onnxruntime")
OPTIONS = ("calibration", "atol", "rtol")


def programs() -> Iterator[Program]:
    """The export itself, and with each way to make a smaller model of it in the same run."""
    for way in (None, *smaller.ways()):
        yield Program(
            name=f"huggingface-to-onnx-{way.recipe}" if way else "huggingface-to-onnx",
            source="huggingface",
            target="onnx",
            run=partial(run, way=way),
            requires=tuple(dict.fromkeys((*REQUIRES, *(way.requires if way else ())))),
            memory_estimate=partial(_memory, way),
            recipe=way.recipe if way else "",
            title=way.title if way else "Exported by transformers and torch, in single precision",
            extra="export",
            options=OPTIONS,
        )


def _memory(way: smaller.Way | None, table: Table) -> int:
    """One after the other; what torch and the exporter leave behind stays."""
    return BASE + 24 * table.parameters + (way.memory(4 * table.parameters) if way else 0)


def run(checkpoint: Checkpoint, output: str, options: Mapping[str, str], way: smaller.Way | None = None) -> ProgramResult:
    """Load, trace, write, make it smaller in a ``way``, and compare with torch."""
    if way:
        way.check(options)
    compare.tolerances(options)
    if not any(path.endswith((".safetensors", ".bin")) for path in checkpoint.files):
        why = "its weights are those of a model for TensorFlow or Flax, which transformers no longer opens"
        raise ModelhubError(why, "--to huggingface makes them PyTorch's; convert that")
    notes: list[str] = []
    with smaller.own_temporary_files(os.path.dirname(output)), _quiet():
        model, remarks = _load(checkpoint.directory)
        notes += remarks
        caching = type(model).__name__.endswith(DECODERS)
        example = _feed(model, caching, *TRACED, seed=99, padded=False)
        feeds, whose = _inputs(model, caching, example, options)
        before = [_compute(model, feed) for feed in feeds]  # first: the exporter leaves its marks on a model
        exported = os.path.join(tempfile.mkdtemp(), "model.onnx") if way else output
        _export(model, example, exported)
        del model
        gc.collect()
        expected = compare.Reference(
            feeds, [one["name"] for one in _outputs(exported)], before, f"what torch computes, on {whose}"
        )
        rows = compare.against(expected, exported, {} if way else options)
        if way:
            notes.append(f"the export alone is off by at most {max(float(row['max_error']) for row in rows):.3g}")
            notes += way.apply(exported, output, expected, options)
            rows = compare.against(expected, output, options)
    return ProgramResult(compared=rows, notes=[*notes, *compare.doubts(rows, options), f"compared with {expected.whose}"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn a good deal, about themselves."""
    logging: Any = import_module("transformers.utils.logging")

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with smaller.quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield


def _load(directory: str) -> tuple[Any, list[str]]:
    """The model as its configuration names it, in single precision, and notes on what it is not. Nothing is downloaded; no code
    of the directory is run."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        values, _ = transformers.PreTrainedConfig.get_config_dict(directory, local_files_only=True)
        raise ModelhubError(
            f"transformers {_version()} does not know models of the type {values.get('model_type')!r:.100}",
            "a newer transformers may; code that lies beside the weights is not run here",
        ) from error
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None) or transformers.AutoModel
    if config.is_encoder_decoder:
        raise ModelhubError(f"{name or directory} has an encoder and a decoder, which take a model each: not exported here")
    model, loading = kind.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    if model.main_input_name != "input_ids":
        raise ModelhubError(f"{type(model).__name__} takes {model.main_input_name}: only models of input_ids are exported here")
    return model.eval(), _remarks(model, name, sorted(loading["missing_keys"]))


def _remarks(model: Any, name: str, missing: Sequence[str]) -> list[str]:
    """What is not as the checkpoint says. Weights that are not there transformers fills with noise, and only its log says so."""
    notes = []
    if name and type(model).__name__ != name:
        notes.append(f"transformers has no {name}: exported as {type(model).__name__}, without what stands on top of that")
    if missing:
        some = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        notes.append(f"{len(missing)} weights are not in the checkpoint, and outputs that depend on them are noise: {some}")
    return notes


def _feed(model: Any, caching: bool, batch: int, new: int, past: int, seed: int, *, padded: bool) -> dict[str, Any]:
    """Made-up inputs, by the names that the ONNX model has. ``padded``: of all texts but the first a position is masked, the last
    one, or the first that is in the cache: a model that forgot its mask in the export computes something else then."""
    import inspect

    import numpy as np

    random = np.random.default_rng(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    past = past if caching else 0
    mask = np.ones((batch, past + new), np.int64)
    if padded and (past if caching else new > 1):
        mask[1:, 0 if caching else -1] = 0
    feed: dict[str, Any] = {"input_ids": random.integers(0, vocabulary, (batch, new)), "attention_mask": mask}
    if not caching and "token_type_ids" in inspect.signature(model.forward).parameters:
        feed["token_type_ids"] = random.integers(0, max(1, getattr(model.config, "type_vocab_size", 1)), (batch, new))
    if caching:
        for number, (key, value) in enumerate(_cached(model, random.integers(0, vocabulary, (batch, max(past, 1))))):
            feed[f"past_key_values.{number}.key"] = key[:, :, :past].copy()
            feed[f"past_key_values.{number}.value"] = value[:, :, :past].copy()
    return feed


def _cached(model: Any, ids: Any) -> list[tuple[Any, Any]]:
    """(keys, values) of each layer after ``ids``."""
    import torch

    with torch.no_grad():
        made = model(input_ids=torch.from_numpy(ids), use_cache=True)
    layers = next((value.layers for value in made.values() if hasattr(value, "layers")), None)
    if not layers or any(getattr(layer, "keys", None) is None or layer.keys.dim() != 4 for layer in layers):
        raise ModelhubError(f"{type(model).__name__} keeps no plain keys and values: its cache cannot be exported here")
    return [(layer.keys.numpy(), layer.values.numpy()) for layer in layers]


def _arguments(feed: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs for the torch model."""
    import torch
    from transformers import DynamicCache

    found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in feed.items() if "past_key_values" not in name}
    count = sum(name.startswith("past_key_values.") for name in feed) // 2
    if count:
        cache = DynamicCache()
        for number in range(count):
            key, value = (torch.from_numpy(feed[f"past_key_values.{number}.{part}"]) for part in ("key", "value"))
            cache.update(key, value, number)
        found |= {"past_key_values": cache, "use_cache": True}
    return found


def _compute(model: Any, feed: Mapping[str, Any]) -> list[Any]:
    """What torch makes of a feed, in the order of the ONNX model's outputs."""
    import torch

    with torch.no_grad():
        made = model(**_arguments(feed))
    found = []
    for value in made.values():
        if hasattr(value, "layers"):  # a cache; its name has changed between versions
            found += [part.numpy() for layer in value.layers for part in (layer.keys, layer.values)]
        elif isinstance(value, torch.Tensor):
            found.append(value.numpy())
    return found


def _inputs(
    model: Any, caching: bool, example: Mapping[str, Any], options: Mapping[str, str]
) -> tuple[Sequence[Mapping[str, Any]], str]:
    if options.get("calibration"):
        feeds = list(islice(given.read(options["calibration"], _Declared(example)), compare.MOST))
        return feeds, f"{len(feeds)} set{'s' if len(feeds) != 1 else ''} of inputs from --calibration"
    made = [_feed(model, caching, *shape, seed, padded=True) for seed, shape in enumerate(SHAPES)]
    return made, f"{len(made)} sets of made-up inputs of other sizes than it was traced with"


class _Declared:
    """The inputs that the model will have, as a session tells them."""

    def __init__(self, example: Mapping[str, Any]) -> None:
        self._example = example

    def get_inputs(self) -> list[Any]:
        kinds = {"f": "tensor(float)", "i": "tensor(int64)"}
        return [SimpleNamespace(name=name, type=kinds[array.dtype.kind]) for name, array in self._example.items()]


# --- writing ------------------------------------------------------------------------------------------------------


def _export(model: Any, example: Mapping[str, Any], output: str) -> None:
    import onnx

    try:
        exporters: Any = import_module("transformers.exporters.exporter_onnx")
        write = exporters.OnnxExporter.save_program
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"transformers {_version()} does not export to ONNX as it is done here: {error}",
            "pip install --upgrade 'transformers>=5.23' onnxscript torch",
        ) from error
    made = exporters.OnnxExporter().export(model, _arguments(example), config=exporters.OnnxConfig(dynamic=True))
    traced = os.path.join(tempfile.mkdtemp(), "traced.onnx")
    write(made.program, traced)
    del made
    written = onnx.load(traced)
    _rename(written, list(example))
    written.producer_name, written.producer_version = "transformers", _version()
    onnx.helper.set_model_props(written, {"architecture": type(model).__name__, "model_type": model.config.model_type})
    smaller.save(written, output)


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def _outputs(path: str) -> list[dict[str, Any]]:
    from modelhub import File

    from modelhub_onnx.graph import parse

    with File(path) as file:
        return parse(file).outputs


def _rename(model: onnx.ModelProto, inputs: Sequence[str]) -> None:
    """The names that runtimes know, for inputs, outputs and open sides; the exporter's are numbers and layers' attributes."""
    names: dict[str, str] = {}
    sides: dict[str, str] = {}
    for value, name in zip(model.graph.input, inputs, strict=True):
        names[value.name] = name
        labels = ("batch", "", "past_sequence", "") if name.startswith("past_key_values") else ("batch", "sequence")
        if name == "attention_mask" and any(other.startswith("past_key_values") for other in inputs):
            labels = ("batch", "total_sequence")
        for dim, label in zip(value.type.tensor_type.shape.dim, labels, strict=False):
            if label and dim.dim_param:
                sides.setdefault(dim.dim_param, label)
    for value in model.graph.output:
        match = re.fullmatch(r"(?:cache|past_key_values)\.layers\.(\d+)\.(key|value)s", value.name)
        if match:
            names[value.name] = f"present.{match[1]}.{match[2]}"
    prepared.rename(model.graph, names)
    for graph in prepared.graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param.isdecimal():  # of a cache's sides the exporter writes numbers as names
                    dim.dim_value = int(dim.dim_param)
                elif dim.dim_param:
                    dim.dim_param = re.sub(r"\bs\d+\b", lambda found: sides.get(found[0], found[0]), dim.dim_param)

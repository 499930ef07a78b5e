"""SavedModels to ONNX, by tf2onnx and TensorFlow; what is made is run beside its source on the same inputs.

The model is loaded as TensorFlow 1 loaded it, in a session: so models load whose optimizer or layers are of a Keras that is no
longer installed. A model that reaches out of itself is refused, for loading and comparing it would run it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub import Checkpoint, ModelhubError, OutputsDiffer, Program, ProgramResult, UsageError, measure

from modelhub_tensorflow import graph, saved_model

BASE = 4 << 30
OPSET = 18
MADE_UP = 3
"""Sets of inputs that both models are run on."""
SIDES = (2, 1, 8)
"""What is tried for the sides that a model leaves open."""
_DEFAULT = "serving_default"
_OF_TEXT = re.compile(r"String|Regex|Lookup|HashTable|Token|Unicode|Piece|ParseExample|DecodeJ|DecodeP|DecodeImage|Substr|Base64")
_OF_SAVING = ("StaticRegexFullMatch", "StringJoin")
"""What every SavedModel has, to save its variables."""


def program() -> Program:
    return Program(
        name="savedmodel-to-onnx",
        source="savedmodel",
        target="onnx",
        run=run,
        requires=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
        memory_estimate=lambda table: BASE + 16 * table.nbytes,
        title="Exported by tf2onnx",
        extra="tf2onnx",
        options=("atol", "rtol"),
    )


def run(checkpoint: Checkpoint, output: str, options: Mapping[str, str]) -> ProgramResult:
    """Load, run, freeze, convert, write, run again and compare."""
    found = graph.of_saved_model(checkpoint.open(saved_model.MODEL))
    _refuse_unsafe(found)
    if len(found.tags) == 1:  # of several graphs, it is known once TensorFlow has loaded one
        taken = graph.first_signature(found).inputs
        _refuse_text([name for name, kind in taken.items() if kind.startswith("string[")], found)
    for name in ("atol", "rtol"):
        if name in options and not math.isfinite(float(options[name])):
            raise UsageError(f"--{name} {options[name]} is no tolerance")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # it announces itself, and sums in another order
    for name in ("tensorflow", "tf2onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    inputs, outputs, frozen, feeds, before = _frozen(checkpoint.directory, found)
    _convert(frozen, inputs, outputs, output)
    rows = _compare(output, [*outputs], feeds, before, options)
    return ProgramResult(compared=rows, notes=[f"compared with what TensorFlow computes, on {MADE_UP} sets of made-up inputs"])


def _refuse_unsafe(found: graph.Graph) -> None:
    if found.findings:
        why = found.findings[0].message
        raise ModelhubError(f"it is not run, and so not converted: {why}", "`modelhub verify` names all of them")


def _frozen(
    directory: str, found: graph.Graph
) -> tuple[dict[str, str], dict[str, str], Any, list[dict[str, Any]], list[list[Any]]]:
    """(inputs and outputs by name -> the graph's tensors, the frozen graph, made-up inputs, what it computes of them)."""
    import tensorflow as tf  # type: ignore[import-untyped]
    from tf2onnx import tf_loader  # type: ignore[import-untyped]

    v1 = tf.compat.v1
    with tf.Graph().as_default() as loaded, v1.Session(graph=loaded) as session:
        try:
            meta = v1.saved_model.loader.load(session, _tags(found), directory)
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            raise ModelhubError(f"TensorFlow does not load it: {_short(error)}") from error
        signatures = {name: one for name, one in meta.signature_def.items() if one.outputs and not name.startswith("__")}
        signature = signatures.get(_DEFAULT) or next(iter(signatures.values()), None)
        if signature is None:
            raise ModelhubError("it has no signature: there is nothing to say what it takes and gives")
        inputs, outputs = (
            {name: info.name for name, info in sorted(side.items())} for side in (signature.inputs, signature.outputs)
        )
        if not all((*inputs.values(), *outputs.values())):
            raise ModelhubError("it takes or gives sparse or ragged tensors, which ONNX models do not")
        places = {name: loaded.get_tensor_by_name(place) for name, place in inputs.items()}
        _refuse_text([name for name, place in places.items() if place.dtype.base_dtype.name == "string"], found)
        feeds, before = _computed(session, places, [*outputs.values()])
        frozen = tf_loader.freeze_session(session, input_names=[*inputs.values()], output_names=[*outputs.values()])
    with tf.Graph().as_default():
        return inputs, outputs, tf_loader.tf_optimize([*inputs.values()], [*outputs.values()], frozen), feeds, before


def _refuse_text(texts: Sequence[str], found: graph.Graph) -> None:
    if not texts:
        return
    mine = sorted(name for name in found.operators if _OF_TEXT.search(name) and name not in _OF_SAVING)
    does = f" ({', '.join(mine[:6])}{', ...' if len(mine) > 6 else ''})" if mine else ""
    raise ModelhubError(
        f"it takes text (input {texts[0]!r}), and what it does with that{does} no standard ONNX operator does",
        "export a signature that takes numbers, such as tokens, and convert that; --to safetensors keeps the weights",
    )


def _tags(found: graph.Graph) -> list[str]:
    return next((one for one in found.tags if one == ["serve"]), found.tags[0] if found.tags else [])


def _computed(session: Any, places: Mapping[str, Any], outputs: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    import tensorflow as tf

    said = ""
    for side in SIDES:
        try:
            feeds = [_feed(places, side, seed) for seed in range(MADE_UP)]
            values = [session.run([*outputs], {places[name]: array for name, array in feed.items()}) for feed in feeds]
        except (tf.errors.OpError, ValueError) as error:
            said = said or _short(error)
            continue
        return feeds, values
    raise ModelhubError(f"inputs that are made up do not suit it: {said}")


def _feed(places: Mapping[str, Any], side: int, seed: int) -> dict[str, Any]:
    import numpy as np

    random = np.random.default_rng(seed)
    feed = {}
    for name, place in places.items():
        if place.dtype.base_dtype.name in ("string", "resource", "variant"):
            raise ValueError(f"input {name!r} takes {place.dtype.base_dtype.name} values")
        if place.shape.rank is None:
            raise ValueError(f"input {name!r} has any number of sides")
        shape = [side if length is None else length for length in place.shape.as_list()]
        kind = np.dtype(place.dtype.as_numpy_dtype)
        values = random.standard_normal(shape) if kind.kind in "fc" else random.integers(0, 2, shape)
        feed[name] = np.asarray(values).astype(kind)
    return feed


def _convert(frozen: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], output: str) -> None:
    import onnx
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx

    with tf.Graph().as_default() as again:
        tf.import_graph_def(frozen, name="")
        try:
            made = tfonnx.process_tf_graph(
                again, input_names=[*inputs.values()], output_names=[*outputs.values()], opset=OPSET, continue_on_error=False
            )
            model = optimizer.optimize_graph(made).make_model("converted by modelhub")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, AssertionError) as error:
            raise ModelhubError(f"tf2onnx does not convert it: {_short(error)}") from error
    names = {place: name for side in (inputs, outputs) for name, place in side.items()}
    taken = {name for graph_ in _graphs(model.graph) for node in graph_.node for name in (*node.input, *node.output)}
    _rename(model, {place: name for place, name in names.items() if name not in taken})
    onnx.save(model, output)


def _rename(model: Any, names: Mapping[str, str]) -> None:
    """The names of the signature, for inputs and outputs; tf2onnx has those of the graph."""
    for one in _graphs(model.graph):
        for node in one.node:
            for side in (node.input, node.output):
                for index, name in enumerate(side):
                    side[index] = names.get(name, name)
        for value in (*one.input, *one.output, *one.value_info):
            value.name = names.get(value.name, value.name)


def _graphs(top: Any) -> Iterator[Any]:
    yield top
    for node in top.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _compare(
    path: str, names: Sequence[str], feeds: Sequence[dict[str, Any]], before: Sequence[Sequence[Any]], options: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each output how far the two are apart; `OutputsDiffer` where it is more than the user allows."""
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        known = {one.name for one in session.get_inputs()}
        after = [session.run(None, {name: array for name, array in feed.items() if name in known}) for feed in feeds]
    except Exception as error:
        raise ModelhubError(f"what was made does not run: {_short(error)}") from error
    rows = []
    for number, name in enumerate(names):
        pairs = [(np.asarray(one[number]), np.asarray(other[number])) for one, other in zip(before, after, strict=True)]
        if any(one.shape != other.shape for one, other in pairs):
            raise OutputsDiffer(
                f"output {name!r} has the shape {list(pairs[0][1].shape)}, its source's {list(pairs[0][0].shape)}"
            )
        if any(one.dtype.kind not in "biuf" for one, _ in pairs):
            continue
        left, right = (np.concatenate([pair[side].reshape(-1).astype(np.float64) for pair in pairs]) for side in (0, 1))
        if np.count_nonzero(np.isfinite(left) & ~np.isfinite(right)):
            raise OutputsDiffer(f"output {name!r} has values that are infinite or NaN, where its source has numbers")
        rows.append({"name": name, "dtype": str(pairs[0][1].dtype), "values": int(left.size), **measure(left, right)})
        if "atol" in options or "rtol" in options:
            atol, rtol = float(options.get("atol", 0)), float(options.get("rtol", 0))
            with np.errstate(invalid="ignore"):
                count = int(np.count_nonzero(np.abs(right - left) > atol + rtol * np.abs(left)))
            if count:
                raise OutputsDiffer(
                    f"output {name!r}: {count:,} of {left.size:,} values differ by more than {atol:g} + {rtol:g} x size",
                    "nothing was written",
                )
    if not rows:
        raise OutputsDiffer("the model has no outputs of numbers that could be compared")
    return rows


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]

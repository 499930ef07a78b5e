"""Reads the tables of IRs: constants that may be weights are tensors, with their places in the `.bin`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from modelhub import Checkpoint, Extent, FileProblem, Inline, Metadata, Tensor, dtypes, read_json

from modelhub_openvino import compressed, layout
from modelhub_openvino.model import Constant, Model, parse

DTYPES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2", "f8e8m0": "F8_E8M0",
    "f4e2m1": "F4", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8", "i4": "I4", "u64": "U64", "u32": "U32", "u16": "U16",
    "u8": "U8", "u4": "U4", "boolean": "BOOL",
}  # fmt: skip
"""(``ov::element::Type``.) Two of 4 bits share a byte, the first in its low half."""
SMALL = 256
MAX_CONFIG = 16 << 20
MAX_SHOWN = 300
OPERATORS_SHOWN = 24
_NOTED = {
    "Runtime_version": "openvino_version", "OpenVINO Runtime": "openvino_version", "conversion_parameters/framework": "framework",
    "nncf/weight_compression/mode": "nncf_mode", "nncf/weight_compression/group_size": "nncf_group_size",
    "optimum/transformers_version": "transformers_version", "model_info/model_type": "model_type",
}  # fmt: skip


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    """Constants in the order of the layers, then what the model says of itself; in a directory, what its configuration adds."""
    every = layout.graphs(checkpoint.files)
    said: list[Metadata] = []
    for prefix, path, weights in every:
        model = parse(checkpoint.open(path))
        small = 0
        for record in _constants(model, weights):
            if isinstance(record, Tensor):
                yield record._replace(name=prefix + record.name)
            else:
                small += record
        said.append(metadata(model, small))
    first = said[0] if said else Metadata()
    values = {**first.values, **_configured(checkpoint)}
    if len(every) > 1:
        values["components"] = [prefix.rstrip("/") for prefix, _, _ in every]
    yield replace(first, values=values)


def _constants(model: Model, path: str) -> Iterator[Tensor | int]:
    """Tensors, and a 1 for each constant that is none. ``path``: of the `.bin`, "" where it is not there."""
    meant, parts = compressed.logical(model, path) if path else ([], set())
    given, names = results(model), compressed.halved(model)
    for constant in model.constants:
        if not is_weight(constant) and constant.name not in parts and constant.name not in given:
            yield 1
        elif path:
            tensor = _tensor(constant, path)
            if constant.name in parts:
                if tensor.value is None:  # of no dtype here: the bytes that its elements are in
                    tensor = Tensor(constant.name, "U8", (constant.nbytes,), Extent(path, constant.offset, constant.nbytes))
                yield tensor._replace(view="stored")
            else:
                yield tensor._replace(name=names.get(constant.name, constant.name))
        else:
            kind = DTYPES.get(constant.kind, constant.kind[:40])
            yield Tensor(constant.name, kind, constant.shape, None, unsupported="no .bin")
    yield from meant


def _configured(checkpoint: Checkpoint) -> dict[str, Any]:
    """What optimum's configuration says besides: the architecture."""
    if not checkpoint.is_directory:
        return {}
    try:
        config = read_json(checkpoint.open(layout.CONFIG), limit=MAX_CONFIG)
    except (FileProblem, OSError):
        return {}
    classes = config.get("architectures")
    named = [one[:MAX_SHOWN] for one in classes if isinstance(one, str)][:10] if isinstance(classes, list) else []
    kind = config.get("model_type")
    numbers = {"max_position_embeddings": "context_length", "hidden_size": "embedding_length", "vocab_size": "vocab_size"}
    return {
        **({"architecture": kind[:MAX_SHOWN]} if isinstance(kind, str) else {}),
        **({"architectures": named} if named else {}),
        **{name: config[key] for key, name in numbers.items() if type(config.get(key)) is int and 0 <= config[key] < 1 << 63},
    }


def results(model: Model) -> set[str]:
    """Constants that are what the model gives: none of its arithmetic, however small."""
    found = set()
    for graph in model.graphs:
        for step in graph.values():
            source = graph.get(step.inputs.get(0, "")) if step.type == "Result" else None
            if source and source.constant:
                found.add(source.constant.name)
    return found


def is_weight(constant: Constant) -> bool:
    """Two floats or more, two integers of at most 8 bits, or 256 bytes; the rest is the graph's arithmetic."""
    known = dtypes.find(DTYPES.get(constant.kind, ""))
    narrow = known is None or known.kind == "float" or known.bits <= 8
    return constant.kind not in ("boolean", "string") and (constant.nbytes >= SMALL or (narrow and prod(constant.shape) > 1))


def _tensor(constant: Constant, path: str) -> Tensor:
    dtype = DTYPES.get(constant.kind)
    if dtype is None:
        reason = f"elements of OpenVINO's type {constant.kind[:40]!r}"
        return Tensor(constant.name, constant.kind[:40], constant.shape, None, unsupported=reason)
    if not prod(constant.shape):  # OpenVINO gives one that is empty a byte all the same
        return Tensor(constant.name, dtype, constant.shape, Inline(b""))
    if prod(constant.shape) % dtypes.get(dtype).block:
        return Tensor(constant.name, dtype, constant.shape, None, unsupported="packed, and the last byte is not full")
    return Tensor(constant.name, dtype, constant.shape, Extent(path, constant.offset, constant.nbytes))


def metadata(model: Model, small: int) -> Metadata:
    """Everything there is to say."""
    opsets = sorted({opset for opset, _ in model.operators}, key=lambda name: (len(name), name))
    common = ((name, count) for (_, name), count in model.operators.most_common() if name not in ("Const", "Parameter", "Result"))
    quantized, precision = compressed.described(model)
    values: dict[str, Any] = {
        "graph": model.name[:MAX_SHOWN],
        "ir_version": model.version,
        "opsets": [name[:80] for name in opsets if is_standard(name)][:MAX_SHOWN],
        "inputs": {port.name[:MAX_SHOWN]: f"{port.kind}[{port.shape}]"[:MAX_SHOWN] for port in model.inputs[:MAX_SHOWN]},
        "outputs": {port.name[:MAX_SHOWN]: f"{port.kind}[{port.shape}]"[:MAX_SHOWN] for port in model.outputs[:MAX_SHOWN]},
        "nodes": sum(model.operators.values()),
        "operators": {name[:80]: count for name, count in list(common)[:OPERATORS_SHOWN]},
        "custom_operators": sorted({f"{opset}.{name}"[:120] for opset, name in custom(model)})[:MAX_SHOWN],
        "constants": small,
        "quantization": quantized,
        **{key: model.notes[path][:MAX_SHOWN] for path, key in _NOTED.items() if model.notes.get(path)},
    }
    return Metadata(values={key: value for key, value in values.items() if value}, precision=precision)


def is_standard(opset: str) -> bool:
    """OpenVINO's own sets, ``opset1`` and on."""
    return re.fullmatch(r"opset\d{1,3}", opset) is not None


def custom(model: Model) -> dict[tuple[str, str], int]:
    """Operators of no standard set: an extension's, or those that a plugin of OpenVINO made while it compiled the model."""
    return {key: count for key, count in model.operators.items() if not is_standard(key[0])}

"""What ``show`` says of a model: where it comes from, what it takes and gives, and how it is quantized, as far as can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from modelhub import Metadata, Tensor, dtypes

from modelhub_onnx.model import Model, Use
from modelhub_onnx.values import typed

MAX_SHOWN = 300
OPERATORS_SHOWN = 24
STANDARD = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training")
"""Domains of the standard itself."""
RUNTIMES = ("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten")
"""Domains of operators that are part of onnxruntime (``onnxruntime/core/graph/constants.h``)."""
EXTENSIONS = ("ai.onnx.contrib", "com.microsoft.extensions")
"""Domains of onnxruntime-extensions, a library of its own."""

_WEIGHT = {
    "MatMulInteger": 1, "ConvInteger": 1, "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeLSTM": 1,
    "QAttention": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "MatMulNBits": 1, "MatMulBnb4": 1,
    "GatherBlockQuantized": 0, "DequantizeLinear": 0, "QuantizeLinear": 0, "FakeQuant": 0,
}  # fmt: skip
"""Which input of an operator is the weight."""
_BLOCKS = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")
_DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "QLinearAdd")
_QUANTIZERS = ("onnx.quantize", "onnxruntime", "olive", "neural", "quark", "nncf", "onnx-neural-compressor")
"""Producers whose quantization is done after training (onnxruntime ``quantization/onnx_model.py`` signs as the first)."""


def metadata(model: Model) -> Metadata:
    """Everything there is to say."""
    quantized, precision = quantization(model)
    values: dict[str, Any] = {
        "producer": " ".join(filter(None, (model.texts.get("producer"), model.texts.get("producer_version")))),
        "ir_version": model.ir_version,
        "opset": model.opsets.get(""),
        "domains": {domain: version for domain, version in model.opsets.items() if domain},
        "graph": model.texts.get("graph", "")[:MAX_SHOWN],
        "description": (model.texts.get("documentation") or model.texts.get("graph_documentation") or "")[:MAX_SHOWN],
        "inputs": {value["name"]: typed(value["dtype"], value["shape"]) for value in model.inputs[:MAX_SHOWN]},
        "outputs": {value["name"]: typed(value["dtype"], value["shape"]) for value in model.outputs[:MAX_SHOWN]},
        "nodes": sum(model.operators.values()),
        "operators": _operators(model),
        "custom_domains": sorted(custom_domains(model)),
        "functions": len(model.functions),
        "subgraphs": model.subgraphs,
        "training_graphs": model.training,
        "constants": model.constants,
        "external_files": len(model.externals.files) + len(model.externals.missing),
        "quantization": quantized,
    }
    kept = {key: value for key, value in values.items() if value or (key == "opset" and value is not None)}
    return Metadata(values=kept, stored=dict(model.properties), precision=precision)


def _operators(model: Model) -> dict[str, int]:
    common = model.operators.most_common(OPERATORS_SHOWN)
    return {f"{domain}.{name}" if domain else name: count for (domain, name), count in common}


def custom_domains(model: Model) -> Counter[str]:
    """Domains of operators that neither the standard nor the model itself defines -> nodes of theirs."""
    found: Counter[str] = Counter()
    for (domain, name), count in model.operators.items():
        if domain not in STANDARD and (domain, name) not in model.functions:
            found[domain] += count
    return found


def whose(domain: str) -> str:
    """Where the code is from that operators of this domain take."""
    if domain in EXTENSIONS:
        return "the library onnxruntime-extensions"
    return "a library of native code from whoever made the model"


# --- quantization -------------------------------------------------------------------------------------------------


def quantization(model: Model) -> tuple[dict[str, Any], str]:
    """(how it is quantized, the label of its precision); two empty ones where it is not, or where a part of it is that says
    little of the whole."""
    if not model.uses:
        return {}, ""
    every = model.all_tensors()
    by_name = model.small | {tensor.name: tensor for tensor in every}
    weights = {tensor.name: (use, tensor) for use, tensor in _weights(model.uses, by_name)}
    operators = {use.operator for use in model.uses}
    found: dict[str, Any] = {"scheme": _scheme(operators), "made": _made(model, weights)}
    count: Counter[str] = Counter()
    for use, tensor in weights.values():
        label, elements = _logical(use, tensor)
        count[label] += elements
    if count:
        found["weights"] = count.most_common(1)[0][0]
        found["quantized_parameters"] = sum(count.values())
    blocks = {use.numbers["block_size"] for use, _ in weights.values() if use.numbers.get("block_size")}
    if len(blocks) == 1:
        found["block_size"] = blocks.pop()
    elif found["scheme"] in ("QDQ", "integer operators"):
        found["per_channel"] = any(_scales(use, by_name) > 1 for use, _ in weights.values())
    activations = _activations(model.uses, by_name, weights)
    if activations:
        found["activations"] = activations
    floats = sum(prod(tensor.shape) for tensor in every if _is_float(tensor) and tensor.name not in weights)
    return found, found["weights"] if count and sum(count.values()) >= floats else ""


def _weights(uses: list[Use], by_name: Mapping[str, Tensor]) -> Iterator[tuple[Use, Tensor]]:
    """The tensors that are quantized weights: integers that an operator decodes or multiplies with, floats that are quantized
    on the way. Zero points and biases do not count."""
    for use in uses:
        at = _WEIGHT.get(use.operator, -1)
        name = use.inputs[at] if 0 <= at < len(use.inputs) else ""
        tensor = by_name.get(name)
        if (
            tensor is not None
            and dtypes.find(tensor.dtype) is not None  # one of a type that there is not is shown, and no more
            and (len(tensor.shape) > 1 or use.operator in _BLOCKS)
            and (not _is_float(tensor) or use.operator in ("QuantizeLinear", "FakeQuant"))
        ):
            yield use, tensor


def _logical(use: Use, tensor: Tensor) -> tuple[str, int]:
    """(precision, parameters) of a quantized weight."""
    stored = dtypes.get(tensor.dtype)
    if use.operator in ("MatMulNBits", "GatherBlockQuantized") and stored.block == 1:
        bits = use.numbers.get("bits", 4)
        if bits in (2, 4, 8):
            return f"INT{bits}", prod(tensor.shape) * int(8 * stored.block_bytes) // bits
    if use.operator == "MatMulBnb4":
        return ("NF4" if use.numbers.get("quant_type", 1) else "FP4"), prod(tensor.shape) * 2
    if _is_float(tensor):
        return ("INT8", prod(tensor.shape)) if stored.bits > 8 else (stored.label, prod(tensor.shape))
    return f"INT{stored.bits:g}", prod(tensor.shape)


def _scheme(operators: set[str]) -> str:
    if operators & {*_BLOCKS}:
        return next(name for name in _BLOCKS if name in operators)
    if operators & {*_DYNAMIC}:
        return "dynamic"
    return "integer operators" if operators & {*_INTEGER} else "QDQ"


def _made(model: Model, weights: Mapping[str, tuple[Use, Tensor]]) -> str:
    """After training, or in it. A quantizer's signature says the first; weights that are still floats, and are quantized on the
    way, are how training toolkits export."""
    producer = model.texts.get("producer", "").lower()
    if producer.startswith(_QUANTIZERS) or {use.operator for use in model.uses} & {*_BLOCKS, *_DYNAMIC}:
        return "post-training"
    if any(_is_float(tensor) for _, tensor in weights.values()):
        return "quantization-aware"
    return "unknown"


def _scales(use: Use, by_name: Mapping[str, Tensor]) -> int:
    at = 1 if use.operator in ("DequantizeLinear", "QuantizeLinear") else 4
    scale = by_name.get(use.inputs[at]) if len(use.inputs) > at else None
    return prod(scale.shape) if scale else 1


def _activations(uses: list[Use], by_name: Mapping[str, Tensor], weights: Mapping[str, Any]) -> str:
    """The integers that activations become, by the zero points of what quantizes them."""
    if any(use.operator in _DYNAMIC for use in uses):
        return "UINT8 (by range, at run time)"
    for use in uses:
        if use.operator == "QuantizeLinear" and use.inputs and use.inputs[0] not in weights:
            zero = by_name.get(use.inputs[2]) if len(use.inputs) > 2 else None
            return _integers(zero.dtype) if zero else "UINT8"
    return ""


def _integers(dtype: str) -> str:
    """An integer type as people write it: U16 is UINT16."""
    known = dtypes.get(dtype)
    return f"{'UINT' if known.kind == 'uint' else 'INT'}{known.bits:g}" if known.kind in ("int", "uint") else known.label


def _is_float(tensor: Tensor) -> bool:
    known = dtypes.find(tensor.dtype)
    return known is not None and known.kind == "float" and known.bits >= 16

"""What onnxruntime's quantizers do not find, or trip over, put as they expect it. What a model computes stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias, which the static quantizer stores with scales of its own."""
INITIALIZERS_ALONE = 4
"""The version of the format from which on an initializer need not be an input as well."""


def lift_constants(model: onnx.ModelProto) -> None:
    """Weights that stand in nodes of their own (as Paddle's exporter has them) become initializers of the graph around them."""
    for graph in graphs(model.graph):
        given = {value.name for value in graph.output}
        nodes = [node for node in graph.node if _is_weight(node) and node.output[0] not in given]
        if not nodes:
            continue
        for node in nodes:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        lifted = {node.output[0] for node in nodes}
        kept = [node for node in graph.node if not (node.op_type == "Constant" and node.output[0] in lifted)]
        del graph.node[:]
        graph.node.extend(kept)
        model.ir_version = max(model.ir_version, INITIALIZERS_ALONE)


def _is_weight(node: onnx.NodeProto) -> bool:
    """A ``Constant`` of two floats or more."""
    from onnx import TensorProto

    value = node.attribute[0].t if node.op_type == "Constant" and len(node.attribute) == 1 else None
    return value is not None and value.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and prod(value.dims) > 1


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those in attributes of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def name_apart(model: onnx.ModelProto) -> None:
    """Give initializers of branches and loops names that no other graph has: two branches may each have a ``w``, which the
    converter to half precision takes for one (onnxruntime ``transformers/float16.py``)."""
    taken: set[str] = set()
    every = {tensor.name for graph in graphs(model.graph) for tensor in graph.initializer}
    for graph in graphs(model.graph):
        names: dict[str, str] = {}
        for tensor in graph.initializer:
            if tensor.name in taken:
                number = 1
                while (name := f"{tensor.name}_{number}") in every:
                    number += 1
                names[tensor.name] = name
                tensor.name = name
                every.add(name)
            taken.add(tensor.name)
        if names:
            rename(graph, names)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Call values otherwise, wherever the graph and those in it use them."""
    for inner in graphs(graph):
        for node in inner.node:
            for list_ in (node.input, node.output):
                for index, name in enumerate(list_):
                    list_[index] = names.get(name, name)
        for value in (*inner.input, *inner.output, *inner.value_info):
            value.name = names.get(value.name, value.name)


def own_biases(path: str) -> None:
    """Give each operator of the model at ``path`` a bias of its own, of one dimension. Of one that several share the quantizer
    makes copies, under names that may be taken; one of shape [1, N] stops it (``quantization/qdq_quantizer.py``)."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    names = {*initializers, *uses, *(name for node in graph.node for name in node.output)}
    left: set[str] = set()
    for node in graph.node:
        bias = initializers.get(node.input[2]) if node.op_type in BIASED and len(node.input) > 2 else None
        if bias is None or not bias.dims or prod(bias.dims) != bias.dims[-1] or (len(bias.dims) == 1 and uses[bias.name] < 2):
            continue
        made = graph.initializer.add()
        made.CopyFrom(bias)
        made.name = f"{node.output[0]}_bias"
        while made.name in names:
            made.name += "_"
        names.add(made.name)
        del made.dims[:-1]
        node.input[2] = made.name
        left.add(bias.name)
    if left:
        still = {name for inner in graphs(graph) for node in inner.node for name in node.input}
        still.update(value.name for value in graph.output)
        kept = [tensor for tensor in graph.initializer if tensor.name not in left or tensor.name in still]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        onnx.save(model, path)

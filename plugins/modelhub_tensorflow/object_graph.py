"""Writes the graph of objects that TensorFlow 2 stores beside the variables: ``tf.train.Checkpoint(...)`` restores by it alone.

A name is taken for the way to a variable: of ``encoder/layer_0/kernel`` each part is an attribute (or a place in a list, a key
of a dictionary) of the object before. Facts: ``core/protobuf/trackable_object_graph.proto``;
TensorFlow's ``python/checkpoint/restore.py`` and ``python/trackable/trackable_utils.py``. `modelhub_tensorflow.objects` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from modelhub import protobuf

from modelhub_tensorflow import objects
from modelhub_tensorflow.bundle import VALUE
from modelhub_tensorflow.messages import message, number

_ATTRIBUTE = b"VARIABLE_VALUE"
_SAVE_COUNTER = "save_counter"
_CHILD, _VALUES, _HAS_VALUES, _NODE = 1, 2, 5, 1
_ESCAPED = re.compile(r"\.([.S])")
_PARTS = (
    (re.compile(r"(?:lstm|gru|simple_rnn)_cell(?:_\d+)?", re.ASCII), "cell"),
    (re.compile(r"forward_.+", re.ASCII), "forward_layer"),
    (re.compile(r"backward_.+", re.ASCII), "backward_layer"),
    (re.compile(r"query|key|value"), r"_\g<0>_dense"),
    (re.compile(r"attention_output"), "_output_dense"),
)
"""Parts of Keras's layers by their names, and the attributes that they are."""


@dataclass(slots=True)
class _Object:
    """``tensor``: the name of the tensor that is its value."""

    children: dict[str, _Object] = field(default_factory=dict)
    tensor: str | None = None

    @property
    def edges(self) -> dict[str, _Object]:
        """Its children by all names that they go by, Keras's own with them, which keeps many a ``kernel`` as ``_kernel``."""
        found = dict(self.children)
        for name, child in self.children.items():
            if child.tensor is not None:
                found.setdefault(f"_{name}", child)
            for pattern, attribute in _PARTS:
                if child.children and pattern.fullmatch(name):
                    found.setdefault(pattern.sub(attribute, name), child)
        return found


def key_of(name: str) -> str:
    """The key that TensorFlow looks for the value of an object under; a name that is such a key stays."""
    return name if name.endswith(VALUE) else name + VALUE


def path_of(name: str) -> list[str]:
    """The way from the root to the object whose value a tensor called ``name`` is."""
    if name.endswith(VALUE):
        return [_ESCAPED.sub(_plain, part) for part in name.removesuffix(VALUE).split("/")]
    return name.split("/")


def _plain(match: re.Match[str]) -> str:
    return "/" if match[1] == "S" else "."


def from_names(names: Iterable[str]) -> bytes:
    """The graph (a ``TrackableObjectGraph``) of tensors that stand under `key_of` their names."""
    root = _Object()
    for name in names:
        at = root
        for part in path_of(name):
            at = at.children.setdefault(part, _Object())
        at.tensor = name
    # ``Checkpoint.restore`` makes a counter and looks for it: an object that has no value satisfies it, and leaves it at 0.
    root.children.setdefault(_SAVE_COUNTER, _Object())
    return _encode(root)


def _encode(root: _Object) -> bytes:
    nodes, ids, out = [root], {id(root): 0}, bytearray()
    for node in nodes:
        content = bytearray()
        for name, child in node.edges.items():
            if id(child) not in ids:
                ids[id(child)] = len(nodes)
                nodes.append(child)
            content += message(_CHILD, number(1, ids[id(child)]) + message(2, name.encode()))
        if node.tensor is not None:
            own = b"" if node.tensor.endswith(VALUE) else message(2, node.tensor.encode())
            content += message(_VALUES, message(1, _ATTRIBUTE) + own + message(3, key_of(node.tensor).encode()))
        out += message(_NODE, bytes(content) + message(_HAS_VALUES, number(1, 1)))
    return bytes(out)


def without(graph: bytes, keys: Collection[str]) -> bytes:
    """``graph`` as it is, but for values under ``keys``, which are not there any more."""
    wire, out = protobuf.Wire(graph, "a graph of objects"), bytearray()
    for field_number, kind, a, b in wire.fields():
        if field_number != _NODE or kind != protobuf.BYTES:
            continue
        content = bytearray()
        for inner, inner_kind, c, d in wire.fields(a, b):
            if inner_kind == protobuf.BYTES and not (inner == _VALUES and objects.attribute(wire, c, d)[1] in keys):
                content += message(inner, wire.data(c, d))
        out += message(_NODE, bytes(content))
    return bytes(out)

"""The graph of objects that TensorFlow 2 stores beside the variables: which name people know a variable by, and which of them are
an optimizer's.

Facts: ``core/protobuf/trackable_object_graph.proto``; how strings are stored: ``WriteStringTensor`` in ``tensor_bundle.cc``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field

from modelhub import InvalidFile, protobuf

from modelhub_tensorflow import sorted_table
from modelhub_tensorflow.bundle import VALUE

MAX_GRAPH = 256 << 20
MAX_NODES = 5_000_000

_BOOKKEEPING = frozenset(("save_counter" + VALUE,))
_SLOTS = (
    "Adam", "Adam_1", "adam_m", "adam_v", "AdamW", "AdamW_1", "LAMB", "LAMB_1", "lamb_m", "lamb_v", "Momentum", "momentum",
    "RMSProp", "RMSProp_1", "RMSProp_2", "Adagrad", "Adadelta", "Adadelta_1", "Ftrl", "Ftrl_1", "AdafactorVR", "vr", "vc",
)  # fmt: skip
"""What TensorFlow 1's optimizers, and those of BERT and T5, put behind a variable's name."""
_MESH_SLOT = "_slot_"
"""What Mesh TensorFlow's put between the two (``q_slot_vr``)."""
_POWERS = re.compile(r"(?:.*/)?beta[12]_power(?:_\d+)?", re.ASCII)
_METRICS = "keras_api/metrics/"
_SLOT = "/.OPTIMIZER_SLOT/"
_OPTIMIZERS = ("optimizer", "_optimizer")
_MARKS = ({"_iterations"}, {"iter", "learning_rate"})
"""What an optimizer of Keras 3, and of Keras 2, keeps: it may be called anything (``opt``, ``generator_optimizer``)."""
_NOT_STATE = ("_trainable_variables",)
"""What an optimizer of Keras 3 refers to: the model's own variables."""


@dataclass(slots=True)
class Names:
    """``full``: key -> the variable's own name; ``slots``: keys of an optimizer's variables."""

    full: dict[str, str] = field(default_factory=dict)
    slots: set[str] = field(default_factory=set)


def strings(data: bytes, count: int, who: str) -> list[bytes]:
    """A tensor of ``count`` strings as it is stored: their lengths as varints, the masked CRC-32C of those, and the bytes."""
    at, lengths = 0, []
    for _ in range(count):
        length, at = sorted_table.varint(data, at, len(data), who)
        lengths.append(length)
    at += 4
    found = []
    for length in lengths:
        if at + length > len(data):
            raise InvalidFile(f"{who}: a string of {length} bytes at {at}, there are {len(data)}")
        found.append(data[at : at + length])
        at += length
    return found


def names(data: bytes, who: str) -> Names:
    """What the graph says; `InvalidFile` where it is none."""
    wire = protobuf.Wire(data, who)
    nodes: list[list[tuple[str, str]]] = []
    slot_nodes: set[int] = set()
    children: list[list[tuple[int, str]]] = []
    for number, kind, a, b in wire.fields():
        if number != 1 or kind != protobuf.BYTES:
            continue
        if len(nodes) >= MAX_NODES:
            raise InvalidFile(f"{who}: more than {MAX_NODES} objects")
        attributes: list[tuple[str, str]] = []
        below: list[tuple[int, str]] = []
        for inner, inner_kind, c, d in wire.fields(a, b):
            if inner_kind != protobuf.BYTES:
                continue
            if inner == 1:
                below.append(_child(wire, c, d))
            elif inner == 2:
                attributes.append(attribute(wire, c, d))
            elif inner == 3:
                slot_nodes.add(_slot(wire, c, d))
        nodes.append(attributes)
        children.append(below)
    found = Names()
    slot_nodes |= _below_optimizers(children)
    for node, attributes in enumerate(nodes):
        for full, key in attributes:
            if full:
                found.full[key] = full
            if node in slot_nodes:
                found.slots.add(key)
    return found


def _below_optimizers(children: list[list[tuple[int, str]]]) -> set[int]:
    """Objects that are reached over an optimizer only: its state, and not the model's variables that it refers to."""
    if not children:
        return set()
    optimizers = {
        node for node, below in enumerate(children) if any(mark <= {name for _, name in below} for mark in _MARKS) and node
    }
    others, todo = {0}, [0]
    roots: list[int] = []
    while todo:
        for node, name in children[todo.pop()]:
            if not 0 <= node < len(children):
                continue
            if name in _OPTIMIZERS or node in optimizers:
                roots.append(node)
            elif node not in others:
                others.add(node)
                todo.append(node)
    mine, todo = set(roots) - others, roots
    while todo:
        for node, name in children[todo.pop()]:
            if 0 <= node < len(children) and node not in others and node not in mine and name not in _NOT_STATE:
                mine.add(node)
                todo.append(node)
    return mine


def _child(wire: protobuf.Wire, start: int, end: int) -> tuple[int, str]:
    node, name = 0, ""
    for number, kind, a, b in wire.fields(start, end):
        if number == 1 and kind == protobuf.VARINT:
            node = protobuf.signed(a)
        elif number == 2 and kind == protobuf.BYTES:
            name = wire.text(a, b)
    return node, name


def attribute(wire: protobuf.Wire, start: int, end: int) -> tuple[str, str]:
    """(full name, key) of a ``SerializedTensor``."""
    full = key = ""
    for number, kind, a, b in wire.fields(start, end):
        if number == 2 and kind == protobuf.BYTES:
            full = wire.text(a, b)
        elif number == 3 and kind == protobuf.BYTES:
            key = wire.text(a, b)
    return full, key


def _slot(wire: protobuf.Wire, start: int, end: int) -> int:
    node = 0
    for number, kind, a, _ in wire.fields(start, end):
        if number == 3 and kind == protobuf.VARINT:
            node = protobuf.signed(a)
    return node


# --- names ---------------------------------------------------------------------------------------------------------


def readable(keys: Collection[str], found: Names, content: Mapping[str, Hashable]) -> tuple[dict[str, str], set[str]]:
    """(key -> the name to show, keys of copies). The name is the variable's own where no other thing is called so, else the key:
    variables that nobody named are all called ``Variable``. Keras exports each variable twice; where all that have one name have
    equal ``content`` (a value for each key; None: not known), all but the first are copies."""
    named: dict[str, list[str]] = {}
    for key in keys:
        named.setdefault(found.full.get(key) or key, []).append(key)
    shown = {key: key for key in keys}
    copies: set[str] = set()
    for name, group in named.items():
        one = len({content.get(key) for key in group}) == 1 and content.get(group[0]) is not None
        if (len(group) == 1 or one) and (name in group or name not in shown):
            shown[group[0]] = name
            copies.update(group[1:])
    return shown, copies


def is_state(key: str, name: str, keys: Collection[str], found: Names) -> bool:
    """Whether a variable is an optimizer's or a metric's, or the checkpoint's own book-keeping."""
    if key in _BOOKKEEPING or key in found.slots or _SLOT in key or key.startswith(_METRICS):
        return True
    base, _, last = key.rpartition("/")
    if (base in keys and last in _SLOTS) or (_MESH_SLOT in last and key.rpartition(_MESH_SLOT)[0] in keys):
        return True
    return _POWERS.fullmatch(key) is not None

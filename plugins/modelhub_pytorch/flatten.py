"""The tensors inside a pickle's object, by dotted names; which of them are the model's weights; and the plain values worth
showing.

A checkpoint is often a dict around a state dict: the entry that holds the weights gives the logical table, its names unprefixed.
Other weights (an EMA copy) keep their path; optimiser state and the like are stored tensors only. Nothing recurses: a pickle may
nest as deep as it is long, or share its containers so that walking every path would never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from modelhub import InvalidFile

from modelhub_pytorch.allow import Report
from modelhub_pytorch.stubs import Call, Global, TensorRef

MAX_TENSORS = 2_000_000
MAX_NAME = 8192
MAX_DEPTH = 512
"""Containers between the root and a tensor."""

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "netG", "generator", "params", "params_ema",
    "ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model", "model_dict",
)  # fmt: skip
"""Entries that hold the weights, the likeliest first."""
_INNER = ("state_dict", "model_state_dict")
_NOT_WEIGHTS = re.compile(
    r"optim|sched|(^|_)lr(_|$)|rng|random_state|scaler|(^|_)amp(_|$)|loops?$|callback|(^|_)steps?$|(^|_)epochs?$|(^|_)iter(ation)?s?$|loss|"
    r"metric|history|grad|hyper_?param|hparams|config|(^|_)args$|criterion|sampler|monitor|best_",
    re.IGNORECASE,
)
_SHOWN = 64
"""Plain values shown of one level."""
_GROUPS = ("hyper_parameters", "hparams", "config", "args", "cfg", "opt")


class Leaf(NamedTuple):
    name: str
    tensor: TensorRef
    view: str


def children(node: Any) -> list[tuple[str, Any]]:
    """The named parts of a container or an object, in order; of a module, as ``state_dict`` names them."""
    if type(node) is dict:
        return [(key if type(key) is str else _text(key), value) for key, value in node.items()]
    if type(node) in (list, tuple):
        return [(str(index), value) for index, value in enumerate(node)]
    if type(node) is not Call:
        return []
    found: list[tuple[str, Any]] = []
    for state in node.state if type(node.state) in (list, tuple) else [node.state]:
        if type(state) is dict:
            found += _module(state) if "_modules" in state or "_parameters" in state else children(state)
        elif type(state) in (list, tuple, TensorRef):
            found += [(str(len(found)), state)]
    if node.items:
        found += children(node.items)
    if node.parts:
        found += children(node.parts)
    if type(node.args) is tuple:
        found += [(str(index), value) for index, value in enumerate(node.args) if type(value) in _NODES]
    return found


_NODES = (dict, list, tuple, Call, TensorRef)
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def _module(state: dict[Any, Any]) -> list[tuple[str, Any]]:
    """The state of an ``nn.Module``: its parameters, buffers and sub-modules without a prefix, then what else it holds."""
    found: list[tuple[str, Any]] = []
    for part in _MODULE_PARTS:
        if type(state.get(part)) is dict:
            found += children(state[part])
    return found + [(_text(key), value) for key, value in state.items() if key not in _MODULE_PARTS]


def _text(key: Any) -> str:
    if type(key) is tuple:
        return ".".join(str(item) for item in key)
    if type(key) is bytes:
        return key.decode("latin-1")
    return str(key) if type(key) in (str, int, bool, float) or key is None else "?"


class Tree:
    """Counts the tensors under each container, once for each container however many paths lead to it."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._counts: dict[int, int] = {}
        self._children: dict[int, list[tuple[str, Any]]] = {}
        self._count(root)

    def tensors(self, node: Any) -> int:
        """Tensors under ``node``, shared ones as often as paths lead to them."""
        return 1 if type(node) is TensorRef and node.parts is None else self._counts.get(id(node), 0)

    def children(self, node: Any) -> list[tuple[str, Any]]:
        """Those of ``node`` that lead to tensors."""
        return self._children.get(id(node), [])

    def _count(self, root: Any) -> None:
        counts, kept = self._counts, self._children
        stack: list[tuple[Any, bool]] = [(root, False)]
        opened: set[int] = set()
        while stack:
            node, done = stack.pop()
            if type(node) not in _NODES or (type(node) is TensorRef and node.parts is None):
                continue
            if not done:
                if id(node) in opened:
                    continue
                opened.add(id(node))
                inner = children(node.parts) if type(node) is TensorRef else children(node)
                kept[id(node)] = inner = [item for item in inner if type(item[1]) in _NODES]
                stack.append((node, True))
                stack.extend((value, False) for _, value in inner)
                continue
            leading = [item for item in kept[id(node)] if self.tensors(item[1])]
            kept[id(node)] = leading
            own = 1 if type(node) is TensorRef else 0
            counts[id(node)] = min(own + sum(self.tensors(value) for _, value in leading), MAX_TENSORS + 1)


def walk(tree: Tree, node: Any, prefix: str, view: str) -> Iterator[Leaf]:
    """Every tensor under ``node``, depth first, in order."""
    stack: list[tuple[str, Any, str, int]] = [(prefix, node, view, 0)]
    while stack:
        name, item, kind, depth = stack.pop()
        if type(item) is TensorRef:
            yield Leaf(name, item, kind)
            kind = "stored"  # what a subclass wraps
        inner = tree.children(item)
        if depth > MAX_DEPTH or len(name) > MAX_NAME:
            raise InvalidFile(
                f"a tensor lies more than {MAX_DEPTH} containers deep, or its name is longer than {MAX_NAME}: {name!r:.80}"
            )
        hidden = _not_persistent(item)
        for key, value in reversed(inner):
            stack.append((f"{name}.{key}" if depth or name else key, value, "stored" if key in hidden else kind, depth + 1))


def _not_persistent(node: Any) -> frozenset[str]:
    """Names of a module's buffers that its ``state_dict`` leaves out."""
    state = node.state if type(node) is Call else None
    names = state.get("_non_persistent_buffers_set") if type(state) is dict else None
    return frozenset(name for name in names if type(name) is str) if type(names) is list else frozenset()


def leaves(root: Any) -> Iterator[Leaf]:
    """Every tensor under ``root`` by its final name, the weights first. `InvalidFile` where there are absurdly many."""
    tree = Tree(root)
    if tree.tensors(root) > MAX_TENSORS:
        raise InvalidFile(f"the pickle holds more than {MAX_TENSORS} tensors")
    taken: set[str] = set()
    for leaf in _ordered(tree, root):
        name, number = leaf.name, 2
        while name in taken:
            name = f"{leaf.name}#{number}"
            number += 1
        taken.add(name)
        yield leaf if name is leaf.name else leaf._replace(name=name)


def _ordered(tree: Tree, root: Any) -> Iterator[Leaf]:
    if type(root) is TensorRef:
        yield from walk(tree, root, "tensor", "both")
        return
    if type(root) is dict:
        if is_optimizer(root) or is_random_state(root):
            yield from walk(tree, root, "", "stored")
            return
        main = wrapper(tree, root)
        if main is not None:
            weights = root[main]
            inner = _inner(tree, weights)
            yield from walk(tree, weights[inner] if inner else weights, "", "both")
            if inner:
                yield from _others(tree, weights, inner, f"{main}.")
            yield from _others(tree, root, main, "")
            return
        if any(type(value) is not TensorRef and _NOT_WEIGHTS.search(key) for key, value in tree.children(root)):
            yield from _others(tree, root, None, "")
            return
    yield from walk(tree, root, "", "both")


def _others(tree: Tree, root: Any, main: Any, prefix: str) -> Iterator[Leaf]:
    """The entries beside the weights: other weights, or what training left."""
    for key, value in tree.children(root):
        if key == main:
            continue
        if type(value) is TensorRef:  # of a bare state dict every tensor is a weight, whatever it is called
            beside = main is not None and "." not in key and _NOT_WEIGHTS.search(key) is not None
        else:
            beside = _NOT_WEIGHTS.search(key) is not None or (type(value) is dict and is_optimizer(value))
        yield from walk(tree, value, prefix + key, "stored" if beside else "both")


def wrapper(tree: Tree, root: Mapping[Any, Any]) -> str | None:
    """The entry of ``root`` that holds the weights, or None where ``root`` is itself a state dict."""
    for name in WRAPPERS:
        value = root.get(name)
        if type(value) in (dict, list, Call) and tree.tensors(value) and not (type(value) is dict and is_optimizer(value)):
            return name
    return None


def _inner(tree: Tree, weights: Any) -> str:
    """A second wrapper inside of the first: ``{"model": {"state_dict": ...}}``."""
    if type(weights) is dict:
        for name in _INNER:
            if type(weights.get(name)) is dict and tree.tensors(weights[name]):
                return name
    return ""


def is_optimizer(node: Mapping[Any, Any]) -> bool:
    """Whether a dict is an optimiser's ``state_dict``."""
    return "param_groups" in node and "state" in node


def is_random_state(node: Mapping[Any, Any]) -> bool:
    """Whether a dict is what trainers save of their random generators (``rng_state.pth``)."""
    return "python" in node and "numpy" in node and "cpu" in node


# --- plain values -------------------------------------------------------------------------------------------------


def plain_values(root: Any) -> dict[str, Any]:
    """What ``show`` may print of a checkpoint's top level: numbers, short texts, and hyper-parameters one level deep."""
    if type(root) is not dict:
        return {}
    values = _plain(root)
    for name in _GROUPS:
        group = root.get(name)
        group = group.state if type(group) is Call else group
        inner = _plain(group) if type(group) is dict else {}
        if inner:
            values[name] = inner
    return values


def _plain(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if type(key) is not str or len(key) > 80 or not key.isprintable() or len(found) >= _SHOWN:
            continue
        if (
            type(value) is bool
            or (type(value) is int and abs(value) < 1 << 63)
            or (type(value) is float and abs(value) < float("inf"))
            or (type(value) is str and len(value) <= 1000 and value.isprintable())
        ):
            found[key] = value
    return found


def class_of(root: Any) -> str:
    """The class of the object that a pickle holds, "" where it is a plain container."""
    function = root.function if type(root) is Call else None
    return Report.show(function) if type(function) is Global else ""

"""What a packing of weights is to the reader: a scheme that puts stored words and scales together to the tensors that are meant.

A scheme looks at names, dtypes and shapes, never at weights. Each whole that it finds is a logical tensor whose value is an op
over the parts; the parts stay in the table of what is stored. What it does not understand stays as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelhub import Node, Op, Tensor, ops


class Whole(NamedTuple):
    """A tensor that is meant (``view`` logical), and the names of the stored ones that it is made of."""

    tensor: Tensor
    parts: tuple[str, ...]


class Kept(NamedTuple):
    """A stored tensor that stays packed, and why."""

    name: str
    reason: str


Tensors = Mapping[str, Tensor]


class Stored(NamedTuple):
    """What a scheme sees: the stored ``tensors`` by name, the directory's own words on how it was quantized (``settings``:
    ``quantization_config`` and its relatives), the ``dtype`` that the configuration names for the model ("" where none),
    ``read(tensor, limit)``, the bytes of a small tensor that describes others (empty where it has more than ``limit``), and the
    free ``texts`` that the container keeps beside the tensors."""

    tensors: Tensors
    settings: Mapping[str, Any]
    dtype: str
    read: Callable[[Tensor, int], bytes]
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """``methods``: what ``quant_method`` may say. ``unpack(stored)`` finds the wholes; ``ops`` are what it computes
    them with. ``beside``: last words of the names of what is no weight (scales of activations)."""

    methods: tuple[str, ...]
    unpack: Callable[[Stored], Iterator[Whole | Kept]]
    ops: tuple[Op, ...] = ()
    beside: tuple[str, ...] = ()


FLOATS = ("F16", "BF16", "F32")
"""What scales are stored as; the whole has its scales' dtype, as the libraries compute it."""


def whole(name: str, value: Node, parts: tuple[str, ...]) -> Whole:
    """A logical tensor of the dtype and shape that its value has."""
    return Whole(Tensor(name, value.dtype, value.shape, value, view="logical"), parts)


def typed(tensor: Tensor) -> Node:
    """A stored tensor as the input of an op."""
    assert tensor.value is not None
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)


def modules(tensors: Tensors, last: str) -> Iterator[str]:
    """Names of the modules that have a tensor called ``last``, in the order of the table."""
    for name in tensors:
        if name.endswith(f".{last}"):
            yield name[: -len(last) - 1]
        elif name == last:
            yield ""


def member(module: str, name: str) -> str:
    """The name of a module's tensor."""
    return f"{module}.{name}" if module else name


def lack(tensors: Tensors, names: Mapping[str, tuple[str, ...]]) -> str:
    """Why the parts ``names`` (-> dtypes that they may have) cannot be put together, or ""."""
    for name, kinds in names.items():
        tensor = tensors.get(name)
        if tensor is None:
            return f"there is no {name}"
        if tensor.value is None:
            return f"{name} has no value: {tensor.unsupported}"
        if tensor.dtype not in kinds:
            return f"{name} is {tensor.dtype}, expected {' or '.join(kinds)}"
    return ""

"""LoRA on parameters that are no module's weight (``target_parameters``): the matrices of all experts in one tensor.

peft wraps such a module once for each of its parameters, one wrapper in the other, and names none of them: which parameter a pair
of factors is for is told by the shapes. The factors of all experts stand side by side: A is (experts x rank, in), B is (out, rank
x experts), with the experts innermost (peft ``tuners/lora/layer.py``, ``ParamWrapper``).

transformers puts the matrices of all experts into one tensor as it loads a model, gate and up projections one under the other;
files mostly hold each by itself (transformers ``conversion_mapping.py``). What is added to one tensor in memory is then cut to
the pieces that the file has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from modelhub import Node, Tensor, ops

from modelhub_peft.config import MAX_ITEMS, AdapterConfig
from modelhub_peft.names import Names

WRAPPED = ".base_layer"
MAX_EXPERTS = 4096
"""Each has its own product; a tensor of more is no honest one."""
_FUSED = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
"""A parameter in memory -> what each expert has in files, one under the other."""
_TRANSPOSED = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
"""Architectures whose experts are (in, out) in memory and in files (``is_transposed``)."""
_MIXED_UP, _SWAPPED = (0, 19, 0), (0, 19, 1)
"""Versions of peft: before the first one, all experts were taken for (in, out), and from the second one on, those that are
``is_transposed``; the first one took these for (out, in), which depends on transformers' version too."""


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of one expert's matrix (None: of all experts in one tensor), and the tensor that they are."""

    tensor: str
    expert: int | None
    start: int
    stop: int


class Parameter(NamedTuple):
    """A parameter as it is in memory, (experts, rows, columns) or (rows, columns), and the pieces of it that the base holds."""

    name: str
    shape: tuple[int, ...]
    pieces: Sequence[Piece]


def targets(config: AdapterConfig) -> list[str]:
    """The names that ``target_parameters`` gives, "mlp.experts.gate_up_proj" or their ends."""
    said = config.raw.get("target_parameters")
    return [name for name in said[:MAX_ITEMS] if isinstance(name, str)] if isinstance(said, list) else []


def is_target(module: str, config: AdapterConfig) -> bool:
    """Whether the adapter changes the parameter ``weight`` of a module, which it then need not know as a matrix."""
    return _is_wanted(f"{module}.weight", targets(config))


def _is_wanted(name: str, wanted: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in wanted)


def assigned(
    module: str, pairs: Sequence[tuple[Tensor, Tensor]], names: Names, config: AdapterConfig
) -> Iterator[tuple[Parameter, bool, Tensor, Tensor]]:
    """(parameter, whether it holds (experts, out, in), A, B) of each pair of a module's factors. ValueError where the shapes do
    not tell."""
    wanted, squares = targets(config), _squares(names, config)
    there = {each.name: each for each in _parameters(module, wanted, names)}
    if not there:
        raise ValueError(f"the base has none of the parameters that it targets ({', '.join(wanted[:4])}) under that name")
    for a, b in pairs:
        fitting = [(each.name, order) for each in there.values() for order in _orders(each.shape, a.shape, b.shape, squares)]
        if len(fitting) != 1:
            shapes = {each.name.rpartition(".")[2]: list(each.shape) for each in there.values()}
            raise ValueError(
                f"factors {list(a.shape)} and {list(b.shape)} "
                + ("fit none" if not fitting else "could be for more than one")
                + f" of its parameters {shapes}"
            )
        name, order = fitting[0]
        yield there.pop(name), order, a, b


def _parameters(module: str, wanted: Sequence[str], names: Names) -> Iterator[Parameter]:
    """Those of ``module`` that are targets, as the base has them, else as they would be with its experts put together."""
    for leaf in dict.fromkeys((*(target.rpartition(".")[2] for target in wanted), "weight")):
        name = f"{module}.{leaf}"
        if not _is_wanted(name, wanted):
            continue
        found = names.find(module, leaf)
        if found is not None:
            yield Parameter(name, names.tensors[found].shape, (Piece(found, None, 0, 0),))
        elif leaf in _FUSED:
            yield from _put_together(module, leaf, names)


def _put_together(module: str, leaf: str, names: Names) -> Iterator[Parameter]:
    for parts in _FUSED[leaf]:
        first = [names.find(f"{module}.0.{part}", "weight") for part in parts]
        starts = [name.removesuffix(f"0.{part}.weight") for name, part in zip(first, parts, strict=True) if name is not None]
        if len(starts) != len(parts) or not all(re.search(r"(^|\.)experts\.$", start) for start in starts):
            continue
        pieces: list[Piece] = []
        expert = rows = 0
        columns = names.tensors[first[0] or ""].shape[1:]
        while expert < MAX_EXPERTS and f"{starts[0]}{expert}.{parts[0]}.weight" in names.tensors:
            rows = 0
            for start, part in zip(starts, parts, strict=True):
                name = f"{start}{expert}.{part}.weight"
                shape = names.tensors[name].shape if name in names.tensors else ()
                if len(shape) != 2 or shape[1:] != columns:
                    raise ValueError(f"{name} has the shape {list(shape)}, where others have {list(columns)} columns")
                pieces.append(Piece(name, expert, rows, rows + shape[0]))
                rows += shape[0]
            expert += 1
        yield Parameter(f"{module}.{leaf}", (expert, rows, *columns), pieces)


def _squares(names: Names, config: AdapterConfig) -> tuple[bool, ...]:
    """Whether square matrices of experts are taken for (out, in), which no shape tells; both where nothing does."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", str(config.raw.get("peft_version", "")))
    version = tuple(map(int, found.groups())) if found else _SWAPPED
    if version < _MIXED_UP:
        return (False,)
    return (names.architecture not in _TRANSPOSED,) if version >= _SWAPPED else (True, False)


def _orders(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], squares: tuple[bool, ...]) -> Iterator[bool]:
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        return
    if len(shape) == 2 and shape == (b[0], a[1]):
        yield True
    elif len(shape) == 3 and 0 < shape[0] <= MAX_EXPERTS and a[0] % shape[0] == 0:
        fits = [order for order, sides in ((True, (b[0], a[1])), (False, (a[1], b[0]))) if shape[1:] == sides]
        yield from fits if len(fits) < 2 else squares


def rank_of(shape: tuple[int, ...], a: Tensor) -> int:
    return a.shape[0] // (shape[0] if len(shape) == 3 else 1)


def added(parameter: Parameter, order: bool, a: Tensor, b: Tensor, factor: float) -> Iterator[tuple[str, Node]]:
    """(tensor, what is added to it) for each piece of a parameter: (rows, columns), the rows of all experts one after another
    where one tensor has them all."""
    assert a.value is not None
    assert b.value is not None
    first, second = ops.typed(a.value, a.dtype, a.shape), ops.typed(b.value, b.dtype, b.shape)
    shape = parameter.shape
    if len(shape) == 2:
        yield parameter.pieces[0].tensor, ops.matmul(ops.affine(second, factor), first)
        return
    count, rank = shape[0], rank_of(shape, a)

    def product(expert: int, start: int, stop: int) -> Node:
        """Rows ``start`` to ``stop`` of what is added to one expert."""
        mine = ops.slice_(first, expert * rank, (expert + 1) * rank)
        rows, skip = (stop - start, start) if order else (b.shape[0], 0)
        columns = ops.strided(second, b.dtype, (rows, rank), (b.shape[1], count), skip * b.shape[1] + expert)
        left, right = (columns, mine) if order else (ops.transpose(ops.slice_(mine, start, stop, axis=1)), ops.transpose(columns))
        return ops.matmul(ops.affine(left, factor), right)

    for piece in parameter.pieces:
        if piece.expert is None:
            yield piece.tensor, ops.concat([product(expert, 0, shape[1]) for expert in range(count)])
        else:
            yield piece.tensor, product(piece.expert, piece.start, piece.stop)

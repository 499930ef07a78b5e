"""LoRA on parameters that are no module's weight (``target_parameters``): the matrices of all experts in one tensor.

peft wraps such a module once for each of its parameters, one wrapper in the other, and names none of them: which parameter a pair
of factors is for is told by the shapes. The factors of all experts stand side by side: A is (experts x rank, in), B is (out, rank
x experts), with the experts innermost (peft ``tuners/lora/layer.py``, ``ParamWrapper``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modelhub import Node, Tensor, ops

from modelhub_peft.config import MAX_ITEMS, AdapterConfig

WRAPPED = ".base_layer"
MAX_EXPERTS = 4096
"""Each has its own product; a tensor of more is no honest one."""


def targets(config: AdapterConfig) -> list[str]:
    """The names that ``target_parameters`` gives, "mlp.experts.gate_up_proj" or their ends."""
    said = config.raw.get("target_parameters")
    return [name for name in said[:MAX_ITEMS] if isinstance(name, str)] if isinstance(said, list) else []


def assigned(
    module: str, pairs: Sequence[tuple[Tensor, Tensor]], tensors: Mapping[str, Tensor], config: AdapterConfig
) -> Iterator[tuple[str, bool, Tensor, Tensor]]:
    """(parameter, whether it holds (experts, out, in), A, B) of each pair of a module's factors. ValueError where the shapes do
    not tell."""
    wanted = targets(config)
    there = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] == module and any(f".{name}".endswith(f".{target}") for target in wanted)
    }
    if not there:
        raise ValueError(f"the base has none of the parameters that it targets ({', '.join(wanted[:4])}) under that name")
    for a, b in pairs:
        fitting = [(name, order) for name, tensor in there.items() for order in _orders(tensor.shape, a.shape, b.shape)]
        if len(fitting) != 1:
            shapes = {name.rpartition(".")[2]: list(tensor.shape) for name, tensor in there.items()}
            raise ValueError(
                f"factors {list(a.shape)} and {list(b.shape)} "
                + ("fit none" if not fitting else "could be for more than one")
                + f" of its parameters {shapes}"
            )
        name, order = fitting[0]
        del there[name]
        yield name, order, a, b


def _orders(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> Iterator[bool]:
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        return
    if len(shape) == 2 and shape == (b[0], a[1]):
        yield True
    elif len(shape) == 3 and 0 < shape[0] <= MAX_EXPERTS and a[0] % shape[0] == 0:
        for order, sides in ((True, (b[0], a[1])), (False, (a[1], b[0]))):
            if shape[1:] == sides:
                yield order


def rank_of(shape: tuple[int, ...], a: Tensor) -> int:
    return a.shape[0] // (shape[0] if len(shape) == 3 else 1)


def added(shape: tuple[int, ...], order: bool, a: Tensor, b: Tensor, factor: float) -> Node:
    """What is added to a parameter: (rows, columns), the rows of all experts one after another."""
    assert a.value is not None
    assert b.value is not None
    first, second = ops.typed(a.value, a.dtype, a.shape), ops.typed(b.value, b.dtype, b.shape)
    if len(shape) == 2:
        return ops.matmul(ops.affine(second, factor), first)
    count, rank = shape[0], rank_of(shape, a)
    parts = []
    for expert in range(count):
        mine = ops.slice_(first, expert * rank, (expert + 1) * rank)
        columns = ops.strided(b.value, b.dtype, (b.shape[0], rank), (b.shape[1], count), expert)
        left, right = (columns, mine) if order else (ops.transpose(mine), ops.transpose(columns))
        parts.append(ops.matmul(ops.affine(left, factor), right))
    return ops.concat(parts)

"""Gives every tensor of an output the dtype that the recipe chose for it, and checks that the target can hold it. Reads no
weights, unless the recipe asks to measure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelhub import dtypes, ops
from modelhub.codecs import codec_of, find
from modelhub.declared import Assignment, Choice, Format, Recipe, RecipeOptions
from modelhub.errors import ConversionError, MissingCapability, UsageError
from modelhub.table import Table
from modelhub.types import Node, Tensor


@dataclass(frozen=True, slots=True)
class Assigned:
    """The table with its casts, what was lost in words, and the tensors that are not what the recipe is named for -> why."""

    table: Table
    losses: tuple[str, ...]
    fallbacks: Mapping[str, str]


def assignment_of(recipe: Recipe, table: Table, options: RecipeOptions) -> Assignment:
    """What ``recipe`` decides for ``table``. UsageError where it does not like the options."""
    try:
        if recipe.measure:
            from modelhub.engine.probe import Probing

            with Probing() as probe:
                return recipe.measure(table, options, probe)
        if recipe.assign:
            return recipe.assign(table, options)
    except ValueError as error:
        raise UsageError(f"{recipe.name}: {error}") from error
    if options != RecipeOptions():
        raise UsageError(f"{recipe.name} takes none of --imatrix, --tensor-type, --target-bpw and --target-size")
    assert recipe.choose is not None
    chosen = ((tensor.name, recipe.choose(tensor, table)) for tensor in table.tensors)
    return Assignment({name: Choice(dtype) for name, dtype in chosen if dtype})


def assign(
    table: Table,
    target: Format,
    recipe: Recipe | None,
    options: RecipeOptions,
    *,
    strict: bool,
    skip_unsupported: bool,
    others: Sequence[Recipe],
) -> Assigned:
    """Put a cast on every tensor whose dtype the recipe changes. ``strict``: a fallback is an error. ``others``: the recipes that
    a hint may name, where the target cannot hold what is there. What none of them would change into something that it holds
    is unsupported, and left out with ``skip_unsupported``."""
    if recipe is None and options != RecipeOptions():
        raise UsageError("these options need a recipe to take them", f"--to {target.name}:RECIPE")
    decided = assignment_of(recipe, table, options) if recipe else Assignment({})
    fallbacks = {name: choice.fallback for name, choice in decided.choices.items() if choice.fallback}
    if fallbacks and strict:
        name, why = next(iter(fallbacks.items()))
        more = f" (and {len(fallbacks) - 1} more)" if len(fallbacks) > 1 else ""
        raise ConversionError(f"tensor {name}{more}: {why}", "without --strict it is done with that")
    tensors: list[Tensor] = []
    dropped: list[Tensor] = []
    foreign: dict[str, tuple[str, list[str]]] = {}
    for tensor in table.tensors:
        if tensor.value is None:
            dropped.append(tensor)
            continue
        choice = decided.choices.get(tensor.name)
        if choice and choice.dtype != tensor.dtype:
            tensor = _cast(tensor, choice)
        if target.dtypes and tensor.dtype not in target.dtypes:
            fitting = [one.name for one in others if _gives(one, tensor, table) in target.dtypes]
            if skip_unsupported and not fitting:
                dropped.append(tensor._replace(unsupported=f"{tensor.dtype} tensor, which {target.name} cannot hold"))
                continue
            foreign[tensor.name] = tensor.dtype, fitting
        tensors.append(tensor._replace(view="both"))
    if dropped and not skip_unsupported:
        first = dropped[0]
        more = f" (and {len(dropped) - 1} more)" if len(dropped) > 1 else ""
        raise ConversionError(
            f"tensor {first.name} cannot be converted: {first.unsupported}{more}",
            "--skip-unsupported leaves such tensors out",
        )
    if foreign:
        raise _foreign(foreign, target)
    losses = [f"left out: {tensor.name} ({tensor.unsupported})" for tensor in dropped]
    losses += list(decided.notes) + _summed_up(fallbacks)
    if recipe is None:
        losses += _unpacked(tensors)
    metadata = replace(table.metadata, native={**table.metadata.native, **decided.native})
    return Assigned(replace(table, tensors=tuple(tensors), metadata=metadata), tuple(losses), fallbacks)


def _cast(tensor: Tensor, choice: Choice) -> Tensor:
    assert tensor.value is not None
    for dtype, what in ((tensor.dtype, "decode"), (choice.dtype, "encode")):
        try:
            codec_of(dtype, what)
        except MissingCapability as error:
            raise MissingCapability(f"tensor {tensor.name}: {error.message}", error.hint) from error
    codec = find(choice.dtype)
    if codec and codec.needs_importance and choice.importance is None:
        raise ConversionError(
            f"tensor {tensor.name}: {choice.dtype} cannot be encoded without importance weights", "--imatrix FILE has them"
        )
    importance = choice.importance if dtypes.get(choice.dtype).rowwise else None
    value, dtype = tensor.value, tensor.dtype
    if isinstance(tensor.value, Node) and tensor.value.op == "cast":
        # A conversion's last cast only gave the tensor a dtype that can be stored: the recipe's takes its place, and values are
        # rounded once.
        value, dtype = tensor.value.inputs[0], tensor.value.args["source"]
        if dtype == choice.dtype:
            return tensor._replace(dtype=dtype, value=value)
    try:
        node = ops.cast(value, dtype, tensor.shape, choice.dtype, importance)
    except ValueError as error:
        raise ConversionError(f"tensor {tensor.name}: {error}", "another recipe may fit") from error
    return tensor._replace(dtype=choice.dtype, value=node)


def _gives(recipe: Recipe, tensor: Tensor, table: Table) -> str | None:
    """What ``recipe`` would make of one tensor, as far as that can be said without measuring."""
    if recipe.choose:
        return recipe.choose(tensor, table)
    if recipe.assign and recipe.measure is None:
        try:
            choice = recipe.assign(replace(table, tensors=(tensor,)), RecipeOptions()).choices.get(tensor.name)
        except ValueError:
            return None
        return choice.dtype if choice else None
    return None


def _foreign(foreign: Mapping[str, tuple[str, list[str]]], target: Format) -> ConversionError:
    name, (dtype, fitting) = next(iter(foreign.items()))
    more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
    recipes = f"a recipe changes dtypes: --to {target.name}:RECIPE, of {', '.join(fitting)}"
    return ConversionError(
        f"{target.name} cannot hold {dtype}: tensor {name}{more}",
        recipes if fitting else "--skip-unsupported leaves such tensors out",
    )


def _unpacked(tensors: Sequence[Tensor]) -> list[str]:
    """What a conversion unpacked from blocks because nobody said what else should become of them."""
    count: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        value = tensor.value
        while isinstance(value, Node) and value.inputs:
            if value.op == "cast" and dtypes.get(value.args["source"]).block > 1:
                count[value.args["source"], tensor.dtype] += 1
                break
            value = value.inputs[0]
    return [f"dequantized: {n} tensors of {source} to {dtype}" for (source, dtype), n in count.most_common()]


def _summed_up(fallbacks: Mapping[str, str]) -> list[str]:
    """Fallbacks by reason: how many tensors, and the first."""
    first: dict[str, str] = {}
    count = Counter(fallbacks.values())
    for name, why in fallbacks.items():
        first.setdefault(why, name)
    return [f"{why}: {first[why]}" + (f" and {n - 1} more" if n > 1 else "") for why, n in count.items()]


def recipe_options(importance: str, overrides: Sequence[Sequence[str]], target_bits: float, target_size: int) -> RecipeOptions:
    """The options as recipes get them. UsageError for an importance matrix that is not there."""
    if importance and not os.path.isfile(importance):
        raise UsageError(f"{importance} is no file", "--imatrix names an importance matrix, as llama-imatrix writes them")
    pairs = tuple((str(pattern), str(dtype)) for pattern, dtype in overrides)
    return RecipeOptions(importance, pairs, target_bits, target_size)

"""Several checkpoints as one table: a base with adapters on it, a base and a delta added, two checkpoints subtracted.

Builds expressions and reads no weights, so that what follows (a conversion, a recipe) is done in the same pass. How an adapter
changes its base is said by the plugin that knows its format (`modelhub.declared.Combination`); adding and subtracting needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from modelhub import dtypes, ops
from modelhub.declared import Combination, Conversion
from modelhub.errors import ConversionError, ModelhubError, UnsupportedFile, UsageError
from modelhub.table import Table
from modelhub.types import Node, Tensor

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.model import Model
    from modelhub.plugins import Plugins

ADAPTER, DELTA, MINUS = KINDS = ("adapter", "delta", "minus")
MAX_CANDIDATES = 200
"""At most so many models of the catalog are held against an adapter to find the one that it is for."""


class Part(NamedTuple):
    """What is put on a base: ``kind`` is one of `KINDS`; ``path`` its absolute path; ``scale`` how strongly it applies."""

    kind: str
    path: str
    scale: float = 1.0


def combined(base: Model, parts: Sequence[tuple[Part, Model]], plugins: Plugins) -> tuple[Table, str]:
    """The table of ``base`` with ``parts`` on it, and the format whose names its tensors bear: the base's, or the one that a
    declared conversion leads to, where adapters fit there alone. ConversionError says what does not fit."""
    kinds = {part.kind for part, _ in parts}
    if len(kinds) != 1 or (kinds != {ADAPTER} and len(parts) != 1):
        raise UsageError("a merge takes adapters, or one delta, or one model to subtract")
    for model in (base, *(model for _, model in parts)):
        if model.state != "ready":
            raise ConversionError(f"{model.name} cannot be merged: it is {model.state}{f': {model.reason}' * bool(model.reason)}")
    first, other = parts[0]
    if first.kind == ADAPTER:
        return _adapted(base, parts, plugins)
    try:
        made = _sum(base.table(), other.table(), subtract=first.kind == MINUS, alike=base.format == other.format)
    except ValueError as error:
        raise ConversionError(f"{other.name} does not fit {base.name}: {error}") from error
    return made, base.format


# --- adapters -----------------------------------------------------------------------------------------------------


def _adapted(base: Model, parts: Sequence[tuple[Part, Model]], plugins: Plugins) -> tuple[Table, str]:
    edges = [_edge(adapter, plugins) for _, adapter in parts]
    if len({edge.source for edge in edges}) > 1:
        raise UsageError("adapters of several formats are merged one format at a time")
    names = ", ".join(adapter.name for _, adapter in parts)
    if combination_of(base, plugins) is not None:
        raise UsageError(
            f"{base.name} is an adapter itself", f"BASE is the model that it changes: modelhub merge BASE --adapter {names}"
        )
    table, given = base.table(), [(adapter.table(), part.scale) for part, adapter in parts]
    try:
        try:
            return edges[0].derive(table, given), base.format
        except ValueError as error:
            for made, format in _as_others(base, table, plugins):
                with suppress(ValueError):
                    return edges[0].derive(made, given), format
            raise error
    except UnsupportedFile as error:
        raise ConversionError(f"{names} cannot be merged: {error.message}", error.hint) from error
    except ValueError as error:
        raise ConversionError(f"{names} does not fit {base.name}: {error}", "is it an adapter of another model?") from error


def _as_others(base: Model, table: Table, plugins: Plugins) -> Iterator[tuple[Table, str]]:
    """What conversions make of a base: names, and orders of rows, that its adapters may be for."""
    for edge in plugins.conversions:
        if isinstance(edge, Conversion) and edge.source == base.format != edge.target:
            with suppress(ModelhubError):
                yield edge.derive([table], {}), edge.target


def _edge(adapter: Model, plugins: Plugins) -> Combination:
    edge = combination_of(adapter, plugins)
    if edge is None:
        known = ", ".join(sorted({edge.source for edge in plugins.combinations}))
        raise UsageError(
            f"{adapter.name} is no adapter that can be merged: its format is {adapter.format}", f"what can be: {known}"
        )
    return edge


def combination_of(adapter: Model, plugins: Plugins) -> Combination | None:
    """How ``adapter`` is put on a base; None where it is no adapter."""
    return next((edge for edge in plugins.combinations if edge.source == adapter.format), None)


def bases_of(adapter: Model, catalog: Catalog, plugins: Plugins) -> list[Model]:
    """The models of the catalog that ``adapter`` may have been made for: those whose tensors have the names and shapes that it
    changes, and where some of them are called as it calls its base, only these."""
    edge = combination_of(adapter, plugins)
    if edge is None or adapter.state != "ready":
        return []
    said = adapter.metadata.get("base_model")
    wanted = _last(said) if isinstance(said, str) else ""
    models = [
        model
        for model in catalog.models()
        if model.state == "ready" and model.tensors and combination_of(model, plugins) is None and model.id != adapter.id
    ]
    named = [model for model in models if wanted and wanted in (_last(model.name), _last(model.path))]
    table = adapter.table()
    fitting = [model for model in named[:MAX_CANDIDATES] if _fits(edge, model, table)]
    return fitting or [model for model in models[:MAX_CANDIDATES] if model not in named and _fits(edge, model, table)]


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _fits(edge: Combination, base: Model, adapter: Table) -> bool:
    try:
        edge.derive(base.table(), [(adapter, 1.0)])
    except (ValueError, ModelhubError, OSError):  # whatever is wrong with it, it is none that could be offered
        return False
    return True


# --- deltas -------------------------------------------------------------------------------------------------------


def _sum(base: Table, other: Table, *, subtract: bool, alike: bool) -> Table:
    """``base + other`` or ``base - other``, tensor by tensor, in float32, in the dtypes of the model that is not the base (a
    delta's are its target's). Where the target has more rows (an embedding that was resized), the base counts as zero there."""
    # What describes the target is the delta's, or the target's itself: the base's own documents know nothing of its new tokens.
    target, under = (base, other) if subtract else (other, base)
    strange = [tensor.name for tensor in target.logical if tensor.name not in under.by_name]
    if len(strange) == len(target.logical):
        raise ValueError(f"none of its tensors has the name of one there (the first is {strange[0] if strange else 'missing'})")
    left = [tensor for tensor in under.logical if tensor.name not in target.by_name]
    if matrices := [tensor for tensor in left if len(tensor.shape) > 1]:
        raise ValueError(f"{matrices[0].name} {list(matrices[0].shape)} is in one of them alone")
    tensors = tuple(_plus(tensor, under.by_name.get(tensor.name), -1.0 if subtract else 1.0) for tensor in target.logical)
    notes = [
        *_told(strange, "is in one of them alone, and stays as it is there"),
        *_told([tensor.name for tensor in left], "has no counterpart, and is left out"),
        *([_about_rounding(target, under)] if subtract else []),
    ]
    files = target.files if alike or subtract else base.files
    return replace(target, tensors=tensors, files=files, notes=tuple(notes))


def _about_rounding(target: Table, under: Table) -> str:
    said = "differences are rounded to the dtypes of the target: adding them again gives it back to a rounding"
    floats, others = (
        {tensor.dtype for tensor in table.logical if dtypes.get(tensor.dtype).kind in ("float", "quantized")}
        for table in (target, under)
    )
    if len(floats) == 1 and floats | others <= {"F16", "BF16"}:  # the difference of two that are near each other is a float32
        said += (
            "; --to FORMAT:f32 keeps them whole, and adding those --to FORMAT:"
            + min(floats).lower()
            + " gives it back to the bit"
        )
    return said


def _plus(tensor: Tensor, under: Tensor | None, sign: float) -> Tensor:
    if under is None or tensor.value is None or dtypes.get(tensor.dtype).kind not in ("float", "quantized"):
        return tensor
    if under.value is None:
        raise ValueError(f"{tensor.name} is a {under.unsupported}")
    rows = under.shape[0] if under.shape else 0
    resized = len(tensor.shape) == len(under.shape) > 1 and tensor.shape[1:] == under.shape[1:] and tensor.shape[0] > rows
    if tensor.shape != under.shape and not resized:
        raise ValueError(f"{tensor.name} has the shape {list(tensor.shape)} in one, and {list(under.shape)} in the other")
    mine, base = (ops.typed(each.value, each.dtype, each.shape) for each in (tensor, under) if each.value is not None)
    base = ops.affine(base, sign) if sign != 1 else base
    if tensor.shape == under.shape:
        return encoded(tensor, ops.add(mine, base))
    both = ops.add(ops.slice_(mine, 0, rows), base)
    return encoded(tensor, ops.concat([both, ops.affine(ops.slice_(mine, rows, tensor.shape[0]))]))


def encoded(tensor: Tensor, value: Node) -> Tensor:
    """``tensor`` with the F32 ``value`` in place of its own, rounded to its dtype."""
    if (value.dtype, value.shape) != (tensor.dtype, tensor.shape):
        value = ops.cast(value, value.dtype, tensor.shape, tensor.dtype)
    return tensor._replace(value=value)


def _told(names: Sequence[str], what: str) -> Iterator[str]:
    if names:
        yield f"{names[0]}{f' (and {len(names) - 1} more)' * (len(names) > 1)} {what}"

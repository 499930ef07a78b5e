"""From what is there to what is wanted, said before anything is done: route, output, size, free space, what is lost.

A plan's table is the whole conversion: each tensor of the output with the expression it comes from. Making one reads no weights.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import prod
from typing import Any

from modelhub import ops
from modelhub.assign import assign, recipe_options
from modelhub.combine import MINUS, Part, combined
from modelhub.declared import Conversion, Format, Program, Recipe, RecipeOptions
from modelhub.distribution import install_hint
from modelhub.errors import ConversionError, MissingCapability, OutputExists, UsageError
from modelhub.model import Model, printable
from modelhub.plugins import Plugins
from modelhub.scratch import is_empty_directory
from modelhub.table import Table, tensor_nbytes
from modelhub.targets import edge_of, parse_target
from modelhub.types import Metadata, Node, Tensor, WriteOptions

PROGRAM_OPTIONS = ("calibration", "atol", "rtol")
"""What only a program can make use of."""
MAX_NAME = 255
"""Bytes in a file's name, on Linux's file systems."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the user asked for besides source, target and place. ``threads``: None for one a core. ``max_shard_size`` in bytes,
    0: one file. ``strict``: no dtype but the recipe's own. ``importance``, ``overrides``, ``target_bits`` and ``target_size`` are
    for the recipe (`modelhub.declared.RecipeOptions`). ``set``: keys of the metadata to set, or (None) to remove. ``in_place``:
    the output takes the place of its source. ``combine``: what is put on the source first (`modelhub.combine.Part`)."""

    force: bool = False
    threads: int | None = None
    max_shard_size: int = 0
    verify: bool = True
    skip_unsupported: bool = False
    strict: bool = False
    importance: str = ""
    overrides: Sequence[Sequence[str]] = ()
    target_bits: float = 0.0
    target_size: int = 0
    set: Mapping[str, str | None] = field(default_factory=dict)
    in_place: bool = False
    combine: Sequence[Sequence[Any]] = ()
    extra: Mapping[str, str] = field(default_factory=dict)

    def shaping(self) -> dict[str, Any]:
        """What of it shapes an output's content: two outputs of the same content that agree in this are the same work."""
        found: dict[str, Any] = {"max_shard_size": self.max_shard_size}
        for name in ("skip_unsupported", "importance", "target_bits", "target_size"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        if self.overrides:
            found["overrides"] = [list(pair) for pair in self.overrides]
        if self.combine:
            found["combine"] = [[kind, printable(path), scale] for kind, path, scale in self.combine]
        if self.set:
            found["set"] = dict(self.set)
        return {**found, **self.extra}


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion, decided. ``table``: the output's tensors (dtypes as stored there), each with the expression that yields it.
    ``size``: bytes the output's tensors will take; ``free``: bytes free where it goes. ``losses``: what the output cannot say,
    in words. ``fallbacks``: tensors that get another dtype than the recipe is named for -> why. ``parts``: the models that are
    put on the source (`modelhub.combine`)."""

    source: Model
    format: Format
    recipe: Recipe | None
    output: str
    table: Table
    route: tuple[str, ...]
    size: int
    free: int
    losses: tuple[str, ...]
    options: ConvertOptions
    program: Program | None = None
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Model, ...] = ()

    @property
    def memory(self) -> int | None:
        """Bytes that the program may take, by its own estimate; None where the engine works, whose memory does not depend on the
        model."""
        estimate = self.program.memory_estimate if self.program else None
        return estimate(self.source.table()) if estimate else None

    @property
    def parameters(self) -> int:
        """Elements of the output's tensors."""
        return sum(prod(tensor.shape) for tensor in self.table.tensors)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that the output takes for each of them."""
        return self.size * 8 / self.parameters if self.parameters else None

    @property
    def directory(self) -> str:
        """The directory that the output's name will stand in."""
        return os.path.dirname(self.output) or "."

    @property
    def changed(self) -> Mapping[str, tuple[str, str]]:
        """Tensors that are encoded anew: name -> (dtype of what they are made of, their own)."""
        return {
            tensor.name: (tensor.value.args["source"], tensor.dtype)
            for tensor in self.table.tensors
            if isinstance(tensor.value, Node) and tensor.value.op == "cast"
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "source": printable(self.source.absolute_path),
            "output": printable(self.output),
            "format": self.format.name,
            "recipe": self.recipe.name if self.recipe else None,
            "route": list(self.route),
            "size": self.size,
            "free": self.free,
            "bits_per_weight": self.bits_per_weight,
            **({"combined": [list(part) for part in self.options.shaping()["combine"]]} if self.parts else {}),
            "losses": list(self.losses),
            "fallbacks": dict(self.fallbacks),
            **({"program": self.program.name, "memory": self.memory} if self.program else {}),
            "tensors": [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "nbytes": tensor_nbytes(t), "from": _origin(t)}
                for t in self.table.tensors
            ],
        }


def _origin(tensor: Tensor) -> Any:
    return None if tensor.value is None else ops.to_json(tensor.value)


def make_plan(
    model: Model, to: str, output: str | None, options: ConvertOptions, plugins: Plugins, parts: Sequence[Model] = ()
) -> Plan:
    """Decide a conversion. ``parts``: the models that ``options.combine`` names, in its order. Raises UsageError for a target
    that does not exist, ConversionError for one that cannot be reached."""
    if model.state in ("invalid", "unsupported", "incomplete", "missing", "offline", "quarantined"):
        hint = "`modelhub verify` says more" if model.state == "invalid" else ""
        why = f": {model.reason}" if model.reason else ""
        raise ConversionError(f"{model.name} cannot be converted: it is {model.state}{why}", hint)
    put = list(zip((Part(*part) for part in options.combine), parts, strict=True))
    merged = combined(model, put, plugins) if put else None
    target, recipe = parse_target(to, plugins)
    source, names = merged or (model.table(), model.format)
    if not source.tensors:
        raise ConversionError(f"{model.name} has no tensors to convert", "`modelhub show` lists what was read of it")
    losses = list(source.notes)
    carried = names != model.format
    edge = edge_of((names, "") if carried else (model.format, model.container), target, recipe, plugins)
    route = (model.format, *([names] if carried and names != target.name else []), target.name)
    program = edge if isinstance(edge, Program) else None
    if program and put:
        raise UsageError(
            f"{program.name} runs on files, and what is merged has none yet", "--to huggingface first, then convert that"
        )
    _check_options(program, target, options)
    if isinstance(edge, Conversion):
        given = {key: text for key, text in options.set.items() if text is not None}
        derived = edge.derive([source], {**options.extra, **given})
        losses += derived.notes
    elif carried and names == target.name:
        derived = source
    else:
        derived = _carry(model, source, target)
        losses += _names_kept(model, target, plugins)
    fallbacks: Mapping[str, str] = {}
    if program is None:
        asked = recipe_options(options.importance, options.overrides, options.target_bits, options.target_size)
        if recipe and recipe.derive:
            before, derived = derived, recipe.derive(derived, asked)
            losses += derived.notes[len(before.notes) :]
        assigned = assign(
            derived,
            target,
            None if recipe and recipe.derive else recipe,
            asked,
            strict=options.strict,
            skip_unsupported=options.skip_unsupported,
            others=[one for one in plugins.recipes if not one.formats or target.name in one.formats],
        )
        losses += assigned.losses
        fallbacks = assigned.fallbacks
        derived = _edit(_tie(assigned.table, target, losses), target, options.set)
    if program is None:  # a program has its own way with what is stored
        losses += [finding.message for finding in model.findings if finding.severity == "warning" and finding.tensor]
        _note_losses(source, derived, losses)
    path = model.file_paths[0] if options.in_place else _place(model, target, recipe, output, put[0][0].kind if put else "")
    size = sum(tensor_nbytes(tensor) for tensor in _unique(derived, target))
    check_suffix(path, target, plugins)
    if options.in_place:
        _check_in_place(model, target, recipe, output, options.set)
    else:
        _check_place(path, (model, *parts), target, options)
    if program is None:
        _ask_writer(derived, target, path, options)
    free = free_space(os.path.dirname(path))
    return Plan(model, target, recipe, path, derived, route, size, free, tuple(losses), options, program, fallbacks, tuple(parts))


def _check_options(program: Program | None, target: Format, options: ConvertOptions) -> None:
    """Refuse what would be ignored: options of programs where there is none, and what this program does not take."""
    if program is None:
        given = [name for name in PROGRAM_OPTIONS if name in options.extra]
        if given:
            raise UsageError(f"--{given[0]} is for conversions that run a program; this one is a copy of tensors")
        return
    missing = [module for module in program.requires if find_spec(module) is None]
    if missing:
        hint = install_hint(program.extra) if program.extra else f"pip install {' '.join(missing)}"
        raise MissingCapability(f"{program.name} needs {', '.join(missing)}", hint)
    strange = sorted(set(options.extra) - set(program.options))
    if strange:
        takes = ", ".join(f"--{name}" for name in program.options)
        raise UsageError(f"{program.name} takes no --{strange[0]}", f"it takes {takes}" if takes else "")
    if (
        options.set
        or recipe_options(options.importance, options.overrides, options.target_bits, options.target_size) != RecipeOptions()
    ):
        raise UsageError(f"{program.name} makes {target.name} as it does: it takes no options of recipes, and no --set")


def _carry(model: Model, source: Table, target: Format) -> Table:
    """A plain copy: the logical tensors and the container's free metadata; what describes a format stays with it."""
    same = model.format == target.name
    metadata = Metadata(
        values=source.metadata.values, stored=source.metadata.stored, container=source.metadata.container if same else ""
    )
    return Table(source.logical, metadata, source.files, source.documents)


def _names_kept(model: Model, target: Format, plugins: Plugins) -> list[str]:
    """A word where others are converted to ``target``, and this is copied name by name: whoever left out a config.json should
    know."""
    edges = [edge for edge in plugins.conversions if isinstance(edge, Conversion) and not edge.keeps_names]
    converted = any(edge.target == target.name for edge in edges)
    if not converted or not target.extension or target.name in (model.format, model.container):
        return []
    return [f"copied as they are, tensors under their names in {model.format}: {model.format} does not say which model they make"]


def _edit(table: Table, target: Format, changes: Mapping[str, str | None]) -> Table:
    """The table with keys of its metadata set or removed, as its format knows them."""
    if not changes:
        return table
    try:
        if target.edit:
            return replace(table, metadata=target.edit(table.metadata, changes))
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error
    stored = dict(table.metadata.stored)
    for key, text in changes.items():
        if text is None:
            stored.pop(key, None)
        else:
            stored[key] = text
    return replace(table, metadata=replace(table.metadata, stored=stored))


def _tie(table: Table, target: Format, losses: list[str]) -> Table:
    """Where the target cannot share bytes, a tie is stored once and noted in the metadata, as name -> name of the one kept."""
    ties = table.ties
    if not ties or target.sharing != "none":
        return table
    for name, kept in ties.items():
        losses.append(f"{name} shares the bytes of {kept}: stored once, noted in the metadata")
    stored = {**table.metadata.stored, **ties}
    tensors = tuple(tensor for tensor in table.tensors if tensor.name not in ties)
    return replace(table, tensors=tensors, metadata=replace(table.metadata, stored=stored))


def _note_losses(source: Table, derived: Table, losses: list[str]) -> None:
    wholes = [tensor for tensor in source.logical if tensor.view == "logical" and isinstance(tensor.value, Node)]
    used = {leaf for tensor in wholes for leaf in ops.leaves(tensor.value)}
    aside = [tensor for tensor in source.stored if tensor.view == "stored"]
    parts = [tensor for tensor in aside if used.intersection(ops.leaves(tensor.value))]
    if parts:
        first, more = wholes[0], f" and {len(wholes) - 1} more" if len(wholes) > 1 else ""
        losses.append(f"dequantized to {first.dtype}: {first.name}{more}")
    known = {tensor.name for tensor in parts} | set(source.by_name) | {tensor.name for tensor in derived.tensors}
    names = [tensor.name for tensor in aside if tensor.name not in known]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        losses.append(f"not part of the model, left behind: {', '.join(names[:3])}{more}")


def _unique(table: Table, target: Format) -> list[Tensor]:
    ties = table.ties if target.sharing != "none" else {}
    return [tensor for tensor in table.tensors if tensor.name not in ties]


# --- the place ----------------------------------------------------------------------------------------------------


def _place(model: Model, target: Format, recipe: Recipe | None, output: str | None, put: str) -> str:
    """Where the output goes: ``-o``, a default name in the directory that ``-o`` is, or a default name beside the source.
    ``put``: the kind of what is put on the source, "" where nothing is."""
    source = model.absolute_path.rstrip("/")
    directory = os.path.isdir(source)
    if put:
        stem = f"{default_stem(model.name, source, directory=directory)}-{'delta' if put == MINUS else 'merged'}"
        name = default_name(stem, source, target, recipe, directory=directory, beside=False)
    else:
        name = default_name(model.name, source, target, recipe, directory=directory, beside=output is None)
    if output is None:
        return os.path.join(os.path.dirname(os.path.abspath(source)), name)
    if not output:
        raise UsageError("-o names no place: it is empty", "-o PATH, or without it beside the source")
    if target.extension and (output.endswith("/") or os.path.isdir(output)):
        return os.path.join(os.path.abspath(output), name)
    return os.path.abspath(output)


def default_stem(name: str, source: str, *, directory: bool) -> str:
    """What an output is called after: the last part of the model's ``name``, else its file's or directory's stem."""
    base = os.path.basename(source)
    last = name.rsplit("/", 1)[-1]
    return last if last not in ("", ".", "..") else base if directory else os.path.splitext(base)[0]


def default_name(name: str, source: str, target: Format, recipe: Recipe | None, *, directory: bool, beside: bool) -> str:
    """How an output is called where nobody says: ``NAME[.RECIPE].EXT``. ``source``: the absolute path of the model, which is a
    ``directory`` or not; ``beside``: it may come to stand beside its source, whose name it must not take."""
    stem = default_stem(name, source, directory=directory) + (f".{recipe.name}" if recipe else "")
    return f"{stem}-{target.name}" if beside and directory and not target.extension and not recipe else stem + target.extension


def _ask_writer(table: Table, target: Format, path: str, options: ConvertOptions) -> None:
    """Have the writer lay out its first piece: what it refuses is refused before anything is written, and by a dry run too."""
    assert target.create is not None
    writer = target.create(table, WriteOptions(os.path.basename(path), options.max_shard_size, options.extra))
    try:
        next(writer, None)
    finally:
        writer.close()


def check_suffix(path: str, target: Format, plugins: Plugins) -> None:
    """UsageError where an output's name does not say its format: one that says another would be read back, by us and by others,
    as what it says."""
    name = os.path.basename(path)
    if not target.extension or name.lower().endswith((target.extension, *target.suffixes)):
        return
    suffix = os.path.splitext(name)[1].lower()
    others = [format.name for format in plugins.formats.values() if suffix and suffix in (format.extension, *format.suffixes)]
    says = f"is a name for {others[0]}" if others else f"is no name for {target.name}"
    raise UsageError(f"{name} {says}, and {target.name} is asked for", f"call it {os.path.splitext(name)[0]}{target.extension}")


def _check_place(path: str, models: Sequence[Model], target: Format, options: ConvertOptions) -> None:
    """Refuse an output that is a source of its own, that is there already, or whose directory cannot be written."""
    real = os.path.realpath(path)
    sources = {os.path.realpath(file) for model in models for file in (*model.file_paths, model.absolute_path)}
    if real in sources or any(real.startswith(file + "/") or file.startswith(real + "/") for file in sources):
        raise ConversionError(f"{path} is the source itself, or holds it", "-o PATH names another place")
    if any(os.path.exists(path) and os.path.samefile(path, file) for file in sources if os.path.exists(file)):
        raise ConversionError(f"{path} is a link to the source", "-o PATH names another place")
    if os.path.lexists(path) and not options.force and (target.extension or not is_empty_directory(path)):
        raise OutputExists(f"{path} is there already", "--force replaces it, -o PATH names another place")
    if os.path.isdir(path) and target.extension:
        raise ConversionError(f"{path} is a directory", "-o PATH names another place")
    if (length := len(os.fsencode(os.path.basename(path)))) > MAX_NAME:
        raise ConversionError(f"the output's name is {length} bytes long, a name has {MAX_NAME} at most", "-o PATH names another")
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        if os.path.lexists(parent):
            raise ConversionError(f"{parent} is no directory", "-o PATH names another place")
        parent = os.path.dirname(parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), parent)
        raise ConversionError(f"{parent} cannot be written to", "name another place with -o PATH") from refused


def _check_in_place(
    model: Model, target: Format, recipe: Recipe | None, output: str | None, changes: Mapping[str, str | None]
) -> None:
    """Only what the metadata says may change in place: the weights that are there are all there is."""
    if output is not None or not changes:
        raise UsageError("--in-place goes with --set or --unset, and not with -o")
    if model.format != target.name or recipe is not None or len(model.file_paths) != 1:
        raise UsageError(
            "--in-place changes the metadata of one file, and nothing else", f"without it, a {target.name} of its own is made"
        )
    if not os.access(os.path.dirname(model.file_paths[0]) or ".", os.W_OK | os.X_OK):
        raise ConversionError(f"{os.path.dirname(model.file_paths[0])} cannot be written to", "-o PATH makes a changed copy")


def free_space(directory: str) -> int:
    """Bytes free for us in ``directory``, or in what will hold it."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    info = os.statvfs(directory)
    return info.f_bavail * info.f_frsize

"""What people may ask for: ``FORMAT[:RECIPE]``, and which of the declared conversions leads there.

Formats without a writer are targets where a program makes them, and then the program's name is a recipe of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelhub.declared import Conversion, Format, Program, Recipe
from modelhub.errors import ConversionError, MissingCapability, UsageError
from modelhub.plugins import Plugins
from modelhub.table import Table


def targets(plugins: Plugins) -> list[Format]:
    """The formats that can be written, or made by a program."""
    made = {edge.target for edge in plugins.conversions}
    return [format for format in plugins.formats.values() if format.create or format.name in made]


def recipes_of(target: Format, plugins: Plugins) -> dict[str, Recipe]:
    """The recipes of a target, its programs' included: those for any format, where there is a writer, and those of its own, which
    come before others of their name."""
    general = {recipe.name: recipe for recipe in plugins.recipes if not recipe.formats and target.create}
    return general | {recipe.name: recipe for recipe in plugins.recipes if target.name in recipe.formats}


def parse_target(to: str, plugins: Plugins) -> tuple[Format, Recipe | None]:
    """``FORMAT[:RECIPE]``. UsageError names what there is."""
    name, _, recipe_name = to.partition(":")
    target = plugins.formats.get(name.lower())
    if target is None:
        known = ", ".join(sorted(format.name for format in targets(plugins)))
        raise UsageError(f"there is no format called {name!r}", f"formats that can be written: {known}")
    if target.create is None and not any(edge.target == target.name for edge in plugins.conversions):
        missing = target.unavailable.get("create", "")
        if missing:
            raise MissingCapability(f"{target.title} cannot be written here", missing)
        raise UsageError(f"{target.title} can be read, not written")
    if not recipe_name:
        return target, None
    recipes = recipes_of(target, plugins)
    recipe = recipes.get(recipe_name.lower())
    if recipe is None:
        raise UsageError(f"{target.name} has no recipe called {recipe_name!r}", f"it has: {', '.join(sorted(recipes))}")
    return target, recipe


def format_with(recipe: str, preferred: Sequence[str], plugins: Plugins, *, output: str | None = None) -> str:
    """The format that ``recipe`` is for: the one that ``output`` is named for, the first of ``preferred`` that has it, else the
    first of all. UsageError where there is no such recipe, or no format that can be written has it."""
    if not any(item.name == recipe for item in plugins.recipes):
        known = ", ".join(sorted({item.name for item in plugins.recipes}))
        raise UsageError(f"there is no recipe called {recipe!r}", f"there are: {known}")
    fitting = [format.name for format in targets(plugins) if recipe in recipes_of(format, plugins)]
    if not fitting:
        raise UsageError(f"no format that can be written has the recipe {recipe!r}", "'modelhub plugins' lists them")
    if output:
        for name in fitting:
            extension = plugins.formats[name].extension
            if extension and output.endswith(extension):
                return name
    return next((name for name in preferred if name in fitting), fitting[0])


def edge_of(source: Sequence[str], target: Format, recipe: Recipe | None, plugins: Plugins) -> Conversion | Program | None:
    """The declared conversion from a format (or the container in it) to ``target``, derived ones first; None: a plain copy of
    tensors. A program that is named by a recipe is taken for that recipe alone. UsageError where nothing leads there."""
    edges = [edge for edge in plugins.conversions if edge.target == target.name]
    named = [edge for edge in edges if isinstance(edge, Program) and edge.recipe]
    wanted = [edge for edge in named if recipe and edge.recipe == recipe.name]
    found = next((edge for edge in wanted if edge.source in source), None)
    if found:
        return found
    if recipe and wanted:
        sources = sorted({edge.source for edge in wanted})
        raise UsageError(
            f"{target.name}:{recipe.name} is made of {', '.join(sources)}, this is {source[0]}", f"--to {sources[0]} comes first"
        )
    fitting = [edge for edge in edges if edge not in named and edge.source in source]
    edge = min(fitting, key=lambda edge: isinstance(edge, Program), default=None) or _over_another(source, target, plugins)
    if isinstance(edge, Program) and recipe:
        raise UsageError(f"{edge.name} makes {target.name} as it does: it takes no recipe", f"--to {target.name}")
    if edge is None and target.create is None:
        ways = sorted({f"{each.source} to {target.name}{_recipe(each)}" for each in edges})
        raise ConversionError(f"{source[0]} cannot be made into {target.name}", f"what can: {', '.join(ways)}")
    return edge


def _over_another(source: Sequence[str], target: Format, plugins: Plugins) -> Conversion | None:
    """Two derived conversions as one, where nothing leads there directly. A table is derived from a table: still no weights are
    read, and nothing is written in between."""
    if any(edge.source in source for edge in plugins.combinations):
        return None  # what an adapter becomes is an adapter still, whatever else is in that format
    derived = [edge for edge in plugins.conversions if isinstance(edge, Conversion)]
    for first in derived:
        for second in derived:
            ends = first.source in source and first.target == second.source and second.target == target.name
            if ends and target.name not in source and first.target not in source:
                return _chained(first, second)
    return None


def _chained(first: Conversion, second: Conversion) -> Conversion:
    def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
        between = first.derive(sources, options)
        derived = second.derive([between], options)
        return replace(derived, notes=(*between.notes, *derived.notes))

    return Conversion(name=f"{first.name}, {second.name}", source=first.source, target=second.target, derive=derive)


def _recipe(edge: Conversion | Program) -> str:
    return f":{edge.recipe}" if isinstance(edge, Program) and edge.recipe else ""

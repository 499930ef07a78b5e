"""Recipes: which ggml type each tensor of a GGUF file gets. The mixtures of llama.cpp, and one that measures (`auto`)."""

from __future__ import annotations

from functools import partial

from modelhub import Assignment, Probe, Recipe, RecipeOptions, Table

from modelhub_gguf.recipes.file_types import ALIASES, MIXTURES


def _assign(name: str, table: Table, options: RecipeOptions) -> Assignment:
    from modelhub_gguf.recipes.assign import assign_mixture

    return assign_mixture(MIXTURES[name], table, options)


def _measure(table: Table, options: RecipeOptions, probe: Probe) -> Assignment:
    from modelhub_gguf.recipes.auto import measure_auto

    return measure_auto(table, options, probe)


def _mixture(name: str, mixture: str, title: str) -> Recipe:
    return Recipe(name=name, title=title, formats=("gguf",), assign=partial(_assign, mixture))


RECIPES: tuple[Recipe, ...] = (
    *(_mixture(mixture.name, mixture.name, mixture.title) for mixture in MIXTURES.values()),
    *(_mixture(name, mixture, f"The same as {mixture}") for name, mixture in ALIASES.items()),
    Recipe(name="auto", title="The types that lose least in a file of the size you name", formats=("gguf",), measure=_measure),
)

"""Recipes: which ggml type each tensor of a GGUF file gets. The mixtures of llama.cpp, and one that measures (`auto`)."""

from __future__ import annotations

from functools import partial

from modelhub import Assignment, Recipe, RecipeOptions, Table

from modelhub_gguf.recipes.file_types import ALIASES, MIXTURES


def _assign(name: str, table: Table, options: RecipeOptions) -> Assignment:
    from modelhub_gguf.recipes.assign import assign_mixture

    return assign_mixture(MIXTURES[name], table, options)


def _mixture(name: str, mixture: str, title: str) -> Recipe:
    return Recipe(name=name, title=title, formats=("gguf",), assign=partial(_assign, mixture))


RECIPES: tuple[Recipe, ...] = (
    *(_mixture(mixture.name, mixture.name, mixture.title) for mixture in MIXTURES.values()),
    *(_mixture(name, mixture, f"The same as {mixture}") for name, mixture in ALIASES.items()),
)

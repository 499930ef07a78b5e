"""The names that plugins import: what a type checker sees, what a program gets, and what is listed are the same."""

from __future__ import annotations

import ast
from pathlib import Path

import modelhub
import pytest


def checked_imports() -> dict[str, str]:
    """Name -> module, from the imports that only type checkers follow."""
    tree = ast.parse(Path(modelhub.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: (node.module or "").removeprefix("modelhub").lstrip(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_lists_of_public_names_agree() -> None:
    seen = checked_imports()
    modules = {name for name, module in seen.items() if not module}
    assert {name: module for name, module in seen.items() if module} == modelhub._PUBLIC
    assert sorted(modelhub.__all__) == sorted([*modelhub._PUBLIC, *modules])


@pytest.mark.parametrize("name", modelhub.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    doc = getattr(modelhub, name).__doc__ or ""
    assert doc
    assert not doc.startswith(f"{name}("), f"{name} has no docstring of its own"

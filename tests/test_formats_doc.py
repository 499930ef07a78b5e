"""The table of formats in the documentation says what the installed plugins declare, no less and no more."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from modelhub import Format, plugins
from modelhub.declared import Conversion, Program

from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "formats.md"
COLUMNS = ("format", "identify", "show", "read", "write", "convert to", "quantize", "verify", "run")
LEVELS = ("structure", "safety", "digest", "values")


def rows() -> dict[str, dict[str, str]]:
    """Format -> column -> cell, of the page's first table. No format stands there twice."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = cells.index(list(COLUMNS))
    found = {}
    for line in cells[header + 2 :]:
        if len(line) != len(COLUMNS):
            break
        assert line[0].strip("`") not in found, f"{line[0]} has two rows"
        found[line[0].strip("`")] = dict(zip(COLUMNS, line, strict=True))
    return found


def declared(format: Format) -> dict[str, str]:
    """The row of a format, from the records alone."""
    loaded = plugins.get()
    targets = sorted({_target(edge) for edge in loaded.conversions if edge.source == format.name and _target(edge)})
    if format.read and format.tensors:
        targets.append("any that is written")
    made = {edge.recipe for edge in edges_between(format.name, format.name)}
    # A recipe of a format that modelhub lays out is the core's to apply; of another, some program's.
    recipes = sorted(
        {item.name for item in loaded.recipes if format.name in item.formats and (format.create or item.name in made)}
    )
    shown = [f"`{name}`" for name in recipes] if len(recipes) <= 8 else [f"{len(recipes)} recipes"]
    if format.create:
        shown.append("plain dtypes")
    levels = {check.level for check in loaded.checks if format.name in check.formats}
    return {
        "format": f"`{format.name}`",
        "identify": _yes(format.detect or format.detect_directory),
        "show": _yes(format.read),
        "read": _yes(format.read and format.tensors),
        "write": _yes(format.create),
        "convert to": ", ".join(targets) or "-",
        "quantize": ", ".join(shown) or "-",
        "verify": ", ".join(level for level in LEVELS if level in levels) or "-",
        "run": _yes("runnable" in levels),
    }


def edges_between(source: str, target: str) -> list[Program]:
    """Programs that take a recipe."""
    return [
        edge
        for edge in plugins.get().conversions
        if isinstance(edge, Program) and edge.recipe and (edge.source, edge.target) == (source, target)
    ]


def _target(edge: Conversion | Program) -> str:
    """Where an edge leads, with the recipes that it takes on the way; "" for one that stays in its format, which the column
    of recipes has."""
    recipes = ", ".join(f"`{name}`" for name in sorted(other.recipe for other in edges_between(edge.source, edge.target)))
    if isinstance(edge, Program) and edge.recipe:
        plain = any(
            (other.source, other.target) == (edge.source, edge.target) and not getattr(other, "recipe", "")
            for other in plugins.get().conversions
        )
        return "" if plain or edge.source == edge.target else f"{edge.target} ({recipes})"
    return f"{edge.target} (also {recipes})" if recipes else edge.target


def _yes(value: object) -> str:
    return "yes" if value else "-"


def as_line(row: Mapping[str, str]) -> str:
    return "| " + " | ".join(row[column] for column in COLUMNS) + " |"


@pytest.mark.parametrize("name", sorted(plugins.get().formats))
def test_every_format_has_its_row(name: str) -> None:
    wanted = declared(plugins.get().formats[name])
    found = rows().get(name)
    assert found == wanted, f"docs/formats.md should have this row:\n{as_line(wanted)}"


def test_no_row_is_of_a_format_that_is_not_there() -> None:
    assert set(rows()) <= set(plugins.get().formats)

"""The table of formats in the documentation says what the installed plugins declare, no less and no more."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from modelhub import Format, plugins
from modelhub.declared import Program

from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "formats.md"
COLUMNS = ("format", "identify", "show", "read", "write", "convert to", "quantize", "verify", "run")
DEFAULT_LEVELS = ("structure", "safety", "runnable")


def rows() -> dict[str, dict[str, str]]:
    """Format -> column -> cell, of the page's first table."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = cells.index(list(COLUMNS))
    found = {}
    for line in cells[header + 2 :]:
        if len(line) != len(COLUMNS):
            break
        found[line[0].strip("`")] = dict(zip(COLUMNS, line, strict=True))
    return found


def declared(format: Format) -> dict[str, str]:
    """The row of a format, from the records alone."""
    loaded = plugins.get()
    edges = [edge for edge in loaded.conversions if edge.source == format.name]
    targets = sorted({edge.target for edge in edges if not (isinstance(edge, Program) and edge.recipe)})
    if format.read:
        targets.append("any that is written")
    recipes = sorted({recipe.name for recipe in loaded.recipes if format.name in recipe.formats})
    shown = [f"`{name}`" for name in recipes] if len(recipes) <= 8 else [f"{len(recipes)} recipes"]
    if format.create:
        shown.append("plain dtypes")
    levels = {check.level for check in loaded.checks if format.name in check.formats}
    return {
        "format": f"`{format.name}`",
        "identify": _yes(format.detect or format.detect_directory),
        "show": _yes(format.read),
        "read": _yes(format.read),
        "write": _yes(format.create),
        "convert to": ", ".join(targets) or "-",
        "quantize": ", ".join(shown) or "-",
        "verify": ", ".join(level for level in DEFAULT_LEVELS[:2] if level in levels) or "-",
        "run": _yes("runnable" in levels),
    }


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

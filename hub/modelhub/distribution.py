"""What modelhub is called where it is installed: its distribution's name and version, and the line that installs an extra."""

from __future__ import annotations

from functools import cache


@cache
def _installed() -> tuple[str, str]:
    from importlib.metadata import entry_points

    for entry in entry_points(group="console_scripts", name="modelhub"):
        if entry.value.startswith("modelhub.") and entry.dist is not None:
            return entry.dist.name, entry.dist.version
    return "modelhub-registry", "unknown"  # run from a source tree that was never installed


def name() -> str:
    """The distribution's name, as pip knows it."""
    return _installed()[0]


def version() -> str:
    """The installed version."""
    return _installed()[1]


def install_hint(extra: str) -> str:
    """The command that brings what ``extra`` stands for."""
    return f"pip install '{name()}[{extra}]'"

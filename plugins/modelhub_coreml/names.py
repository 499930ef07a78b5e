"""Names that stand twice in a model."""

from __future__ import annotations


def unique(name: str, seen: set[str]) -> str:
    """``name``, or with a number behind it where it is among the ``seen``, to which it is added."""
    found, again = name, 1
    while found in seen:
        again += 1
        found = f"{name}#{again}"
    seen.add(found)
    return found

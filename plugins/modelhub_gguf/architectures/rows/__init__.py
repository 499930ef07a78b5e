"""The table: one row an architecture, in a module for each kin. What is listed in ``MODULES`` counts; there is no other list."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from modelhub_gguf.architectures.records import Architecture

MODULES = (
    "llama", "qwen", "gpt2", "bert", "gemma", "phi", "gptneox", "stablelm", "starcoder", "smollm", "granite", "glm",
    "falcon", "olmo", "cohere", "deepseek", "roberta", "bloom", "mpt", "internlm", "nomic",
)  # fmt: skip
"""Each has ``ROWS``, a tuple of `Architecture`."""


@cache
def rows() -> tuple[Architecture, ...]:
    return tuple(row for name in MODULES for row in import_module(f"{__name__}.{name}").ROWS)


@cache
def by_class() -> Mapping[str, tuple[Architecture, ...]]:
    """Rows by the names of Hugging Face's classes; the first that applies to a configuration is meant."""
    found: dict[str, tuple[Architecture, ...]] = {}
    for row in rows():
        for name in row.hf:
            found[name] = (*found.get(name, ()), row)
    return found


@cache
def by_name() -> Mapping[str, Architecture]:
    """Rows by GGUF's name; the first where several have one."""
    found: dict[str, Architecture] = {}
    for row in rows():
        found.setdefault(row.name, row)
    return found

"""Writes ``docs/reference.md`` from the code: hooks, records, the public helpers, formats, dtypes, ops, recipes, commands.

    python docs/generate_reference.py

``tests/hub/test_docs_plugins.py`` fails while the file is not what this would write.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import modelhub
from modelhub import dtypes, hookspecs, ops, plugins

REFERENCE = Path(__file__).resolve().parent / "reference.md"

RECORDS = {
    "What a reader yields": ("Tensor", "Columns", "Extent", "Inline", "Node", "Metadata", "Finding"),
    "What detection answers": ("Detection", "Rejected"),
    "What a writer yields": ("Put", "Placed", "Patch", "Tail", "StartFile", "CopyFile", "WriteOptions"),
    "What hooks yield": ("Format", "Codec", "Op", "Recipe", "Conversion", "Program", "Combination", "Check", "Event"),
    "What plugins are given": ("File", "Listing", "Checkpoint", "Table", "DType", "ZipMember", "ShardGroup"),
    "What goes wrong": ("ModelhubError", "FileProblem", "InvalidFile", "IncompleteFile", "UnsupportedFile", "MissingCapability"),
}
"""Sections of the records; public names that are in none of them are listed as helpers."""


def hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("modelhub_")]


def render() -> str:
    parts = [
        "# Reference",
        "Generated from the code by `python docs/generate_reference.py`: do not edit. How to use all this is in "
        "[plugins.md](plugins.md).",
        *_hooks(),
        *_records(),
        *_helpers(),
        *_formats(),
        *_dtypes(),
        *_ops(),
        *_commands(),
    ]
    return "\n\n".join(parts) + "\n"


def _hooks() -> Iterator[str]:
    yield "## Hooks"
    for name in hook_names():
        function = getattr(hookspecs, name)
        yield f"### {name}"
        yield f"    {name}{_signature(function)}"
        text, _, example = _doc(function).partition("Example::\n\n")
        yield _prose(text)
        yield f"```python\n{inspect.cleandoc(example)}\n```"


def _records() -> Iterator[str]:
    yield "## Records"
    yield "All are imported from `modelhub`. Fields that have a default may be left out; the last ones were added last."
    for title, names in RECORDS.items():
        yield f"### {title}"
        for name in names:
            record = getattr(modelhub, name)
            yield f"#### {name}"
            yield _prose(_doc(record))
            rows = list(_fields(record))
            if rows:
                yield _table(("field", "type", "default"), rows)
            members = list(_members(record))
            if members and not rows:
                yield _table(("member", "what it does"), members)


def _helpers() -> Iterator[str]:
    yield "## Helpers"
    covered = {name for names in RECORDS.values() for name in names}
    rows = []
    for name in modelhub.__all__:
        if name in covered:
            continue
        thing = getattr(modelhub, name)
        text = "" if isinstance(thing, str) else _first(_doc(thing))
        call = _signature(thing) if inspect.isfunction(thing) else ""
        rows.append((f"`{name}{call}`", text))
    yield _table(("name", "what it does"), rows)


def _formats() -> Iterator[str]:
    loaded = plugins.get()
    yield "## Formats"
    rows = []
    for name, item in sorted(loaded.formats.items()):
        can = [what for what, there in (("read", item.read), ("write", item.create)) if there]
        rows.append((f"`{name}`", item.title, " ".join(f"`{suffix}`" for suffix in item.suffixes), ", ".join(can), item.sharing))
    yield _table(("format", "title", "suffixes", "can", "sharing"), rows)
    for name, item in sorted(loaded.formats.items()):
        yield f"`{name}` stores {', '.join(item.dtypes) or 'what its container stores'}."
    yield "## Recipes"
    recipes = sorted(loaded.recipes, key=lambda item: item.name)
    rows = [(f"`{item.name}`", item.title, ", ".join(item.formats) or "any") for item in recipes]
    yield _table(("recipe", "title", "formats"), rows)
    yield "## Checks"
    checks = sorted(loaded.checks, key=lambda item: item.name)
    rows = [(f"`{item.name}`", item.level, ", ".join(item.formats) or "any", item.extra) for item in checks]
    yield _table(("check", "level", "formats", "extra"), rows)


def _dtypes() -> Iterator[str]:
    loaded = plugins.get()
    yield "## Dtypes"
    rows = []
    for item in dtypes.all_dtypes():
        codec = loaded.codecs.get(item.name)
        values = "read, write" if codec and codec.encode else "read" if codec else "copied only"
        rows.append((f"`{item.name}`", item.kind, str(item.block), str(item.block_bytes), item.label, values))
    yield _table(("dtype", "kind", "elements a block", "bytes a block", "shown as", "values"), rows)


def _ops() -> Iterator[str]:
    yield "## Ops"
    rows = []
    for item in sorted(ops.all_ops(), key=lambda item: item.name):
        builder = getattr(ops, item.name.split(".")[0], None)
        call = f"`ops.{item.name}{_signature(builder)}`" if inspect.isfunction(builder) and "." not in item.name else ""
        rows.append(
            (f"`{item.name}`", call, _first(_doc(builder)) if call else _first(_doc(item.rows)), "yes" if item.seekable else "no")
        )
    yield _table(("op", "built by", "what it is", "seekable"), rows)


def _commands() -> Iterator[str]:
    from click import Context
    from modelhub.cli.app import COMMANDS, Commands

    group = Commands(name="modelhub")
    yield "## Commands"
    for title, section in COMMANDS.items():
        yield f"### {title}"
        for name in section:
            command = group.get_command(Context(group), name)
            assert command
            context = Context(command, info_name=f"modelhub {name}", max_content_width=100, terminal_width=100)
            yield f"```\n{command.get_help(context)}\n```"


# --- rendering ----------------------------------------------------------------------------------------------------


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _prose(text: str) -> str:
    """reStructuredText marks as Markdown's; an indented block after ``::`` stays one."""
    return _marks(text.strip().replace("::\n\n", ":\n\n"))


def _marks(text: str) -> str:
    return text.replace("``", "`")


def _first(text: str) -> str:
    return " ".join(_marks(text.split("\n\n")[0]).split()).removesuffix("::")


def _signature(thing: Any) -> str:
    text = str(inspect.signature(thing)).replace("'", "")
    return text.replace("modelhub.types.", "").replace("modelhub.declared.", "")


def _fields(record: Any) -> Iterator[tuple[str, str, str]]:
    if is_dataclass(record):
        for item in fields(record):
            if item.name.startswith("_"):
                continue
            default = "" if item.default is MISSING and item.default_factory is MISSING else _default(item)
            yield f"`{item.name}`", f"`{_type(item.type)}`", default
    elif hasattr(record, "_fields"):
        for name in record._fields:
            default = f"`{record._field_defaults[name]!r}`" if name in record._field_defaults else ""
            yield f"`{name}`", f"`{_type(record.__annotations__[name])}`", default


def _default(item: Any) -> str:
    return f"`{item.default!r}`" if item.default is not MISSING else f"`{item.default_factory()!r}`"


def _type(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


def _members(record: Any) -> Iterator[tuple[str, str]]:
    for name, member in vars(record).items():
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        call = _signature(member).replace("(self, ", "(").replace("(self)", "()") if inspect.isfunction(member) else ""
        text = _first(_doc(member))
        if text:
            yield f"`{name}{call}`", text


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(tuple(head))}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    REFERENCE.write_text(render())
    sys.stdout.write(f"{REFERENCE} is up to date\n")

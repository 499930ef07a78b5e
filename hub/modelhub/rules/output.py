"""Where a rule's output goes: the template, and the path that it gives for a checkpoint. Looks at no file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from modelhub.errors import ConversionError, UsageError
from modelhub.model import printable
from modelhub.plan import default_name, default_stem

if TYPE_CHECKING:
    from modelhub.declared import Format, Recipe

FIELDS = {
    "root": "the root's absolute path",
    "dir": "the directory that the checkpoint lies in, relative to the root",
    "stem": "its file's or directory's name without a suffix",
    "name": "its name, which may be ORG/MODEL",
    "ext": "the suffix of the format that is written",
    "format": "the format that is written",
    "recipe": "the recipe that is applied",
    "id": "its id",
    "version": "the number of its content",
}
"""What a template may hold -> what stands there then."""

_CONTROL = re.compile("[\x00-\x1f\x7f/]")


class Place(NamedTuple):
    """What a path is made of: a checkpoint as the catalog has it. ``path`` is relative to ``root``; ``primary`` is that of its
    primary file, which lies in ``path`` where that is a directory."""

    root: str
    path: str
    primary: str
    name: str
    id: str
    version: int

    @property
    def absolute(self) -> str:
        return os.path.join(self.root, self.path) if self.path else self.root

    @property
    def is_directory(self) -> bool:
        return self.primary != self.path and (not self.path or self.primary.startswith(self.path + "/"))


@dataclass(frozen=True, slots=True)
class Template:
    """A text with fields. ``parts``: each literal text with the field after it, "" for none."""

    text: str
    parts: tuple[tuple[str, str], ...]

    @property
    def fields(self) -> set[str]:
        return {field for _, field in self.parts if field}

    def fill(self, values: dict[str, str]) -> str:
        return "".join(literal + (values[field] if field else "") for literal, field in self.parts)


def parse(text: str) -> Template:
    """The template that ``text`` is. UsageError, saying what is wrong, where it is none."""
    fields = ", ".join(f"{{{field}}}" for field in FIELDS)
    if not text.strip() or "\0" in text:
        raise UsageError("it is no path", f"like '{{root}}/.converted/{{dir}}/{{stem}}{{ext}}'; fields: {fields}")
    parts = []
    try:
        for literal, field, form, conversion in Formatter().parse(os.path.expanduser(text)):
            if field is not None and (form or conversion or field not in FIELDS):
                near = get_close_matches(field.lower(), FIELDS, 1)
                meant = f"did you mean {{{near[0]}}}? " if near and near[0] != field else ""
                raise UsageError(
                    f"there is no field {{{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}",
                    f"{meant}fields: {fields}",
                )
            parts.append((literal, field or ""))
    except ValueError as error:
        raise UsageError(
            f"its braces do not match ({error})", f"{{{{ and }}}} stand for braces themselves; fields: {fields}"
        ) from error
    return Template(text, tuple(parts))


def output_of(place: Place, target: Format, recipe: Recipe | None, template: Template | None) -> str:
    """The absolute path of what ``target`` and ``recipe`` make of a checkpoint: what the template gives, relative to its root;
    without one, a name beside the checkpoint. A template that ends with a slash names a directory, and the name in it is the
    usual one. See `check_output` for what is still wrong with it."""
    source = place.absolute.rstrip("/") or "/"
    directory = place.is_directory
    if template is None or template.text.endswith("/"):
        name = default_name(place.name, source, target, recipe, directory=directory, beside=template is None)
        folder = os.path.dirname(source) if template is None else template.fill(_values(place, target, recipe))
        path = os.path.join(place.root, folder, _component(name))
    else:
        path = os.path.join(place.root, template.fill(_values(place, target, recipe)))
    return os.path.normpath(path)


def check_output(place: Place, path: str) -> None:
    """ConversionError where the output of a checkpoint is the checkpoint itself, lies in it, or holds it."""
    source = place.absolute.rstrip("/") or "/"
    wrong = ""
    if path in (source, os.path.join(place.root, place.primary)):
        wrong = "is the checkpoint itself"
    elif place.is_directory and path.startswith(source.rstrip("/") + "/"):
        wrong = "lies in the checkpoint"
    elif source.startswith(path.rstrip("/") + "/"):
        wrong = "holds the checkpoint"
    if wrong:
        raise ConversionError(
            f"the output {printable(path)} {wrong}", "give the rule another output, like '{root}/.converted/{dir}/{stem}{ext}'"
        )


def _values(place: Place, target: Format, recipe: Recipe | None) -> dict[str, str]:
    return {
        "root": place.root,
        "dir": os.path.dirname(place.path),
        "stem": _component(default_stem(place.name, place.absolute, directory=place.is_directory)),
        "name": _name(place.name),
        "ext": target.extension,
        "format": target.name,
        "recipe": recipe.name if recipe else "",
        "id": place.id,
        "version": str(place.version),
    }


def _name(name: str) -> str:
    """A name as a path that cannot lead anywhere: one component, or two for ORG/MODEL."""
    parts = [part for part in name.split("/") if part]
    return "/".join(map(_component, parts)) if len(parts) == 2 else _component("_".join(parts))


def _component(text: str) -> str:
    text = _CONTROL.sub("_", text)
    return "_" * max(1, len(text)) if text in ("", ".", "..") else text

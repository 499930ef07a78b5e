"""``modelhub tag``: key=value tags and notes on a model."""

from __future__ import annotations

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, model_argument
from modelhub.errors import UsageError


@define(
    "tag",
    examples=[
        "modelhub tag llama@prod team=search licence=apache-2.0",
        "modelhub tag llama@prod team=                    # removes the tag",
        "modelhub tag llama@prod --note 'evaluated in May'",
        "modelhub ls --where tag.team=search",
    ],
)
@model_argument()
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--note", metavar="TEXT", help="Add a note.")
@click.option("--clear-notes", is_flag=True, help="Remove all notes first.")
@json_option
def command(model: str, tags: tuple[str, ...], note: str | None, clear_notes: bool, as_json: bool) -> int:
    """KEY= removes a tag. Without any, the model's tags are printed."""
    changes: dict[str, str | None] = {}
    for word in tags:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not KEY=VALUE", "KEY= removes a tag")
        changes[key] = value or None
    with Session() as session:
        found = session.known(model)
        if changes:
            session.catalog.set_tags(found, changes)
        if clear_notes:
            session.catalog.remove_notes(found)
        if note:
            session.catalog.add_note(found, note)
        if as_json:
            text.print_json({"id": found.id, "tags": session.catalog.tags(found), "notes": list(session.catalog.notes(found))})
        elif not (changes or note or clear_notes):
            for key, value in session.catalog.tags(found).items():
                text.line(f"{key}={value}")
            for line in session.catalog.notes(found):
                text.line(f"# {line}")
    return 0

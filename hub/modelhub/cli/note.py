"""``modelhub note``: what people have to say of a model, in their own words."""

from __future__ import annotations

import sys

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, model_argument
from modelhub.errors import UsageError


@define(
    "note",
    examples=[
        "modelhub note llama@prod 'evaluated in May: 0.81 on our set'",
        "modelhub note llama@prod",
        "modelhub note llama@prod --rm 2",
        "modelhub note llama@prod - < evaluation.txt",
        "modelhub ls --where 'note~evaluated'",
    ],
)
@model_argument()
@click.argument("note", metavar="[TEXT]", required=False)
@click.option("--rm", "remove", metavar="N", type=click.IntRange(min=1), multiple=True, help="Remove the note of this number.")
@json_option
def command(model: str, note: str | None, remove: tuple[int, ...], as_json: bool) -> int:
    """Adds TEXT (- reads it from stdin) to the notes on a MODEL. Without any, its notes are printed with their numbers. They stay
    with the model when it is moved, its drive is away, or its content is replaced."""
    if note == "-":
        note = sys.stdin.read()
    if note is not None and not note.strip():
        raise UsageError("a note needs some text", "modelhub note MODEL 'TEXT'")
    if note is not None and remove:
        raise UsageError("--rm removes notes, and TEXT adds one", "give one of them")
    with Session() as session:
        found = session.known(model) if note is not None else session.model(model)
        if note is not None:
            session.catalog.add_note(found, note.strip("\n"))
        if remove:
            session.catalog.remove_notes(found, remove)
        notes = session.catalog.numbered_notes(found)
        if as_json:
            text.print_json({"id": found.id, "notes": notes})
        elif note is None and not remove:
            for one in notes:
                first, *rest = one["text"].split("\n")
                text.line(f"{one['note']}  {one['created'][:10]}  {first}")
                for line in rest:
                    text.line(f"{'':{len(str(one['note']))}}              {line}")
    return 0

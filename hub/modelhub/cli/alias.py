"""``modelhub alias``: names that stick to a model's content; without arguments, their list."""

from __future__ import annotations

from typing import Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import ModelParameter, Session, json_option
from modelhub.errors import ModelNotFound, UsageError

COLUMNS = (
    text.Column("alias", "ALIAS", shrink=12),
    text.Column("id", "ID"),
    text.Column("name", "MODEL", shrink=12, middle=True),
    text.Column("version", "VERSION", align=">"),
    text.Column("note", "NOTE"),
)


@define("alias", examples=["modelhub alias llama@prod ./llama-3.gguf", "modelhub alias", "modelhub alias --remove llama@prod"])
@click.argument("name", metavar="[NAME[@LABEL]]", required=False)
@click.argument("model", metavar="[MODEL]", type=ModelParameter(), required=False)
@click.option("--remove", is_flag=True, help="Forget the alias NAME.")
@json_option
def command(name: str | None, model: str | None, remove: bool, as_json: bool) -> int:
    """An alias pins the content that MODEL has now; it is stale when that is replaced. Giving it again moves it. Without
    arguments the aliases are listed."""
    with Session() as session:
        if remove:
            if name is None or model is not None:
                raise UsageError("--remove takes the NAME of an alias and nothing else")
            if not session.catalog.remove_alias(name):
                raise ModelNotFound(f"there is no alias {name}", "'modelhub alias' lists them")
            return 0
        if name is not None and model is None:
            raise UsageError("an alias needs a MODEL", f"modelhub alias {name} MODEL")
        if name is not None and model is not None:
            session.catalog.set_alias(name, session.known(model))
        aliases = session.catalog.aliases()
        if as_json:
            text.print_json(aliases if name is None else next(alias for alias in aliases if alias["alias"] == name))
        elif name is None and aliases:
            text.table(
                [{**alias, "id": alias["id"][:8], "note": _note(alias)} for alias in aliases],
                COLUMNS,
            )
    return 0


def _note(alias: dict[str, Any]) -> str:
    if alias["why"] == "replaced":
        return f"stale: its content was replaced, version {alias['now']} stands there"
    return "stale: its content is missing" if alias["why"] == "missing" else ""

"""``modelhub import``: aliases, tags and notes from JSON."""

from __future__ import annotations

from typing import BinaryIO

import click

from modelhub.cli import text
from modelhub.cli.app import answer, define
from modelhub.cli.common import Session, json_option
from modelhub.errors import UsageError

LARGEST = 1 << 30


@define("import", examples=["modelhub import registry.json", "ssh other modelhub export | modelhub import -"])
@click.argument("file", type=click.File("rb"))
@json_option
def command(file: BinaryIO, as_json: bool) -> int:
    """Reads what 'modelhub export' wrote. Models are known again by id, else by digest, else by place; those that are not are
    named, and the status is 1."""
    import orjson

    name = file.name if isinstance(file.name, str) else "what came in"
    try:
        data = orjson.loads(file.read(LARGEST).decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is no text in UTF-8", "give it what 'modelhub export' wrote") from error
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{name} is not JSON: {error}", "give it what 'modelhub export' wrote") from error
    if not isinstance(data, dict):
        raise UsageError(f"{name} is no export of modelhub", "give it what 'modelhub export' wrote")
    with Session() as session:
        known, unknown = session.catalog.import_registry(data)
    answer.status = 1 if unknown else 0
    if as_json:
        text.print_json({"known": known, "unknown": unknown})
    else:
        text.line(f"{text.plural(known, 'model')} known again" + (f"; not here: {', '.join(unknown)}" if unknown else ""))
    return answer.status

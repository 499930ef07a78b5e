"""``modelhub export``: aliases, tags and notes as JSON."""

from __future__ import annotations

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option


@define("export", examples=["modelhub export > registry.json"])
@json_option
def command(as_json: bool) -> int:
    """What people wrote, with the id, digest and place of each model, so that 'modelhub import' knows it again elsewhere.
    Always JSON."""
    with Session() as session:
        text.print_json(session.catalog.export_registry())
    return 0

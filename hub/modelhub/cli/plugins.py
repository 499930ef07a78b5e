"""``modelhub plugins``: which plugins there are, what each brings, and what went wrong with it."""

from __future__ import annotations

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import json_option, quiet_option

COLUMNS = (
    text.Column("name", "NAME"),
    text.Column("version", "VERSION"),
    text.Column("status", "STATUS"),
    text.Column("formats", "FORMATS", shrink=12),
    text.Column("recipes", "RECIPES", shrink=12, drop=1),
    text.Column("hooks", "HOOKS", shrink=8, drop=2),
    text.Column("reason", "REASON", shrink=20),
)


@define("plugins", examples=["modelhub plugins", "MODELHUB_DISABLE=pytorch modelhub plugins --json"])
@json_option
@quiet_option("names")
def command(as_json: bool, quiet: bool) -> int:
    """A plugin that fails is listed with the reason, and the others go on. Names in $MODELHUB_DISABLE (separated by commas) are
    not even imported."""
    from modelhub import plugins

    reports = plugins.get().reports
    if as_json:
        text.print_json(
            [
                {
                    "name": report.name,
                    "version": report.version,
                    "status": report.status,
                    "reason": report.reason,
                    "formats": list(report.formats),
                    "recipes": list(report.recipes),
                    "hooks": list(report.hooks),
                }
                for report in reports
            ]
        )
    elif quiet:
        for report in reports:
            text.line(report.name)
    else:
        rows = [
            {
                "name": report.name,
                "version": report.version,
                "status": report.status,
                "formats": ", ".join(report.formats),
                "recipes": ", ".join(report.recipes),
                "hooks": ", ".join(hook.removeprefix("modelhub_") for hook in report.hooks),
                "reason": report.reason,
            }
            for report in reports
        ]
        text.table(rows, COLUMNS)
    return 0

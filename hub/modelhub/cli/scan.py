"""``modelhub scan``: index checkpoints now. Headers are read, weights are not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from modelhub import home
from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option
from modelhub.errors import UsageError

if TYPE_CHECKING:
    from modelhub.scan import ScanSummary

SHOWN = 5
"""Problems that are shown to people."""


@define("scan", examples=["modelhub scan /mnt/models", "modelhub scan", "modelhub scan ./model.safetensors --json"])
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(exists=True))
@json_option
def command(paths: tuple[str, ...], as_json: bool) -> int:
    """PATH, a directory or a file, becomes a root; without any, all roots are scanned again. Files that have not changed are
    not opened."""
    from modelhub.cli.progress import Progress
    from modelhub.scan import scan

    exclude = home.read_config().get("exclude", [])
    if not isinstance(exclude, list) or not all(isinstance(pattern, str) for pattern in exclude):
        raise UsageError(f"'exclude' in {home.config_path()} is not a list of texts", 'like exclude = ["*.tmp", "archive/**"]')
    with Session() as session, Progress("scanning", unit="files") as progress:

        def observe(kind: str, identity: str, path: str) -> None:
            from modelhub.declared import Event

            # Plugins are loaded here once something happened; parsing has its own processes.
            session.plugins.emit(Event(kind=kind, checkpoint=identity, path=path))  # type: ignore[arg-type]

        # No pool is given: one is made where something is to be parsed.
        summary = scan(session.catalog, paths, exclude=exclude, observer=observe, progress=progress.reach)
    for root in summary.offline:
        click.echo(f"modelhub: warning: {text.escape(root)} is offline: what was known of it is kept", err=True)
    for problem in summary.problems[:SHOWN]:
        click.echo(f"modelhub: warning: {text.escape(problem)}", err=True)
    if len(summary.problems) > SHOWN:
        click.echo(f"modelhub: warning: and {len(summary.problems) - SHOWN:,} more; --json has them all", err=True)
    if as_json:
        text.print_json(summary.to_json())
    else:
        _print(summary)
    return 0


def _print(summary: ScanSummary) -> None:
    """One line of figures; zeros are left out."""
    new = summary.found - summary.changed - summary.unchanged
    parts = [f"{new:,} new"] * bool(new) + [
        f"{number:,} {what}"
        for number, what in (
            (summary.changed, "changed"),
            (summary.unchanged, "unchanged"),
            (summary.missing, "missing"),
            (summary.invalid, "invalid"),
        )
        if number
    ]
    unknown = f"; {text.plural(summary.unknown, 'file')} of no known format" if summary.unknown else ""
    details = f" ({', '.join(parts)})" if parts else ""
    sys.stdout.write(
        text.style(text.plural(summary.found, "checkpoint"), text.BOLD)
        + text.escape(f"{details}, {text.size(summary.bytes)}, in {text.seconds(summary.seconds)}{unknown}")
        + "\n"
    )

"""``modelhub dupes``: the same weights in several places, whatever the container."""

from __future__ import annotations

import sys

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option

SHOWN = 3
"""Names of shared tensors that are shown to people; --json has them all."""


@define("dupes", examples=["modelhub dupes", "modelhub dupes --where 'size>1GB' --json"])
@click.option(
    "--where", "-w", "where", metavar="EXPR", multiple=True, help="Only among the models for which EXPR holds, as for ls."
)
@json_option
def command(where: tuple[str, ...], as_json: bool) -> int:
    """Weights are compared by the digests of their tensors, so a .bin and a .safetensors can be copies of each other. Constants
    and tiny tensors do not count, and neither do links. What was read once is remembered."""
    from modelhub.cli.progress import Progress
    from modelhub.dupes import find_dupes

    with Session() as session, Progress("reading") as progress:
        models = session.catalog.models("", where)
        groups, problems = find_dupes(session.catalog, models, lambda name, done, total: progress.reach(done, total, name))
    for problem in problems:
        click.echo(f"modelhub: warning: {text.escape(problem)}", err=True)
    if as_json:
        text.print_json([group.to_json() for group in groups])
        return 0
    for group in groups:
        title = {"file": "the same file", "weights": "the same weights", "some tensors": "some tensors in common"}[group.same]
        sys.stdout.write(text.style(title, text.BOLD) + f", {text.size(group.bytes_to_gain)} to gain\n")
        for copy in group.copies:
            of = "" if group.same == "file" else f", {text.plural(len(copy.tensors), 'tensor')}"
            text.line(f"  {copy.model.absolute_path}  ({copy.model.format}, {text.size(copy.model.size)}{of})")
        if group.same == "some tensors":
            names = group.copies[0].tensors
            text.line(f"    {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""))
    gain = sum(group.bytes_to_gain for group in groups if group.same != "some tensors")
    if not groups:
        text.line("nothing is there twice")
    elif len(groups) > 1:
        text.line(f"{text.plural(len(groups), 'group')}; whole copies take {text.size(gain)} more than they need")
    return 0

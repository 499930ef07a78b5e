"""``modelhub prune``: what may go, as a plan; and carrying out of it what was picked."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import ModelParameter, Session, json_option, warn
from modelhub.errors import UsageError

if TYPE_CHECKING:
    from modelhub.duplicates import DuplicatesPlan
    from modelhub.prune import MissingPlan, OrphansPlan, ScratchPlan

KINDS = ("scratch", "missing", "orphans", "duplicates")
SHOWN = 20
"""Lines of one kind that are shown to people; --json has them all."""
HARD = (
    "A hard link is one file with two names: what is written into one is in the other, and they share owner, mode and time. "
    "--link reflink keeps them two files, where the file system can."
)


@define(
    "prune",
    examples=[
        "modelhub prune",
        "modelhub prune scratch missing --older-than 90d --apply",
        "modelhub prune duplicates",
        "modelhub prune duplicates llama-copy --link hard --apply",
        "modelhub prune duplicates --all --apply",
    ],
)
@click.argument("words", metavar="[KIND]... [MODEL]...", nargs=-1, type=ModelParameter())
@click.option("--apply", is_flag=True, help="Do it. Without, the plan is printed and nothing changes.")
@click.option(
    "--older-than", metavar="TIME", default="30d", show_default=True, help="For how long missing, or how long ago a job ended."
)
@click.option("--with-notes", is_flag=True, help="Forget missing models with aliases, tags or notes, too.")
@click.option("--all", "everything", is_flag=True, help="All duplicates, not those of a MODEL.")
@click.option(
    "--link",
    type=click.Choice(["reflink", "hard"]),
    default="reflink",
    show_default=True,
    help="Two files that share blocks, or one file with two names.",
)
@json_option
def command(
    words: tuple[str, ...], apply: bool, older_than: str, with_notes: bool, everything: bool, link: str, as_json: bool
) -> int:
    """Prints what may go, by KIND, and what it would free; --apply does it. 'scratch': what conversions that died left in the
    roots. 'missing': models whose files have been gone for long; models on a drive that is away are not missing. 'orphans':
    rows of the catalog that nothing refers to, and jobs that ended long ago. 'duplicates': equal files on one file system, which
    can share their bytes; the MODELs say which, and every byte is compared first. No model's files are ever deleted."""
    kinds, models = _words(words)
    if apply and not words:
        raise UsageError("say what is to go", f"one or more of {', '.join(KINDS)}")
    if apply and "duplicates" in kinds and not (models or everything):
        raise UsageError("say which duplicates", "name a MODEL of each group that is to share its bytes, or give --all")
    if everything and models:
        raise UsageError("--all and MODELs exclude each other")
    from modelhub.config import duration, settings

    older = duration(older_than, "--older-than")
    document: dict[str, Any] = {"applied": apply}
    status = 0
    with Session() as session:
        from modelhub import prune

        if "scratch" in kinds:
            scratch = prune.plan_scratch(session.catalog)
            if apply:
                scratch.apply()
            document["scratch"] = scratch.to_json()
            if not as_json:
                _print_scratch(scratch, apply)
        if "missing" in kinds:
            missing = prune.plan_missing(session.catalog, older, written=with_notes)
            if apply:
                missing.apply()
            document["missing"] = missing.to_json()
            if not as_json:
                _print_missing(missing, apply, older_than)
        if "orphans" in kinds:
            orphans = prune.plan_orphans(session.catalog, older)
            if apply:
                orphans.apply()
            document["orphans"] = orphans.to_json()
            if not as_json:
                _print_orphans(orphans, apply)
        if "duplicates" in kinds:
            duplicates = _duplicates(session, models, link, settings().watch.settle, apply)
            document["duplicates"] = duplicates.to_json()
            for problem in (*duplicates.problems, *duplicates.failed):
                warn(problem)
            status = 3 if duplicates.failed else 0
            if not as_json:
                _print_duplicates(duplicates, apply, models)
    if as_json:
        text.print_json(document)
    elif not apply:
        text.line("nothing was changed; --apply does what you name")
    return status


def _words(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kinds, and the MODELs that come after them. No kind is every kind."""
    count = next((number for number, word in enumerate(words) if word not in KINDS), len(words))
    kinds, models = words[:count] or (KINDS if not words else ()), words[count:]
    if models and "duplicates" not in kinds:
        raise UsageError(
            f"'{text.escape(models[0])}' is nothing to prune", f"kinds: {', '.join(KINDS)}; a MODEL comes after duplicates"
        )
    return kinds, models


def _duplicates(session: Session, models: tuple[str, ...], link: str, settle: float, apply: bool) -> DuplicatesPlan:
    from modelhub.cli.progress import Progress
    from modelhub.duplicates import plan_duplicates

    chosen = [session.model(model) for model in models] or None
    with Progress("reading") as progress:
        plan = plan_duplicates(
            session.catalog,
            chosen,
            link="hard" if link == "hard" else "reflink",
            settle=settle,
            progress=lambda name, done, total: progress.reach(done, total, name),
        )
    if apply:
        with Progress("comparing") as progress:
            plan.apply(lambda name, done, total: progress.reach(done, total, name))
    return plan


# --- for people -----------------------------------------------------------------------------------------------------


def _title(name: str, rest: str) -> None:
    sys.stdout.write(text.style(f"{name:<12}", text.BOLD) + text.escape(rest) + "\n")


def _lines(lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        text.line(f"  {line}")
    if len(lines) > SHOWN:
        text.line(f"  and {len(lines) - SHOWN:,} more")


def _print_scratch(plan: ScratchPlan, applied: bool) -> None:
    directories = text.plural(len(plan.found), "directory").replace("directorys", "directories")
    title = f"{directories} of conversions that died, {text.size(plan.bytes)}" if plan.found else "none"
    _title("scratch", title + (f"; {len(plan.in_use)} in use" if plan.in_use else ""))
    outcome = {path: "removed" if path in plan.removed else "left: somebody is at work in it" for path, _ in plan.found}
    _lines([f"{text.size(size):>9}  {path}" + (f"  {outcome[path]}" if applied else "") for path, size in plan.found])


def _print_missing(plan: MissingPlan, applied: bool, older: str) -> None:
    from modelhub.model import iso

    title = f"{text.plural(len(plan.going), 'model')}, missing for {older} or longer" if plan.going else "none"
    if applied and plan.going:
        title = f"{text.plural(len(plan.removed), 'model')} forgotten"
    _title("missing", title + (f"; {len(plan.kept)} kept" if plan.kept else ""))

    def line(row: Any) -> str:
        return f"{row.id[:8]}  since {iso(row.since)[:10]}  {os.fsdecode(os.path.join(row.root or b'', row.path))}"

    _lines([line(row) for row in plan.going] + [f"{line(row)}  kept: {why}" for row, why in plan.kept])
    if any(row.aliases or row.tags or row.notes for row, _ in plan.kept) and not plan.written:
        text.line("  --with-notes forgets what people wrote about as well")


def _print_orphans(plan: OrphansPlan, applied: bool) -> None:
    jobs = plan.rows.get("job", 0)
    parts = [text.plural(plan.count - jobs, "row")] if plan.count > jobs else []
    parts += [f"{text.plural(jobs, 'job')} that ended"] if jobs else []
    size = f", {text.size(plan.bytes)} of the catalog" if plan.bytes else ""
    _title("orphans", (" and ".join(parts) + size + (" removed" if applied else "")) if parts else "none")


def _print_duplicates(plan: DuplicatesPlan, applied: bool, models: tuple[str, ...]) -> None:
    twins = [twin for group in plan.groups for twin in group.twins]
    if applied:
        linked = [twin for twin in twins if twin.done]
        title = f"{text.plural(len(linked), 'file')} linked, {text.size(plan.gained)} gained"
    elif twins:
        able = [twin for twin in twins if not twin.why_not]
        title = f"{text.plural(len(able), 'file')}, {text.size(plan.bytes)} to gain"
        title += f"; {text.size(plan.only_hard)} with --link hard" if plan.only_hard else ""
    else:
        title = "none" if not models else f"{' '.join(models)}: nothing on the same file system has the same bytes"
    _title("duplicates", title)
    lines = []
    for group in plan.groups:
        lines.append(f"{text.size(group.size):>9}  {group.kept}  stays as it is")
        for twin in group.twins:
            how = twin.done or ("hard link" if plan.link == "hard" else "reflink")
            lines.append(f"{'':9}    {twin.path}  " + (f"left as it is: {twin.why_not}" if twin.why_not else how))
    _lines(lines)
    if plan.link == "hard" and any(not twin.why_not for twin in twins):
        text.line(f"  {HARD}")

"""``modelhub jobs``: what is at work, what waits, and what became of the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import answer, define
from modelhub.cli.common import Session, json_option, quiet_option
from modelhub.errors import ModelhubError, UsageError

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import Job

STATES = ("queued", "running", "done", "failed", "cancelled")
SHOWN = 50
"""Jobs that are listed for people where no --limit is given."""
PATIENCE = 3.0
"""Seconds for which ``cancel`` waits for a job to end."""
COLUMNS = (
    text.Column("id", "ID"),
    text.Column("state", "STATE"),
    text.Column("kind", "KIND", drop=2),
    text.Column("what", "WHAT", shrink=20, middle=True),
    text.Column("progress", "PROGRESS", shrink=12),
    text.Column("speed", "SPEED", align=">", drop=3),
    text.Column("age", "AGE", align=">", drop=4),
    text.Column("by", "BY", shrink=6, drop=1),
)


@define(
    "jobs",
    examples=[
        "modelhub jobs",
        "modelhub jobs --state failed --json",
        "modelhub jobs show 3fa8",
        "modelhub jobs cancel 3fa8 77c1",
        "modelhub jobs retry 3fa8",
    ],
)
@click.argument("action", type=click.Choice(["ls", "show", "cancel", "retry"]), default="ls")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--state", "states", metavar="STATE", type=click.Choice(STATES), multiple=True, help="Only these; may be repeated.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most N jobs.")
@json_option
@quiet_option("ids")
def command(action: str, ids: tuple[str, ...], states: tuple[str, ...], limit: int | None, as_json: bool, quiet: bool) -> int:
    """Those at work come first, then those that wait, then the others, the latest first. 'show' has a job's log. 'cancel' stops a
    job that waits or is at work, whoever runs it; 'retry' queues a failed or cancelled one again."""
    if action == "ls" and ids:
        raise UsageError("jobs ls takes no ID", f"modelhub jobs show {ids[0]} shows one job")
    if action != "ls" and not ids:
        raise UsageError(f"jobs {action} takes an ID", "modelhub jobs lists them")
    if action == "show" and len(ids) > 1:
        raise UsageError("jobs show takes one ID", f"modelhub jobs show {ids[0]}")
    if action != "ls" and (states or limit):
        raise UsageError(f"--state and --limit are no options of jobs {action}", "they choose what 'modelhub jobs' lists")
    from modelhub.jobs.recovery import recover

    with Session() as session:
        catalog = session.catalog
        if any(job.state == "queued" for job in recover(catalog)):
            from modelhub.jobs.front import see_to_it

            see_to_it(catalog)  # whoever was to do them is dead
        if action == "ls":
            _list(catalog, states, limit, as_json, quiet)
        elif action == "show":
            _show(catalog, catalog.jobs.get(ids[0]), as_json, quiet)
        else:
            _change(catalog, action, ids, as_json, quiet)
    return answer.status


# --- looking ------------------------------------------------------------------------------------------------------


def _list(catalog: Catalog, states: Sequence[str], limit: int | None, as_json: bool, quiet: bool) -> None:
    most = limit if limit or as_json or quiet else SHOWN
    jobs = catalog.jobs.list(states or None, most)
    if as_json:
        text.print_json([job.to_json() for job in jobs])
    elif quiet:
        for job in jobs:
            text.line(job.id)
    elif jobs:
        now = time.time()
        text.table([_row(job, now) for job in jobs], COLUMNS)
        counts = catalog.jobs.counts()
        more = sum(counts[state] for state in states or STATES) - len(jobs)
        if more and limit is None:
            sys.stdout.write(f"and {more:,} more; --limit shows more of them\n")


def _row(job: Job, now: float) -> dict[str, str]:
    return {
        "id": job.id,
        "state": "cancelling" if job.cancel and job.state == "running" else job.state,
        "kind": job.kind,
        "what": _what(job),
        "progress": _progress(job, now),
        "speed": f"{text.size(speed)}/s" if (speed := _speed(job, now)) else "",
        "age": _age(now - job.created / 1e9),
        "by": job.rule or job.origin,
    }


def _what(job: Job) -> str:
    name = job.source.rstrip("/").rsplit("/", 1)[-1]
    if job.kind == "convert":
        return f"{name} -> {job.spec.get('to', '')}"
    return f"{name} ({job.spec.get('level') or 'structure, safety'})"


def _progress(job: Job, now: float) -> str:
    if job.state == "running":
        share = f"{min(100, job.done * 100 // job.total)}% of {text.size(job.total)}" if job.total else ""
        return " ".join(part for part in (job.stage, share) if part)
    if job.state == "queued":
        wait = job.not_before / 1e9 - now
        return f"again in {_age(wait)}" if wait > 1 else ""
    if job.state == "done":
        return _came_to(job.result)
    return job.error


def _came_to(result: Mapping[str, Any]) -> str:
    if "same_as" in result:
        return f"same as {result['same_as']}"
    if "ok" in result:
        found = f", {text.plural(result['findings'], 'finding')}" if result.get("findings") else ""
        read = f", {text.size(result['bytes'])} read" if result.get("bytes") else ""
        return ("ok" if result["ok"] else "not ok") + found + read
    return text.size(result.get("size"))


def _speed(job: Job, now: float) -> int:
    """Bytes a second of the stage it is in, roughly."""
    if job.state != "running" or job.started is None or not job.done:
        return 0
    return int(job.done / max(0.5, now - job.started / 1e9))


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _show(catalog: Catalog, job: Job, as_json: bool, quiet: bool) -> None:
    log = catalog.jobs.logs(job)
    if as_json:
        from modelhub.model import printable

        spec = {name: printable(value) if isinstance(value, str) else value for name, value in job.spec.items()}
        text.print_json({**job.to_json(), "spec": spec, "max_attempts": job.max_attempts, "log": log})
        return
    if quiet:
        text.line(job.id)
        return
    shown = job.to_json()
    now = time.time()
    text.pairs(
        [
            ("id", job.id),
            ("state", "running, asked to stop" if shown["cancelling"] else job.state),
            ("kind", job.kind),
            ("source", job.source),
            ("model", job.checkpoint),
            ("to", job.spec.get("to")),
            ("level", job.spec.get("level")),
            ("output", job.output),
            ("asked by", f"the rule {job.rule!r}" if job.rule else job.origin),
            ("priority", str(job.priority)),
            ("progress", _progress(job, now) if job.state in ("running", "queued") else ""),
            ("attempts", f"{job.attempts} of {job.max_attempts}" if job.attempts else ""),
            ("crashes", str(job.crashes) if job.crashes else ""),
            ("created", shown["created"]),
            ("started", shown["started"]),
            ("finished", shown["finished"]),
            ("owner", job.owner),
            ("error", job.error),
            ("what to do", job.hint),
            *(
                (name.replace("_", " "), value)
                for name, value in (shown["result"] or {}).items()
                if name not in ("output", "level") and _plain(value)
            ),
        ]
    )
    for line in log:
        mark = {"warning": text.YELLOW, "error": text.RED}.get(line["level"], text.DIM)
        sys.stdout.write(text.style(f"{line['at']}  {line['level']:<7}", mark) + "  " + text.escape(line["message"]) + "\n")


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) and value != ""


# --- changing -----------------------------------------------------------------------------------------------------


def _change(catalog: Catalog, action: str, ids: Sequence[str], as_json: bool, quiet: bool) -> None:
    changed = []
    errors = []
    for id in ids:
        try:
            changed.append(catalog.jobs.cancel(id) if action == "cancel" else catalog.jobs.retry(id))
        except ModelhubError as error:
            if len(ids) == 1:
                raise
            errors.append(error)
            answer.status = max(answer.status, error.exit_status)
    if action == "cancel":
        changed = _ended(catalog, changed)
    elif changed:
        from modelhub.jobs.front import see_to_it

        see_to_it(catalog)
    if as_json:
        text.print_json([job.to_json() for job in changed])
    for job in changed if not as_json else ():
        state = "asked to stop; it has not ended yet" if action == "cancel" and job.state == "running" else job.state
        text.line(job.id if quiet else f"job {job.id}: {state}")
    for problem in errors:
        click.echo(f"modelhub: error: {text.escape(str(problem))}", err=True)


def _ended(catalog: Catalog, jobs: Sequence[Job]) -> list[Job]:
    """The jobs once they have ended, or a while later."""
    from modelhub.jobs.recovery import recover

    deadline = time.monotonic() + PATIENCE
    while True:
        now = [catalog.jobs.get(job.id) for job in jobs]
        if all(job.state != "running" for job in now) or time.monotonic() > deadline:
            return now
        recover(catalog)  # whose process is dead cannot hear
        time.sleep(0.05)

"""``modelhub rules``: what the owner's rules are, what they would do, and applying them now."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import ModelParameter, Session, json_option
from modelhub.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from modelhub.rules.preview import Preview
    from modelhub.rules.read import Rule

SHOWN = 200
"""Checkpoints of one rule that are shown to people; --json has them all."""
COLUMNS = (
    text.Column("rule", "RULE", shrink=16),
    text.Column("where", "WHERE", shrink=16),
    text.Column("action", "ACTION"),
    text.Column("output", "OUTPUT", shrink=16, middle=True, drop=2),
    text.Column("matches", "MATCHES", align=">"),
    text.Column("done", "DONE", align=">"),
    text.Column("waiting", "WAITING", align=">"),
    text.Column("failed", "FAILED", align=">"),
    text.Column("state", "", drop=1),
)
TESTS = (
    text.Column("id", "ID"),
    text.Column("name", "NAME", shrink=14, middle=True),
    text.Column("size", "SIZE", align=">"),
    text.Column("would", "WOULD", shrink=30, middle=True),
)


@define(
    "rules",
    examples=[
        "modelhub rules",
        "modelhub rules test",
        "modelhub rules test llama ./model.bin --json",
        "modelhub rules run",
    ],
)
@click.argument("action", type=click.Choice(["ls", "test", "run"]), default="ls")
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=ModelParameter())
@json_option
def command(action: str, models: tuple[str, ...], as_json: bool) -> int:
    """Rules are the [[rules]] of config.toml. 'test' says what they would do now, with which models and why not with others, and
    changes nothing. 'run' applies them now: it queues the jobs that the daemon would."""
    from modelhub import home
    from modelhub.rules.read import EXAMPLE, check, load_rules

    if models and action != "test":
        raise UsageError(f"rules {action} takes no MODEL", f"modelhub rules test {models[0]}")
    rules = load_rules()
    if not rules:
        if as_json:
            text.print_json([] if action != "run" else {"jobs": []})
        else:
            sys.stdout.write(text.escape(f"no rules; add [[rules]] to {home.config_path()}, like") + f"\n\n{EXAMPLE}\n")
        return 0
    with Session() as session:
        if any(rule.converts for rule in rules):
            check(rules, session.plugins)
        if action == "ls":
            _list(session, rules, as_json)
        elif action == "test":
            _test(session, rules, models, as_json)
        else:
            _run(session, rules, as_json)
    return 0


def _list(session: Session, rules: tuple[Rule, ...], as_json: bool) -> None:
    from modelhub.catalog import dispatch as sql
    from modelhub.rules.dispatch import wanted

    rows: list[dict[str, Any]] = []
    with session.catalog.database.read() as reader:
        jobs = sql.jobs_by_rule(reader)
        for rule in rules:
            means, applied = sql.counts(reader, wanted(rule))
            waiting = jobs.get((rule.name, "queued"), 0) + jobs.get((rule.name, "running"), 0)
            failed, stopped = jobs.get((rule.name, "failed"), 0), jobs.get((rule.name, "cancelled"), 0)
            rows.append(
                {
                    "name": rule.name,
                    "where": list(rule.where),
                    "do": rule.do,
                    "target": rule.target,
                    "output": rule.output.text if rule.output else None,
                    "priority": rule.priority,
                    "enabled": rule.enabled,
                    "matches": means,
                    "done": max(0, applied - waiting - failed - stopped),
                    "waiting": waiting,
                    "failed": failed,
                }
            )
    if as_json:
        text.print_json(rows)
        return
    shown = [
        {
            **row,
            **{key: f"{row[key]:,}" for key in ("matches", "done", "waiting", "failed")},
            "rule": row["name"],
            "where": ", ".join(row["where"]),
            "action": rule.what,
            "output": row["output"] or ("beside the source" if rule.converts else ""),
            "state": "" if rule.enabled else "not enabled",
        }
        for row, rule in zip(rows, rules, strict=True)
    ]
    text.table(shown, COLUMNS)


def _test(session: Session, rules: tuple[Rule, ...], models: tuple[str, ...], as_json: bool) -> None:
    from modelhub.rules.preview import not_meant, plan

    wanted = [session.model(reference) for reference in models]
    for reference, model in zip(models, wanted, strict=True):
        if model.id is None:
            raise ModelNotFound(f"{reference} is not in the catalog, and rules are for what is", "modelhub scan takes it in")
    catalog = session.catalog
    previews = plan(catalog, rules, [model.key for model in wanted] if models else None)
    if models:  # who asks about a model wants to know of every rule
        previews += not_meant(catalog, rules, wanted, previews)
    if as_json:
        text.print_json([preview.to_json() for preview in previews])
        return
    for number, rule in enumerate(rules):
        mine = [preview for preview in previews if preview.rule is rule]
        would = [preview for preview in mine if not preview.skipped]
        sys.stdout.write("\n" * bool(number) + text.style(text.escape(_title(rule)), text.BOLD) + "\n")
        _print(rule, mine if models else would)
        size = text.size(sum(preview.match.size for preview in would))
        summary = f"  {text.plural(len(would), 'job')} would be queued" + (f", for {size}" if would else "")
        text.line(summary)
        if not models:
            for reason, count in Counter(_kind(preview.skipped) for preview in mine if preview.skipped).most_common():
                text.line(f"  {count:,} passed by: {reason}")


def _title(rule: Rule) -> str:
    return rule.name if rule.name.endswith(rule.what) else f"{rule.name}: {rule.what}"


def _print(rule: Rule, previews: list[Preview]) -> None:
    rows = [
        {
            "id": preview.match.id[:8],
            "name": preview.match.name,
            "size": text.size(preview.match.size),
            "would": f"not: {preview.skipped}"
            if preview.skipped
            else (preview.output or "be verified") + (f" ({preview.note})" if preview.note else ""),
        }
        for preview in previews[:SHOWN]
    ]
    if rows:
        text.table([{key: f"  {value}" if key == "id" else value for key, value in row.items()} for row in rows], TESTS)
    if len(previews) > SHOWN:
        text.line(f"  and {len(previews) - SHOWN:,} more; --json prints them all")


def _kind(reason: str) -> str:
    """Reasons without what differs from one to the next: job ids, paths, messages."""
    for start, kind in (
        ("it waits as job", "a job for it waits"),
        ("its output is there already", "its output is there already"),
        ("job ", "its job is at work, has failed or was cancelled: modelhub jobs says more"),
        ("it would fail: ", "its output would be that of another, or the source: modelhub rules test MODEL says more"),
    ):
        if reason.startswith(start):
            return kind
    return reason


def _run(session: Session, rules: tuple[Rule, ...], as_json: bool) -> None:
    from modelhub.jobs.front import see_to_it
    from modelhub.rules.dispatch import dispatch, forget

    catalog = session.catalog
    withdrawn = forget(catalog, rules)
    ids = dispatch(catalog, rules)
    if ids:
        see_to_it(catalog)
    if as_json:
        text.print_json({"jobs": ids, "withdrawn": withdrawn})
        return
    if withdrawn:
        text.line(f"{text.plural(withdrawn, 'job')} of rules that do not ask for them any more: cancelled")
    text.line(f"{text.plural(len(ids), 'job')} queued" + ("; modelhub jobs shows how they get on" if ids else ": nothing is new"))

"""Applies rules to the catalog: adds the jobs that they ask for. Runs none of them, opens no model file, asks no drive.

What was done is known by checkpoint, action and content, and written down in the transaction that adds the job: whatever is
killed in between, nothing is lost and nothing is done twice. A checkpoint that was moved is the same one; what a rule made is not
converted by any rule.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelhub.catalog import dispatch as sql
from modelhub.catalog.dispatch import Match, Wanted
from modelhub.catalog.job_rows import NewJob
from modelhub.errors import ConversionError, DriveAway, UsageError
from modelhub.model import printable
from modelhub.rules.output import Place, check_output, output_of
from modelhub.rules.read import Rule, problem, target_of

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.database import Writer
    from modelhub.plugins import Plugins

ATTEMPTS = 5
"""How often a rule's job is tried where what went wrong may pass."""
APART = "give the rule an output that tells them apart, like '{root}/.converted/{dir}/{stem}{ext}'"


def wanted(rule: Rule) -> Wanted:
    """What the rule asks of the catalog."""
    return Wanted(rule.where, rule.action, rule.again, rule.converts)


def place_of(match: Match) -> Place:
    """What its output's path is made of."""
    return Place(
        os.fsdecode(match.root), os.fsdecode(match.path), os.fsdecode(match.primary), match.name, match.id, match.version
    )


def dispatch(catalog: Catalog, rules: Sequence[Rule], *, since: int | None = None, now: int | None = None) -> list[str]:
    """Add the jobs that the enabled ``rules`` ask for; their ids, and those of jobs that can be done again because what they are
    about is back. ``since``: look only at checkpoints that were indexed at this
    time (nanoseconds since 1970) or later; None: at all.

    A job that cannot be done because of where its output would go is added as failed, and is not among the ids. A rule that no
    plugin can carry out is passed by; without ``since`` that is a UsageError, once the others have been applied.
    """
    now = time.time_ns() if now is None else now
    work = _Dispatch(catalog, [rule for rule in rules if rule.enabled], now)
    if work.rules:
        work.run(since)
    if since is None and work.wrong:
        raise work.wrong[0]
    return work.added


class _Dispatch:
    def __init__(self, catalog: Catalog, rules: Sequence[Rule], now: int) -> None:
        self.catalog = catalog
        self.now = now
        self.added: list[str] = []
        self.wrong: list[UsageError] = []
        self.rules = [rule for rule in rules if not self._is_wrong(rule)]

    def _is_wrong(self, rule: Rule) -> bool:
        found = problem(rule, _plugins()) if rule.converts else None
        if found:
            self.wrong.append(found)
        return found is not None

    def run(self, since: int | None) -> None:
        database = self.catalog.database
        with database.read() as reader:
            keys = None if since is None else sql.changed_since(reader, since)
            if keys is not None and not keys:
                return
            questions = [(rule, sql.question(reader, wanted(rule))) for rule in self.rules]
            last = sql.last_key(reader)
            back = sql.back(reader, DriveAway.HINT, keys)
        self._revive(back)
        for page in sql.pages(keys, last):
            with database.read() as reader:
                meant = [(rule, question, question.ask(reader, page)) for rule, question in questions]
            if not any(matches for _, _, matches in meant):
                continue
            with database.write() as writer:
                for rule, question, matches in meant:
                    if matches:  # asked again, now that nobody else writes
                        self._apply(writer, rule, question.ask(writer, [match.key for match in matches]))

    def _revive(self, back: Sequence[sql.Back]) -> None:
        """What was away is there again: what failed for that, or waits, is due."""
        actions = {rule.action for rule in self.rules}
        due = [job for job in back if job.origin != "rule" or job.action in actions]
        if due:
            with self.catalog.database.write() as writer:
                sql.revive(writer, [job.key for job in due])
            self.added += [job.id for job in due]

    def _apply(self, writer: Writer, rule: Rule, matches: list[Match]) -> None:
        if rule.converts:
            matches = sql.without_outputs(writer, matches)
        if not matches:
            return
        jobs, refused = (conversions(rule, matches) if rule.converts else verifications(rule, matches)), {}
        again = {match.key: jobs[match.key].job for match in matches if match.before is not None}
        waiting = sql.bring_up_to_date(writer, rule.action, again) if again else set()
        new = [match for match in matches if match.key not in waiting]
        if rule.converts:
            refused = conflicts(writer, [jobs[match.key] for match in new])
        ids = self.catalog.jobs.add_many(writer, [jobs[match.key].job for match in new])
        wrong = {}
        for id, match in zip(ids, new, strict=True):
            error = jobs[match.key].error or refused.get(match.key)
            if error:
                wrong[id] = error
            else:
                self.added.append(id)
        sql.refuse(writer, wrong, self.now)
        sql.record(writer, rule.action, matches, self.now)


@dataclass(frozen=True, slots=True)
class Planned:
    """A job to be. ``error``: why it cannot be done, and what to do about it; None where nothing is known against it."""

    match: Match
    job: NewJob
    output: str = ""
    error: tuple[str, str] | None = None


def verifications(rule: Rule, matches: Sequence[Match]) -> dict[int, Planned]:
    """The jobs of a rule that verifies, by checkpoint."""
    spec = {"level": rule.target, "action": rule.action.hex()}
    return {match.key: Planned(match, _job("verify", rule, match, spec)) for match in matches}


def conversions(rule: Rule, matches: Sequence[Match]) -> dict[int, Planned]:
    """The jobs of a rule that converts, by checkpoint."""
    from modelhub.jobs.run import spec_of
    from modelhub.plan import ConvertOptions

    plugins = _plugins()
    options = ConvertOptions(max_shard_size=rule.max_shard_size, skip_unsupported=rule.skip_unsupported)
    bases: dict[tuple[str, str], Any] = {}
    found = {}
    for match in matches:
        kind = (match.format, match.container)
        if kind not in bases:
            target, recipe = target_of(rule, kind, plugins)
            to = f"{target.name}:{recipe.name}" if recipe else target.name
            bases[kind] = (target, recipe, {**spec_of(to, None, options, digest=True, own=True), "action": rule.action.hex()})
        target, recipe, base = bases[kind]
        place, error = place_of(match), None
        output = output_of(place, target, recipe, rule.output)
        try:
            check_output(place, output)
        except ConversionError as wrong:
            error = wrong.message, wrong.hint
        spec = {**base, "output": output}
        found[match.key] = Planned(match, _job("convert", rule, match, spec), output, error)
    return found


def _job(kind: str, rule: Rule, match: Match, spec: Mapping[str, Any]) -> NewJob:
    return NewJob(kind, os.fsdecode(match.absolute), spec, match.key, match.version, "rule", rule.name, rule.priority, ATTEMPTS)


def conflicts(reader: Any, planned: Sequence[Planned]) -> dict[int, tuple[str, str]]:
    """Those whose output is that of another job, queued or running, or of one before them: checkpoint -> (error, hint)."""
    writing = sql.writing_to(reader, [os.fsencode(one.output) for one in planned if one.output])
    taken: dict[str, Planned] = {}
    found = {}
    for one in planned:
        if not one.output:
            continue
        first = taken.setdefault(one.output, one)
        others = [
            job for job in writing.get(os.fsencode(one.output), ()) if (job.checkpoint, job.rule) != (one.match.key, one.job.rule)
        ]
        if first is not one or others:
            source = first.job.source if first is not one else os.fsdecode(others[0].source)
            rule = first.job.rule if first is not one else others[0].rule
            by = f" by the rule {rule!r}" if rule and rule != one.job.rule else ""
            what = f"its output {printable(one.output)} is that of {printable(source)} as well{by}"
            found[one.match.key] = (what, APART)
    return found


def _plugins() -> Plugins:
    from modelhub import plugins

    return plugins.get()


# --- when rules change --------------------------------------------------------------------------------------------


def forget(catalog: Catalog, rules: Sequence[Rule], *, now: int | None = None) -> int:
    """Cancel the waiting jobs of rules that are not there any more, are not enabled, or do not mean the checkpoint any more; let
    the other waiting ones have their rule's present name and priority. How many were cancelled. What is at work goes on, and what
    was done stays done."""
    now = time.time_ns() if now is None else now
    by_action: dict[bytes, list[Rule]] = {}
    for rule in rules:
        if rule.enabled:
            by_action.setdefault(rule.action, []).append(rule)
    reasons: dict[int, str] = {}
    renamed: dict[int, tuple[str, int]] = {}
    with catalog.database.read() as reader:
        standing = sql.queued(reader)
        meant = {
            rule.number: sql.still_meant(
                reader, rule.where, [job.checkpoint for job in standing if job.action == rule.action and job.checkpoint]
            )
            for some in by_action.values()
            for rule in some
        }
    for job in standing:
        some = by_action.get(job.action, [])
        fitting = [rule for rule in some if job.checkpoint in meant[rule.number]]
        if fitting:
            now_of = next((rule for rule in fitting if rule.name == job.rule), fitting[0])
            if (job.rule, job.priority) != (now_of.name, now_of.priority):
                renamed[job.key] = (now_of.name, now_of.priority)
        elif some:
            reasons[job.key] = f"the rule {some[0].name!r} does not mean it any more"
        else:
            reasons[job.key] = f"the rule {job.rule!r} is gone from the configuration"
    if not reasons and not renamed:
        return 0
    with catalog.database.write() as writer:
        sql.rename(writer, renamed)
        return sql.withdraw(writer, reasons, now)

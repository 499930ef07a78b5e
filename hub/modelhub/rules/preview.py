"""What rules would do now, and why they would not: for ``modelhub rules test``. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelhub.catalog import dispatch as sql
from modelhub.catalog.dispatch import Listed, Match
from modelhub.model import printable
from modelhub.rules.dispatch import Planned, conflicts, conversions, verifications, wanted
from modelhub.rules.read import Rule, problem

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.model import Model


@dataclass(frozen=True, slots=True)
class Preview:
    """What a rule would do with a checkpoint now: ``skipped`` says why it would do nothing, "" where it would do it. ``note``:
    what else there is to know."""

    rule: Rule
    match: Match
    output: str = ""
    skipped: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule.name,
            "model": self.match.id,
            "name": printable(self.match.name),
            "source": printable(os.fsdecode(self.match.absolute)),
            "size": self.match.size,
            "do": self.rule.do,
            "target": self.rule.target,
            "output": printable(self.output) or None,
            "would": not self.skipped,
            "skipped": self.skipped or None,
            "note": self.note or None,
        }


def plan(catalog: Catalog, rules: Sequence[Rule], keys: Sequence[int] | None = None) -> list[Preview]:
    """What `dispatch` would add, and what it would pass by and why, of every checkpoint (or of those with ``keys``) that a rule's
    conditions hold for. Looks whether outputs are there already."""
    outputs: dict[str, str] = {}
    return [preview for rule in rules for preview in _of_rule(catalog, rule, keys, outputs)]


def _of_rule(catalog: Catalog, rule: Rule, keys: Sequence[int] | None, outputs: dict[str, str]) -> list[Preview]:
    """``outputs``: what the rules before this one would write -> which of them does."""
    found = []
    with catalog.database.read() as reader:
        listed = sql.listed(reader, wanted(rule), keys)
        jobs = sql.last_jobs(reader, rule.name)
        # Of all that a drive has, most is done: where that went is only of interest where somebody asks for it.
        matches = [item.match for item in listed if keys is not None or _open(item, rule)]
        wrong = None
        planned: dict[int, Planned] = {}
        busy: set[int] = set()
        refused: dict[int, tuple[str, str]] = {}
        if not rule.converts:
            planned = verifications(rule, matches)
        else:
            from modelhub import plugins

            wrong = problem(rule, plugins.get())
            planned = {} if wrong else conversions(rule, matches)
            busy = {match.key for match in matches} - {match.key for match in sql.without_outputs(reader, matches)}
            refused = conflicts(reader, [planned[item.match.key] for item in listed if planned and _open(item, rule)])
    for item in listed:
        one = planned.get(item.match.key)
        error = (one.error if one else None) or refused.get(item.match.key)
        skipped = _stands(item, rule, jobs.get(item.match.key), item.match.key in busy)
        note = ""
        if not skipped and wrong:
            skipped = f"the rule cannot be applied: {wrong.message}"
        if not skipped and error:
            skipped = f"it would fail: {error[0]}"
        if not skipped and one and one.output:
            first = outputs.setdefault(one.output, rule.name)
            if first != rule.name:
                skipped = f"it would fail: its output {printable(one.output)} is that of the rule {first!r}"
            elif os.path.lexists(one.output) and not _may_replace(catalog, rule, one):
                skipped = f"its output is there already: {printable(one.output)}"
        if not skipped and item.match.before is not None:
            touched = item.match.before == item.match.version
            note = "its files were touched since" if touched else "its content was replaced since"
        found.append(Preview(rule, item.match, one.output if one else "", skipped, note))
    return found


def _open(item: Listed, rule: Rule) -> bool:
    """Whether a job would be added for it, as far as the catalog tells."""
    return not _stands(item, rule, None, False)


def _stands(item: Listed, rule: Rule, job: tuple[str, str, str] | None, busy: bool) -> str:
    """What stands between the rule and the checkpoint, "" for nothing."""
    if not rule.enabled:
        return "the rule is not enabled"
    if not item.match.root:
        return "it lies outside of every root"
    if item.state != "ready":
        return f"it is not ready: {item.state}"
    if rule.converts and item.made_by is not None:
        return f"it was made by the rule {item.made_by!r}"
    if not item.done:
        return "the job of a rule is writing it" if busy else ""
    match job:
        case (id, "queued", _):
            return f"it waits as job {id}"
        case (id, "running", _):
            return f"job {id} is at it"
        case (id, "failed", error):
            return f"job {id} failed: {error}"
        case (id, "cancelled", error):
            return f"job {id} was cancelled" + (f": {error}" if error else "")
    return "it was done already"


def _may_replace(catalog: Catalog, rule: Rule, one: Planned) -> bool:
    """Whether what stands at the output was made of this checkpoint by this rule, or by one that did the same."""
    to = one.job.spec["to"].partition(":")
    return any(
        step["parent"] == one.match.id
        and (step["rule"] == rule.name or (step["rule"] and (step["options"].get("to"), step["recipe"]) == (to[0], to[2])))
        for model in catalog.at(one.output)
        for step in catalog.lineage(model)
    )


def not_meant(catalog: Catalog, rules: Sequence[Rule], models: Sequence[Model], meant: Sequence[Preview]) -> list[Preview]:
    """What to say of the ``models`` that are not among ``meant``: which of a rule's conditions does not hold."""
    seen = {(preview.rule.number, preview.match.key) for preview in meant}
    found = []
    for rule in rules:
        for model in models:
            if (rule.number, model.key) in seen:
                continue
            with catalog.database.read() as reader:
                (listed,) = sql.listed(reader, wanted(rule)._replace(where=("*",)), [model.key])
                fails = [one for one in rule.where if not sql.still_meant(reader, [one], [model.key])]
            found.append(Preview(rule, listed.match, skipped=f"the rule does not mean it: {' and '.join(fails)} does not hold"))
    return found

"""Reads the rules of ``config.toml``, and says what is wrong with them: which rule, which key, what may be there. Applies none.

A rule is a condition on checkpoints and one thing to have done with those that meet it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from modelhub import config, home, where
from modelhub.errors import ModelhubError, UsageError
from modelhub.rules.output import Template, parse

if TYPE_CHECKING:
    from modelhub.declared import Format, Recipe
    from modelhub.plugins import Plugins

ACTIONS = ("convert", "quantize", "verify")
KEYS = ("name", "where", *ACTIONS, "output", "priority", "enabled", "max_shard_size", "skip_unsupported")
READS_WEIGHTS = ("digest", "values", "runnable", "all")
"""Levels of verification whose answer may change although the header did not."""

_TARGET = re.compile(r"[A-Za-z0-9_.+-]+(:[A-Za-z0-9_.+-]+)?")
_STATE = re.compile(r"\s*state\s*==?\s*['\"]?(\w*)['\"]?\s*", re.IGNORECASE)
EXAMPLE = """\
[[rules]]
name = "pickles become safetensors"
where = ["format=pytorch", "size<50GB"]
convert = "safetensors"
output = "{root}/.converted/{dir}/{stem}{ext}\""""


@dataclass(frozen=True)
class Rule:
    """``number`` counts from 1 in the file. ``target``: FORMAT[:RECIPE], RECIPE or LEVEL, by ``do``."""

    number: int
    name: str
    where: tuple[str, ...]
    do: Literal["convert", "quantize", "verify"]
    target: str
    output: Template | None = None
    priority: int = 0
    enabled: bool = True
    max_shard_size: int = 0
    skip_unsupported: bool = False

    @property
    def converts(self) -> bool:
        """Whether it writes something."""
        return self.do != "verify"

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"{self.do} {'to ' if self.do == 'convert' else ''}{self.target}"

    @property
    def again(self) -> bool:
        """Whether a checkpoint is taken up again when its files were touched and its header is the same: its weights may be
        others. A conversion compares digests first."""
        return self.converts or self.target in READS_WEIGHTS

    @cached_property
    def action(self) -> bytes:
        """What tells it from other rules, 16 bytes: what it does and where that goes. A rule that gets another name or another
        condition does nothing twice."""
        output = self.output.text if self.output else None
        what = [self.do, self.target, output, self.max_shard_size, self.skip_unsupported]
        return sha256(json.dumps(what).encode()).digest()[:16]


def load_rules() -> tuple[Rule, ...]:
    """The rules that ``config.toml`` has now, those that are not enabled as well. UsageError where anything in it is wrong."""
    return load(home.read_config())


def load(given: Mapping[str, Any], path: str | None = None) -> tuple[Rule, ...]:
    """The rules in a configuration; ``path`` is where that came from, for errors. UsageError names the file, the rule, its key,
    what is wrong and what may be there."""
    path = path or home.config_path()
    rules: list[Rule] = []
    for number, table in enumerate(config.read(given, path).rules, 1):
        rule = _Reading(path, number, table).rule()
        for other in rules:
            if other.name == rule.name:
                raise UsageError(
                    f"{path}: rules {other.number} and {rule.number} are both called {rule.name!r}", "give one another name"
                )
        rules.append(rule)
    return tuple(rules)


class _Reading:
    """One table on its way to a rule."""

    def __init__(self, path: str, number: int, table: object) -> None:
        self.path, self.number = path, number
        self.name = ""
        if not isinstance(table, Mapping):
            raise self.wrong("", "it is not a table", "begin each rule with [[rules]]")
        self.table = table
        name = table.get("name")
        if isinstance(name, str):
            self.name = name

    def wrong(self, key: str, what: str, hint: str) -> UsageError:
        return UsageError(f"{_place(self.path, self.number, self.name, key)}: {what}", hint)

    def rule(self) -> Rule:
        for key in self.table:
            if key not in KEYS:
                raise config.unknown_key(_place(self.path, self.number, self.name, str(key)), str(key), list(KEYS))
        do, target = self.action()
        output = self.output(do, target)
        if not do.startswith(("convert", "quantize")):
            for key in ("output", "max_shard_size", "skip_unsupported"):
                if key in self.table:
                    raise self.wrong(key, "a verification writes nothing", "leave it out, or ask for convert or quantize")
        size = config.size(self.table.get("max_shard_size", 0), _place(self.path, self.number, self.name, "max_shard_size"))
        rule = Rule(
            number=self.number,
            name="",
            where=self.where(),
            do=do,
            target=target,
            output=output,
            priority=self.priority(),
            enabled=self.flag("enabled", True),
            max_shard_size=size,
            skip_unsupported=self.flag("skip_unsupported", False),
        )
        return _named(rule, self.given_name() or f"rule {self.number}: {rule.what}")

    def given_name(self) -> str:
        name = self.table.get("name", "")
        if not isinstance(name, str) or ("name" in self.table and not name.strip()):
            raise self.wrong("name", f"{config.shown(name)} is no name", "give it a text in quotes, or leave it out")
        return name.strip()

    def where(self) -> tuple[str, ...]:
        hint = 'like ["format=pytorch", "size<50GB"]; ["*"] is every checkpoint'
        given = self.table.get("where")
        if given is None:
            raise self.wrong("where", "it is not there", f"say which checkpoints are meant, {hint}")
        if not isinstance(given, list) or not given or not all(isinstance(expression, str) for expression in given):
            raise self.wrong("where", f"{config.shown(given)} is no list of expressions", f"give one, {hint}")
        for expression in given:
            try:
                where.parse(expression)
            except UsageError as error:
                raise self.wrong("where", error.message, error.hint) from error
            state = _STATE.fullmatch(expression)
            if state and state[1].lower() != "ready":
                raise self.wrong(
                    "where", f"{expression!r} holds for nothing that a rule looks at", "rules look at checkpoints that are ready"
                )
        return tuple(given)

    def action(self) -> tuple[Literal["convert", "quantize", "verify"], str]:
        there = [key for key in ACTIONS if key in self.table]
        if len(there) != 1:
            what = f"both {there[0]} and {there[1]} are there" if there else "it does not say what to do"
            raise self.wrong("", what, 'give one of convert = "FORMAT[:RECIPE]", quantize = "RECIPE", verify = "LEVEL"')
        given = self.table[there[0]]
        text = given.strip().lower() if isinstance(given, str) else ""
        match there[0]:
            case "convert":
                if not _TARGET.fullmatch(text):
                    raise self.wrong("convert", f"{config.shown(given)} is no format", 'like "safetensors" or "gguf:q4_k_m"')
                return "convert", text
            case "quantize":
                if not _TARGET.fullmatch(text) or ":" in text:
                    hint = f'convert = "{text}" says the format too' if ":" in text else 'like "bf16" or "q4_k_m"'
                    raise self.wrong("quantize", f"{config.shown(given)} is no recipe", hint)
                return "quantize", text
            case _:
                from modelhub.verify import LEVELS

                if text not in (*LEVELS, "all"):
                    raise self.wrong("verify", f"there is no level {config.shown(given)}", f"levels: {', '.join(LEVELS)}, all")
                return "verify", text

    def output(self, do: str, target: str) -> Template | None:
        given = self.table.get("output")
        if given is None:
            return None
        if not isinstance(given, str):
            raise self.wrong("output", f"{config.shown(given)} is no path", "give a text in quotes")
        try:
            template = parse(given)
        except UsageError as error:
            raise self.wrong("output", error.message, error.hint) from error
        if "recipe" in template.fields and do == "convert" and ":" not in target:
            raise self.wrong(
                "output", "{recipe} stands for nothing: there is no recipe", f'leave it out, or convert = "{target}:RECIPE"'
            )
        return template

    def priority(self) -> int:
        given = self.table.get("priority", 0)
        if not isinstance(given, int) or isinstance(given, bool) or abs(given) > 1_000_000:
            raise self.wrong("priority", f"{config.shown(given)} is no priority", "give a whole number; higher ones come first")
        return given

    def flag(self, key: str, default: bool) -> bool:
        given = self.table.get(key, default)
        if not isinstance(given, bool):
            raise self.wrong(key, f"{config.shown(given)} is neither true nor false", "give one of them, without quotes")
        return given


def _named(rule: Rule, name: str) -> Rule:
    from dataclasses import replace

    return replace(rule, name=name)


def _place(path: str, number: int, name: str, key: str) -> str:
    return f"{path}, rule {number}" + (f" ({name!r})" if name else "") + (f", {key}" if key else "")


# --- against the plugins ------------------------------------------------------------------------------------------


def check(rules: Sequence[Rule], plugins: Plugins, path: str | None = None) -> None:
    """UsageError for the first enabled rule that asks for what no plugin can do: a format or recipe that is not there, or cannot
    be written; an output whose name says another format."""
    for rule in rules:
        if wrong := problem(rule, plugins, path):
            raise wrong


def problem(rule: Rule, plugins: Plugins, path: str | None = None) -> UsageError | None:
    """What `check` would say of this rule; None where nothing is wrong."""
    if not rule.converts or not rule.enabled:
        return None
    place = path or home.config_path()
    try:
        target, _ = target_of(rule, (), plugins)
    except ModelhubError as error:
        return UsageError(f"{_place(place, rule.number, rule.name, rule.do)}: {error.message}", error.hint)
    if rule.do == "convert" and rule.output and target.extension and not rule.output.text.endswith("/"):
        literal, field = rule.output.parts[-1]
        if field != "ext" and (field or not literal.lower().endswith((target.extension, *target.suffixes))):
            what = f"what it makes would not be called as {target.name} is, *{target.extension}"
            return UsageError(f"{_place(place, rule.number, rule.name, 'output')}: {what}", "end it with {ext}")
    return None


def target_of(rule: Rule, preferred: Sequence[str], plugins: Plugins) -> tuple[Format, Recipe | None]:
    """The format that the rule writes, and the recipe, for a checkpoint of the formats ``preferred``. UsageError where there is
    none."""
    from modelhub.targets import format_with, parse_target

    if rule.do == "convert":
        return parse_target(rule.target, plugins)
    return parse_target(f"{format_with(rule.target, preferred, plugins)}:{rule.target}", plugins)

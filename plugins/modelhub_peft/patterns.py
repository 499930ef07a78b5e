r"""Patterns of module names, as adapters' configurations have them, matched in a time that grows with the name alone.

peft gives them to ``re``, which tries one way after the other, and with ``(a|a)(a|a)...`` or ``.*.*.*x`` is not done in a
lifetime: a configuration comes from anywhere. Here all ways are followed at once (K. Thompson, "Regular Expression Search
Algorithm", 1968). Letters, ``.``, classes, ``\d \w \s``, groups, ``|``, repetitions, ``^`` and ``$`` mean what they do in
``re``; what looks back or around is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MAX_PATTERN = 1000
MAX_STATES = 20_000
MAX_DEPTH = 50
MAX_KEPT = 4096
"""Steps that a pattern remembers, to take them faster the next time."""
_CLASSES = "dDwWsS"
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTS = re.compile(r"\{(\d*)(,?)(\d*)\}")
_LITERAL = re.compile(r"[\w.-]+")

Test = Callable[[str], bool]


def is_literal(pattern: str) -> bool:
    """Whether it is a plain name; its dots are what stands for any letter."""
    return _LITERAL.fullmatch(pattern) is not None


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` is for the whole of ``name``. ValueError for a pattern that is wrong, or that is not known here."""
    return _compiled(pattern).matches(name)


def ends(pattern: str, name: str) -> bool:
    """Whether ``pattern`` is for ``name``, or for its end after a dot: peft's rule (``utils/other.py``, ``get_pattern_key``)."""
    if not is_literal(pattern):
        return _compiled(pattern, True).matches(name)
    before, end = name[: -len(pattern)], name[-len(pattern) :]
    return (not before or before.endswith(".")) and (
        end == pattern or (len(end) == len(pattern) and all(one in (".", other) for one, other in zip(pattern, end, strict=True)))
    )


def check(pattern: str) -> None:
    """ValueError for a pattern that `matches` and `ends` would not take."""
    _compiled(pattern)


@functools.lru_cache(maxsize=2048)
def _compiled(pattern: str, at_end: bool = False) -> _Machine:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} letters")
    parser = _Parser(pattern)
    whole = parser.alternatives(0)
    if parser.at < len(pattern):
        raise ValueError(f"a {pattern[parser.at]!r} too many")
    if at_end:  # (.*\.)?
        before = _Sequence([_Repeated(_Letter(_any), 0, None), _Letter(".".__eq__)])
        whole = _Sequence([_Repeated(before, 0, 1), whole])
    machine = _Machine()
    machine.end = whole.build(machine, machine.state())
    return machine


class _Machine:
    """States, numbered; where one goes without a letter (``jumps``; ``guards`` for ``^`` and ``$``), and with one (``steps``)."""

    def __init__(self) -> None:
        self.jumps: list[list[int]] = []
        self.guards: dict[int, tuple[str, int]] = {}
        self.steps: dict[int, tuple[Test, int]] = {}
        self.end = 0
        self._kept: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def state(self) -> int:
        if len(self.jumps) >= MAX_STATES:
            raise ValueError("a pattern with too many repetitions")
        self.jumps.append([])
        return len(self.jumps) - 1

    def matches(self, name: str) -> bool:
        now = self._reached({0}, "^")
        if not name:
            return self.end in self._reached(now, "^$")
        for letter in name:
            after = self._kept.get((now, letter))
            if after is None:
                tests = (self.steps[state] for state in now if state in self.steps)
                after = self._reached({target for test, target in tests if test(letter)}, "")
                if len(self._kept) >= MAX_KEPT:
                    self._kept.clear()
                self._kept[now, letter] = after
            if not after:
                return False
            now = after
        return self.end in self._reached(now, "$")

    def _reached(self, states: set[int] | frozenset[int], where: str) -> frozenset[int]:
        found, left = set(states), list(states)
        while left:
            state = left.pop()
            targets = list(self.jumps[state])
            if state in self.guards and self.guards[state][0] in where:
                targets.append(self.guards[state][1])
            for target in targets:
                if target not in found:
                    found.add(target)
                    left.append(target)
        return frozenset(found)


class _Part(Protocol):
    """A part of a pattern."""

    def build(self, machine: _Machine, start: int) -> int:
        """Its states, from ``start`` on; the one that it ends in."""


@dataclass(slots=True)
class _Letter:
    test: Test

    def build(self, machine: _Machine, start: int) -> int:
        begin, end = machine.state(), machine.state()
        machine.jumps[start].append(begin)
        machine.steps[begin] = (self.test, end)
        return end


@dataclass(slots=True)
class _Guard:
    where: str

    def build(self, machine: _Machine, start: int) -> int:
        begin, end = machine.state(), machine.state()
        machine.jumps[start].append(begin)
        machine.guards[begin] = (self.where, end)
        return end


@dataclass(slots=True)
class _Sequence:
    parts: list[_Part] = field(default_factory=list)

    def build(self, machine: _Machine, start: int) -> int:
        now = machine.state()
        machine.jumps[start].append(now)
        for part in self.parts:
            now = part.build(machine, now)
        return now


@dataclass(slots=True)
class _Either:
    ways: list[_Part]

    def build(self, machine: _Machine, start: int) -> int:
        end = machine.state()
        for way in self.ways:
            machine.jumps[way.build(machine, start)].append(end)
        return end


@dataclass(slots=True)
class _Repeated:
    """``part``, at least ``low`` and at most ``high`` times (None: any number of times)."""

    part: _Part
    low: int
    high: int | None

    def build(self, machine: _Machine, start: int) -> int:
        now = start
        for _ in range(self.low):
            now = self.part.build(machine, now)
        end = machine.state()
        machine.jumps[now].append(end)
        if self.high is None:
            machine.jumps[self.part.build(machine, end)].append(end)
        for _ in range((self.high or 0) - self.low):
            now = self.part.build(machine, now)
            machine.jumps[now].append(end)
        return end


class _Parser:
    """Reads a pattern from ``at`` on."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def alternatives(self, depth: int) -> _Part:
        if depth > MAX_DEPTH:
            raise ValueError("groups too deep in one another")
        ways = [_Sequence()]
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            if self.pattern[self.at] == "|":
                self.at += 1
                ways.append(_Sequence())
            else:
                part = self._one(depth)
                low, high = self._counts()
                ways[-1].parts.append(part if (low, high) == (1, 1) else _Repeated(part, low, high))
        return _Either(list(ways)) if len(ways) > 1 else ways[0]

    def _counts(self) -> tuple[int, int | None]:
        """How often what was read comes, at least and at most."""
        sign, match = self.pattern[self.at : self.at + 1], _COUNTS.match(self.pattern, self.at)
        low: int
        high: int | None
        if sign and sign in _SIGNS:
            self.at += 1
            low, high = _SIGNS[sign]
        elif match and (match[1] or match[3]):
            self.at = match.end()
            low = int(match[1] or 0)
            high = (int(match[3]) if match[3] else None) if match[2] else low
            if low > MAX_STATES or (high is not None and not low <= high <= MAX_STATES):
                raise ValueError(f"the repetitions {match[0]}")
        else:
            return 1, 1
        following = self.pattern[self.at : self.at + 1]
        if following == "?":  # which of several ways it matches makes no difference
            self.at += 1
        elif following and (following in _SIGNS or _COUNTS.match(self.pattern, self.at)):
            raise ValueError(f"two repetitions in a row at {self.at}")
        return low, high

    def _one(self, depth: int) -> _Part:
        letter = self.pattern[self.at]
        self.at += 1
        if letter in _SIGNS:
            raise ValueError(f"nothing to repeat at {self.at - 1}")
        if letter == "(":
            return self._group(depth)
        if letter in "^$":
            return _Guard(letter)
        tests = {".": lambda: _any, "[": self._class, "\\": self._escaped}
        return _Letter(tests[letter]() if letter in tests else letter.__eq__)

    def _group(self, depth: int) -> _Part:
        if self.pattern.startswith("?:", self.at):
            self.at += 2
        elif self.pattern.startswith("?", self.at):
            raise ValueError("a group that is more than one")
        inner = self.alternatives(depth + 1)
        if self.at >= len(self.pattern):
            raise ValueError("a group without an end")
        self.at += 1
        return inner

    def _escaped(self) -> Test:
        letter = self.pattern[self.at : self.at + 1]
        self.at += 1
        if letter in _CLASSES and letter:
            return lambda other, one=re.compile("\\" + letter): one.match(other) is not None  # type: ignore[misc]
        if not letter or letter.isalnum():
            raise ValueError(f"an escape \\{letter}")
        return letter.__eq__

    def _class(self) -> Test:
        """What ``[`` begins: one class of letters, which ``re`` reads, for it is but one step."""
        end = self.pattern.find("]", self.at + (2 if self.pattern.startswith("^", self.at) else 1))
        while end > 0 and (len(self.pattern[:end]) - len(self.pattern[:end].rstrip("\\"))) % 2:
            end = self.pattern.find("]", end + 1)
        if end < 0:
            raise ValueError("a class without an end")
        said = self.pattern[self.at - 1 : end + 1]
        self.at = end + 1
        try:
            one = re.compile(said, re.DOTALL)
        except re.error as error:
            raise ValueError(f"{said:.40}: {error}") from error
        return lambda letter: one.fullmatch(letter) is not None


def _any(letter: str) -> bool:
    return letter != "\n"

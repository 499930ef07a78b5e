"""Shares a budget of bytes out among tensors, so that what they lose together is least. Knows nothing of files or encodings.

Each tensor has options, of some cost and some loss, and takes one: the multiple-choice knapsack problem. Steps along each
tensor's convex hull are taken in the order of what they save for a byte, which is optimal but for what is left over at the end
(the Lagrangian bound); that is then spent by the best single changes and exchanges of two. All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_ROUNDS = 2000
"""Improving changes that are made at most; each makes the loss smaller, so that it ends anyway."""
_PARTNERS = 24
"""With how many of the cheapest sacrifices an improvement that does not fit is tried."""


class Option(NamedTuple):
    """``cost`` in bytes; ``loss`` in whatever is to be least."""

    name: str
    cost: int
    loss: float


def allocate(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The number of the option that each item takes: together they cost no more than ``budget``. None where even the cheapest
    cost more."""
    hulls = [_hull(options) for options in items]
    taken = [0] * len(items)
    left = budget - sum(items[number][hull[0]].cost for number, hull in enumerate(hulls))
    if left < 0:
        return None
    steps = []
    for number, hull in enumerate(hulls):
        for place in range(1, len(hull)):
            before, after = items[number][hull[place - 1]], items[number][hull[place]]
            cost = after.cost - before.cost
            steps.append(((before.loss - after.loss) / cost, number, place, cost))
    stuck: set[int] = set()
    for _, number, place, cost in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        if number not in stuck and cost <= left:
            taken[number], left = place, left - cost
        else:
            stuck.add(number)
    return improve(items, [hulls[number][place] for number, place in enumerate(taken)], budget)


def improve(items: Sequence[Sequence[Option]], taken: Sequence[int], budget: int) -> list[int]:
    """A choice that fits, made better by single changes and exchanges until none helps."""
    current = list(taken)
    left = budget - sum(options[place].cost for options, place in zip(items, current, strict=True))
    for _ in range(_ROUNDS):
        change = _single(items, current, left) or _exchange(items, current, left)
        if not change:
            break
        for number, place in change:
            left -= items[number][place].cost - items[number][current[number]].cost
            current[number] = place
    return current


def total(items: Sequence[Sequence[Option]], taken: Sequence[int]) -> tuple[int, float]:
    """Cost and loss of a choice."""
    chosen = [options[place] for options, place in zip(items, taken, strict=True)]
    return sum(option.cost for option in chosen), sum(option.loss for option in chosen)


def _hull(options: Sequence[Option]) -> list[int]:
    """Numbers of the options on the lower convex hull, from the cheapest to the one that loses least."""
    hull: list[int] = []
    for number in sorted(range(len(options)), key=lambda place: (options[place].cost, options[place].loss)):
        option = options[number]
        if hull and option.loss >= options[hull[-1]].loss:
            continue
        while len(hull) > 1 and _slope(options[hull[-2]], options[hull[-1]]) <= _slope(options[hull[-1]], option):
            hull.pop()
        hull.append(number)
    return hull


def _slope(before: Option, after: Option) -> float:
    return (before.loss - after.loss) / (after.cost - before.cost)


def _changes(items: Sequence[Sequence[Option]], current: Sequence[int]) -> list[tuple[float, int, int, int]]:
    """(gain, cost, item, option) of every change there is."""
    found = []
    for number, options in enumerate(items):
        now = options[current[number]]
        for place, option in enumerate(options):
            if place != current[number]:
                found.append((now.loss - option.loss, option.cost - now.cost, number, place))
    return found


def _single(items: Sequence[Sequence[Option]], current: Sequence[int], left: int) -> list[tuple[int, int]]:
    """The change that fits and gains most."""
    best = max(
        (change for change in _changes(items, current) if change[0] > 0 and change[1] <= left),
        key=lambda change: (change[0], -change[1], -change[2], -change[3]),
        default=None,
    )
    return [best[2:]] if best else []


def _exchange(items: Sequence[Sequence[Option]], current: Sequence[int], left: int) -> list[tuple[int, int]]:
    """A change that does not fit, with one elsewhere that makes room for it and loses less than the other gains."""
    changes = _changes(items, current)
    wanted = sorted(
        (change for change in changes if change[0] > 0 and change[1] > left), key=lambda change: -change[0] / change[1]
    )
    given = sorted((change for change in changes if change[1] < 0), key=lambda change: change[0] / change[1])
    best, most = [], 0.0
    for gain, cost, number, place in wanted[:_PARTNERS]:
        for lost, freed, other, instead in given[: 4 * _PARTNERS]:
            if other != number and cost + freed <= left and gain + lost > most:
                best, most = [(number, place), (other, instead)], gain + lost
    return best

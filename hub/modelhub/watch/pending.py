"""`Pending`: the directories worth a look, until they have been quiet for long enough to be looked at.

Bookkeeping alone: no clock (the caller says what time it is), no files, no threads. What is due of a root goes out as one batch,
so that a file renamed from one directory to another is seen in both at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MOST = 2_000
"""So many directories of one root waiting at once are not worth telling apart."""
REST, MOST_REST = 1.0, 10.0
"""A part is not scanned again before so many times what its last scan took has passed, nor does it rest for longer than this: the
look after a storm is a long one, and the one after that must not be late."""
NEVER = float("inf")


class Hint(NamedTuple):
    """A directory, relative to its root (b"" the root itself), worth a look: with all that is below it, or its own entries
    only."""

    path: bytes
    deep: bool


@dataclass(slots=True)
class _Item:
    """``first`` and ``last`` hint; ``at``: a time set by other means, which the next hint overrules unless it is ``firm``."""

    first: float
    last: float
    deep: bool
    at: float | None = None
    firm: bool = False


@dataclass(slots=True)
class _Root:
    """``bound``: nothing is due before. ``rests``: parts not to be scanned again before. ``out``: the batch being scanned."""

    waiting: dict[bytes, _Item] = field(default_factory=dict)
    rests: dict[Hint, float] = field(default_factory=dict)
    bound: float = NEVER
    out: list[Hint] = field(default_factory=list)


class Pending:
    """``settle``: seconds without a hint after which a directory is due; ``longest``: seconds after its first hint when it is due
    however much goes on there. Both may be changed at any time."""

    def __init__(self, settle: float = 5.0, *, longest: float = 30.0) -> None:
        self.settle = settle
        self.longest = longest
        self._roots: dict[str, _Root] = {}

    def __len__(self) -> int:
        return sum(len(root.waiting) for root in self._roots.values())

    def add(self, root: str, hint: Hint, now: float, *, at_once: bool = False) -> None:
        """Something happened in a directory. ``at_once``: it does not have to be quiet first."""
        state = self._roots.get(root)
        if state is None:
            state = self._roots[root] = _Root()
        path, deep = hint
        item = state.waiting.get(path)
        if item is None:
            item = state.waiting[path] = _Item(now, now, deep)
            if not at_once and now + self.settle < state.bound:
                state.bound = now + self.settle
            if len(state.waiting) > MOST:
                self._merge(state)
        else:
            item.last = now
            overruled = item.at is not None and not item.firm
            if overruled or deep > item.deep:
                item.at = None if overruled else item.at
                item.deep = item.deep or deep
                state.bound = min(state.bound, self._when(state, path, item))
        if at_once:
            item = state.waiting[path if path in state.waiting else next(iter(state.waiting))]
            item.at, item.firm = now, True
            state.bound = now

    def requeue(self, root: str, hints: Iterable[Hint], after: float, now: float) -> None:
        """Look at these again after ``after`` seconds: files that were still growing, directories that could not be read. A
        hint that comes, or has come, in the meantime is waited for as usual instead."""
        for hint in hints:
            state = self._roots.setdefault(root, _Root())
            item = state.waiting.get(hint.path)
            if item is None:
                state.waiting[hint.path] = _Item(now, now, hint.deep, now + after)
            else:
                item.deep = item.deep or hint.deep
                if item.at is not None and not item.firm:
                    item.at = min(item.at, now + after)
            state.bound = min(state.bound, now + after)
            if len(state.waiting) > MOST:
                self._merge(state)

    def due(self, now: float, busy: Collection[str] = ()) -> dict[str, list[Hint]]:
        """What is to be scanned now, by root, sorted; taken out of what waits. Of the roots in ``busy`` nothing: what comes for
        them is kept together until their scan is done.

        With what is due go the directories that have been quiet for half the settle time: a rename hints at both its
        directories at once, and the one that is hinted at again, a little later, must not be left behind.
        """
        found: dict[str, list[Hint]] = {}
        for name, state in self._roots.items():
            if now < state.bound or name in busy:
                continue
            batch = self._batch(state, now)
            if batch:
                found[name] = state.out = batch
        return found

    def next_due(self, busy: Collection[str] = ()) -> float:
        """When to ask `due` again; infinity where nothing waits. It may turn out that nothing was due yet."""
        return min((state.bound for name, state in self._roots.items() if name not in busy), default=NEVER)

    def done(self, root: str, seconds: float, now: float) -> None:
        """The batch of this root was scanned, in so many seconds: its parts rest for some times that, each for its share."""
        state = self._roots.get(root)
        if state is None or not state.out:
            return
        state.rests = {hint: until for hint, until in state.rests.items() if until > now}
        rest = min(MOST_REST, REST * seconds / len(state.out))
        for hint in state.out:
            state.rests.pop(hint, None)
            if rest > self.settle / 10:
                state.rests[hint] = now + rest
        state.out = []

    def forget(self, root: str) -> None:
        """The root is no more."""
        self._roots.pop(root, None)

    # --- when, and what together ----------------------------------------------------------------------------------

    def _when(self, state: _Root, path: bytes, item: _Item) -> float:
        when = item.at if item.at is not None else min(item.last + self.settle, item.first + self.longest)
        return max(when, state.rests.get(Hint(path, item.deep), when)) if state.rests else when

    def _batch(self, state: _Root, now: float) -> list[Hint]:
        times = {path: self._when(state, path, item) for path, item in state.waiting.items()}
        if not any(when <= now for when in times.values()):
            state.bound = min(times.values(), default=NEVER)
            return []
        quiet = now - self.settle / 2
        going = []
        for path, item in state.waiting.items():
            hint = Hint(path, item.deep)
            rested = hint not in state.rests or state.rests[hint] <= now
            if times[path] <= now or (item.at is None and item.last <= quiet and rested):
                going.append(hint)
        deep = {hint.path for hint in going if hint.deep}
        batch = sorted(hint for hint in going if not _covered(hint.path, deep))
        gone = {hint.path for hint in going}
        state.waiting = {
            path: item for path, item in state.waiting.items() if path not in gone and not (deep and _covered(path, deep))
        }
        state.bound = min((times[path] for path in state.waiting), default=NEVER)
        return batch

    def _merge(self, state: _Root) -> None:
        """One deep part, of the directory that holds all that wait, in their stead."""
        items = state.waiting
        top = _common(items)
        firm = any(item.firm for item in items.values())
        item = _Item(
            min(item.first for item in items.values()),
            max(item.last for item in items.values()),
            True,
            min((item.at for item in items.values() if item.firm and item.at is not None), default=None),
            firm,
        )
        state.waiting = {top: item}
        state.bound = self._when(state, top, item)


def _covered(path: bytes, deep: set[bytes]) -> bool:
    """Whether ``path`` lies below one of ``deep``."""
    if not deep:
        return False
    while path:
        path = path.rpartition(b"/")[0]
        if path in deep:
            return True
    return False


def _common(paths: Collection[bytes]) -> bytes:
    """The deepest directory at or above all of ``paths``."""
    first, last = min(paths).split(b"/"), max(paths).split(b"/")
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return b"/".join(first[:length])

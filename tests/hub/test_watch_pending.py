"""What waits to be scanned: quiet first, together what belongs together, never twice what one scan sees."""

from __future__ import annotations

import random
import time

import pytest
from modelhub.watch.pending import MOST, NEVER, Hint, Pending

ROOT = "/models"


def shallow(path: str) -> Hint:
    return Hint(path.encode(), False)


def deep(path: str) -> Hint:
    return Hint(path.encode(), True)


@pytest.fixture
def pending() -> Pending:
    return Pending(5.0, longest=30.0)


def test_rule_15_a_directory_is_due_when_it_has_been_quiet(pending: Pending) -> None:
    assert pending.next_due() == NEVER
    for now in (0.0, 3.0, 6.0):
        pending.add(ROOT, shallow("a"), now)
        assert pending.due(now + 2.9) == {}
    assert pending.next_due() <= 11.0
    assert pending.due(10.9) == {}
    assert pending.next_due() == 11.0
    assert pending.due(11.0) == {ROOT: [shallow("a")]}
    assert pending.due(100.0) == {}
    assert pending.next_due() == NEVER


def test_rule_15_a_directory_that_is_never_quiet_is_due_after_the_longest_wait(pending: Pending) -> None:
    due = []
    for now in range(100):
        pending.add(ROOT, shallow("a"), float(now))
        due += [now] * len(pending.due(float(now)))
    assert due == [30, 61, 92]


def test_rule_15_both_ends_of_a_rename_go_out_together(pending: Pending) -> None:
    """The one directory is hinted at again a moment later, and must not be left behind: its file would be missing, and then
    come back."""
    pending.add(ROOT, shallow("from"), 0.0)
    pending.add(ROOT, shallow("to"), 0.0)
    pending.add(ROOT, shallow("from"), 2.0)
    pending.add(ROOT, shallow("busy"), 4.9)
    assert pending.due(5.0) == {ROOT: [shallow("from"), shallow("to")]}
    assert pending.due(9.9) == {ROOT: [shallow("busy")]}


def test_rule_1_one_scan_for_what_is_below_another(pending: Pending) -> None:
    pending.add(ROOT, shallow("models/llama/sub"), 0.0)
    pending.add(ROOT, deep("models/llama"), 0.0)
    pending.add(ROOT, shallow("models/llama"), 0.0)
    pending.add(ROOT, shallow("models/llama-2"), 0.0)
    pending.add(ROOT, shallow("models"), 0.0)
    # Hinted at a moment ago: it is seen by this scan too; where its files still grow, the scan says so.
    pending.add(ROOT, shallow("models/llama/late"), 4.9)
    assert pending.due(5.0) == {ROOT: [shallow("models"), deep("models/llama"), shallow("models/llama-2")]}
    assert not len(pending)


def test_a_directory_that_is_hinted_at_both_ways_is_scanned_deep(pending: Pending) -> None:
    pending.add(ROOT, deep("a"), 0.0)
    pending.add(ROOT, shallow("a"), 1.0)
    pending.add(ROOT, shallow("b"), 0.0)
    pending.add(ROOT, deep("b"), 1.0)
    assert pending.due(6.0) == {ROOT: [deep("a"), deep("b")]}


def test_rule_3_a_reconcile_does_not_wait_for_quiet(pending: Pending) -> None:
    pending.add(ROOT, shallow("a/b"), 0.0)
    pending.add(ROOT, deep(""), 1.0, at_once=True)
    assert pending.next_due() == 1.0
    pending.add(ROOT, shallow(""), 1.0)
    assert pending.due(1.0) == {ROOT: [deep("")]}
    assert not len(pending)


def test_while_a_root_is_scanned_what_comes_is_kept_together(pending: Pending) -> None:
    pending.add(ROOT, shallow("a"), 0.0)
    pending.add("/other", shallow("x"), 0.0)
    assert pending.due(5.0, {"/other"}) == {ROOT: [shallow("a")]}
    assert pending.next_due({"/other"}) == NEVER
    for now in (6.0, 7.0, 20.0):
        pending.add(ROOT, shallow("a"), now)
        pending.add(ROOT, shallow(f"b{now:g}"), now)
    assert pending.due(50.0, {ROOT}) == {"/other": [shallow("x")]}
    assert pending.due(50.0) == {ROOT: [shallow("a"), shallow("b20"), shallow("b6"), shallow("b7")]}


def test_a_part_that_takes_long_rests_as_long_but_not_for_ever(pending: Pending) -> None:
    pending.add(ROOT, deep(""), 0.0, at_once=True)
    assert pending.due(0.0) == {ROOT: [deep("")]}
    pending.done(ROOT, 100.0, 100.0)
    pending.add(ROOT, deep(""), 101.0, at_once=True)
    pending.add(ROOT, shallow("a"), 101.0)
    assert pending.due(106.0) == {ROOT: [shallow("a")]}, "other parts do not wait with it"
    pending.done(ROOT, 0.01, 106.1)
    assert pending.next_due() == 110.0
    assert pending.due(109.0) == {}
    assert pending.due(110.0) == {ROOT: [deep("")]}


def test_a_deep_look_is_not_held_up_by_a_slow_shallow_one(pending: Pending) -> None:
    pending.add(ROOT, shallow("a"), 0.0)
    pending.due(5.0)
    pending.done(ROOT, 10.0, 15.0)
    pending.add(ROOT, shallow("a"), 15.0)
    assert pending.due(20.0) == {}
    assert pending.next_due() == 25.0
    pending.add(ROOT, deep("a"), 16.0)
    assert pending.next_due() <= 21.0
    assert pending.due(21.0) == {ROOT: [deep("a")]}


def test_files_that_still_grow_are_looked_at_again(pending: Pending) -> None:
    pending.requeue(ROOT, [shallow("a")], 3.0, 0.0)
    assert pending.next_due() == 3.0
    assert pending.due(3.0) == {ROOT: [shallow("a")]}
    # What is hinted at in the meantime is waited for as usual.
    pending.requeue(ROOT, [shallow("a")], 3.0, 10.0)
    pending.add(ROOT, shallow("a"), 12.0)
    assert pending.due(13.0) == {}
    assert pending.due(17.0) == {ROOT: [shallow("a")]}


def test_rule_17_what_could_not_be_read_is_tried_again_at_once_when_something_happens(pending: Pending) -> None:
    pending.requeue(ROOT, [deep("a")], 60.0, 0.0)
    pending.add(ROOT, shallow("a"), 1.0)
    assert pending.next_due() == 6.0
    assert pending.due(6.0) == {ROOT: [deep("a")]}
    pending.requeue(ROOT, [deep("b")], 60.0, 0.0)
    assert pending.due(59.0) == {}
    assert pending.due(60.0) == {ROOT: [deep("b")]}


def test_what_was_hinted_at_during_a_scan_is_not_put_off_by_its_result(pending: Pending) -> None:
    pending.add(ROOT, shallow("a"), 0.0)
    pending.requeue(ROOT, [shallow("a")], 60.0, 1.0)
    assert pending.due(5.0) == {ROOT: [shallow("a")]}


def test_too_many_directories_become_the_one_that_holds_them(pending: Pending) -> None:
    for number in range(MOST + 1):
        pending.add(ROOT, shallow(f"org/models/{number:05d}"), number / 1000)
    assert len(pending) == 1
    assert pending.due(MOST / 1000 + 5) == {ROOT: [deep("org/models")]}


def test_too_many_directories_do_not_hold_up_a_reconcile(pending: Pending) -> None:
    for number in range(MOST):
        pending.add(ROOT, shallow(f"a{number}"), 0.0)
    pending.add(ROOT, deep(""), 0.0, at_once=True)
    assert pending.due(0.0) == {ROOT: [deep("")]}
    pending.add(ROOT, deep(""), 1.0, at_once=True)
    for number in range(2 * MOST):
        pending.add(ROOT, shallow(f"a{number}"), 1.0)
    assert pending.due(1.0) == {ROOT: [deep("")]}


def test_60_000_hints_in_a_burst_cost_nothing_to_speak_of(pending: Pending) -> None:
    started = time.process_time()
    for number in range(60_000):
        pending.add(ROOT, shallow(f"d{number % 10_000}"), number / 10_000)
        if number % 10 == 0:  # as often as a loop may ask
            pending.next_due()
            pending.due(number / 10_000)
    assert time.process_time() - started < 1.0
    assert len(pending) <= MOST + 1
    pending.due(1000.0)
    assert not len(pending)


def test_a_root_that_is_removed_has_nothing_due(pending: Pending) -> None:
    pending.add(ROOT, shallow("a"), 0.0)
    pending.forget(ROOT)
    assert pending.due(10.0) == {}
    assert pending.next_due() == NEVER


def test_settings_may_change_meanwhile(pending: Pending) -> None:
    pending.settle, pending.longest = 60.0, 100.0
    pending.add(ROOT, shallow("a"), 0.0)
    assert pending.due(59.0) == {}
    pending.settle = 1.0
    assert pending.due(60.0) == {ROOT: [shallow("a")]}


@pytest.mark.parametrize("seed", range(20))
def test_rule_1_no_hint_is_ever_lost(seed: int) -> None:
    """Whatever comes, in whatever order: each hint is followed by a scan that sees its directory, not later than the longest
    wait, the scan under way and the rest allow."""
    rng = random.Random(seed)
    pending = Pending(1.0, longest=4.0)
    paths = ["", "a", "a/b", "a/b/c", "a/x", "b", "b/c"]
    owed: list[tuple[float, Hint]] = []
    now, busy_until = 0.0, None
    for _ in range(3000):
        now += rng.random() / 4
        if rng.random() < 0.5:
            hint = Hint(rng.choice(paths).encode(), rng.random() < 0.2)
            if rng.random() < 0.2:
                pending.requeue(ROOT, [hint], rng.random() * 3, now)
            else:
                pending.add(ROOT, hint, now, at_once=rng.random() < 0.05)
            owed.append((now, hint))
        if busy_until is not None and now >= busy_until:
            pending.done(ROOT, 0.3, now)
            busy_until = None
        busy: set[str] = {ROOT} if busy_until is not None else set()
        next_due = pending.next_due(busy)
        batch = pending.due(now, busy).get(ROOT, [])
        assert not (batch and next_due > now), "it would not have been asked for"
        if batch:
            busy_until = now + 0.3
            owed = [(at, hint) for at, hint in owed if not any(_sees(part, hint) for part in batch)]
        assert all(now - at < 8.0 for at, _ in owed), (now, owed)
    pending.due(now + 1000)
    assert not len(pending)


def _sees(part: Hint, hint: Hint) -> bool:
    if part.path == hint.path:
        return part.deep or not hint.deep
    return part.deep and (not part.path or hint.path.startswith(part.path + b"/"))

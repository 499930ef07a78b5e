"""Patterns of module names mean what they do in ``re``, whatever they are, and none of them runs away."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from modelhub_peft import patterns

ATOMS = ["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[0-9]", "[]a]", r"[\]a]", "(a|b)", "(?:ab|a)", "(|a)", "()", "1"]
SIGNS = ["", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{0}", "{1,}", "{,2}", "{}"]
PATTERN = st.lists(
    st.tuples(st.sampled_from(["", "|", "^"]), st.sampled_from(ATOMS), st.sampled_from(SIGNS)), min_size=1, max_size=5
).map(lambda parts: "".join(map("".join, parts)))


@settings(max_examples=200, deadline=None)
@given(PATTERN, st.text("ab1.]{}", max_size=7))
@example("q_proj", "layers.0.q_proj")
@example("0.q_proj", "layers.0xq_proj")
@example("q_proj", "aq_proj")
@example(r"^model.layers\.(0|1)\..*_proj$", "model.layers.1.q_proj")
@example(r"^layers", "model.layers")
def test_they_mean_what_they_do_in_re(pattern: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert patterns.matches(pattern, name) == (re.fullmatch(pattern, name) is not None)
        assert patterns.ends(pattern, name) == (re.fullmatch(rf"(.*\.)?({pattern})", name) is not None)


@pytest.mark.parametrize("pattern", ["(a|a)" * 100, ".*" * 100 + "x", "(a+)+b", "(a|aa)+" * 20])
def test_none_runs_away(pattern: str) -> None:
    begun = time.monotonic()
    assert not patterns.ends(pattern, "a" * 2000 + "y")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "[a", "*", "a**", "(?=a)", r"(a)\1", "a" * 2000, "((a{0,90}){0,90}){0,90}", "(" * 60 + ")" * 60, "a{3,2}"],
)
def test_what_is_wrong_or_not_known_is_said(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        patterns.check(pattern)

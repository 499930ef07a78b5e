"""Sizes, counts and cut text, as people see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelhub.cli import text


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (4_400_000_000, "4.4 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes(nbytes: int, shown: str) -> None:
    assert text.size(nbytes) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (22_713_728, "22.7M"),
        (7_240_000_000, "7.24B"),
        (70_553_706_496, "70.6B"),
        (405_000_000_000, "405B"),
    ],
)
def test_counts(number: int, shown: str) -> None:
    assert text.count(number) == shown


@given(st.text(st.characters(codec=None)), st.integers(1, 40), st.booleans())
def test_cut_text_fits_and_is_safe(words: str, cells: int, middle: bool) -> None:
    shown = text.shorten(text.escape(words), cells, middle)
    assert text.width(shown) <= cells
    assert not text._UNSAFE.search(shown)
    shown.encode()  # no lone surrogates


def test_escapes_name_what_they_hide() -> None:
    assert text.escape("a\x1b[2J\nb\udcff\u202e\U000e0041") == "a\\x1b[2J\\nb\\xff\\u202e\\U000e0041"
    assert text.escape("模型 👩‍💻 é") == "模型 👩‍💻 é"


def test_json_is_exact_and_safe(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    value = {"a\x1b\u202e": ["\udcff", "模型", 1 << 70, None], "\x9b": "👩‍💻"}
    text.print_json(value)
    out = capsys.readouterr().out
    assert not text._UNSAFE.search(out.replace("\n", ""))
    assert json.loads(out) == value

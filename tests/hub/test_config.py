"""``config.toml``: what its sections hold, and how it is said what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelhub import config
from modelhub.errors import UsageError


def test_without_a_file_everything_has_a_default() -> None:
    found = config.settings()
    assert found == config.Settings()
    assert (found.watch.settle, found.watch.longest_wait, found.watch.poll, found.watch.reconcile) == (5, 30, 60, 3600)
    assert (found.jobs.workers, found.jobs.memory, found.jobs.keep) == (2, 8 * 10**9, 30 * 86400)
    assert found.scrub is None


def test_a_file_is_read_from_the_home(own_home: Path) -> None:
    (own_home / "config.toml").write_text(
        """
        exclude = ["*.tmp"]
        catalog = "there.db"
        [watch]
        settle = "500ms"
        reconcile = "1h30m"
        [jobs]
        workers = 0
        memory = "4GiB"
        keep = "2w"
        [scrub]
        every = "7d"
        """
    )
    found = config.settings()
    assert found.exclude == ("*.tmp",)
    assert found.catalog == "there.db"
    assert found.watch == config.Watch(settle=0.5, reconcile=5400)
    assert found.jobs == config.Work(workers=0, memory=4 << 30, keep=14 * 86400)
    assert found.scrub == config.Scrub(bytes_per_day=500 * 10**9, every=7 * 86400)


def test_a_section_that_is_there_and_empty_turns_the_scrub_on() -> None:
    assert config.read({"scrub": {}}).scrub == config.Scrub()


def test_the_longest_wait_follows_a_long_settle_time() -> None:
    assert config.read({"watch": {"settle": "1m"}}).watch.longest_wait == 360
    assert config.read({"watch": {"settle": 1}}).watch.longest_wait == 30


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), (1.5, 1.5), ("90", 90), ("90s", 90), ("500ms", 0.5), ("1h", 3600), ("1h 30m", 5400), ("2 min", 120), ("1W", 604800)],
)
def test_durations(given: Any, seconds: float) -> None:
    assert config.duration(given, "x") == seconds


@pytest.mark.parametrize(
    "given", [-1, "-1s", True, None, "", "h", "1h30", "30x", "1e9d", float("nan"), float("inf"), [], "99999d", 1e300]
)
def test_what_is_no_duration(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^\[watch\] settle in f is .*no duration; give seconds"):
        config.duration(given, "[watch] settle in f")


@pytest.mark.parametrize(("given", "nbytes"), [(0, 0), (4096, 4096), ("8GB", 8 * 10**9), ("500 MiB", 500 << 20), ("1.5kB", 1500)])
def test_sizes(given: Any, nbytes: int) -> None:
    assert config.size(given, "x") == nbytes


@pytest.mark.parametrize("given", [-1, "-1GB", 1.5, True, "", "much", "8 GBs", "1e400", "99999999999PB", 1 << 63, {}])
def test_what_is_no_size(given: Any) -> None:
    with pytest.raises(UsageError, match="no size"):
        config.size(given, "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"watc": {}}, r"^'watc' in /c.toml is not known; did you mean watch\? there are: exclude, catalog, watch"),
        ({"watch": {"setle": 1}}, r"^\[watch\] setle in /c.toml is not known; did you mean settle\?"),
        ({"watch": 3}, r"^'watch' in /c.toml is 3, not a section; write \[watch\]"),
        ({"watch": {"settle": "soon"}}, r'^\[watch\] settle in /c.toml is "soon", which is no duration'),
        ({"watch": {"poll": 0}}, r"^\[watch\] poll in /c.toml is 0, which is too little; give at least 1"),
        ({"watch": {"settle": 9, "longest_wait": 8}}, r"^\[watch\] longest_wait in /c.toml is 8 s, less than settle"),
        ({"jobs": {"workers": "two"}}, r'^\[jobs\] workers in /c.toml is "two", which is no whole number'),
        ({"jobs": {"workers": True}}, r"^\[jobs\] workers in /c.toml is true, which is no whole number"),
        ({"jobs": {"memory": "1MB"}}, r'^\[jobs\] memory in /c.toml is "1MB", which is too little; give at least 256,000,000'),
        ({"scrub": {"bytes_per_day": 0}}, r"^\[scrub\] bytes_per_day in /c.toml is 0, which is too little"),
        ({"exclude": "*.tmp"}, r"^'exclude' in /c.toml is not a list of texts"),
        ({"catalog": 3}, r"^'catalog' in /c.toml is not a text"),
        (
            {"rules": {"where": ["*"]}},
            r"^'rules' in /c.toml is a section, not a list of tables; each rule begins with \[\[rules\]\]",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.read(given, "/c.toml")

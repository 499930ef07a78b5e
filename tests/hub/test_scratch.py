"""Outputs get their names whole or not at all, whenever and however often the process is killed.

A child process publishes, and kills itself at its N-th step, for every N there is; what it left is swept by another, which is
killed at its M-th step, for every M; then by one that lives. See `tests.hub.killing`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelhub import scratch
from modelhub.errors import ConversionError, OutputExists
from modelhub.scratch import PREFIX, Scratch, sweep

from tests.conftest import PROJECT
from tests.hub.killing import CASES, DIRECTORY, SHARDS, killed_at, left_in, publish, read, unable, write


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("replace", ["new", "force"])
@pytest.mark.parametrize("able", ["able", "simple"])
def test_killed_at_every_step(kind: str, replace: str, able: str, tmp_path: Path) -> None:
    """``simple``: on a file system that knows neither hard links nor swapping two names."""
    words = [sys.executable, "-m", "tests.hub.killing", kind, replace, able, str(tmp_path)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] > 6
    assert found["runs"] > 20
    assert found["states"] == [False, True]


def test_what_came_in_between_is_never_replaced(tmp_path: Path) -> None:
    names, new, _ = SHARDS
    for step in range(1, 100):
        place = tmp_path / str(step)
        place.mkdir()
        if not killed_at(step, lambda place=place: publish(place, names, new, False)):  # type: ignore[misc]
            break
        began = {name for name in names if (place / name).exists()}
        missing = [name for name in names if name not in began]
        if missing:  # somebody takes a name that the killed one wanted
            (place / missing[0]).write_text("somebody else's")
        sweep(str(place))
        assert left_in(place) == []
        if missing:
            assert read(place) == {missing[0]: "somebody else's"}  # and nothing of what would be of no use without it
        else:
            assert read(place) == new


def test_an_old_output_is_kept_where_its_place_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without swapping names there is a moment in which the old directory has none. If its process is killed in that moment, and
    somebody takes the name, the old output is not thrown away with the scratch."""
    names, new, old = DIRECTORY
    monkeypatch.setattr(scratch, "exchange", unable)
    caught = 0
    for step in range(1, 100):
        place = tmp_path / str(step)
        write(place, old)
        if not killed_at(step, lambda place=place: publish(place, names, new, True)):  # type: ignore[misc]
            break
        if (place / "m").exists():
            continue
        caught += 1
        write(place, {"m/mine": "somebody else's"})
        sweep(str(place))
        assert read(place) == {"m/mine": "somebody else's"}
        kept = [path.read_text() for path in place.rglob("replaced-m/config.json")]
        assert kept == ["old"]
        (place / "m" / "mine").unlink()
        (place / "m").rmdir()
        sweep(str(place))  # the name is free again: now it is carried through
        assert read(place) == new
        assert left_in(place) == []
    assert caught == 1


def test_a_publish_that_fails_takes_back_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, new, _ = SHARDS
    link = os.link

    def full(source: str, target: str) -> None:
        if target.endswith("m-3.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target)

    def taken(source: str, target: str) -> None:
        if target.endswith("m-3.bin") and not os.path.exists(target):
            Path(target).write_text("somebody was faster")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "rename", lambda a, b: unable() if b.endswith("m-3.bin") else os.replace(a, b))
    with pytest.raises(ConversionError, match="could not be given its name") as caught:
        publish(tmp_path, names, new, False)
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(tmp_path) == []

    monkeypatch.setattr(os, "link", taken)
    with pytest.raises(OutputExists):
        publish(tmp_path, names, new, False)
    assert read(tmp_path) == {"m-3.bin": "somebody was faster"}
    assert left_in(tmp_path) == []


def test_an_old_directory_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, new, old = DIRECTORY
    write(tmp_path, old)
    rename = os.rename

    def failing(source: str, target: str) -> None:
        if source.endswith("output/m"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(scratch, "exchange", unable)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ConversionError):
        publish(tmp_path, names, new, True)
    assert read(tmp_path) == old
    assert left_in(tmp_path) == []


def test_a_living_owner_is_left_alone_and_so_is_another_host_at_work(tmp_path: Path) -> None:
    with Scratch(str(tmp_path)) as living:
        assert sweep(str(tmp_path)) == []
        assert os.path.isdir(living.output)
    assert left_in(tmp_path) == []
    # A lock does not always reach over a network: what another host has written to lately is not touched, lock or not.
    far = tmp_path / f"{PREFIX}far.tmp"
    write(far, {"owner.lock": "elsewhere:4711:99", "output/big.bin": "half"})
    assert sweep(str(tmp_path)) == []
    old = time.time() - 2 * scratch.FOREIGN_SECONDS
    for path in (*far.rglob("*"), far):
        os.utime(path, (old, old))
    assert sweep(str(tmp_path)) == [str(far)]


def test_what_a_scratch_says_leads_nowhere_else(tmp_path: Path) -> None:
    """Anybody may put a directory of that name on a shared drive."""
    (tmp_path / "victim").write_text("mine")
    place = tmp_path / "drive"
    place.mkdir()
    planted = place / f"{PREFIX}0123.tmp"
    for names in ('["../victim"]', '["/etc/passwd"]', '"victim"', "[7]", '[["a"]]'):
        text = f'{{"names": {names}, "replace": true, "news": {{"../victim": [1, 1, 1]}}, "olds": {{}}}}'
        write(planted, {"owner.lock": "", "output/victim": "theirs", "intent.json": text})
        assert sweep(str(place)) == [str(planted)]
        assert read(tmp_path) == {"victim": "mine"}
    (planted / "output").mkdir(parents=True)
    (planted / "owner.lock").touch()
    (planted / "output" / "link").symlink_to(tmp_path)
    assert sweep(str(place)) == [str(planted)]
    home = tmp_path / "home"
    write(home, {"secret": "mine", "owner.lock": ""})
    text = '{"names": ["secret"], "replace": false, "news": {"secret": [1, 1, 1]}, "olds": {}}'
    write(planted, {"owner.lock": "", "intent.json": text})
    (planted / "output").symlink_to(home)
    assert sweep(str(place)) == [str(planted)]
    planted.symlink_to(home)
    assert sweep(str(place)) == []
    assert read(home) == {"secret": "mine", "owner.lock": ""}
    assert (tmp_path / "victim").read_text() == "mine"


def test_many_at_once_in_one_directory(tmp_path: Path) -> None:
    """Owners make scratch and sweepers look for the dead, all at the same time: nobody's is taken from under them."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                for turn in range(60):
                    publish(tmp_path, [f"{number}-{turn}"], {f"{number}-{turn}": "whole"}, False)
            except BaseException as error:  # noqa: BLE001 - told to the parent
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
            os._exit(0)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [0] * 4
    assert read(tmp_path) == {f"{number}-{turn}": "whole" for number in range(4) for turn in range(60)}
    assert left_in(tmp_path) == []

"""``modelhub prune``: the plan that changes nothing, and what is done of it when it is asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Modelhub
from tests.hub.drives import safetensors
from tests.watching import mount, unmount, watching

KINDS = {"scratch", "missing", "orphans", "duplicates"}


@pytest.fixture
def drive(tmp_path: Path, own_home: Path) -> Path:
    """Two pairs of copies, old enough to be let alone by everybody else."""
    (own_home / "config.toml").write_text("[watch]\nsettle = 0\n")
    drive = tmp_path / "drive"
    for number, name in enumerate(("one", "two")):
        original = safetensors(drive / f"{name}.safetensors", {"w": (64, 64), "b": (512,)}, fill=60)
        original.write_bytes(original.read_bytes()[:-4096] + os.urandom(4096))
        shutil.copy(original, drive / f"{name}-copy.safetensors")
        os.utime(original, (1_600_000_000 + number, 1_600_000_000 + number))
    return drive


def state(drive: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for folder, directories, files in os.walk(drive):
        for name in (*directories, *files):
            info = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_nlink)
    return found


def same(one: Path, other: Path) -> bool:
    return one.samefile(other)


def test_a_plan_of_everything_changes_nothing(drive: Path, modelhub: Modelhub, quick: Modelhub, own_home: Path) -> None:
    left = drive / ".modelhub-0123456789ab.tmp"
    (left / "output").mkdir(parents=True)
    (left / "output" / "half.bin").write_bytes(bytes(5000))
    (left / "owner.lock").write_text("")
    gone = [safetensors(drive / f"gone{number}.safetensors", fill=80 + number) for number in range(2)]
    quick("scan", drive)
    quick("note", "gone1", "keep me in mind")
    for path in gone:
        path.unlink()
    quick("scan")
    before, rows = state(drive), quick("ls", "--json").stdout
    plan = modelhub("prune", "--older-than", "0s", "--link", "hard")
    lines = plan.lines
    assert lines[0] == "scratch     1 directory of conversions that died, 5.0 kB"
    assert str(left) in lines[1]
    assert lines[2] == "missing     1 model, missing for 0s or longer; 1 kept"
    assert lines[3].endswith(str(gone[0]))
    assert lines[4].endswith(f"{gone[1]}  kept: it has notes")
    assert any(line.startswith("orphans ") for line in lines)
    assert any(line.startswith("duplicates  2 files, ") and line.endswith(" to gain") for line in lines)
    assert "what is written into one is in the other" in plan.stdout
    assert lines[-1] == "nothing was changed; --apply does what you name"
    document = modelhub("prune", "--older-than", "0s", "--link", "hard", "--json").json
    assert set(document) == KINDS | {"applied"}
    assert document["applied"] is False
    assert document["scratch"]["found"] == [{"path": str(left), "size": 5000, "removed": False}]
    assert [(row["path"], row["removed"]) for row in document["missing"]["found"]] == [(str(gone[0]), False)]
    assert [(row["path"], row["why"]) for row in document["missing"]["kept"]] == [(str(gone[1]), "it has notes")]
    assert document["duplicates"]["bytes"] == 2 * (drive / "one.safetensors").stat().st_size
    assert (state(drive), quick("ls", "--json").stdout) == (before, rows)

    done = modelhub("prune", "scratch", "missing", "--older-than", "0s", "--apply", "--json").json
    assert set(done) == {"applied", "scratch", "missing"}
    assert done["scratch"]["found"][0]["removed"]
    assert not left.exists()
    assert [model["name"] for model in quick("ls", "--json", "--where", "state=missing").json] == ["gone1"]
    assert "1 model forgotten" in quick("prune", "missing", "--older-than", "0s", "--with-notes", "--apply").stdout
    assert quick("ls", "-q", "--where", "state=missing").stdout == ""
    assert "removed" in quick("prune", "orphans", "--apply").stdout
    again = modelhub("prune", "scratch", "missing", "orphans", "--older-than", "0s").lines
    assert again[:3] == ["scratch     none", "missing     none", "orphans     none"]


def test_only_what_was_picked_is_linked(drive: Path, modelhub: Modelhub, quick: Modelhub) -> None:
    quick("scan", drive)
    one, copy = drive / "one.safetensors", drive / "one-copy.safetensors"
    two, other = drive / "two.safetensors", drive / "two-copy.safetensors"
    data = copy.read_bytes()
    quick("alias", "best@prod", copy)
    before: dict[str, Any] = {row["name"]: row for row in quick("ls", "--json").json}
    for words in (["prune", "--apply"], ["prune", "duplicates", "--link", "hard", "--apply"]):
        assert "say " in quick(*words, status=2).stderr
    done = modelhub("prune", "duplicates", "best@prod", "--link", "hard", "--apply", "--json").json
    (group,) = done["duplicates"]["groups"]
    assert (group["kept"], group["models"]) == (str(one), [before["one"]["id"]])
    (twin,) = group["twins"]
    assert twin == {
        "path": str(copy),
        "size": len(data),
        "models": [before["one-copy"]["id"]],
        "why_not": "",
        "done": "hard link",
    }
    assert done["duplicates"]["gained"] == len(data)
    assert same(one, copy)
    assert not same(two, other)
    assert one.stat().st_mtime == 1_600_000_000
    assert copy.read_bytes() == data
    summary = quick("scan", "--json").json
    assert (summary["found"], summary["changed"], summary["unchanged"], summary["missing"]) == (4, 0, 4, 0)
    after = {row["name"]: row for row in quick("ls", "--json").json}
    for name, row in before.items():
        assert (after[name]["id"], after[name]["version"]) == (row["id"], row["version"])
    assert after["one-copy"]["aliases"] == ["best@prod"]
    assert quick("show", "best@prod").stderr == ""
    quick("verify", "one", "one-copy", "--level", "digest")
    # A model without a copy has none; what shares its bytes is no duplicate any more.
    assert "nothing on the same file system has the same bytes" in quick("prune", "duplicates", "one").stdout
    out = modelhub("prune", "duplicates", "--all", "--link", "hard", "--apply").stdout
    assert out.splitlines()[0].startswith("duplicates  1 file linked, ")
    assert same(two, other)
    assert quick("prune", "duplicates", "--link", "hard").lines[0] == "duplicates  none"


def test_what_cannot_be_done_is_said(drive: Path, quick: Modelhub, own_home: Path) -> None:
    small = drive.with_name("small")
    small.mkdir()
    mount("-t", "tmpfs", "none", small)  # cannot share blocks
    try:
        for path in drive.glob("one*"):
            shutil.copy2(path, small)
        quick("scan", small)
        lines = quick("prune", "duplicates").lines
        assert lines[0].startswith("duplicates  0 files, 0 B to gain; ")
        assert lines[0].endswith(" with --link hard")
        assert "cannot share blocks between files" in lines[2]
        done = quick("prune", "duplicates", "--all", "--apply", "--json").json
        assert done["duplicates"]["gained"] == 0
        (own_home / "config.toml").write_text("[watch]\nsettle = 60\nlongest_wait = 60\n")
        assert "it was written to a moment ago" in quick("prune", "duplicates", "--link", "hard").stdout
        (own_home / "config.toml").write_text("[watch]\nsettle = 0\n")
        mount("-o", "remount,ro", small)
        failed = quick("prune", "duplicates", "--all", "--link", "hard", "--apply", status=3)
        assert "modelhub: warning: " in failed.stderr
        assert "left as it is: it could not be done" in failed.stdout
        mount("-o", "remount,rw", small)
        assert not [name for name in os.listdir(small) if name.startswith(".modelhub")]
    finally:
        unmount(small)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["everything"], "'everything' is nothing to prune"),
        (["scratch", "llama"], "'llama' is nothing to prune"),
        (["missing", "--older-than", "soon"], "no duration"),
        (["duplicates", "one", "--all"], "exclude each other"),
        (["duplicates", "--link", "soft"], "soft"),
        (["--apply"], "say what is to go"),
        (["duplicates", "--apply"], "--all"),
    ],
)
def test_wrong_usage(words: list[str], says: str, quick: Modelhub) -> None:
    assert says in quick("prune", *words, status=2).stderr


def test_a_model_that_is_none(drive: Path, quick: Modelhub) -> None:
    quick("prune", "duplicates", "nobody", status=3)
    assert "is not in the catalog" in quick("prune", "duplicates", drive / "one.safetensors", status=2).stderr


def test_several_names_of_the_pick(drive: Path, quick: Modelhub) -> None:
    """A hard link to a copy is no copy, and picks the same group."""
    os.link(drive / "one-copy.safetensors", drive / "alike.safetensors")
    quick("scan", drive)
    lines = quick("prune", "duplicates", "alike", "--link", "hard").lines
    assert len([line for line in lines if "stays as it is" in line]) == 1
    # Two names or more keep their file: all of them would have to go to free its bytes.
    quick("prune", "duplicates", "alike", "--link", "hard", "--apply")
    assert same(drive / "one.safetensors", drive / "one-copy.safetensors")
    assert quick("scan", "--json").json["changed"] == 0


def test_a_daemon_takes_a_link_for_no_change(drive: Path, tmp_path: Path) -> None:
    with watching(tmp_path / "other-home", drive) as daemon:
        daemon.until(lambda: len(daemon.ls()) == 4 and set(daemon.states().values()) == {"ready"})
        before = {row["path"]: (row["id"], row["version"], row["dtypes"]) for row in daemon.ls()}
        daemon.caught_up(drive)
        told = len(daemon.events)
        done = daemon.run("prune", "duplicates", "--all", "--link", "hard", "--apply", "--json")
        assert done["duplicates"]["gained"] > 0
        daemon.caught_up(drive)
        daemon.run("scan")
        assert {row["path"]: (row["id"], row["version"], row["dtypes"]) for row in daemon.ls()} == before
        assert [event for event in daemon.events[told:] if event["event"] in ("indexed", "changed", "missing")] == []
    assert same(drive / "one.safetensors", drive / "one-copy.safetensors")

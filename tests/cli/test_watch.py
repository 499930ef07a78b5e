"""``modelhub watch`` as its users run it: on real directories that change, with commands beside it, ended and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.hub.drives import safetensors
from tests.storm import checkpoint
from tests.watching import Watching, mount, unmount, watching


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive"
    path.mkdir()
    return path


def uid(path: Path, name: str, floats: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint(name, floats))
    return path


def test_what_happens_on_the_drive_is_in_the_catalog(drive: Path, tmp_path: Path) -> None:
    uid(drive / "old.safetensors", "old")
    with watching(tmp_path / "home", drive) as daemon:
        daemon.until(lambda: daemon.states() == {"old.safetensors": "ready"})
        uid(drive / "sub" / "deep" / "new.safetensors", "new")
        daemon.until(lambda: daemon.states().get("sub/deep/new.safetensors") == "ready")
        before = {row["path"]: row["id"] for row in daemon.ls()}
        daemon.run("tag", before["old.safetensors"], "team=vision")
        daemon.run("alias", "llama@prod", before["old.safetensors"])
        (drive / "old.safetensors").rename(drive / "sub" / "moved.safetensors")
        daemon.until(lambda: "sub/moved.safetensors" in daemon.states())
        (moved,) = [row for row in daemon.ls() if row["path"] == "sub/moved.safetensors"]
        assert moved["id"] == before["old.safetensors"]
        assert daemon.run("show", "llama@prod", "--json")["tags"] == {"team": "vision"}
        (drive / "sub" / "deep" / "new.safetensors").unlink()
        daemon.until(lambda: daemon.states()["sub/deep/new.safetensors"] == "missing")
        told = [("indexed", "new.safetensors"), ("changed", "moved.safetensors"), ("missing", "new.safetensors")]
        daemon.until(lambda: {*told} <= {(event["event"], os.path.basename(event["path"])) for event in daemon.events})
        assert daemon.stop() == 0


def test_commands_work_beside_it(drive: Path, tmp_path: Path) -> None:
    with watching(tmp_path / "home", drive) as daemon:
        for number in range(20):
            uid(drive / f"d{number % 4}" / f"m{number}.safetensors", f"m{number}")
            if number % 5 == 0:
                daemon.run("scan", drive)
        daemon.until(lambda: len(daemon.ls("state=ready")) == 20)
        other = tmp_path / "other"
        uid(other / "x.safetensors", "x")
        daemon.run("scan", other)  # becomes a root, and is watched soon
        daemon.until(lambda: str(other) in daemon.log)
        uid(other / "y.safetensors", "y")
        daemon.until(lambda: "y.safetensors" in daemon.states())
        assert {row["observer"] for row in daemon.run("roots", "--json")} == {"events"}
        assert all(row["watched"] for row in daemon.run("roots", "--json"))
        daemon.run("roots", "rm", other)
        daemon.until(lambda: '"root removed"' in daemon.log or "root removed" in daemon.log)


def test_two_daemons_on_one_catalog_refuse_politely(drive: Path, tmp_path: Path) -> None:
    with watching(tmp_path / "home", drive) as daemon:
        told = daemon.run("watch", drive, "--json", status=3)
        assert f"process {daemon.pid}" in told["error"]["message"]
        assert daemon.process is not None
        assert daemon.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_five_seconds(drive: Path, tmp_path: Path, number: int) -> None:
    for index in range(300):
        uid(drive / f"d{index % 30}" / f"m{index}.safetensors", f"m{index}")
    with watching(tmp_path / "home", drive) as daemon:  # in the middle of its first look
        began = time.monotonic()
        assert daemon.stop(number) == (0 if number == signal.SIGTERM else 130)
        assert time.monotonic() - began < 5
        assert "Traceback" not in daemon.log


def test_nothing_to_watch_and_what_is_not_there(tmp_path: Path) -> None:
    daemon = Watching(tmp_path / "home")
    assert daemon.run("watch", "--json", status=2)["error"]["hint"] == "modelhub watch PATH makes PATH a root"
    assert "is not a directory" in daemon.run("watch", tmp_path / "none", "--json", status=3)["error"]["message"]
    daemon.close()


def test_mistakes_in_rules_are_told_at_the_start(drive: Path, tmp_path: Path) -> None:
    daemon = Watching(tmp_path / "home", drive, config='[[rules]]\nwhere = ["format=pytorch"]\nconvert = "sftensors"\n')
    told = daemon.run("watch", drive, "--json", status=2)
    assert "rule 1" in told["error"]["message"]
    assert "sftensors" in told["error"]["message"]
    daemon.close()


def test_sighup_reads_the_rules_again_and_keeps_the_old_ones_if_they_are_wrong(drive: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(8)}, drive / "a.pt")
    home = tmp_path / "home"
    with watching(home, drive) as daemon:
        daemon.until(lambda: daemon.states().get("a.pt") == "ready")
        good = (home / "config.toml").read_text()
        (home / "config.toml").write_text("[[rules]]\nwhere = 3\n" + good)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.until(lambda: "error   reload" in daemon.log)
        (home / "config.toml").write_text('[[rules]]\nwhere = ["*"]\nconvert = "sftensors"\n' + good)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.until(lambda: "sftensors" in daemon.log)
        (home / "config.toml").write_text(
            '[[rules]]\nwhere = ["format=pytorch"]\nconvert = "safetensors"\noutput = "{root}/.converted/{dir}/{stem}{ext}"\n'
            + good
        )
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.until(lambda: daemon.states().get(".converted/a.safetensors") == "ready")
        (made,) = [row for row in daemon.ls() if row["path"] == ".converted/a.safetensors"]
        (source,) = [row for row in daemon.ls() if row["path"] == "a.pt"]
        assert made["derived_from"] == source["id"]
        daemon.until(lambda: "converted" in [event["event"] for event in daemon.events])  # told once the job is done
        daemon.caught_up(drive)  # its own output is nothing to work on
        assert len(daemon.ls()) == 2
        assert daemon.run("jobs", "--json")[0]["state"] == "done"
        assert len(daemon.run("jobs", "--json")) == 1


def test_rule_8_a_growing_file_is_incomplete_and_then_ready(drive: Path, tmp_path: Path) -> None:
    data = checkpoint("big", 50_000)
    states = []
    with watching(tmp_path / "home", drive) as daemon, (drive / "big.safetensors").open("wb") as file:
        file.write(data[:1000])

        def grown() -> bool:
            """Whether it is in the catalog; a little more of it is on the drive, if not."""
            states.append(daemon.states().get("big.safetensors"))
            file.write(data[file.tell() : file.tell() + 100])
            file.flush()
            return states[-1] is not None

        daemon.until(grown)
        file.write(data[file.tell() :])
        file.close()
        daemon.until(lambda: daemon.states()["big.safetensors"] == "ready")
    assert states[-1] == "incomplete"


def test_rule_19_our_own_conversions_are_not_taken_for_news(drive: Path, tmp_path: Path) -> None:
    safetensors(drive / "a.safetensors")
    with watching(tmp_path / "home", drive) as daemon:
        daemon.until(lambda: daemon.states().get("a.safetensors") == "ready")
        daemon.run("convert", drive / "a.safetensors", "--to", "pytorch")
        daemon.until(lambda: daemon.states().get("a.pt") == "ready")
        (made,) = [row for row in daemon.ls() if row["path"] == "a.pt"]
        daemon.caught_up(drive)
        assert [row["id"] for row in daemon.ls() if row["path"] == "a.pt"] == [made["id"]]
        assert not any(".modelhub-" in str(event.get("path")) for event in daemon.events)


def test_rule_4_an_unmounted_drive_is_offline_and_comes_back(tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    mount("-t", "tmpfs", "none", place)
    try:
        for number in range(12):
            uid(place / f"d{number % 3}" / f"m{number}.safetensors", f"m{number}")
        with watching(tmp_path / "home", place) as daemon:
            daemon.until(lambda: len(daemon.ls("state=ready")) == 12)
            ids = {row["path"]: row["id"] for row in daemon.ls()}
            backing = tmp_path / "backing"
            backing.mkdir()
            mount("--bind", place, backing)
            unmount(place, "-l")
            daemon.until(lambda: set(daemon.states().values()) == {"offline"})
            assert {row["path"]: row["id"] for row in daemon.ls()} == ids
            mount("--bind", backing, place)
            daemon.until(lambda: set(daemon.states().values()) == {"ready"})
            assert {row["path"]: row["id"] for row in daemon.ls()} == ids
            uid(place / "fresh.safetensors", "fresh")  # and it is watched again
            daemon.until(lambda: daemon.states().get("fresh.safetensors") == "ready")
            assert not any(event["event"] == "missing" for event in daemon.events)
    finally:
        unmount(place, "-l")
        unmount(tmp_path / "backing", "-l")


def test_a_removed_directory_takes_its_checkpoints_along(drive: Path, tmp_path: Path) -> None:
    uid(drive / "sub" / "m.safetensors", "m")
    with watching(tmp_path / "home", drive) as daemon:
        daemon.until(lambda: daemon.states() == {"sub/m.safetensors": "ready"})
        shutil.rmtree(drive / "sub")
        daemon.until(lambda: daemon.states() == {"sub/m.safetensors": "missing"})


def test_killed_at_any_time_it_goes_on_where_it_was(drive: Path, tmp_path: Path) -> None:
    for index in range(60):
        uid(drive / f"d{index % 6}" / f"m{index}.safetensors", f"m{index}")
    with watching(tmp_path / "home", drive) as daemon:
        for pause in (0.1, 0.4, 0.9):
            time.sleep(pause)
            os.kill(daemon.pid, signal.SIGKILL)
            assert daemon.process is not None
            daemon.process.wait()
            daemon.start()
        daemon.until(lambda: len(daemon.ls("state=ready")) == 60)
        assert "damaged" not in daemon.run("doctor", status=None)


def test_events_are_lines_of_json_and_the_log_can_be_too(drive: Path, tmp_path: Path) -> None:
    uid(drive / "m.safetensors", "m")
    with watching(tmp_path / "home", drive, "--log", "json") as daemon:
        daemon.until(lambda: daemon.events)
        (event,) = daemon.events
        assert (event["event"], event["path"]) == ("indexed", str(drive / "m.safetensors"))
        assert event["time"].endswith("Z")
        assert {"time", "level", "event"} <= json.loads(daemon.log.splitlines()[0]).keys()

"""Watching a drive that is slow, fails, or does not answer at all: a real mount, by FUSE, that does so on demand."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.fuse import shown
from tests.storm import checkpoint
from tests.watching import watching


def fill(place: Path, number: int = 6) -> None:
    for index in range(number):
        path = place / f"d{index % 2}" / f"m{index}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(checkpoint(f"m{index}"))


def test_rule_2_it_is_polled_and_a_slow_one_is_read_all_the_same(tmp_path: Path) -> None:
    with shown(tmp_path) as drive:
        fill(drive.backing)
        drive.control("slow 0.005")
        with watching(tmp_path / "home", drive.place) as daemon:
            daemon.until(lambda: len(daemon.ls("state=ready")) == 6, 60)
            (root,) = daemon.run("roots", "--json")
            assert (root["observer"], root["watched"]) == ("poll", True)
            assert "fuse" in root["why"]
            drive.control("ok")
            (drive.backing / "new.safetensors").write_bytes(checkpoint("new"))
            daemon.until(lambda: "new.safetensors" in daemon.states(), 30)


def test_rule_17_errors_are_neither_gone_nor_broken(tmp_path: Path) -> None:
    with shown(tmp_path) as drive:
        fill(drive.backing)
        with watching(tmp_path / "home", drive.place) as daemon:
            daemon.until(lambda: len(daemon.ls("state=ready")) == 6, 60)
            before = {row["path"]: row["id"] for row in daemon.ls()}
            for mode in ("eio", "estale"):
                drive.control(mode)
                seen = daemon.log.count("problem")
                daemon.until(lambda seen=seen: daemon.log.count("problem") > seen, 30)
                assert set(daemon.states().values()) <= {"ready", "offline"}
                drive.control("ok")
                daemon.until(lambda: set(daemon.states().values()) == {"ready"}, 30)
            assert {row["path"]: row["id"] for row in daemon.ls()} == before
            assert not [event for event in daemon.events if event["event"] == "missing"]


def test_rule_18_one_that_does_not_answer_stalls_itself_alone(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    with shown(tmp_path) as drive:
        fill(drive.backing)
        with watching(tmp_path / "home", drive.place, local) as daemon:
            daemon.until(lambda: len(daemon.ls("state=ready")) == 6, 60)
            drive.control("hang")
            time.sleep(3)  # a poll has begun, and stands still
            for index in range(3):
                (local / f"m{index}.safetensors").write_bytes(checkpoint(f"local-{index}"))
                daemon.until(lambda index=index: daemon.states().get(f"m{index}.safetensors") == "ready", 10)
            assert [state for path, state in daemon.states().items() if path.startswith("d")] == ["ready"] * 6
            began = time.monotonic()
            assert daemon.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < 5

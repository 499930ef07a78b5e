"""A daemon and its workers are killed over and over while rules have them convert: in the end every output is there, whole and
the same as undisturbed. ``MODELHUB_KILLS`` makes it longer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos import RULE, damage, leftovers, models, torment
from tests.watching import watching

KILLS = int(os.environ.get("MODELHUB_KILLS", "12"))


def test_kill_9_of_anything_loses_nothing(tmp_path: Path) -> None:
    number = max(6, KILLS // 2)
    drive = tmp_path / "drive"
    sources = models(drive, number, megabytes=8)
    with watching(tmp_path / "home", drive, config=RULE) as daemon:
        undisturbed = {}
        for source in sources:
            twin = tmp_path / "undisturbed" / source.relative_to(drive).with_suffix(".safetensors")
            twin.parent.mkdir(parents=True, exist_ok=True)
            daemon.run("convert", source, "--to", "safetensors", "-o", twin)
            undisturbed[source] = twin.read_bytes()
        hit = torment(daemon, KILLS)
        assert hit["worker"]
        daemon.until(lambda: finished(daemon.run("jobs", "--json"), number), 180)
        for source, wanted in undisturbed.items():
            made = drive / ".converted" / source.relative_to(drive).with_suffix(".safetensors")
            assert made.read_bytes() == wanted
        assert leftovers(tmp_path) == []
        ready = {row["path"]: row for row in daemon.ls("state=ready", "format=safetensors")}
        outputs = [row for path, row in ready.items() if path.startswith(".converted/")]
        assert len(outputs) == number
        assert all(row["derived_from"] for row in outputs)
        assert daemon.stop() == 0
    assert damage(tmp_path / "home") == []


def finished(jobs: list[dict[str, object]], number: int) -> bool:
    """Whether every rule's job is done, once. A failed one will not be, and is told at once."""
    mine = [job for job in jobs if job["origin"] == "rule"]
    assert not [job for job in mine if job["state"] == "failed"], mine
    return sum(job["state"] == "done" for job in mine) == number

"""Many processes at work on a drive while it is watched: in the end the catalog is what an independent walk finds, and nothing
that was only moved has lost its id, alias or tag. ``MODELHUB_STORM`` makes it larger (checkpoints created)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from modelhub.catalog import Catalog

from tests.storm import checkpoint, difference, lost, populate, storm, truth
from tests.watching import watching

SIZE = int(os.environ.get("MODELHUB_STORM", "800"))


@pytest.mark.parametrize("pause", [0.0, 0.005], ids=["at full speed", "over some time"])
def test_a_storm_leaves_the_catalog_right(tmp_path: Path, pause: float) -> None:
    drive = tmp_path / "drive"
    before = populate(drive, SIZE // 2)
    with watching(tmp_path / "home", drive) as daemon:
        daemon.until(lambda: len(daemon.ls("state=ready")) == len(before), 120)
        ids = {str(drive / row["path"]): row["id"] for row in daemon.ls()}
        tagged = sorted(before)[:: max(1, len(before) // 100)]
        with Catalog.open(str(daemon.home / "catalog.db")) as catalog:
            for path in tagged:
                model = catalog.get(ids[path])
                catalog.set_tags(model, {"uid": before[path]})
                catalog.set_alias(f"{before[path]}@prod", model)
        log = storm(drive, before, SIZE, pause=pause)
        assert len(log.there) == len(truth(drive))
        deadline = time.monotonic() + 60
        wrong = ["not looked yet"]
        while wrong and time.monotonic() < deadline:
            time.sleep(1)
            wrong = difference(daemon.ls(), drive)
        assert not wrong, f"{len(wrong)} differences after {log.counts}: {wrong[:10]}\n{daemon.log[-3000:]}"
        listed = daemon.run("ls", "--json")
        assert not difference(listed, drive)
        assert lost(listed, drive, before, ids, log) == []
        where = {uid: os.path.relpath(path, drive) for path, uid in log.kept.items()}
        with Catalog.open(str(daemon.home / "catalog.db")) as catalog:
            for path in tagged:
                uid = before[path]
                model = catalog.aliased(f"{uid}@prod")
                assert model is not None
                assert (model.id, model.tags) == (ids[path], {"uid": uid})
                assert uid not in where or model.path == where[uid]
        assert "Traceback" not in daemon.log


def test_a_burst_that_no_queue_holds(tmp_path: Path) -> None:
    """More files at once than the kernel's queue of events holds: what is lost is found all the same."""
    drive = tmp_path / "drive"
    number = max(SIZE * 5, 20_000 if SIZE > 800 else 4_000)
    with watching(tmp_path / "home", drive_made(drive)) as daemon:
        for index in range(number):
            if index % 500 == 0:
                place = drive / f"d{index // 500:03}"
                place.mkdir()
            (place / f"m{index}.safetensors").write_bytes(checkpoint(f"burst-{index}", 4))
        daemon.until(lambda: len(daemon.run("ls", "-q").split()) == number, 300)
        assert {row["state"] for row in daemon.ls()} == {"ready"}


def drive_made(path: Path) -> Path:
    path.mkdir()
    return path

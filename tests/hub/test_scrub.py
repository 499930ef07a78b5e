"""The slow scrub: what is due, in what order, within what budget; and bytes that rotted are found."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub import plugins, scrub
from modelhub.catalog import Catalog
from modelhub.config import Scrub
from modelhub.jobs.worker import Worker
from modelhub.scan import scan
from modelhub.verify import verify
from modelhub.workers import ParsePool

from tests.conftest import Modelhub
from tests.hub.conftest import MakePlugin
from tests.hub.drives import safetensors

DAY, HOUR = 86400.0, 3600.0
PLENTY = Scrub(bytes_per_day=10**12, every=30 * DAY)


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


def fill(catalog: Catalog, drive: Path, pool: ParsePool, sizes: dict[str, int]) -> None:
    """Checkpoints called so, of about so many bytes."""
    for name, size in sizes.items():
        safetensors(drive / f"{name}.safetensors", {"w": (size,)}, dtype="I8")
    scan(catalog, [str(drive)], pool=pool)


def age(catalog: Catalog, seconds: float) -> None:
    """Let the catalog be as if so much time had passed."""
    ns = int(seconds * 1e9)
    with catalog.database.write() as writer:
        writer.run("UPDATE job SET created=created-?,finished=finished-?", (ns, ns))
        writer.run("UPDATE dispatched SET at=at-?", (ns,))
        writer.run("UPDATE content SET digested=digested-?", (ns,))


def due(catalog: Catalog, config: Scrub | None = PLENTY) -> list[str]:
    """Names of the models that are taken up now, in the order in which they will be read."""
    jobs = [catalog.jobs.get(id) for id in scrub.due(catalog, config, time.time_ns())]
    return [Path(job.source).stem for job in jobs]


def finish(catalog: Catalog) -> None:
    """End what is queued, as if it had been done."""
    while job := catalog.jobs.claim("somebody"):
        catalog.set_file_digest(job.source, b"x" * 32, os.stat(job.source))
        catalog.jobs.finish(job, {"ok": True})


def work(catalog: Catalog) -> None:
    worker = Worker(catalog, memory=0, drain=True)
    try:
        worker.work()
    finally:
        worker.close()


def test_nothing_is_due_unless_it_is_asked_for(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"a": 100})
    assert due(catalog, None) == []


def test_the_jobs_compare_digests_and_are_in_nobodys_way(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"a": 100})
    (id,) = scrub.due(catalog, PLENTY, time.time_ns())
    job = catalog.jobs.get(id)
    assert (job.kind, job.spec["level"], job.origin, job.priority, job.state) == ("verify", "digest", "scrub", -10, "queued")
    assert job.checkpoint == catalog.named("a")[0].id


def test_what_was_never_read_comes_first_then_what_was_read_longest_ago(
    catalog: Catalog, tmp_path: Path, pool: ParsePool
) -> None:
    drive = tmp_path / "d"
    fill(catalog, drive, pool, {name: 100 + ord(name) for name in "abcd"})
    for name in "cab":
        (model,) = catalog.named(name)
        verify(model, plugins=plugins.get(), pool=pool, level="digest", catalog=catalog)
        age(catalog, DAY)
    assert due(catalog) == ["d"]  # the others were read within 30 days
    finish(catalog)
    age(catalog, 27.5 * DAY)
    assert due(catalog) == ["c"]
    finish(catalog)
    age(catalog, DAY)
    assert due(catalog) == ["a"]
    age(catalog, 2 * DAY)
    assert due(catalog) == ["b", "d"]


def test_what_was_taken_up_is_not_again_until_it_is_time(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"a": 100, "b": 200})
    assert sorted(due(catalog)) == ["a", "b"]
    assert due(catalog) == []
    work(catalog)
    assert due(catalog) == []
    catalog.jobs.drop_old(1 << 62)  # it is known without the jobs
    age(catalog, 29 * DAY)
    assert due(catalog) == []
    age(catalog, 2 * DAY)
    assert sorted(due(catalog)) == ["a", "b"]


def test_what_could_not_be_read_is_tried_again_the_day_after(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"a": 100})
    assert due(catalog) == ["a"]
    job = catalog.jobs.claim("somebody")
    assert job is not None
    catalog.jobs.fail(job, "the drive failed")
    age(catalog, DAY / 2)
    assert due(catalog) == []
    age(catalog, DAY)
    assert due(catalog) == ["a"]


def test_new_content_is_due_and_what_is_not_there_is_not(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    drive, away = tmp_path / "d", tmp_path / "away"
    fill(catalog, drive, pool, {"a": 100, "b": 200})
    fill(catalog, away, pool, {"c": 300})
    (drive / "b.safetensors").unlink()
    away.rename(tmp_path / "unplugged")
    scan(catalog, [], pool=pool)
    assert due(catalog) == ["a"]
    finish(catalog)
    fill(catalog, drive, pool, {"a": 150})
    assert due(catalog) == ["a"]


def test_a_day_takes_its_budget_evenly(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    """40 models of 10 kB, 240 kB a day: one an hour, the first at once."""
    fill(catalog, tmp_path / "d", pool, {f"m{number}": 9900 for number in range(40)})
    size = catalog.models()[0].size
    config = Scrub(bytes_per_day=24 * size, every=30 * DAY)
    taken: list[int] = []
    for _ in range(24 * 4):
        taken.append(len(due(catalog, config)))
        finish(catalog)
        age(catalog, HOUR / 4)
    by_hour = [sum(taken[start : start + 4]) for start in range(0, len(taken), 4)]
    assert 22 <= sum(by_hour) <= 24
    assert max(by_hour) <= 2
    assert by_hour.count(0) <= 2
    for _ in range(24 * 4):
        taken.append(len(due(catalog, config)))
        finish(catalog)
        age(catalog, HOUR / 4)
    assert max(sum(taken[start : start + 96]) for start in range(96)) <= 24
    assert sum(taken) == 40


def test_a_model_larger_than_the_budget_has_its_days_to_itself(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"big": 100_000, "z1": 900, "z2": 901})
    config = Scrub(bytes_per_day=50_000, every=30 * DAY)
    order = []
    for _ in range(24 * 4):
        order.append(due(catalog, config))
        finish(catalog)
        age(catalog, HOUR)
    hours = {name: hour for hour, names in enumerate(order) for name in names}
    assert sorted(hours, key=lambda name: hours[name]) == ["big", "z1", "z2"]
    assert hours["big"] == 0
    assert hours["z1"] >= 24


def test_a_large_one_is_not_passed_by_for_small_ones(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {"a": 40_000})
    fill(catalog, tmp_path / "d", pool, {"a": 40_000, "b": 40_000})
    fill(catalog, tmp_path / "d", pool, {"a": 40_000, "b": 40_000, "c": 100})
    config = Scrub(bytes_per_day=50_000, every=30 * DAY)
    assert due(catalog, config) == ["a"]
    finish(catalog)
    age(catalog, 22 * HOUR)
    assert due(catalog, config) == []
    age(catalog, 3 * HOUR)
    assert due(catalog, config) == ["b"]


def test_no_more_than_a_hundred_wait(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    fill(catalog, tmp_path / "d", pool, {f"m{number}": number + 1 for number in range(130)})
    assert len(due(catalog)) == 100
    assert due(catalog) == []
    finish(catalog)
    assert len(due(catalog)) == 30


def test_bytes_that_rotted_are_found_told_and_shown(
    catalog: Catalog, tmp_path: Path, pool: ParsePool, make_plugin: MakePlugin, modelhub: Modelhub
) -> None:
    make_plugin(
        "listener",
        f"""
        from modelhub import hookimpl

        @hookimpl
        def modelhub_on_event(event):
            with open({str(tmp_path / "events")!r}, "a") as log:
                log.write(event.kind + " " + event.path + "\\n")
        """,
    )
    plugins.use(None)
    drive = tmp_path / "d"
    fill(catalog, drive, pool, {"good": 5000, "rotten": 6000})
    due(catalog)
    work(catalog)
    assert [job.result["ok"] for job in catalog.jobs.list(["done"])] == [True, True]

    path = drive / "rotten.safetensors"
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(3000)
        file.write(b"\x01")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    scan(catalog, [], pool=pool)  # sees nothing
    assert catalog.models(where=["finding=digest"]) == []
    age(catalog, 31 * DAY)
    assert sorted(due(catalog)) == ["good", "rotten"]
    work(catalog)

    (found,) = catalog.models(where=["finding=digest"])
    assert found.name == "rotten"
    (finding,) = found.findings
    assert (finding.check, finding.severity) == ("digest", "error")
    assert "rotted" in finding.message
    assert {Path(job.source).stem: job.result["ok"] for job in catalog.jobs.list(["done"], 2)} == {"good": True, "rotten": False}
    assert (tmp_path / "events").read_text().splitlines()[-2:].count(f"failed {path}") == 1
    assert "rotted" in modelhub("show", "rotten").stdout
    assert modelhub("ls", "--where", "finding=digest", "-q").lines == [found.id]
    # It is told again each time, and not oftener: what is known to be rotten takes no more of the budget than the rest.
    assert due(catalog) == []
    age(catalog, 31 * DAY)
    assert sorted(due(catalog)) == ["good", "rotten"]
    work(catalog)
    scan(catalog, [], pool=pool)
    assert len(catalog.models(where=["finding=digest"])) == 1

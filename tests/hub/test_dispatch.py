"""Rules applied to real checkpoints: what they ask for, once; not after moves, touches, rescans or kills; never of what they made
themselves."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modelhub import plugins
from modelhub.catalog import Catalog
from modelhub.catalog import dispatch as sql
from modelhub.catalog.jobs import Job
from modelhub.detect import inspect_path
from modelhub.errors import UsageError
from modelhub.jobs.worker import Worker
from modelhub.model import Model
from modelhub.rules.dispatch import dispatch, forget
from modelhub.rules.preview import plan
from modelhub.rules.read import Rule, load
from modelhub.scan import scan
from modelhub.workers import ParsePool
from safetensors.torch import load_file

from tests.hub.drives import safetensors

Scan = Callable[[], Any]
EVERYTHING = {"name": "check", "where": ["*"], "verify": "structure"}
DIGESTS = {"name": "read", "where": ["*"], "verify": "digest"}
HALF = {"name": "half", "where": ["format=safetensors"], "quantize": "bf16", "output": "{root}/.out/{dir}/{stem}{ext}"}
TO_SAFETENSORS = {"name": "safe", "where": ["format=pytorch"], "convert": "safetensors"}
TO_PYTORCH = {"name": "back", "where": ["format=safetensors"], "convert": "pytorch", "output": "back/{dir}/{stem}{ext}"}


def rules(*tables: dict[str, Any]) -> tuple[Rule, ...]:
    return load({"rules": list(tables)})


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive"
    for number in range(3):
        safetensors(path / f"dir{number}" / "m.safetensors", fill=number)
    return path


@pytest.fixture
def rescan(catalog: Catalog, drive: Path, pool: ParsePool) -> Scan:
    def look() -> None:
        scan(catalog, [str(drive)], pool=pool)

    look()
    return look


def pickle(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.save({"w": torch.randn(8, 4), "b": torch.randn(4)}, path)
    return path


def work(catalog: Catalog) -> None:
    """Do everything that is queued."""
    worker = Worker(catalog, memory=0, drain=True)
    try:
        worker.work()
    finally:
        worker.close()


def jobs(catalog: Catalog, *states: str) -> list[Job]:
    return sorted(catalog.jobs.list(states or None), key=lambda job: job.key)


def touch(path: Path) -> None:
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def model(catalog: Catalog, path: Path) -> Model:
    (found,) = catalog.at(str(path))
    return found


# --- what they ask for --------------------------------------------------------------------------------------------


def test_a_rule_asks_for_jobs_that_know_all_they_need(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    ids = dispatch(catalog, rules({**HALF, "priority": 7, "max_shard_size": "5GB", "skip_unsupported": True}, EVERYTHING))
    found = jobs(catalog)
    assert sorted(ids) == sorted(job.id for job in found)
    converting = [job for job in found if job.kind == "convert"]
    assert [job.output for job in converting] == [f"{drive}/.out/dir{number}/m.safetensors" for number in range(3)]
    job = converting[0]
    source = model(catalog, drive / "dir0" / "m.safetensors")
    assert (job.state, job.origin, job.rule, job.priority) == ("queued", "rule", "half", 7)
    assert (job.checkpoint, job.version, job.source) == (source.id, 1, source.absolute_path)
    assert (job.spec["to"], job.spec["output"], job.spec["digest"], job.spec["own"]) == (
        "safetensors:bf16",
        job.output,
        True,
        True,
    )
    assert (job.spec["options"]["max_shard_size"], job.spec["options"]["skip_unsupported"]) == (5 * 10**9, True)
    assert [job.spec["level"] for job in found if job.kind == "verify"] == ["structure"] * 3


def test_only_what_is_ready_in_a_root_and_meant(catalog: Catalog, drive: Path, pool: ParsePool, tmp_path: Path) -> None:
    whole = safetensors(drive / "long.safetensors", {"w": (100, 100)})
    whole.write_bytes(whole.read_bytes()[:-1000])
    os.utime(whole, (1e9, 1e9))  # it ends too early, and is not growing any more
    gone = safetensors(drive / "gone.safetensors", fill=7)
    away = safetensors(tmp_path / "away" / "m.safetensors", fill=8)
    outside = safetensors(tmp_path / "outside" / "m.safetensors", fill=9)
    scan(catalog, [str(drive), str(away.parent)], pool=pool)
    gone.unlink()
    away.parent.rename(tmp_path / "unplugged")
    scan(catalog, [], pool=pool)
    catalog.add(inspect_path(str(outside), plugins.get().formats))
    states = Counter(found.state for found in catalog.models())
    assert states == {"ready": 4, "invalid": 1, "missing": 1, "offline": 1}

    found = rules({"where": ["*", "path~dir1"], "verify": "structure"}, EVERYTHING, {**DIGESTS, "enabled": False})
    dispatch(catalog, found)
    by_rule = Counter(job.rule for job in jobs(catalog))
    assert by_rule == {"rule 1: verify structure": 1, "check": 2}  # the two do the same: one of them is enough
    assert {job.source for job in jobs(catalog)} == {str(drive / f"dir{number}" / "m.safetensors") for number in range(3)}

    (tmp_path / "unplugged").rename(away.parent)
    scan(catalog, [], pool=pool)
    dispatch(catalog, found)
    assert jobs(catalog)[-1].source == str(away)


def test_conditions_on_tensors_and_tags(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "lora.safetensors", {"layers.12.lora_A": (2, 2)})
    rescan()
    catalog.set_tags(model(catalog, drive / "dir1" / "m.safetensors"), {"keep": "yes"})
    dispatch(catalog, rules({"name": "a", "where": ["tensor~12.lora"], "verify": "values"}))
    dispatch(catalog, rules({"name": "b", "where": ["tag.keep=yes"], "verify": "all"}))
    assert [(job.rule, Path(job.source).parent.name) for job in jobs(catalog)] == [("a", "drive"), ("b", "dir1")]


def test_a_rule_that_nobody_can_carry_out_does_not_stop_the_others(catalog: Catalog, rescan: Scan) -> None:
    found = rules({"name": "no", "where": ["*"], "convert": "nothing"}, EVERYTHING)
    with pytest.raises(UsageError, match=r"rule 1 \('no'\), convert: there is no format called 'nothing'"):
        dispatch(catalog, found)
    assert [job.rule for job in jobs(catalog)] == ["check"] * 3
    assert dispatch(catalog, found, since=0) == []


# --- never twice --------------------------------------------------------------------------------------------------


def test_not_twice_after_scans_restarts_renames_and_other_conditions(
    catalog: Catalog, drive: Path, rescan: Scan, pool: ParsePool
) -> None:
    found = rules(HALF, EVERYTHING)
    assert len(dispatch(catalog, found)) == 6
    assert dispatch(catalog, found) == []
    rescan()
    assert dispatch(catalog, found, since=0) == []
    with Catalog.open() as again:
        assert dispatch(again, found) == []
    assert dispatch(catalog, rules({**EVERYTHING, "name": "other"}, {**HALF, "where": ["size>0"], "priority": 3})) == []
    assert len(dispatch(catalog, rules({**HALF, "quantize": "f16", "output": "{root}/f16/{dir}/{stem}{ext}"}))) == 3
    work(catalog)
    assert {catalog.jobs.get(id).kind for id in dispatch(catalog, found)} == {"verify"}  # of what was made
    work(catalog)
    catalog.jobs.drop_old(1 << 62)  # what was done is known without the jobs
    assert jobs(catalog) == []
    assert dispatch(catalog, found) == []


def test_not_twice_after_a_move(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    found = rules(HALF, EVERYTHING, DIGESTS)
    assert len(dispatch(catalog, found)) == 9
    (drive / "dir0").rename(drive / "elsewhere")
    shutil.move(drive / "dir1" / "m.safetensors", drive / "n.safetensors")
    rescan()
    assert dispatch(catalog, found) == []


def test_a_touch_matters_only_where_weights_are_read(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    found = rules(EVERYTHING, DIGESTS, HALF)
    dispatch(catalog, found)
    work(catalog)
    output = drive / ".out" / "dir0" / "m.safetensors"
    before = output.stat()
    rescan()
    dispatch(catalog, found)
    work(catalog)  # the outputs are verified as well
    assert len(jobs(catalog)) == 9 + 6

    touch(drive / "dir0" / "m.safetensors")
    rescan()
    ids = dispatch(catalog, found)
    assert sorted(catalog.jobs.get(id).rule for id in ids) == ["half", "read"]
    work(catalog)
    again = next(job for job in map(catalog.jobs.get, ids) if job.rule == "half")
    assert again.state == "done"
    assert again.result["same_as"] == str(output)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert dispatch(catalog, found) == []


def test_weights_that_were_overwritten_in_place_are_converted_again(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    source = drive / "dir0" / "m.safetensors"
    found = rules({**HALF, "where": ["path~dir0"]})
    dispatch(catalog, found)
    work(catalog)
    data = source.read_bytes()
    source.write_bytes(data[:-4] + b"\x00\x00\x80\x3f")  # the same header, another last weight: 1.0
    rescan()
    assert len(dispatch(catalog, found)) == 1
    work(catalog)
    assert load_file(drive / ".out" / "dir0" / "m.safetensors")["model.layers.1.weight"][-1, -1] == 1.0


def test_replaced_content_is_new_content_and_replaces_its_output(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    found = rules({**HALF, "where": ["path~dir0"]})
    dispatch(catalog, found)
    work(catalog)
    safetensors(drive / "dir0" / "m.safetensors", {"new": (3, 5)})
    rescan()
    (id,) = dispatch(catalog, found)
    assert catalog.jobs.get(id).version == 2
    work(catalog)
    assert catalog.jobs.get(id).state == "done"
    assert set(load_file(drive / ".out" / "dir0" / "m.safetensors")) == {"new"}


def test_a_job_that_still_waits_takes_the_content_that_is_there_then(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    found = rules({**HALF, "where": ["path~dir0"]}, {**EVERYTHING, "where": ["path~dir0"]})
    assert len(dispatch(catalog, found)) == 2
    safetensors(drive / "dir0" / "m.safetensors", {"new": (3, 5)})
    rescan()
    assert dispatch(catalog, found) == []
    assert [job.version for job in jobs(catalog)] == [2, 2]
    work(catalog)
    assert [job.state for job in jobs(catalog)] == ["done", "done"]
    assert set(load_file(drive / ".out" / "dir0" / "m.safetensors")) == {"new"}


# --- never their own ----------------------------------------------------------------------------------------------


def test_rules_do_not_chase_each_other(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    drive = tmp_path / "mixed"
    pickle(drive / "a" / "net.pt")
    safetensors(drive / "b" / "m.safetensors")
    found = rules(TO_SAFETENSORS, TO_PYTORCH, EVERYTHING)
    for _ in range(4):
        scan(catalog, [str(drive)], pool=pool)
        dispatch(catalog, found)
        work(catalog)
    assert all(job.state == "done" for job in jobs(catalog)), [job.error for job in jobs(catalog)]
    made = [(job.rule, job.output) for job in jobs(catalog) if job.kind == "convert"]
    assert made == [("safe", f"{drive}/a/net.safetensors"), ("back", f"{drive}/back/b/m.pt")]
    assert {Path(job.source).name for job in jobs(catalog) if job.kind == "verify"} == {
        "net.pt",
        "m.safetensors",
        "net.safetensors",
        "m.pt",
    }
    # Moved, it is still what a rule made; replaced by somebody, it is theirs.
    (drive / "a" / "net.safetensors").rename(drive / "moved.safetensors")
    scan(catalog, [str(drive)], pool=pool)
    assert dispatch(catalog, found) == []
    safetensors(drive / "moved.safetensors", {"new": (3, 5)})
    scan(catalog, [str(drive)], pool=pool)
    assert [catalog.jobs.get(id).rule for id in dispatch(catalog, found)] == ["back", "check"]


def test_an_output_that_is_not_recorded_yet_is_an_output(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    """A scan may see an output before the job that made it says so."""
    drive = tmp_path / "mixed"
    pickle(drive / "net.pt")
    scan(catalog, [str(drive)], pool=pool)
    found = rules(TO_SAFETENSORS, TO_PYTORCH, EVERYTHING)
    dispatch(catalog, found)
    safetensors(drive / "net.safetensors")
    scan(catalog, [str(drive)], pool=pool)
    ids = dispatch(catalog, found)
    assert [(catalog.jobs.get(id).rule, Path(catalog.jobs.get(id).source).name) for id in ids] == [("check", "net.safetensors")]


def test_shards_that_are_not_recorded_yet_are_an_output(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    drive = tmp_path / "mixed"
    pickle(drive / "net.pt")
    scan(catalog, [str(drive)], pool=pool)
    dispatch(catalog, rules(TO_SAFETENSORS))
    job = catalog.jobs.claim("somebody")
    assert job is not None
    shards = [safetensors(drive / f"net-0000{n}-of-00002.safetensors", {f"w{n}": (2, 2)}) for n in (1, 2)]
    catalog.jobs.made(job, {"files": [{"path": str(shard)} for shard in shards]})
    scan(catalog, [str(drive)], pool=pool)
    assert len(catalog.models(where=["format=safetensors"])) == 1
    assert dispatch(catalog, rules(TO_PYTORCH)) == []


def test_two_of_one_output_are_one_and_a_clear_failure(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    drive = tmp_path / "same"
    pickle(drive / "a" / "net.pt", 1)
    pickle(drive / "b" / "net.pt", 2)
    scan(catalog, [str(drive)], pool=pool)
    found = rules({**TO_SAFETENSORS, "output": "{root}/out/{stem}{ext}"})
    (id,) = dispatch(catalog, found)
    (failed,) = jobs(catalog, "failed")
    assert (catalog.jobs.get(id).source, failed.source) == (f"{drive}/a/net.pt", f"{drive}/b/net.pt")
    assert failed.error == f"its output {drive}/out/net.safetensors is that of {drive}/a/net.pt as well"
    assert "{dir}" in failed.hint
    assert "failed" in catalog.jobs.logs(failed)[0]["message"]

    pickle(drive / "c" / "net.pt", 3)  # while the first is still waiting
    scan(catalog, [str(drive)], pool=pool)
    assert dispatch(catalog, found) == []
    assert len(jobs(catalog, "failed")) == 2
    work(catalog)
    pickle(drive / "d" / "net.pt", 4)  # and once it is done
    scan(catalog, [str(drive)], pool=pool)
    dispatch(catalog, found)
    work(catalog)
    assert "is there already" in jobs(catalog)[-1].error
    torch.testing.assert_close(load_file(drive / "out" / "net.safetensors")["w"], torch.load(drive / "a" / "net.pt")["w"])
    assert dispatch(catalog, found) == []


def test_an_output_in_its_source_fails_clearly(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    assert dispatch(catalog, rules({**HALF, "where": ["path~dir0"], "output": "{dir}/{stem}{ext}"})) == []
    (job,) = jobs(catalog)
    assert job.state == "failed"
    assert job.error == f"the output {drive}/dir0/m.safetensors is the checkpoint itself"
    before = (drive / "dir0" / "m.safetensors").read_bytes()
    catalog.jobs.retry(job.id)
    work(catalog)
    assert "is the source itself" in catalog.jobs.get(job.id).error
    assert [path.name for path in (drive / "dir0").iterdir()] == ["m.safetensors"]
    assert (drive / "dir0" / "m.safetensors").read_bytes() == before


# --- drives that are away -----------------------------------------------------------------------------------------


def give_up(catalog: Catalog) -> None:
    """Try what is queued until it has failed for good."""
    while catalog.jobs.counts()["queued"]:
        with catalog.database.write() as writer:
            writer.run("UPDATE job SET not_before=0")
        job = catalog.jobs.claim("somebody")
        assert job is not None
        worker = Worker(catalog, memory=0)
        worker.owner = "somebody"
        try:
            worker.do(job)
        finally:
            worker.close()


@pytest.mark.parametrize("away", ["drive", "file"])
def test_what_failed_because_its_source_was_away_is_done_once_it_is_back(
    away: str, catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path
) -> None:
    found = rules({**HALF, "where": ["path~dir0"]})
    (id,) = dispatch(catalog, found)
    place = drive if away == "drive" else drive / "dir0" / "m.safetensors"
    place.rename(tmp_path / "away")
    scan(catalog, [])
    give_up(catalog)
    assert catalog.jobs.get(id).state == "failed"
    assert catalog.jobs.get(id).error.partition("is ")[2].startswith("on a drive" if away == "drive" else "missing")
    assert dispatch(catalog, found) == []

    began = time.time_ns()
    (tmp_path / "away").rename(place)
    scan(catalog, [])
    assert dispatch(catalog, rules(DIGESTS), since=began) == ([] if away == "drive" else [catalog.jobs.list(["queued"])[0].id])
    assert dispatch(catalog, found, since=began if away == "file" else None) == [id]
    work(catalog)
    assert catalog.jobs.get(id).state == "done"
    assert (drive / ".out" / "dir0" / "m.safetensors").exists()


def test_nothing_is_written_where_a_drive_is_not_mounted(
    catalog: Catalog, drive: Path, rescan: Scan, pool: ParsePool, tmp_path: Path
) -> None:
    fast = tmp_path / "fast"
    fast.mkdir()
    safetensors(fast / "there.safetensors", {"w": (7, 7)})
    scan(catalog, [str(fast)], pool=pool)
    fast.rename(tmp_path / "unplugged")
    scan(catalog, [], pool=pool)
    fast.mkdir()  # the mount point
    found = rules({**HALF, "where": ["path~dir0"], "output": f"{fast}/{{stem}}{{ext}}"})
    (id,) = dispatch(catalog, found)
    give_up(catalog)
    assert "is for a drive that is not there" in catalog.jobs.get(id).error
    assert list(fast.iterdir()) == []


# --- since --------------------------------------------------------------------------------------------------------


def test_since_looks_at_what_was_indexed_since(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    began = time.time_ns()
    safetensors(drive / "new.safetensors", fill=9)
    rescan()
    (id,) = dispatch(catalog, rules(EVERYTHING), since=began)
    assert catalog.jobs.get(id).source == str(drive / "new.safetensors")
    assert dispatch(catalog, rules(EVERYTHING), since=time.time_ns()) == []
    assert len(dispatch(catalog, rules(EVERYTHING))) == 3


def test_pages(catalog: Catalog, drive: Path, rescan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "PAGE", 2)
    assert len(dispatch(catalog, rules(EVERYTHING, HALF))) == 6
    assert len(dispatch(catalog, rules(DIGESTS), since=0)) == 3


# --- when rules change --------------------------------------------------------------------------------------------


def test_rules_that_are_gone_take_their_waiting_jobs_with_them(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    dispatch(catalog, rules(HALF, EVERYTHING))
    running = catalog.jobs.claim("somebody")
    assert running is not None
    assert running.rule == "half"
    assert forget(catalog, rules(HALF, EVERYTHING)) == 0
    assert forget(catalog, rules(EVERYTHING)) == 2
    assert Counter(job.state for job in jobs(catalog)) == {"running": 1, "cancelled": 2, "queued": 3}
    assert {job.error for job in jobs(catalog, "cancelled")} == {"the rule 'half' is gone from the configuration"}
    assert len(dispatch(catalog, rules(HALF, EVERYTHING))) == 2  # it came back; what is at work is not added again
    assert forget(catalog, rules({**HALF, "enabled": False}, EVERYTHING)) == 2


def test_rules_that_mean_less_withdraw_the_rest_and_renamed_ones_keep_theirs(catalog: Catalog, rescan: Scan) -> None:
    dispatch(catalog, rules(EVERYTHING))
    assert forget(catalog, rules({**EVERYTHING, "name": "new name", "where": ["path~dir1"], "priority": 4})) == 2
    (job,) = jobs(catalog, "queued")
    assert (job.rule, job.priority, Path(job.source).parent.name) == ("new name", 4, "dir1")
    assert {job.error for job in jobs(catalog, "cancelled")} == {"the rule 'new name' does not mean it any more"}
    catalog.jobs.cancel(job.id)
    assert dispatch(catalog, rules({**EVERYTHING, "where": ["path~dir1"]})) == []  # what a person cancelled stays so


# --- dry run ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    there = safetensors(drive / ".out" / "dir1" / "m.safetensors")
    there.write_bytes(b"somebody's")
    found = rules(HALF, EVERYTHING)
    before = sorted(drive.rglob("*"))
    previews = plan(catalog, found)
    assert (jobs(catalog), sorted(drive.rglob("*"))) == ([], before)
    half = {Path(os.fsdecode(one.match.path)).parent.name: one for one in previews if one.rule.name == "half"}
    assert (half["dir0"].output, half["dir0"].skipped) == (f"{drive}/.out/dir0/m.safetensors", "")
    assert half["dir1"].skipped == f"its output is there already: {drive}/.out/dir1/m.safetensors"
    assert all(not one.skipped for one in previews if one.rule.name == "check")

    ids = dispatch(catalog, found)
    told = {one.skipped for one in plan(catalog, found)}
    assert {f"it waits as job {id}" for id in ids} <= told
    work(catalog)
    rescan()
    told = {one.skipped.split("/")[0] for one in plan(catalog, found)}
    assert "it was done already" in told
    failed = next(job.id for job in jobs(catalog, "failed"))
    assert any(reason.startswith(f"job {failed} failed: ") for reason in told)
    made = [one.skipped for one in plan(catalog, rules(TO_PYTORCH)) if ".out/dir0" in os.fsdecode(one.match.path)]
    assert made == ["it was made by the rule 'half'"]
    touch(drive / "dir2" / "m.safetensors")
    rescan()
    assert [one.note for one in plan(catalog, found) if not one.skipped and one.rule.name == "half"] == [
        "its files were touched since"
    ]


# --- kills, and several at once -----------------------------------------------------------------------------------

PROGRAM = """
    import sys, json
    from modelhub.catalog import Catalog, dispatch as sql
    from modelhub.rules.read import load
    from modelhub.rules.dispatch import dispatch
    sql.PAGE = 7
    rules = load({"rules": json.loads(sys.argv[1])})
    with Catalog.open() as catalog:
        print("ready", flush=True)
        print(len(dispatch(catalog, rules)))
"""
TABLES = '[{"where": ["*"], "verify": "structure"}, {"where": ["*"], "quantize": "bf16", "output": "o/{dir}/{stem}{ext}"}]'


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), TABLES], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def many(catalog: Catalog, tmp_path: Path, pool: ParsePool) -> int:
    for number in range(200):
        safetensors(tmp_path / "many" / f"d{number}" / "m.safetensors", {"w": (1, number + 1)})
    scan(catalog, [str(tmp_path / "many")], pool=pool)
    return 200


def once_each(catalog: Catalog, count: int) -> None:
    found = Counter((job.checkpoint, job.kind) for job in jobs(catalog))
    assert len(found) == 2 * count
    assert set(found.values()) == {1}


def test_a_kill_loses_nothing_and_doubles_nothing(catalog: Catalog, many: int) -> None:
    for _ in range(4):
        before = sum(catalog.jobs.counts().values())
        process = start()
        while sum(catalog.jobs.counts().values()) == before and process.poll() is None:
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert before < sum(catalog.jobs.counts().values()) < 2 * many  # it was killed on its way
    process = start()
    assert process.wait() == 0
    once_each(catalog, many)
    assert catalog.check() == []


def test_several_at_once_add_each_job_once(catalog: Catalog, many: int) -> None:
    processes = [start() for _ in range(3)]
    added = [int(process.communicate()[0]) for process in processes]
    assert sum(added) == 2 * many
    once_each(catalog, many)


# --- whatever happens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_each_content_is_dealt_with_once(seed: int, catalog: Catalog, tmp_path: Path, pool: ParsePool) -> None:
    """A model of what is to be expected: for each file that keeps its identity, the contents (and for digests the mtimes) that a
    dispatch has seen."""
    chance = random.Random(seed)
    drive = tmp_path / "drive"
    drive.mkdir()
    found = rules(EVERYTHING, DIGESTS)
    files: dict[Path, list[int]] = {}  # path -> [identity, content, touches]
    expected: set[tuple[str, int, int, int]] = set()
    fresh = 0

    def add() -> None:
        nonlocal fresh
        fresh += 1
        path = drive / chance.choice("abc") / f"f{fresh}.safetensors"
        safetensors(path, {"w": (1, fresh)}, fill=chance.randrange(256))
        files[path] = [fresh, fresh, 0]

    def move() -> None:
        path = chance.choice(list(files))
        target = drive / chance.choice("abcd") / f"moved{chance.randrange(10**9)}.safetensors"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        files[target] = files.pop(path)

    def touched() -> None:
        path = chance.choice(list(files))
        touch(path)
        files[path][2] += 1

    def replace() -> None:
        nonlocal fresh
        fresh += 1
        path = chance.choice(list(files))
        path.unlink()
        safetensors(path, {"w": (2, fresh)})
        files[path][1:] = [fresh, 0]

    def work_some() -> None:
        for _ in range(chance.randrange(4)):
            job = catalog.jobs.claim("somebody")
            if job:
                catalog.jobs.finish(job, {})

    add()
    for _ in range(40):
        chance.choice([add, add, move, touched, replace, work_some, lambda: None])()
        scan(catalog, [str(drive)], pool=pool)
        if chance.random() < 0.7:
            dispatch(catalog, found, since=None if chance.random() < 0.5 else 0)
            for identity, content, touches in files.values():
                expected |= {("structure", identity, content, 0), ("digest", identity, content, touches)}
            # A job that still waits takes the present content: it counts for both.
            done = Counter(job.spec["level"] for job in jobs(catalog))
            wanted = Counter(level for level, *_ in expected)
            assert done["structure"] <= wanted["structure"]
            assert done["digest"] <= wanted["digest"]
            assert dispatch(catalog, found) == []
            last = {(job.spec["level"], job.checkpoint): job.version for job in jobs(catalog)}
            for path in files:
                here = model(catalog, path)
                assert last["structure", here.id] == last["digest", here.id] == here.version

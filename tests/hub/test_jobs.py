"""The queue, and what running a job means: who gets it, who loses it, what is tried again, what is never done twice."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modelhub import plugins, provenance
from modelhub.catalog import Catalog
from modelhub.catalog.job_rows import MAX_LOG
from modelhub.catalog.jobs import MAX_CRASHES, Job, Jobs, NewJob, action_of
from modelhub.errors import (
    AmbiguousModel,
    CatalogError,
    ConversionError,
    ModelhubError,
    ModelNotFound,
    OutputExists,
    SourceChanged,
    TemporaryError,
)
from modelhub.jobs import heart as heart_module
from modelhub.jobs import identity, limits
from modelhub.jobs.heart import Heart, Stopped
from modelhub.jobs.recovery import recover
from modelhub.jobs.worker import Worker
from modelhub.model import Model
from modelhub.scan import scan
from modelhub.workers import ParsePool
from safetensors.torch import load_file, save_file

ME = identity.owner()
HERE = ME.split(":")[0]
DEAD = f"{HERE}:{os.getpid()}:1"  # our pid, but not our start: a process that had it before
ELSEWHERE = "elsewhere:4711:99"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(str(tmp_path / "catalog.db")) as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive"
    path.mkdir()
    torch.manual_seed(5)
    torch.save({f"w{i}": torch.randn(50, 40) for i in range(4)}, path / "net.pt")
    return path


def model_at(catalog: Catalog, path: Path, pool: ParsePool) -> Model:
    scan(catalog, [str(path.parent)], pool=pool)
    (model,) = catalog.at(str(path))
    return model


def queue(catalog: Catalog, model: Model, output: Path | None = None, to: str = "safetensors", **more: Any) -> Job:
    spec = {"to": to, "output": None if output is None else str(output), "options": more.pop("options", {}), "digest": True}
    spec |= {"own": more.pop("own", False)}
    more = {"origin": "rule", "rule": "r", **more}
    return catalog.jobs.add("convert", model.absolute_path, spec, checkpoint=model.id, version=model.version, **more)


def work(catalog: Catalog, **more: Any) -> None:
    """A worker in this process, until what is due is done."""
    worker = Worker(catalog, memory=0, idle=0.0, **more)
    try:
        worker.work()
    finally:
        worker.close()


def done(catalog: Catalog, job: Job) -> Job:
    work(catalog)
    found = catalog.jobs.get(job.id)
    assert found.state == "done", found.error
    return found


# --- who gets it --------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_and_then_the_oldest(catalog: Catalog) -> None:
    jobs = catalog.jobs
    scrub = jobs.add("verify", "/a", {}, origin="scrub")
    first, second = (jobs.add("verify", "/b", {}, origin="rule") for _ in range(2))
    person = jobs.add("verify", "/c", {})
    claimed = [jobs.claim(ME) for _ in range(5)]
    assert [job and job.id for job in claimed] == [person.id, first.id, second.id, scrub.id, None]
    assert {job.state for job in jobs.list()} == {"running"}
    assert jobs.get(first.id).attempts == 1


def test_no_job_is_claimed_twice(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.database.write() as writer:
        ids = catalog.jobs.add_many(writer, [NewJob("verify", f"/m{n}", {"level": "digest"}) for n in range(300)])
    program = textwrap.dedent("""
        import sys
        from modelhub.catalog import Catalog
        from modelhub.jobs import identity
        with Catalog.open(sys.argv[1]) as catalog:
            while (job := catalog.jobs.claim(identity.owner())) is not None:
                print(job.id)
                catalog.jobs.finish(job, {})
        """)
    command = [sys.executable, "-c", program, str(tmp_path / "catalog.db")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    claimed = [line for process in both for line in process.communicate(timeout=60)[0].split()]
    assert sorted(claimed) == sorted(ids)
    assert catalog.jobs.counts()["done"] == 300


def test_a_beat_keeps_a_job_and_brings_back_what_was_asked(catalog: Catalog) -> None:
    jobs = catalog.jobs
    jobs.add("verify", "/a", {})
    job = jobs.claim(ME)
    assert job is not None
    assert jobs.beat(job, ME, "write", 10, 100) == "ok"
    seen = jobs.get(job.id)
    assert (seen.stage, seen.done, seen.total) == ("write", 10, 100)
    assert seen.lease > job.lease
    assert jobs.cancel(job.id).cancel
    assert jobs.asked(job, ME) == jobs.beat(job, ME, "write", 11, 100) == "cancel"
    assert jobs.beat(job, ELSEWHERE, "write", 0, 0) == "lost"
    assert jobs.stop(job, "asked to stop")
    assert jobs.get(job.id).state == "cancelled"


def test_who_was_taken_for_dead_changes_nothing_any_more(catalog: Catalog) -> None:
    jobs = catalog.jobs
    jobs.add("verify", "/a", {})
    old = jobs.claim(DEAD)
    assert old is not None
    (waiting,) = jobs.reap(identity.is_alive)
    assert (waiting.state, waiting.crashes) == ("queued", 1)
    assert waiting.not_before > time.time_ns()
    jobs.retry(old.id)
    new = jobs.claim(ME)
    assert new is not None
    assert new.id == old.id
    assert jobs.beat(old, DEAD, "write", 1, 1) == "lost"
    assert not jobs.output(old, "/x")
    assert not jobs.made(old, {"files": []})
    assert not jobs.finish(old, {"by": "the dead"})
    assert not jobs.fail(old, "no")
    assert not jobs.release(old)
    assert jobs.finish(new, {"by": "the living"})
    assert jobs.get(new.id).result == {"by": "the living"}


def test_the_dead_of_this_host_are_known_at_once_others_by_their_lease(catalog: Catalog) -> None:
    jobs = catalog.jobs
    for _ in range(3):
        jobs.add("verify", "/a", {})
    mine, far, late = jobs.claim(ME), jobs.claim(ELSEWHERE), jobs.claim(ELSEWHERE, lease_seconds=-1)
    assert mine is not None
    assert far is not None
    assert late is not None
    assert [job.id for job in jobs.reap(identity.is_alive)] == [late.id]
    assert jobs.get(far.id).state == jobs.get(mine.id).state == "running"
    with subprocess.Popen(["sleep", "60"]) as process:
        living = f"{HERE}:{process.pid}:{identity._started(str(process.pid))}"
        assert identity.is_alive(living) is True
        process.kill()
        deadline = time.monotonic() + 5
        while identity.is_alive(living) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert identity.is_alive(living) is False  # although nobody has buried it yet


def test_a_job_that_kills_its_process_is_given_up_after_a_while(catalog: Catalog) -> None:
    jobs = catalog.jobs
    job = jobs.add("verify", "/a", {}, origin="rule")
    waits = []
    for crash in range(1, MAX_CRASHES + 1):
        with catalog.database.write() as writer:
            writer.run("UPDATE job SET not_before=0")
        assert jobs.claim(DEAD) is not None
        (job,) = jobs.reap(identity.is_alive)
        assert job.crashes == crash
        waits.append((job.not_before - time.time_ns()) / 1e9)
    assert job.state == "failed"
    assert f"{MAX_CRASHES} times" in job.error
    assert 0.5 < waits[0] < 1
    assert 55 < max(waits) < 60
    assert len(jobs.logs(job)) <= MAX_LOG
    again = jobs.retry(job.id)
    assert (again.state, again.crashes, again.attempts, again.error) == ("queued", 0, 0, "")


def test_what_somebody_waited_for_is_not_run_by_others_when_they_die(catalog: Catalog) -> None:
    jobs = catalog.jobs
    front = jobs.add("convert", "/a", {"to": "safetensors"}, owner=DEAD)
    assert jobs.claim(ME) is None
    (job,) = jobs.reap(identity.is_alive)
    assert (job.id, job.state) == (front.id, "failed")
    assert "died" in job.error
    assert not jobs.retry(job.id).foreground
    stopped = jobs.add("convert", "/b", {"to": "safetensors"}, owner=DEAD)
    jobs.cancel(stopped.id)
    assert [job.state for job in jobs.reap(identity.is_alive)] == ["cancelled"]


def test_waiting_counts_what_wants_hands(catalog: Catalog) -> None:
    jobs = catalog.jobs
    assert jobs.waiting() == 0
    jobs.add("verify", "/a", {})
    jobs.add("convert", "/b", {"to": "x", "output": "/out"}, owner=ME)
    assert jobs.waiting() == 1
    assert jobs.active_outputs() == {b"/out"}
    job = jobs.claim(ME)
    assert job is not None
    assert jobs.waiting() == 1
    jobs.fail(job, "later", "", time.time_ns() + 10**12)
    assert jobs.waiting() == 0
    assert jobs.next_due() == jobs.get(job.id).not_before
    assert jobs.counts()["queued"] == 1


def test_jobs_are_known_by_the_start_of_their_id(catalog: Catalog) -> None:
    jobs = catalog.jobs
    made = [jobs.add("verify", "/a", {}) for _ in range(40)]
    assert jobs.get(made[0].id).id == made[0].id
    by_letter: dict[str, int] = {}
    for job in made:
        by_letter[job.id[0]] = by_letter.get(job.id[0], 0) + 1
    several = max(by_letter, key=lambda letter: by_letter[letter])
    with pytest.raises(AmbiguousModel, match="could be several jobs"):
        jobs.get(several)
    for nothing in ("zz", "", "%"):
        with pytest.raises(ModelNotFound):
            jobs.get(nothing)
    assert jobs.cancel(made[1].id).state == "cancelled"
    with pytest.raises(ModelhubError, match="cancelled already"):
        jobs.cancel(made[1].id)


def test_a_log_is_bounded_and_old_jobs_are_dropped(catalog: Catalog) -> None:
    jobs = catalog.jobs
    job = jobs.add("verify", "/a", {})
    for number in range(MAX_LOG + 20):
        jobs.log(job, "info", f"line {number}\0 \udcff")
    log = jobs.logs(job)
    assert len(log) == MAX_LOG
    assert log[-1]["message"].startswith(f"line {MAX_LOG + 19}")
    jobs.cancel(job.id)
    kept = jobs.add("verify", "/b", {})
    assert jobs.drop_old(time.time_ns() - 10**9) == 0
    assert jobs.drop_old(time.time_ns() + 1) == 1
    assert [found.id for found in jobs.list()] == [kept.id]
    assert catalog.check() == []


def test_the_same_work_is_known_wherever_it_goes() -> None:
    spec = {"to": "gguf:q4_k_m", "output": "/a", "options": {"force": True, "threads": 2}, "own": True}
    same = {"to": "GGUF:Q4_K_M", "output": "/b", "options": {"max_shard_size": 0}, "digest": True}
    assert action_of("convert", spec) == action_of("convert", same)
    for other in ({"to": "gguf"}, {**spec, "options": {"max_shard_size": 5}}, {**spec, "options": {"extra": {"a": "b"}}}):
        assert action_of("convert", other) != action_of("convert", spec)
    assert action_of("verify", {"level": "digest"}) != action_of("verify", {"level": "values"})


# --- what is tried again ------------------------------------------------------------------------------------------


def test_a_drive_that_fails_is_tried_again_and_a_mistake_is_not() -> None:
    def wrapped(number: int) -> ConversionError:
        error = ConversionError("writing failed")
        error.__cause__ = OSError(number, os.strerror(number))
        return error

    for number in (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        assert limits.transient(wrapped(number))
        assert limits.transient(OSError(number, ""))
    assert limits.transient(SourceChanged("changed"))
    for error in (OutputExists("there"), wrapped(errno.EROFS), ValueError("bug"), ModelNotFound("gone"), CatalogError("damaged")):
        assert not limits.transient(error)
    now = time.time_ns()
    waits = [limits.again_at(TemporaryError("away"), failures, 5) for failures in (1, 2, 3, 4, 5)]
    assert [round((when - now) / 1e9) for when in waits if when] == [60, 300, 1500, 1500]
    assert waits[-1] is None


def test_a_busy_catalog_is_tried_again(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from modelhub.catalog import database

    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with Catalog.open(str(tmp_path / "catalog.db")) as other, sqlite3.connect(tmp_path / "catalog.db") as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError) as caught:
            other.jobs.add("verify", "/a", {})
        holder.rollback()
    assert limits.transient(caught.value)


# --- what a conversion does ---------------------------------------------------------------------------------------


def test_an_output_says_what_it_was_made_of_and_by_whom(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    from hashlib import sha256

    source = model_at(catalog, drive / "net.pt", pool)
    output = drive / ".converted" / "net.safetensors"
    job = done(catalog, queue(catalog, source, output))
    assert job.result["output"] == str(output)
    assert job.output == str(output)
    assert load_file(output).keys() == {"w0", "w1", "w2", "w3"}
    (made,) = catalog.at(str(output))
    assert made.digest == f"sha256:{sha256(output.read_bytes()).hexdigest()}"
    (step,) = catalog.lineage(made)
    assert (step["parent"], step["rule"]) == (source.id, "r")
    assert step["digest"] == f"sha256:{sha256((drive / 'net.pt').read_bytes()).hexdigest()}"
    assert [line["message"].split()[0] for line in catalog.jobs.logs(job)] == ["begun", "made"]


def test_never_twice_for_the_same_content(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    (drive / "copy.pt").write_bytes((drive / "net.pt").read_bytes())
    first = done(catalog, queue(catalog, model_at(catalog, drive / "net.pt", pool), drive / "one.safetensors"))
    copy = model_at(catalog, drive / "copy.pt", pool)
    again = done(catalog, queue(catalog, copy, drive / "two.safetensors"))
    assert again.result["same_as"] == first.result["output"]
    assert not (drive / "two.safetensors").exists()
    done(catalog, queue(catalog, copy, drive / "half.safetensors", to="safetensors:bf16"))  # another recipe is other work
    assert (drive / "half.safetensors").exists()
    person = done(catalog, queue(catalog, copy, drive / "mine.safetensors", origin="user", rule=""))  # who asks for it gets it
    assert person.result["output"] == str(drive / "mine.safetensors")
    for name in ("one.safetensors", "mine.safetensors"):
        save_file({"w0": torch.zeros(3)}, drive / name)  # what stands there is not what was made
    assert "same_as" not in done(catalog, queue(catalog, copy, drive / "two.safetensors")).result


def test_two_at_once_for_the_same_content_are_one(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    (drive / "copy.pt").write_bytes((drive / "net.pt").read_bytes())
    models = [model_at(catalog, drive / name, pool) for name in ("net.pt", "copy.pt")]
    for number, model in enumerate(models):
        queue(catalog, model, drive / f"{number}.safetensors")
    command = [sys.executable, "-m", "modelhub.jobs.worker", "--drain"]
    environ = {**os.environ, "MODELHUB_CATALOG": str(catalog.database.path)}
    both = [subprocess.Popen(command, env=environ) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    results = [job.result for job in catalog.jobs.list()]
    assert sorted("same_as" in result for result in results) == [False, True]
    assert len(list(drive.glob("?.safetensors"))) == 1


def test_what_another_has_made_while_one_asks_is_not_made_twice(
    catalog: Catalog, drive: Path, pool: ParsePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drive / "copy.pt").write_bytes((drive / "net.pt").read_bytes())
    models = [model_at(catalog, drive / name, pool) for name in ("net.pt", "copy.pt")]
    first, second = (queue(catalog, model, drive / f"{number}.safetensors") for number, model in enumerate(models))
    ask, asked = Jobs.first_of_its_kind, []

    def ask_late(jobs: Jobs, job: Job, content: bytes) -> bool:
        if not asked:  # by the first job's worker: meanwhile another does the second, from its claim to its end
            asked.append(job.id)
            command = [sys.executable, "-m", "modelhub.jobs.worker", "--drain"]
            subprocess.run(command, env={**os.environ, "MODELHUB_CATALOG": str(catalog.database.path)}, check=True, timeout=60)
        return ask(jobs, job, content)

    monkeypatch.setattr(Jobs, "first_of_its_kind", ask_late)
    work(catalog)
    assert asked == [first.id]
    assert catalog.jobs.get(second.id).result["output"] == str(drive / "1.safetensors")
    assert catalog.jobs.get(first.id).result["same_as"] == str(drive / "1.safetensors")
    assert not (drive / "0.safetensors").exists()


def test_what_was_replaced_or_forgotten_meanwhile_is_not_converted(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    source = model_at(catalog, drive / "net.pt", pool)
    job = queue(catalog, source, drive / "out.safetensors")
    torch.save({"other": torch.ones(7)}, drive / "net.pt")
    waits = queue(catalog, source, drive / "out.safetensors", max_attempts=3)
    work(catalog)  # not scanned yet: nobody knows what it is now
    assert catalog.jobs.get(job.id).state == "failed"
    seen = catalog.jobs.get(waits.id)
    assert (seen.state, "scan" in seen.hint) == ("queued", True)
    assert 50 < (seen.not_before - time.time_ns()) / 1e9 < 61
    scan(catalog, [str(drive)], pool=pool)
    catalog.jobs.retry(waits.id)
    work(catalog)
    seen = catalog.jobs.get(waits.id)
    assert seen.state == "cancelled"
    assert "replaced" in seen.error
    gone = queue(catalog, catalog.refresh(source), drive / "out.safetensors")
    catalog.remove([source])
    work(catalog)
    assert catalog.jobs.get(gone.id).error == "its model was forgotten"
    assert not (drive / "out.safetensors").exists()


def test_a_moved_source_is_found_where_it_is_now_and_an_absent_drive_is_waited_for(
    catalog: Catalog, drive: Path, pool: ParsePool
) -> None:
    source = model_at(catalog, drive / "net.pt", pool)
    job = queue(catalog, source, drive / "out.safetensors", max_attempts=2)
    os.rename(drive / "net.pt", drive / "elsewhere.pt")
    scan(catalog, [str(drive)], pool=pool)
    (root,) = catalog.roots()
    catalog.update_root(root.key, offline=1)
    work(catalog)
    seen = catalog.jobs.get(job.id)
    assert (seen.state, "not there" in seen.error) == ("queued", True)
    catalog.update_root(root.key, offline=0)
    catalog.jobs.retry(job.id)
    done(catalog, job)
    assert catalog.lineage(catalog.at(str(drive / "out.safetensors"))[0])[0]["path"] == str(drive / "elsewhere.pt")


def test_a_rule_replaces_its_own_output_and_nothing_else(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    source = model_at(catalog, drive / "net.pt", pool)
    output = drive / "out.safetensors"
    done(catalog, queue(catalog, source, output, own=True))
    torch.save({"w": torch.ones(9)}, drive / "net.pt")
    source = model_at(catalog, drive / "net.pt", pool)
    other = queue(catalog, source, output, "safetensors:bf16", own=True, rule="another")
    work(catalog)
    assert "is there already" in catalog.jobs.get(other.id).error
    done(catalog, queue(catalog, source, output, own=True, rule="under another name"))
    assert load_file(output).keys() == {"w"}
    torch.save({"w": torch.zeros(9)}, drive / "net.pt")
    source = model_at(catalog, drive / "net.pt", pool)
    os.utime(output)  # somebody has touched it since
    job = queue(catalog, source, output, own=True)
    work(catalog)
    assert catalog.jobs.get(job.id).state == "failed"
    assert torch.equal(load_file(output)["w"], torch.ones(9))


def test_shards_that_a_rule_made_are_replaced_by_as_many_as_it_takes(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    output = drive / "made" / "net.safetensors"
    shards = []
    for tensors in (4, 2, 6):
        torch.save({f"w{i}": torch.full((50, 40), float(tensors)) for i in range(tensors)}, drive / "net.pt")
        source = model_at(catalog, drive / "net.pt", pool)
        done(catalog, queue(catalog, source, output, own=True, options={"max_shard_size": 9000}))
        shards.append(sorted(path.name for path in output.parent.iterdir()))
    assert [len(names) for names in shards] == [5, 3, 7]  # with the index
    assert sum(name.endswith("-of-00006.safetensors") for name in shards[-1]) == 6


def killed_before_it_is_recorded(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what is queued, in a process that dies when the output has its name, and nobody knows of it."""
    database = catalog.database.path
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(provenance, "record_output", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            work(Catalog.open(database))
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_an_output_that_stood_when_its_process_died_is_recorded_not_made_again(
    catalog: Catalog, drive: Path, pool: ParsePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_at(catalog, drive / "net.pt", pool)
    output = drive / "out.safetensors"
    job = queue(catalog, source, output)
    killed_before_it_is_recorded(catalog, monkeypatch)
    assert catalog.jobs.get(job.id).state == "running"
    assert catalog.at(str(output)) == []
    before = output.stat()
    assert [found.id for found in recover(catalog)] == [job.id]
    catalog.jobs.retry(job.id)
    seen = done(catalog, job)
    assert seen.result["resumed"]
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (made,) = catalog.at(str(output))
    (step,) = catalog.lineage(made)
    assert (step["parent"], step["rule"], step["digest"] is not None) == (source.id, "r", True)
    assert made.digest


def test_what_was_made_of_an_old_content_when_its_process_died_is_made_anew(
    catalog: Catalog, drive: Path, pool: ParsePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule has its job, taken from the dead, do the same to what stands there now."""
    source = model_at(catalog, drive / "net.pt", pool)
    output = drive / "out.safetensors"
    job = queue(catalog, source, output, own=True)
    killed_before_it_is_recorded(catalog, monkeypatch)
    recover(catalog)
    torch.save({"new": torch.ones(9)}, drive / "net.pt")
    source = model_at(catalog, drive / "net.pt", pool)
    with catalog.database.write() as writer:
        writer.run("UPDATE job SET version=?,not_before=0", (source.version,))
    assert "resumed" not in done(catalog, job).result
    assert load_file(output).keys() == {"new"}
    (made,) = catalog.at(str(output))
    assert catalog.lineage(made)[0]["digest"] == catalog.refresh(source).digest


DEAF = """
    import os, subprocess, time
    from modelhub import Program, hookimpl

    def run(checkpoint, output, options):
        open(output, "wb").write(b"half")
        tool = subprocess.Popen(["sleep", "100"])
        open({log!r}, "w").write(f"{{os.getpid()}} {{tool.pid}}")
        time.sleep(100)

    @hookimpl
    def modelhub_conversions():
        yield Program(name="deaf", source="pytorch", target="safetensors", run=run)
"""


@pytest.mark.parametrize("where", ["foreground", "worker"])
def test_a_plugins_tool_is_cancelled_with_what_it_started(
    where: str, catalog: Catalog, drive: Path, pool: ParsePool, tmp_path: Path, make_plugin: Callable[..., Path]
) -> None:
    import json

    from tests.conftest import command_path

    log = tmp_path / "log"
    make_plugin("deaf", DEAF.format(log=str(log)))
    source = model_at(catalog, drive / "net.pt", pool)
    output = drive / "out.safetensors"
    environ = {**os.environ, "MODELHUB_CATALOG": str(catalog.database.path)}
    command = [command_path(), "convert", str(drive / "net.pt"), "--to", "safetensors", "-o", str(output), "--json"]
    if where == "worker":
        queue(catalog, source, output)
        command = [sys.executable, "-m", "modelhub.jobs.worker", "--drain"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: log.exists() and log.read_text())
        (job,) = catalog.jobs.list()
        started = time.monotonic()
        catalog.jobs.cancel(job.id)
        until(lambda: catalog.jobs.get(job.id).state == "cancelled")
        assert time.monotonic() - started < 4  # about 1 s on an idle machine; what is deaf sleeps for longer
        told, _ = process.communicate(timeout=10)
    if where == "foreground":
        assert process.returncode == 130
        assert json.loads(told)["error"]["code"] == "cancelled"
    assert os.listdir(drive) == ["net.pt"]
    until(lambda: not any(identity._started(pid) for pid in log.read_text().split()), 5)


def test_a_verification_is_recorded_and_told(
    catalog: Catalog, drive: Path, pool: ParsePool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = model_at(catalog, drive / "net.pt", pool)
    spec = {"level": "digest"}
    for _ in range(2):
        catalog.jobs.add("verify", source.absolute_path, spec, checkpoint=source.id, version=source.version, origin="scrub")
        work(catalog, events=True)
        info = (drive / "net.pt").stat()
        data = bytearray((drive / "net.pt").read_bytes())
        data[-2000] ^= 1
        with open(drive / "net.pt", "r+b") as file:  # rot: other bytes, the same stat
            file.write(data)
        os.utime(drive / "net.pt", ns=(info.st_atime_ns, info.st_mtime_ns))
    results = [job.result["ok"] for job in reversed(catalog.jobs.list())]
    assert results == [True, False]
    assert "rotted" in catalog.findings(source)[0].message
    events = [line for line in capsys.readouterr().out.splitlines() if source.id and source.id in line]
    assert [line.split('"')[3] for line in events] == ["started", "verified", "started", "failed"]


# --- stopping -----------------------------------------------------------------------------------------------------


def test_the_work_hears_that_it_is_to_stop(catalog: Catalog) -> None:
    catalog.jobs.add("verify", "/a", {})
    job = catalog.jobs.claim(ME)
    assert job is not None

    def toil(beating: Heart) -> None:
        beating.begin("write", 1000)
        while time.monotonic() - started < 5:
            beating.did(1)
            time.sleep(0.005)

    with Heart(catalog.jobs, job) as beating:
        started = time.monotonic()
        threading.Timer(0.1, lambda: catalog.jobs.cancel(job.id)).start()
        with pytest.raises(Stopped) as caught:
            toil(beating)
    assert caught.value.why == "cancel"
    assert time.monotonic() - started < 3  # about 0.3 s on an idle machine; not hearing takes 5


HUNG = """
import sys, time, subprocess, os
from modelhub.catalog import Catalog
from modelhub.jobs import identity
from modelhub.jobs.heart import Heart
from modelhub.scratch import Scratch
catalog = Catalog.open(sys.argv[1])
job = catalog.jobs.claim(identity.owner())
with Heart(catalog.jobs, job) as heart, Scratch(sys.argv[2]) as scratch:
    open(scratch.output + "/half", "w").write("x" * 1000)
    child = subprocess.Popen(["sleep", "100"])
    print(child.pid, flush=True)
    time.sleep(100)  # deaf, as what hangs on a dead drive is
"""


@pytest.mark.parametrize("how", ["cancel", "lost"])
def test_what_does_not_hear_is_ended_with_all_that_it_started(how: str, catalog: Catalog, tmp_path: Path) -> None:
    job = catalog.jobs.add("verify", "/a", {})
    place = tmp_path / "place"
    command = [sys.executable, "-c", HUNG, str(catalog.database.path), str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        started = time.monotonic()
        if how == "cancel":
            catalog.jobs.cancel(job.id)
        else:  # another host took it for dead
            with catalog.database.write() as writer:
                writer.run("UPDATE job SET owner=?", (ELSEWHERE,))
        process.wait(timeout=10)
    took = time.monotonic() - started
    assert took < heart_module.LOOK + heart_module.PATIENCE + heart_module.AFTERWARDS + 3
    assert os.listdir(place) == []
    assert identity._started(str(child)) == ""
    assert catalog.jobs.get(job.id).state == ("cancelled" if how == "cancel" else "running")


def test_sigterm_puts_the_job_back(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    """A sparse source of 20 GB takes longer than anybody waits."""
    from tests.hub.sparse import sparse_checkpoint

    source = model_at(catalog, sparse_checkpoint(drive / "huge.safetensors", 20 << 30), pool)
    job = queue(catalog, source, drive / "out.safetensors", to="safetensors:bf16")
    environ = {**os.environ, "MODELHUB_CATALOG": str(catalog.database.path)}
    with subprocess.Popen([sys.executable, "-m", "modelhub.jobs.worker"], env=environ) as process:
        until(lambda: catalog.jobs.get(job.id).stage == "hash")
        started = time.monotonic()
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert time.monotonic() - started < 5  # about 0.5 s on an idle machine; hashing it takes far longer
    seen = catalog.jobs.get(job.id)
    assert (seen.state, seen.attempts, seen.crashes) == ("queued", 0, 0)
    assert sorted(os.listdir(drive)) == ["huge.safetensors", "net.pt"]


def test_a_job_gets_no_more_memory_than_it_may_have(
    catalog: Catalog, drive: Path, pool: ParsePool, make_plugin: Callable[..., Path]
) -> None:
    make_plugin(
        "greedy",
        """
        import modelhub
        from modelhub import hookimpl, Conversion

        def derive(tables, options):
            bytearray(600 << 20)
            return tables[0]

        @hookimpl
        def modelhub_conversions():
            yield Conversion(name="greedy", source="pytorch", target="safetensors", derive=derive)
        """,
    )
    plugins.use(None)
    source = model_at(catalog, drive / "net.pt", pool)
    job = queue(catalog, source, drive / "out.safetensors", max_attempts=3)
    home = Path(os.environ["MODELHUB_HOME"])
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text('[jobs]\nmemory = "256MB"\n')
    environ = {**os.environ, "MODELHUB_CATALOG": str(catalog.database.path)}
    subprocess.run([sys.executable, "-m", "modelhub.jobs.worker", "--drain"], env=environ, check=True, timeout=60)
    seen = catalog.jobs.get(job.id)
    assert seen.state == "failed"
    assert "256,000,000 bytes of memory" in seen.error
    assert "[jobs] memory" in seen.hint


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)

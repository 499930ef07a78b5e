"""Jobs as their users meet them: in the background, cancelled, killed, on a disk that is full or that they may not write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modelhub.catalog import Catalog
from modelhub.catalog.jobs import Job
from safetensors.torch import load_file, save_file

from tests.conftest import Modelhub, command_path
from tests.hub.sparse import sparse_checkpoint
from tests.watching import watching

WORKER = [sys.executable, "-m", "modelhub.jobs.worker"]


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


def rows() -> list[Job]:
    """The jobs as they are now: looked at directly, for a command takes a fifth of a second to start."""
    with Catalog.open() as catalog:
        return catalog.jobs.list()


def reached(id: str, state: str) -> bool:
    return any(job.id == id and job.state == state for job in rows())


def scratch(place: Path) -> list[Path]:
    return list(place.rglob(".modelhub-*"))


@pytest.fixture
def drive(tmp_path: Path, modelhub: Modelhub) -> Path:
    path = tmp_path / "drive"
    path.mkdir()
    torch.manual_seed(5)
    torch.save({f"w{i}": torch.randn(50, 40) for i in range(4)}, path / "net.pt")
    modelhub("scan", path)
    return path


@pytest.fixture
def huge(tmp_path: Path, modelhub: Modelhub) -> Path:
    """20 GB of zeros that take no room: nobody waits for that."""
    (tmp_path / "huge").mkdir()
    path = sparse_checkpoint(tmp_path / "huge" / "huge.safetensors", 20 << 30)
    modelhub("scan", path.parent)
    return path


# --- in the background --------------------------------------------------------------------------------------------


def test_a_conversion_goes_on_in_the_background(drive: Path, modelhub: Modelhub) -> None:
    told = modelhub("convert", drive / "net.pt", "--to", "safetensors:bf16", "--background", "--json").json
    output = drive / "net.bf16.safetensors"
    assert told == {
        "job": told["job"],
        "state": "queued",
        "source": str(drive / "net.pt"),
        "output": str(output),
        "format": "safetensors",
        "recipe": "bf16",
    }
    until(lambda: reached(told["job"], "done"))
    (job,) = modelhub("jobs", "--json").json
    assert (job["id"], job["origin"], job["attempts"]) == (told["job"], "user", 1)
    assert job["result"]["size"] == output.stat().st_size
    assert load_file(output)["w1"].dtype == torch.bfloat16
    shown = modelhub("jobs", "show", told["job"][:4], "--json").json
    assert [line["message"].split()[0] for line in shown["log"]] == ["begun", "made"]
    assert modelhub("jobs", "-q").lines == [told["job"]]
    assert modelhub("show", output, "--json").json["lineage"][0]["path"] == str(drive / "net.pt")
    assert "bf16" in modelhub("jobs").stdout
    assert f"made {output}" in modelhub("jobs", "show", told["job"]).stdout


def test_a_daemon_does_what_is_queued_where_there_is_one(drive: Path, own_home: Path, modelhub: Modelhub) -> None:
    with watching(own_home, drive) as daemon:
        told = modelhub("convert", drive / "net.pt", "--to", "safetensors:bf16", "--background", "--json").json
        until(lambda: reached(told["job"], "done"))
        daemon.until(lambda: [event for event in daemon.events if event.get("event") == "converted"])
    assert not (own_home / "logs" / "jobs.log").exists()  # nobody else was started for it


def test_what_cannot_be_is_said_before_it_is_queued(drive: Path, modelhub: Modelhub) -> None:
    (drive / "net.safetensors").write_bytes(b"there")
    assert "there already" in modelhub("convert", drive / "net.pt", "--to", "safetensors", "--background", status=3).stderr
    assert modelhub("convert", drive / "net.pt", "--to", "nothing", "--background", status=2)
    assert rows() == []
    assert (
        modelhub("quantize", drive / "net.pt", "bf16", "--background", "-o", drive / "q.safetensors").stdout.count("queued") == 1
    )
    until((drive / "q.safetensors").exists)


def test_what_is_not_known_is_no_job(tmp_path: Path, drive: Path, modelhub: Modelhub) -> None:
    other = tmp_path / "other.pt"
    torch.save({"w": torch.ones(3)}, other)
    modelhub("convert", other, "--to", "safetensors")
    assert rows() == []
    told = modelhub("convert", other, "--to", "safetensors:f16", "--background", "--json").json
    until(lambda: reached(told["job"], "done"))
    for action in ("show", "cancel", "retry"):
        assert modelhub("jobs", action, "ffffffffff", "--json", status=3).json["error"]["code"] == "not_found"
    assert modelhub("jobs", "show", status=2)
    assert "done" in modelhub("jobs", "cancel", told["job"], status=3).stderr
    assert "done" in modelhub("jobs", "retry", told["job"], status=3).stderr


# --- at a terminal ------------------------------------------------------------------------------------------------


def test_a_foreground_conversion_is_seen_and_cancelled_from_another_terminal(huge: Path, modelhub: Modelhub) -> None:
    out = huge.with_name("out.safetensors")
    command = [command_path(), "convert", str(huge), "--to", "safetensors:bf16", "-o", str(out), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: [job for job in rows() if job.done])
        (job,) = modelhub("jobs", "--json").json
        assert (job["state"], job["stage"], job["total"]) == ("running", "write", 10 << 30)
        assert job["owner"].split(":")[1] == str(process.pid)
        line = next(line for line in modelhub("jobs").lines if line.startswith(job["id"]))
        assert "write" in line
        assert "% of 10.7 GB" in line
        assert modelhub("jobs", "cancel", job["id"][:6], "--json").json[0]["state"] == "cancelled"
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130, stderr
    assert '"cancelled"' in stdout
    assert not out.exists()
    assert scratch(huge.parent) == []


def test_control_c_ends_the_job_too(huge: Path, modelhub: Modelhub) -> None:
    command = [command_path(), "convert", str(huge), "--to", "safetensors:bf16", "-o", str(huge.with_name("out.safetensors"))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(rows)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    (job,) = modelhub("jobs", "--json").json
    assert (job["state"], job["error"]) == ("cancelled", "interrupted")
    assert scratch(huge.parent) == []


def test_a_killed_foreground_job_is_failed_and_can_be_retried(drive: Path, modelhub: Modelhub) -> None:
    save_file({f"w{n}": torch.randn(1 << 20) for n in range(40)}, drive / "mid.safetensors")
    modelhub("scan", drive)
    out = drive / "out.safetensors"
    command = [command_path(), "convert", str(drive / "mid.safetensors"), "--to", "safetensors:f64", "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: scratch(drive))
        process.kill()
    assert not out.exists()
    (job,) = modelhub("jobs", "--json").json
    assert (job["state"], "died" in job["error"]) == ("failed", True)
    assert scratch(drive) == []
    modelhub("jobs", "retry", job["id"])
    until(lambda: reached(job["id"], "done"))
    assert load_file(out)["w3"].dtype == torch.float64


# --- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["hash", "write"])
def test_a_job_at_work_is_cancelled_within_a_second(stage: str, huge: Path, modelhub: Modelhub) -> None:
    out = huge.with_name("out.safetensors")
    id = enqueue(huge.parent, huge.name, out, "safetensors:bf16", digest=stage == "hash")
    with subprocess.Popen([*WORKER, "--drain"]) as worker:
        until(lambda: [job for job in rows() if job.stage == stage])
        started = time.monotonic()
        with Catalog.open() as catalog:
            catalog.jobs.cancel(id)
        until(lambda: reached(id, "cancelled"))
        assert time.monotonic() - started < 3  # less than 1 s on an idle machine; the job would take far longer
        assert worker.wait(timeout=10) == 0  # there is nothing more to do
    assert scratch(huge.parent) == []
    assert not out.exists()


def test_one_that_waits_is_cancelled_too(drive: Path, modelhub: Modelhub) -> None:
    ids = [enqueue(drive, "net.pt", drive / f"{n}.safetensors") for n in range(3)]
    assert modelhub("jobs", "cancel", *ids[:2]).lines == [f"job {id}: cancelled" for id in ids[:2]]
    done = modelhub("jobs", "cancel", ids[0], ids[2], "--json", status=3)
    assert [job["id"] for job in done.json] == [ids[2]]
    assert modelhub("jobs", "--state", "cancelled", "-q").lines == modelhub("jobs", "-q").lines
    assert len(modelhub("jobs", "--limit", "2", "--json").json) == 2


# --- what goes wrong ----------------------------------------------------------------------------------------------


def enqueue(drive: Path, name: str, output: Path, to: str = "safetensors", **more: Any) -> str:
    """A job as a rule would queue it."""
    with Catalog.open() as catalog:
        (model,) = catalog.at(str(drive / name))
        spec = {"to": to, "output": str(output), "options": more.pop("options", {}), "digest": more.pop("digest", True)}
        more = {"origin": "rule", "rule": "r", **more}
        return catalog.jobs.add("convert", model.absolute_path, spec, checkpoint=model.id, version=model.version, **more).id


def drain() -> None:
    subprocess.run([*WORKER, "--idle", "0"], check=True, timeout=120)


def test_a_full_disk_fails_the_job_and_costs_nothing(drive: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    save_file({f"w{n}": torch.randn(1 << 20) for n in range(8)}, drive / "mid.safetensors")
    modelhub("scan", drive)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("not allowed to mount: a full disk cannot be made here")
    try:
        (disk / "out.safetensors").write_bytes(b"the old one")
        id = enqueue(
            drive, "mid.safetensors", disk / "out.safetensors", "safetensors:f64", options={"force": True}, max_attempts=2
        )
        filler = disk / "filler"
        with subprocess.Popen([*WORKER, "--idle", "0"]):  # there is room when it begins: it fills while it writes
            until(lambda: scratch(disk))
            filler.write_bytes(bytes(30 << 20))
        job = modelhub("jobs", "show", id, "--json").json
        assert (job["state"], job["attempts"]) == ("queued", 1)
        assert "full" in job["error"] or "bytes free" in job["error"]
        assert job["again"] > job["created"]
        assert sorted(os.listdir(disk)) == ["filler", "out.safetensors"]
        assert (disk / "out.safetensors").read_bytes() == b"the old one"
        modelhub("jobs", "cancel", id)
        filler.unlink()
        modelhub("jobs", "retry", id)
        until(lambda: reached(id, "done"))
        assert load_file(disk / "out.safetensors")["w1"].dtype == torch.float64
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_place_that_may_not_be_written_to(drive: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    place = tmp_path / "readonly"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False, capture_output=True)
    if os.getuid() == 0 and done.returncode:
        pytest.skip("not allowed to mount: nothing is closed to the superuser here")
    place.chmod(0o500) if os.getuid() else None
    try:
        id = enqueue(drive, "net.pt", place / "out.safetensors")
        drain()
        job = modelhub("jobs", "show", id, "--json").json
        assert job["state"] == "failed"
        assert "cannot be written to" in job["error"] or "cannot write in" in job["error"]
        assert job["hint"]
    finally:
        if not done.returncode:
            subprocess.run(["umount", place], check=True)

"""The catalog on a real PostgreSQL server, through the installed command: what a team shares instead of a file."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import torch
from modelhub.catalog import Catalog
from modelhub.daemon.lock import DaemonLock, Taken, holder_of
from safetensors.torch import save_file

from tests.conftest import Modelhub
from tests.watching import watching

pytestmark = pytest.mark.xdist_group("postgresql")  # one server for all of them


def programs() -> Path | None:
    """Where ``initdb`` and ``postgres`` are, or None."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (place for place in places if all((place / name).exists() for name in ("initdb", "postgres", "pg_isready"))), None
    )


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """The URL of a server of our own, on a free port of the loopback interface, but for the database's name."""
    place = programs()
    if place is None:
        pytest.skip("no PostgreSQL server is installed here (Debian: postgresql)")
    data = Path(tempfile.mkdtemp(prefix="modelhub-postgresql-"))  # not below pytest's own, which only its user may enter
    user = pwd.getpwuid(os.getuid()).pw_name
    as_user: dict[str, object] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(data, nobody.pw_uid, nobody.pw_gid)
        as_user, user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}, "nobody"
    environ = {**os.environ, "HOME": str(data), "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [place / "initdb", "-D", data / "db", "-A", "trust", "-U", user, "-E", "UTF8"],
        check=True, capture_output=True, env=environ, cwd=data, **as_user,  # type: ignore[call-overload]
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [place / "postgres", "-D", data / "db", "-h", "127.0.0.1", "-p", str(port), "-k", data, "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ, cwd=data, **as_user,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        ready = [str(place / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            assert process.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield f"postgresql://{user}@127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(data, ignore_errors=True)


_names = itertools.count()


@pytest.fixture
def server(own_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database that is empty; it is where the catalog is."""
    name = f"catalog{next(_names)}"
    with psycopg.connect(f"{own_server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    monkeypatch.setenv("MODELHUB_CATALOG", own_server + name)
    return own_server + name


def test_the_whole_round_on_postgresql(server: str, tmp_path: Path, modelhub: Modelhub) -> None:
    torch.manual_seed(3)
    weights = {"a.weight": torch.randn(40, 40), "b.weight": torch.randn(40, 4)}
    drive = tmp_path / "drive"
    drive.mkdir()
    save_file(weights, drive / "one.safetensors")
    torch.save(weights, drive / "two.bin")
    (drive / "bad.safetensors").write_bytes(b"\xff" * 64)
    (drive / os.fsdecode(b"odd-\xff.safetensors")).write_bytes((drive / "one.safetensors").read_bytes())

    summary = modelhub("scan", drive, "--json").json
    assert (summary["found"], summary["invalid"]) == (4, 1)
    assert modelhub("scan", drive, "--json").json["unchanged"] == 4
    listed = {model["name"]: model for model in modelhub("ls", "--json").json}
    assert listed["one"]["parameters"] == 40 * 44
    assert [m["name"] for m in modelhub("ls", "--where", "format=pytorch", "--where", "size>1kB", "--json").json] == ["two"]
    assert {m["name"] for m in modelhub("ls", "--where", "tensor~a.wei", "--json").json} >= {"one", "two"}

    modelhub("alias", "net@prod", drive / "one.safetensors")
    modelhub("tag", "net@prod", "team=vision")
    assert modelhub("show", "net@prod", "--json").json["tags"] == {"team": "vision"}
    assert modelhub("verify", "net@prod", "--level", "digest", "--json").json[0]["ok"]
    assert modelhub("show", "net@prod", "--json").json["digest"].startswith("sha256:")

    modelhub("convert", "two", "--to", "safetensors:bf16", "-o", drive / "three.safetensors")
    assert modelhub("show", "three", "--json").json["derived_from"] == listed["two"]["id"]
    groups = modelhub("dupes", "--json").json
    assert {copy["name"] for copy in groups[0]["copies"]} >= {"one", "two"}

    os.rename(drive / "one.safetensors", drive / "moved.safetensors")
    save_file({"a.weight": torch.zeros(3) + 7}, drive / "two.bin.safetensors")
    modelhub("scan", drive)
    moved = modelhub("show", "net@prod", "--json").json
    assert (moved["id"], moved["path"]) == (listed["one"]["id"], "moved.safetensors")
    (drive / "two.bin").unlink()
    modelhub("scan", drive)
    assert modelhub("show", listed["two"]["id"], "--json").json["state"] == "missing"
    assert "postgresql" in modelhub("doctor", status=None).stdout


def test_two_scans_at_once_agree(server: str, tmp_path: Path, modelhub: Modelhub) -> None:
    from tests.conftest import command_path

    for number in range(60):
        save_file({"w": torch.full((4, number + 1), float(number))}, tmp_path / f"m{number:02}.safetensors")
    both = [
        subprocess.Popen([command_path(), "scan", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint.decode()
    names = [model["name"] for model in modelhub("ls", "--where", f"root={tmp_path}", "--json").json]
    assert sorted(names) == [f"m{number:02}" for number in range(60)]


def test_rules_jobs_and_the_scrub_on_postgresql(server: str, tmp_path: Path, modelhub: Modelhub) -> None:
    from modelhub import scrub
    from modelhub.catalog import Catalog
    from modelhub.config import Scrub
    from modelhub.jobs.worker import Worker
    from modelhub.rules.dispatch import dispatch, forget
    from modelhub.rules.preview import plan
    from modelhub.rules.read import load

    for number in range(3):
        (tmp_path / f"d{number}").mkdir()
        save_file({"w": torch.full((4, 30 + number), float(number))}, tmp_path / f"d{number}" / "m.safetensors")
    modelhub("scan", tmp_path)
    here = f"root={tmp_path}"
    half = {"name": "half", "where": [here, "tensor~w"], "quantize": "bf16", "output": "out/{stem}{ext}"}
    check = {"name": "check", "where": [here], "verify": "digest", "priority": 3}
    rules = load({"rules": [half, check]})
    with Catalog.open() as catalog:
        assert [bool(preview.skipped) for preview in plan(catalog, rules)] == [False, True, True, False, False, False]
        assert len(dispatch(catalog, rules, since=0)) == 1 + 3  # the three would be one file
        assert dispatch(catalog, rules) == []
        assert forget(catalog, load({"rules": [half, {**check, "name": "new", "where": [here, "path~d1"]}]})) == 2
        assert len(dispatch(catalog, rules)) == 2
        (tmp_path / "d0" / "m.safetensors").write_bytes((tmp_path / "d1" / "m.safetensors").read_bytes())
        modelhub("scan", tmp_path)
        assert dispatch(catalog, rules) == []  # what waits takes what is there now
        worker = Worker(catalog, memory=0, drain=True)
        worker.work()
        worker.close()
        states = [(job.rule, job.state) for job in catalog.jobs.list() if job.rule]
        assert sorted(states) == [
            *[("check", "cancelled")] * 2,
            *[("check", "done")] * 2,
            ("half", "done"),
            *[("half", "failed")] * 2,
            ("new", "done"),
        ]
        assert scrub.due(catalog, Scrub(), time.time_ns() + 31 * 86400 * 10**9)
        assert catalog.jobs.list(["queued"])[0].origin == "scrub"
    listed = modelhub("ls", "--where", here, "--where", "path~out/", "--json").json
    assert [model["precision"] for model in listed] == ["BF16"]


def test_jobs_on_postgresql(server: str, tmp_path: Path, modelhub: Modelhub) -> None:
    """The queue that several hosts share: claimed once each, cancelled, taken from the dead, run."""
    import sys
    import threading

    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import NewJob
    from modelhub.jobs import identity

    torch.save({"w": torch.randn(30, 30)}, tmp_path / "queued.pt")
    modelhub("scan", tmp_path)
    me, far = identity.owner(), "elsewhere:1:1"
    with Catalog.open(server) as catalog:
        jobs = catalog.jobs
        with catalog.database.write() as writer:
            ids = jobs.add_many(writer, [NewJob("verify", f"/m{n}", {"level": "digest"}) for n in range(40)])
        claimed: list[str] = []

        def take() -> None:
            while (job := jobs.claim(me)) is not None:
                claimed.append(job.id)
                assert jobs.beat(job, me, "verify", 5, 10) == "ok"
                assert jobs.finish(job, {"ok": True})

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == sorted(ids)
        assert jobs.counts()["done"] == 40

        urgent, later = jobs.add("verify", "/urgent", {}), jobs.add("verify", "/later", {}, origin="scrub")
        job = jobs.claim(far, lease_seconds=-1)
        assert job is not None
        assert job.id == urgent.id
        assert jobs.cancel(job.id[:6]).cancel
        assert jobs.beat(job, far, "verify", 0, 0) == jobs.asked(job, far) == "cancel"
        assert jobs.release(job)
        assert jobs.get(job.id).state == "cancelled"
        lost = jobs.claim(far, lease_seconds=-1)
        assert lost is not None
        assert lost.id == later.id
        assert [found.id for found in jobs.reap(identity.is_alive)] == [later.id]
        assert jobs.beat(lost, far, "verify", 0, 0) == "lost"
        assert jobs.cancel(later.id).state == "cancelled"
        assert jobs.drop_old(time.time_ns()) == 42
        assert jobs.list() == []

        modelhub("convert", tmp_path / "queued.pt", "--to", "safetensors", "-o", tmp_path / "front.safetensors")
        (source,) = catalog.at(str(tmp_path / "queued.pt"))
        spec = {"to": "safetensors", "output": str(tmp_path / "made.safetensors"), "options": {}, "digest": True, "own": True}
        more = {"checkpoint": source.id, "version": source.version, "origin": "rule", "rule": "r"}
        wanted = jobs.add("convert", source.absolute_path, spec, **more)  # type: ignore[arg-type]
        again = jobs.add("convert", source.absolute_path, {**spec, "output": str(tmp_path / "again.safetensors")}, **more)  # type: ignore[arg-type]
        subprocess.run([sys.executable, "-m", "modelhub.jobs.worker", "--drain"], check=True, timeout=60)
        assert (tmp_path / "made.safetensors").exists() or (tmp_path / "front.safetensors").exists()
        assert [jobs.get(job.id).state for job in (wanted, again)] == ["done", "done"]
        assert jobs.get(again.id).result["same_as"]
        assert len(jobs.logs(wanted)) == 2
    assert {job["state"] for job in modelhub("jobs", "--json").json} == {"done"}


def test_the_registry_and_prune_on_postgresql(server: str, tmp_path: Path, modelhub: Modelhub, own_home: Path) -> None:
    (own_home / "config.toml").write_text("[watch]\nsettle = 0\n")
    drive = tmp_path / "drive"
    drive.mkdir()
    save_file({"w": torch.randn(60, 60)}, drive / "base.safetensors")
    shutil.copy(drive / "base.safetensors", drive / "base-copy.safetensors")
    for name in ("kept", "gone"):
        save_file({"w": torch.full((9,), float(len(name)))}, drive / f"{name}.safetensors")
    modelhub("scan", drive)
    made = drive / "registry-half.safetensors"
    for recipe in ("bf16", "f16"):
        modelhub("convert", drive / "base.safetensors", "--to", f"safetensors:{recipe}", "-o", made, "--force")
        modelhub("alias", f"half@{recipe}", made)
    modelhub("note", drive / "kept.safetensors", "keep me")
    shown = modelhub("show", "half@bf16", "--json", "--versions", "--lineage")
    assert "half@bf16 is stale" in shown.stderr
    assert [(row["version"], row["aliases"]) for row in shown.json["versions"]] == [(2, ["half@f16"]), (1, ["half@bf16"])]
    assert [(edge["recipe"], edge["stale"]) for edge in shown.json["graph"]["edges"]] == [("f16", False)]
    assert "version 1 of registry-half was replaced" in modelhub("show", "registry-half:1", status=3).stderr
    base = modelhub("show", drive / "base.safetensors", "--json").json["id"]
    modelhub("rm", base)
    assert modelhub("show", "half@f16", "--json", "--lineage").json["graph"]["nodes"][1]["state"] == "gone"
    modelhub("scan", drive)
    for name in ("kept", "gone"):
        (drive / f"{name}.safetensors").unlink()
    modelhub("scan", drive)
    words = ("--older-than", "0s", "--link", "hard")
    plan = modelhub("prune", *words, "--json").json
    assert [row["name"] for row in plan["missing"]["found"]] == ["gone"]
    assert [row["why"] for row in plan["missing"]["kept"]] == ["it has notes"]
    done = modelhub(
        "prune", "missing", "orphans", "duplicates", drive / "base-copy.safetensors", *words, "--apply", "--json"
    ).json
    assert done["missing"]["found"][0]["removed"]
    assert [twin["done"] for group in done["duplicates"]["groups"] for twin in group["twins"]] == ["hard link"]
    assert modelhub("scan", drive, "--json").json["changed"] == 0
    assert modelhub("prune", "orphans", *words, "--json").json["orphans"]["rows"].keys() >= {"job", "content", "tensor_digests"}
    assert f'"MODELHUB_CATALOG={server}"' in modelhub("service", "show").stdout


# --- one daemon to a catalog --------------------------------------------------------------------------------------


def cut(server: str) -> None:
    """End the connection that holds the daemon's lock, as a restart of the server does."""
    with psycopg.connect(server, autocommit=True) as connection:
        found = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype='advisory' AND granted "
            "AND database=(SELECT oid FROM pg_database WHERE datname=current_database())"
        ).fetchall()
    assert found == [(True,)]


def test_the_daemons_lock_on_a_server(server: str, own_server: str) -> None:
    with Catalog.open() as catalog, Catalog.open(f"{own_server}postgres") as elsewhere:
        assert holder_of(catalog) is None
        lock, other = DaemonLock(catalog), DaemonLock(catalog)
        holder = lock.acquire()
        assert holder.pid == os.getpid()
        assert holder_of(catalog) == holder
        assert holder_of(elsewhere) is None  # another catalog on the same server
        with pytest.raises(Taken, match=f"process {os.getpid()} on {socket.gethostname()}"):
            other.acquire()
        assert lock.keep()
        cut(server)
        assert not lock.keep()  # it was lost, and is held again
        with pytest.raises(Taken):
            other.acquire()
        cut(server)
        other.acquire()
        with pytest.raises(Taken):
            lock.keep()
        other.release()
        assert holder_of(catalog) is None


def test_two_daemons_on_one_server_refuse_politely(server: str, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    save_file({"w": torch.ones(9)}, drive / "one.safetensors")
    with watching(tmp_path / "home", drive) as daemon:
        told = daemon.run("watch", drive, "--json", status=3)
        assert f"process {daemon.pid} on {socket.gethostname()}" in told["error"]["message"]
        daemon.until(lambda: [row["state"] for row in daemon.run("ls", "--json")] == ["ready"])
        assert all(row["watched"] for row in daemon.run("roots", "--json"))
        # A daemon that was cut off, and finds another at its place, leaves it that.
        os.kill(daemon.pid, signal.SIGSTOP)
        cut(server)
        with Catalog.open() as catalog:
            other = DaemonLock(catalog)
            other.acquire()
            os.kill(daemon.pid, signal.SIGCONT)
            assert daemon.process is not None
            assert daemon.process.wait(20) == 3
            assert f"another modelhub watch (process {os.getpid()}" in daemon.log
            other.release()
        daemon.start()
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait()
        daemon.start()
        assert daemon.stop() == 0

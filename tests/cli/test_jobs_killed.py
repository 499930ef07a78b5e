"""Workers killed at random while they convert: at the end everything is as if nobody had been."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import torch
from modelhub.catalog import Catalog
from safetensors.torch import load_file

from tests.cli.test_jobs import WORKER, enqueue, scratch
from tests.conftest import Modelhub


def test_killed_over_and_over_every_output_is_made_whole(tmp_path: Path, modelhub: Modelhub) -> None:
    drive, out, quiet = tmp_path / "drive", tmp_path / "out", tmp_path / "quiet"
    for place in (drive, out, quiet):
        place.mkdir()
    for number in range(20):
        torch.manual_seed(number)
        torch.save({f"w{i}": torch.randn(400_000) for i in range(6)}, drive / f"{number:02}.pt")
    modelhub("scan", drive)
    kinds = [("safetensors", {}), ("safetensors:f64", {}), ("safetensors", {"max_shard_size": 3_000_000}), ("pytorch:f16", {})]
    ids = []
    for number in range(20):
        to, options = kinds[number % 4]
        name = f"{number:02}.{'pt' if to.startswith('pytorch') else 'safetensors'}"
        if number % 5 == 0 and not options:  # something old is to be replaced
            (out / name).write_bytes(b"the old one")
            options = {**options, "force": True}
        ids.append(enqueue(drive, f"{number:02}.pt", out / name, to, options=options))
        words = ["--max-shard-size", str(options["max_shard_size"])] if options.get("max_shard_size") else []
        if number < 4:  # an undisturbed run of each kind to compare with
            modelhub("convert", drive / f"{number:02}.pt", "--to", to, "-o", quiet / name, *words)
    dice = random.Random(11)
    workers = [subprocess.Popen([*WORKER, "--idle", "0.5"]) for _ in range(2)]
    kills = 0
    with Catalog.open() as catalog:
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and kills < 10:
            busy = {job.owner.split(":")[1] for job in catalog.jobs.list(["running"])}
            for number, worker in enumerate(workers):
                if str(worker.pid) in busy:  # somewhere in the middle of one
                    time.sleep(dice.uniform(0, 0.12))
                    worker.kill()
                    kills += 1
                if str(worker.pid) in busy or worker.poll() is not None:
                    worker.wait()
                    workers[number] = subprocess.Popen([*WORKER, "--idle", "0.5"])
            time.sleep(0.01)
    for worker in workers:
        worker.wait(timeout=60)
    subprocess.run([*WORKER, "--drain"], check=True, timeout=60)
    jobs = {job["id"]: job for job in modelhub("jobs", "--json").json}
    assert {jobs[id]["state"] for id in ids} == {"done"}
    assert sum(jobs[id]["crashes"] for id in ids) > 3
    assert scratch(tmp_path) == []
    expected = {path.name: digest(path) for path in quiet.iterdir()}
    assert expected
    assert {name: digest(out / name) for name in expected} == expected
    for number in range(4, 20):
        name = f"{number:02}"
        parts = sorted(path for path in out.iterdir() if path.name.startswith(name) and path.suffix in (".safetensors", ".pt"))
        tensors: dict[str, torch.Tensor] = {}
        for part in parts:
            tensors |= load_file(part) if part.suffix == ".safetensors" else torch.load(part)
        torch.manual_seed(number)
        for i in range(6):
            assert torch.equal(tensors[f"w{i}"], torch.randn(400_000).to(tensors[f"w{i}"].dtype))
    with sqlite3.connect(os.path.join(os.environ["MODELHUB_HOME"], "catalog.db")) as catalog:
        assert catalog.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert catalog.execute("PRAGMA foreign_key_check").fetchall() == []
    modelhub("scan", out)
    listed = [model for model in modelhub("ls", "--json").json if model["path"].startswith(str(out)) or model["root"] == str(out)]
    assert len(listed) == 20
    assert all(model["derived_from"] for model in listed)


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()

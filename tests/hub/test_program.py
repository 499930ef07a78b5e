"""A plugin's program: run in a worker, its output read by its format before it gets its name; and the events that follow."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Modelhub

PLUGIN = """
    import os
    from modelhub import Program, hookimpl

    def run(checkpoint, output, options):
        with open({log!r}, "a") as log:
            log.write(str(os.getpid()) + "\\n")
        {body}

    @hookimpl
    def modelhub_conversions():
        yield Program(name="copier", source="pytorch", target="safetensors", run=run{more})

    @hookimpl
    def modelhub_on_event(event):
        with open({log!r} + ".events", "a") as log:
            log.write(event.kind + " " + os.path.basename(event.path) + "\\n")
"""
COPY = "open(output, 'wb').write(open({ready!r}, 'rb').read())"


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    place = tmp_path / "drive"
    place.mkdir()
    torch.save({"w": torch.arange(6.0)}, place / "in.pt")
    save_file({"made": torch.ones(3)}, tmp_path / "ready.safetensors")
    return place


def test_a_program_runs_in_a_worker_and_observers_hear_of_its_output(
    drive: Path, tmp_path: Path, make_plugin, modelhub: Modelhub
) -> None:
    log = tmp_path / "log"
    make_plugin("copier", PLUGIN.format(log=str(log), body=COPY.format(ready=str(tmp_path / "ready.safetensors")), more=""))
    modelhub("scan", drive)
    report = modelhub("convert", drive / "in.pt", "--to", "safetensors", "--json").json
    assert load_file(report["output"]).keys() == {"made"}
    assert int(log.read_text()) != os.getpid()
    modelhub("verify", drive / "in.safetensors")
    events = Path(f"{log}.events").read_text().splitlines()
    assert events == ["indexed in.pt", "converted in.safetensors", "verified in.safetensors"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no luck')", "no luck"),
        ("os._exit(3)", "copier"),
        ("pass", "ended without an output"),
        ("open(output, 'wb').write(b'junk')", "reads back as"),
    ],
)
def test_a_program_that_fails_leaves_nothing(
    drive: Path, tmp_path: Path, make_plugin, modelhub: Modelhub, body: str, said: str
) -> None:
    make_plugin("copier", PLUGIN.format(log=str(tmp_path / "log"), body=body, more=""))
    done = modelhub("convert", drive / "in.pt", "--to", "safetensors", status=3)
    assert said in done.stderr or "crashed" in done.stderr or "ended" in done.stderr
    assert os.listdir(drive) == ["in.pt"]


def test_what_a_program_needs_is_said_before_it_runs(drive: Path, tmp_path: Path, make_plugin, modelhub: Modelhub) -> None:
    make_plugin("copier", PLUGIN.format(log=str(tmp_path / "log"), body="pass", more=', requires=("no_such_module",)'))
    done = modelhub("convert", drive / "in.pt", "--to", "safetensors", "--json", status=3)
    assert json.loads(done.stdout)["error"]["message"] == "copier needs no_such_module"


def test_a_dry_run_refuses_what_the_writer_would(drive: Path, modelhub: Modelhub) -> None:
    for words in (("--dry-run",), ()):
        done = modelhub("convert", drive / "in.pt", "--to", "huggingface", "-o", drive / "out", *words, status=3)
        assert "config" in done.stderr
    assert os.listdir(drive) == ["in.pt"]

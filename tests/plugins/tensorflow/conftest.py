"""The files that TensorFlow makes, made once for all tests; and TensorFlow itself in a process of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import PROJECT

PROGRAM = Path(__file__).with_name("tf_files.py")


@pytest.fixture(scope="session")
def made() -> Path:
    """The directory that `tf_files` fills. It is kept from one run to the next while that program stays as it is: read it, never
    write into it."""
    key = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()[:16]
    place = PROJECT / ".pytest_cache" / f"tensorflow-{key}"
    place.parent.mkdir(exist_ok=True)
    with open(place.parent / "tensorflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            fresh = place.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            done = subprocess.run([sys.executable, PROGRAM, fresh], capture_output=True, text=True, timeout=280, check=False)
            assert not done.returncode, done.stderr[-3000:]
            os.replace(fresh, place)
    return place


class TensorFlow:
    """Saves and loads checkpoints, in one process that imports TensorFlow once."""

    def __init__(self, scratch: Path) -> None:
        self.file = scratch / "arrays.npz"
        command = [sys.executable, str(PROGRAM), "--serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _ask(self, what: str, prefix: str, names: list[str]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([what, prefix, str(self.file), names]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not isinstance(answer, str), answer
        return answer

    def save(self, prefix: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        np.savez(self.file, *tensors.values())
        self._ask("save", prefix, [*tensors])

    def load(self, prefix: str) -> dict[str, NDArray[Any]]:
        names = self._ask("load", prefix, [])
        with np.load(self.file) as arrays:
            return {name: arrays[f"arr_{number}"] for number, name in enumerate(names)}


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlow]:
    server = TensorFlow(tmp_path_factory.mktemp("tensorflow"))
    yield server
    server.process.kill()
    server.process.wait(30)

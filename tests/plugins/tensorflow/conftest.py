"""The files that TensorFlow makes, made once for all tests; and TensorFlow itself in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.made import made_once

PROGRAM = Path(__file__).with_name("tf_files.py")


@pytest.fixture(scope="session")
def made() -> Path:
    """The directory that `tf_files` fills: read it, never write into it."""
    return made_once(PROGRAM, "tensorflow")


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

    def restore(self, prefix: str, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What variables with the names and the shapes of ``like`` hold once a checkpoint was restored into them."""
        np.savez(self.file, *(np.zeros_like(array) for array in like.values()))
        self._ask("restore", prefix, [*like])
        with np.load(self.file) as arrays:
            return {name: arrays[f"arr_{number}"] for number, name in enumerate(like)}


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlow]:
    server = TensorFlow(tmp_path_factory.mktemp("tensorflow"))
    yield server
    server.process.kill()
    server.process.wait(30)

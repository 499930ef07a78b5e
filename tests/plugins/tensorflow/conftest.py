"""The files that TensorFlow makes, made once for all tests; and TensorFlow itself in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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

    def save(self, path: Path | str, tensors: Mapping[str, NDArray[Any]], what: str = "save") -> None:
        """Make a checkpoint; ``what``: "save_first", "save_model" or "save_graph" make other things of them."""
        np.savez(self.file, *tensors.values())
        self._ask(what, str(path), [*tensors])

    def load(self, prefix: str) -> dict[str, NDArray[Any]]:
        return self._answer("load", prefix)

    def restore(self, prefix: str, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What variables hold that are attributes of objects as the names of ``like`` have it, with shapes as its arrays have,
        once ``tf.train.Checkpoint`` restored them, all of them and nothing else."""
        np.savez(self.file, *(np.zeros_like(array) for array in like.values()))
        return self._answer("restore", prefix, [*like])

    def restore_layers(self, prefix: str) -> dict[str, NDArray[Any]]:
        """What some layers of Keras hold then."""
        return self._answer("restore_layers", prefix)

    def again(self, prefix: str, original: Path) -> dict[str, NDArray[Any]]:
        """What objects like those of ``original`` hold that were restored from ``prefix``, by their keys."""
        return self._answer("again", prefix, [str(original)])

    def _answer(self, what: str, prefix: str, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        found = self._ask(what, prefix, [*names])
        with np.load(self.file) as arrays:
            return {name: arrays[f"arr_{number}"] for number, name in enumerate(found)}


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlow]:
    server = TensorFlow(tmp_path_factory.mktemp("tensorflow"))
    yield server
    server.process.kill()
    server.process.wait(30)

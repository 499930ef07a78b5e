"""The files that Keras and TensorFlow make, made once for all tests and all processes that run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made import made_once

PROGRAM = Path(__file__).with_name("keras_files.py")


@pytest.fixture(scope="session")
def made() -> Path:
    """The directory that `keras_files` fills: read it, never write into it."""
    return made_once(PROGRAM, "keras")

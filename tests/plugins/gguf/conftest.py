"""What the tests of GGUF share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def kept_kernels(own_home: Path, request: pytest.FixtureRequest) -> None:
    """Kernels that were compiled for one test, or one run of the tests, serve the others: they take a minute to compile."""
    assert request.config.cache
    (own_home / "cache").mkdir(exist_ok=True)
    (own_home / "cache" / "kernels").symlink_to(request.config.cache.mkdir("kernels"))

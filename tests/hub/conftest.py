"""What tests of the core share: a worker, and real plugin distributions made on the fly."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelhub import plugins
from modelhub.workers import ParsePool

MakePlugin = Callable[..., Path]


@pytest.fixture(scope="module")
def pool() -> Iterator[ParsePool]:
    with ParsePool(1) as pool:
        yield pool


@pytest.fixture
def make_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePlugin]:
    """Installs a plugin as a distribution (a module and its ``.dist-info``) in a folder on ``sys.path`` and ``PYTHONPATH``.

    ``make_plugin(name, source, version="1.0")`` returns the module's path; the module is ``modelhub_NAME``."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    made: set[str] = set()

    def make(name: str, source: str, version: str = "1.0", entry: str = "") -> Path:
        module = f"modelhub_{name.replace('-', '_')}"
        made.add(module)
        path = site / f"{module}.py"
        path.write_text(textwrap.dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: modelhub-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[modelhub]\n{entry or name} = {module}\n")
        return path

    yield make
    for name in made & set(sys.modules):
        del sys.modules[name]
    plugins.use(None)


@pytest.fixture
def modelhub_python() -> Callable[[str], str]:
    """Runs a program in a fresh interpreter, and returns what it prints."""

    def run(program: str) -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout

    return run

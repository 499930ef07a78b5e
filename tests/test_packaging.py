"""The wheel holds everything: installed into an empty environment, the commands work there, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
PLUGINS = sorted(path.name for path in (PROJECT / "plugins").iterdir() if (path / "__init__.py").exists())


SECONDS = 240
"""No step here takes more than half a minute."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", target, PROJECT], check=True, timeout=SECONDS)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` directory of an environment with nothing but the wheel and what it depends on. That comes from the environment
    of these tests, where pip has put it, and not once more over the network."""
    place = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, timeout=SECONDS)
    (site,) = place.glob("lib/python*/site-packages")
    requires = next(metadata.distributions(name="modelhub-registry", path=[str(site)])).requires
    for found in dependencies(requires or []):
        for file in found.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                copy = site / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(found.locate_file(file))
    return place / "bin"


def dependencies(requires: Iterable[str]) -> list[metadata.Distribution]:
    """The distributions that these requirements bring, and what those require in turn, without extras."""
    wanted = [Requirement(text) for text in requires]
    found: dict[str, metadata.Distribution] = {}
    for one in wanted:  # which grows
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(one.name)
        if name not in found:
            found[name] = metadata.distribution(name)
            assert one.specifier.contains(found[name].version, prereleases=True), one
            wanted += [Requirement(text) for text in found[name].requires or []]
    return list(found.values())


def run(installed: Path, home: Path, *words: object, cwd: Path) -> str:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "MODELHUB_HOME": str(home / "state"), "LC_ALL": "C.UTF-8"}
    command = [str(installed / "modelhub"), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_core_the_plugins_and_the_migrations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("modelhub", *PLUGINS):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    versions = {f"modelhub/migrations/versions/{path.name}" for path in (PROJECT / "migrations" / "versions").glob("*.py")}
    assert versions
    assert versions | {"modelhub/migrations/env.py"} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "sample/", "docs/"))]


def test_every_plugin_is_packaged_and_has_an_entry_point() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["hub/modelhub", *(f"plugins/{name}" for name in PLUGINS)])
    assert sorted(PYPROJECT["project"]["entry-points"]["modelhub"].values()) == PLUGINS


def test_the_commands_work_in_an_empty_environment(installed: Path, sample_drive: Path, tmp_path: Path) -> None:
    drive, home = tmp_path / "drive", tmp_path / "home"
    home.mkdir()
    for package in ("silero-vad", "lpips"):
        shutil.copytree(sample_drive / package, drive / package)

    assert run(installed, home, "--version", cwd=tmp_path) == f"modelhub {PYPROJECT['project']['version']}\n"
    plugins = json.loads(run(installed, home, "plugins", "--json", cwd=tmp_path))
    assert {plugin["name"]: plugin["status"] for plugin in plugins if plugin["status"] == "failed"} == {}
    assert {name.removeprefix("modelhub_") for name in PLUGINS} <= {plugin["name"] for plugin in plugins}

    summary = json.loads(run(installed, home, "scan", drive, "--json", cwd=tmp_path))
    assert summary["found"] >= 8
    models = json.loads(run(installed, home, "ls", "--json", cwd=tmp_path))
    assert {model["name"] for model in models} >= {"alex", "vgg", "squeeze", "silero_vad", "silero_vad_16k"}

    report = json.loads(
        run(installed, home, "convert", drive / "silero-vad/data/silero_vad.jit", "--to", "safetensors", "--json", cwd=tmp_path)
    )
    assert report["verified"]
    assert os.path.getsize(report["output"]) == report["size"]
    verified = json.loads(run(installed, home, "verify", report["output"], "--against", report["source"], "--json", cwd=tmp_path))
    assert [item["ok"] for item in verified] == [True]


def test_the_migrations_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from modelhub.catalog.upgrade import migrations_path; print(migrations_path())"
    place = subprocess.run(
        [installed / "python", "-c", code], check=True, capture_output=True, text=True, timeout=SECONDS
    ).stdout.strip()
    assert place.startswith(str(installed.parent))
    assert (Path(place) / "env.py").exists()


def test_torch_is_not_there(installed: Path) -> None:
    for name in ("torch", "transformers", "safetensors"):
        done = subprocess.run([installed / "python", "-c", f"import {name}"], capture_output=True, check=False, timeout=SECONDS)
        assert done.returncode != 0, f"{name} is installed with the wheel"

"""A third party's plugin from wheel to use: built, installed, then scanned, shown, converted and verified with the ``modelhub``
command. And the plugins that misbehave, as ``modelhub plugins`` shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

EXAMPLE = Path(__file__).resolve().parent.parent / "example_plugin"
ARRAYS = {
    "encoder.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "encoder.fortran": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
    "ids": np.array([3, 1, 2]),
    "scale": np.float64(0.5),
}


@pytest.fixture(autouse=True)
def first_come(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format that modelhub itself has under the example's name steps back."""
    monkeypatch.setenv("MODELHUB_DISABLE", "numpy")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example's wheel, installed into a folder of its own; what to put on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("example")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # A copy, so that building leaves nothing in the source tree.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "modelhub_npz.py", "README.md"):
        (source / name).write_bytes((EXAMPLE / name).read_bytes())
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("modelhub_npz-*.whl")
    run(*pip, "install", "--quiet", "--no-deps", "--target", folder / "site", wheel)
    return str(folder / "site")


def run(*words: object, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=300, env=environ or None
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "drive" / "weights.npz"
    path.parent.mkdir()
    np.savez(path, **ARRAYS)
    return path


def test_it_is_listed(installed: str, modelhub) -> None:
    listed = {item["name"]: item for item in modelhub("plugins", "--json", PYTHONPATH=installed).json}
    npz = listed["npz"]
    assert (npz["version"], npz["status"], npz["formats"], npz["hooks"]) == ("0.1.0", "ok", ["npz"], ["modelhub_formats"])


def test_scan_and_show(installed: str, modelhub, archive: Path) -> None:
    summary = modelhub("scan", archive.parent, "--json", PYTHONPATH=installed).json
    assert (summary["found"], summary["invalid"], summary["unknown"]) == (1, 0, 0)
    (listed,) = modelhub("ls", "--where", "format=npz", "--json", PYTHONPATH=installed).json
    assert (listed["name"], listed["state"], listed["parameters"]) == ("weights", "ready", 40)
    shown = modelhub("show", "weights", "--tensors", "--json", PYTHONPATH=installed).json
    tensors = {item["name"]: (item["dtype"], tuple(item["shape"])) for item in shown["tensors"]}
    assert tensors == {
        "encoder.weight": ("F32", (4, 6)),
        "encoder.fortran": ("F16", (3, 4)),
        "ids": ("I64", (3,)),
        "scale": ("F64", ()),
    }


def test_to_safetensors_and_back(installed: str, modelhub, archive: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    modelhub("convert", archive, "--to", "safetensors", "-o", there, PYTHONPATH=installed)
    loaded = load_file(there)
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
    back = tmp_path / "back.npz"
    result = modelhub("convert", there, "--to", "npz", "-o", back, "--json", PYTHONPATH=installed).json
    assert (result["format"], result["verified"]) == ("npz", True)
    with np.load(back) as opened:
        assert set(opened) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert opened[name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(opened[name], array)
    assert modelhub("diff", archive, back, "--json", PYTHONPATH=installed).json["equal"] is True
    assert modelhub("verify", archive, back, "--json", PYTHONPATH=installed).json[0]["ok"] is True


def test_without_the_plugin_its_files_are_unknown(modelhub, archive: Path) -> None:
    assert modelhub("scan", archive.parent, "--json").json["unknown"] == 1
    assert "npz" not in [item["name"] for item in modelhub("plugins", "--json").json]
    modelhub("show", archive, status=3)


def test_a_blocked_plugin_is_out_of_play(installed: str, modelhub, archive: Path) -> None:
    listed = {
        item["name"]: item for item in modelhub("plugins", "--json", PYTHONPATH=installed, MODELHUB_DISABLE="npz,numpy").json
    }
    assert (listed["npz"]["status"], listed["npz"]["formats"]) == ("blocked", [])
    assert modelhub("scan", archive.parent, "--json", PYTHONPATH=installed, MODELHUB_DISABLE="npz,numpy").json["unknown"] == 1


def test_the_examples_own_tests_pass(installed: str, tmp_path: Path) -> None:
    """As its author runs them: from the plugin's folder, with nothing of this project's test configuration."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_npz.py").write_bytes((EXAMPLE / "tests" / "test_npz.py").read_bytes())
    out = run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tests,
        tests,
        PYTHONPATH=installed,
        MODELHUB_DISABLE="numpy",
    )
    assert " passed" in out


MISBEHAVING = {
    "broken": ("failed", "import failed: ZeroDivisionError", "1 / 0"),
    "hanging": ("failed", "import failed: took longer than", "import time; time.sleep(600)"),
    "clashing": (
        "clash",
        "format safetensors is declared by safetensors already",
        "from modelhub import *\n@hookimpl\ndef modelhub_formats():\n    yield Format(name='safetensors', title='Mine')",
    ),
    "extra": (
        "partial",
        "pip install 'modelhub-extra[big]'",
        "from modelhub import *\n@hookimpl\ndef modelhub_formats():\n"
        "    yield Format(name='extra', title='Extra', suffixes=('.extra',), detect=lambda file: Detection([file.path]),\n"
        "                 unavailable={'read': \"pip install 'modelhub-extra[big]'\"})",
    ),
    "blocked": ("blocked", "MODELHUB_DISABLE", "1 / 0"),
}


def test_misbehaving_plugins_beside_good_ones(make_plugin, modelhub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELHUB_DISABLE", "blocked")
    monkeypatch.setenv("MODELHUB_PLUGIN_SECONDS", "1")
    for name, (_, _, source) in MISBEHAVING.items():
        make_plugin(name, source)
    run_ = modelhub("plugins", "--json", status=None)
    listed = {item["name"]: item for item in run_.json}
    for name, (status, reason, _) in MISBEHAVING.items():
        assert listed[name]["status"] == status
        assert reason in listed[name]["reason"]
        assert listed[name]["version"] == "1.0"
    assert listed["safetensors"]["status"] == "ok"
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive" / "a.extra").write_bytes(b"1234")
    modelhub("scan", tmp_path / "drive")
    (shown,) = modelhub("ls", "--json").json
    assert (shown["state"], shown["format"]) == ("unsupported", "extra")
    assert "pip install 'modelhub-extra[big]'" in shown["reason"]


def test_a_plugin_that_hangs_on_a_file_costs_that_file(
    make_plugin, modelhub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plugin(
        "tarpit",
        """
        import time
        from modelhub import Detection, Format, hookimpl

        def detect(file):
            while file.name == "bad.tar-pit":
                time.sleep(1)
            return Detection([file.path], 90)

        @hookimpl
        def modelhub_formats():
            yield Format(name="tarpit", title="Tar pit", suffixes=(".tar-pit",), detect=detect, read=lambda checkpoint: ())
        """,
    )
    monkeypatch.setenv("MODELHUB_PARSE_SECONDS", "1")
    drive = tmp_path / "drive"
    drive.mkdir()
    for name in ("a", "bad", "z"):
        (drive / f"{name}.tar-pit").write_bytes(b"1234")
    summary = modelhub("scan", drive, "--json").json
    assert (summary["found"], summary["invalid"]) == (3, 1)
    states = {item["name"]: item["state"] for item in modelhub("ls", "--json").json}
    assert states == {"a": "ready", "bad": "invalid", "z": "ready"}

"""The plugin author's guide and the reference, held against the code: every block is run, every hook and record is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import modelhub
import pytest
from modelhub import hookspecs, plugins
from modelhub.detect import inspect_path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
GUIDE = (DOCS / "plugins.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load_generator() -> Any:
    spec = util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
HOOKS = GENERATOR.hook_names()


def test_the_reference_is_what_the_code_says(modelhub_python) -> None:
    written = (DOCS / "reference.md").read_text()
    # In a process of its own: other tests register dtypes and ops in this one.
    program = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r}); import generate_reference; sys.stdout.write(generate_reference.render())"
    )
    assert written == modelhub_python(program), "docs/reference.md is out of date: run  python docs/generate_reference.py"


def test_every_hook_and_record_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text()
    assert len(HOOKS) == 7
    for name in [*HOOKS, *modelhub.__all__]:
        assert re.search(rf"(#|`){name}\b|# {name}\b", text), f"{name} is not in docs/reference.md"
    for name in plugins.get().formats:
        assert f"`{name}`" in text


def test_every_hook_is_in_the_guide() -> None:
    for name in HOOKS:
        assert f"def {name}(" in GUIDE, f"docs/plugins.md has no example of {name}"


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_in_a_hooks_docstring_is_a_working_plugin(make_plugin, hook: str) -> None:
    source = (getattr(hookspecs, hook).__doc__ or "").partition("Example::\n\n")[2]
    assert source, f"{hook} has no example"
    make_plugin("example", source)
    report = plugins.load().report("example")
    assert (report.status, report.reason, report.hooks) == ("ok", "", (hook,))


def test_the_format_in_the_docstring_reads_a_file(make_plugin, tmp_path: Path) -> None:
    make_plugin("example", (hookspecs.modelhub_formats.__doc__ or "").partition("Example::\n\n")[2])
    (tmp_path / "a.raw").write_bytes(b"RAWF32\0\0" + bytes(12))
    found = inspect_path(str(tmp_path / "a.raw"), plugins.load().formats)
    assert (found.state, found.parameters) == ("ready", 3)


def test_the_guide_from_its_first_block_to_its_last(tmp_path: Path) -> None:
    """Python and TOML blocks that begin with a file's name are written (a later block of that name goes on where the earlier one
    ended), other Python blocks are run, and the commands of console blocks are run and their output compared (``...``:
    anything)."""
    ran: list[str] = []
    started: set[str] = set()
    for language, text in BLOCK.findall(GUIDE):
        title = re.match(r"# (\S+\.\w+)\n", text)
        if title:
            name = title[1]
            with (tmp_path / name).open("a" if name in started else "w") as file:
                file.write(text[title.end() :] + "\n")
            started.add(name)
        elif language == "python":
            shell(tmp_path, sys.executable, "-c", text)
        elif language == "console":
            ran += run_console(tmp_path, text)
        else:
            raise AssertionError(f"a block of {language} that nothing tests:\n{text}")
    assert {"modelhub_slab.py", "test_slab.py", "pyproject.toml"} <= started
    assert any(command.startswith("pytest") for command in ran)
    # All that the guide has built up, together.
    install(tmp_path)
    listed = shell(tmp_path, sys.executable, "-c", "from modelhub import plugins; print(plugins.load().report('slab'))")
    assert "status='ok'" in listed, listed
    assert all(hook in listed for hook in HOOKS)


PROGRAMS = {
    "cmp": ["cmp"],
    "python": [sys.executable],
    "pytest": [sys.executable, "-m", "pytest"],
    "modelhub": [str(Path(sys.executable).parent / "modelhub")],
}


def run_console(folder: Path, text: str) -> list[str]:
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    ran = []
    for entry in commands:
        command, _, expected = entry.partition("\n")
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            install(folder)
            continue
        program = PROGRAMS[words[0]]
        output = shell(folder, *program, *words[1:])
        pattern = re.sub(r" ?\\\.\\\.\\\. ?", ".*", squeeze(re.escape(expected)))
        assert re.fullmatch(pattern, squeeze(output), re.DOTALL), f"$ {command}\n{output}\nthe guide shows:\n{expected}"
        ran.append(command)
    return ran


def squeeze(text: str) -> str:
    return re.sub(r"(\\?\s)+", " ", text).strip()


def install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    shell(folder, *pip, "--upgrade", "--target", "site", ".")


def shell(folder: Path, *words: str) -> str:
    environ = {
        **os.environ,
        "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "120",
    }
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=environ)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout

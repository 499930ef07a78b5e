"""The guide and the README show what the commands really print."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def generator() -> Any:
    spec = util.spec_from_file_location("generate_guide", PROJECT / "docs" / "generate_guide.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["docs/guide.md", "README.md"])
def test_every_block_is_what_the_commands_print(name: str, sample_drive: Path) -> None:
    module = generator()
    written = (PROJECT / name).read_text()
    assert module.normalise(module.render(written, sample_drive)) == module.normalise(written), "run: make docs"


def test_the_guide_has_every_command() -> None:
    from modelhub.cli.app import COMMANDS

    guide = (PROJECT / "docs" / "guide.md").read_text()
    for name in (name for section in COMMANDS.values() for name in section):
        assert re.search(rf"^\$ modelhub {name}\b", guide, re.MULTILINE), f"{name} is not shown in the guide"

"""Arguments, places and files that nobody honest gives: refused in a line that says what and what to do, and nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import Modelhub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "drive" / "model.safetensors"
    path.parent.mkdir()
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    return path


PLACES = {
    "": (2, "-o names no place"),
    "x" * 250 + ".safetensors": (3, "the output's name is 262 bytes long, a name has 255 at most"),
    "loop/out.safetensors": (3, "loop is no directory"),
    "file/out.safetensors": (3, "file is no directory"),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_that_cannot_be(place: str, model: Path, modelhub: Modelhub) -> None:
    (model.parent / "loop").symlink_to("loop")
    (model.parent / "file").touch()
    before = sorted(model.parent.iterdir())
    status, words = PLACES[place]
    refused = modelhub("convert", model, "--to", "safetensors:bf16", "-o", place, status=status, cwd=model.parent)
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert sorted(model.parent.iterdir()) == before


def test_a_name_in_capitals_is_read_back(model: Path, modelhub: Modelhub) -> None:
    modelhub("convert", model, "--to", "safetensors:bf16", "-o", model.parent / "OUT.SAFETENSORS")
    assert modelhub("scan", model.parent, "--json").json["found"] == 2


def test_a_pipe_is_no_model(model: Path, modelhub: Modelhub) -> None:
    os.mkfifo(model.parent / "pipe")
    refused = modelhub("scan", model.parent / "pipe", status=3)
    assert "pipe is neither a file nor a directory; give" in refused.stderr
    assert "a PATH is empty" in modelhub("roots", "add", "", status=2).stderr


def test_a_pipe_in_the_place_of_a_model_that_is_known_keeps_nobody_waiting(model: Path, modelhub: Modelhub) -> None:
    other = model.with_name("other.safetensors")
    save_file({"w": np.zeros((4, 4), np.float32)}, other)
    modelhub("scan", model.parent)
    model.unlink()
    os.mkfifo(model)
    for words in (["verify", "--level", "digest"], ["convert", "--to", "safetensors:bf16"], ["diff", other]):
        refused = modelhub(words[0], "model", *words[1:], status=3)
        assert "is not a regular file" in refused.stdout + refused.stderr, words


@pytest.mark.parametrize(
    ("given", "words"),
    [("\udcff", "what came in is no text in UTF-8"), ("{", "what came in is not JSON"), ("[]", "what came in is no export")],
)
def test_what_is_imported_is_looked_at(given: str, words: str, modelhub: Modelhub) -> None:
    assert words in modelhub("import", "-", input=given, status=2).stderr


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e999"])
def test_a_strength_is_a_number(scale: str, model: Path, modelhub: Modelhub) -> None:
    refused = modelhub("merge", model, "--adapter", model, "--scale", scale, status=2)
    assert "is no strength; a number like 0.7 is" in refused.stderr


def test_sums_of_infinity_are_nobodys_news(model: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    save_file({"w": np.full((4, 4), np.inf, np.float32)}, tmp_path / "other.safetensors")
    done = modelhub("merge", tmp_path / "other.safetensors", "--minus", tmp_path / "other.safetensors")
    assert "Warning" not in done.stderr


def test_values_near_the_largest_are_nobodys_news(model: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    save_file({"w": np.full((4, 4), 3e38, np.float32)}, tmp_path / "large.safetensors")
    done = modelhub("convert", tmp_path / "large.safetensors", "--to", "safetensors:bf16")
    assert "Warning" not in done.stderr

"""TensorFlow Lite models that are wrong or hostile: each gets its state and its reason, soon, and nothing worse."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import FileProblem, plugins
from modelhub.detect import inspect_path
from modelhub.files import File
from modelhub.plugins import time_limit
from modelhub_tflite import describe, tensors
from modelhub_tflite.model import parse

from tests.conftest import Modelhub
from tests.corpus.tflite_bad import BAD, DATA


@pytest.mark.parametrize("name", BAD)
def test_each_is_refused_in_words(tmp_path: Path, name: str) -> None:
    data, state, word = BAD[name]
    (tmp_path / "m.tflite").write_bytes(data)
    with time_limit(5):
        found = inspect_path(str(tmp_path / "m.tflite"), plugins.get().formats)
    assert (found.format, found.state) == ("tflite", state), found.reason
    assert word in found.reason
    assert not [item for item in found.findings if item.check == "plugin"]


def test_a_drive_of_them_holds_nobody_up(tmp_path: Path, modelhub: Modelhub) -> None:
    for name, (data, _, _) in BAD.items():
        (tmp_path / f"{name}.tflite").write_bytes(data)
    (tmp_path / "good.tflite").write_bytes(DATA)
    summary = modelhub("scan", tmp_path, "--json").json
    assert summary["found"] == len(BAD) + 1
    assert modelhub("ls", "good", "--json").json[0]["state"] == "ready"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3))
def test_any_damage_ends_in_a_table_or_in_words(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(DATA)
    for at, byte in damage:
        data[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.tflite"
    path.write_bytes(bytes(data[: len(data) - (0 if cut else random.Random(damage[0][0]).randrange(len(data)))]))
    with File(str(path)) as file, time_limit(5):
        try:
            model = parse(file)
            list(tensors.tensors(model, file))
            describe.metadata(model, file)
        except FileProblem:
            return

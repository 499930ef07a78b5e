"""HDF5 and Keras files that are wrong or hostile: each gets its state and its reason, soon, and nothing else is held up."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import Extent, FileProblem, plugins
from modelhub.plugins import time_limit
from modelhub_keras import attributes, datasets, names
from modelhub_keras.container import Container
from modelhub_keras.groups import walk

from tests.conftest import Modelhub
from tests.corpus.hdf5_bad import BAD, chunked, good, growing, whole


def test_each_is_refused_in_words_and_holds_nobody_up(tmp_path: Path, modelhub: Modelhub) -> None:
    """One scan of a drive of them all."""
    for name, (make, _, _) in BAD.items():
        make(tmp_path / name)
    (tmp_path / "good.weights.h5").write_bytes(good())
    assert modelhub("scan", tmp_path, "--json").json["seconds"] < 30
    shown = {Path(item["path"]).name: item for item in modelhub("ls", "--json").json}
    assert shown["good.weights.h5"]["state"] == "ready"
    for name, (_, states, word) in BAD.items():
        assert shown[name]["state"] in states, (name, shown[name]["state"], shown[name]["reason"])
        assert word in shown[name]["reason"], (name, shown[name]["reason"])


def everything(data: bytes) -> None:
    """Read all that a reader would."""
    plugins.get()  # their ops are what tensors are made of
    file = Container(data, "m")
    found = {}
    for entry in walk(file):
        tensor, _ = datasets.tensor(file, entry, lambda offset, nbytes: Extent("m", offset, nbytes))
        found[tensor.name] = tensor.dtype
    names.readable(file, found)
    attributes.text(file, file.root, "model_config")


BASES = (good(2), whole(), good(12, libver="latest"), chunked(), growing())


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_any_damage_ends_in_a_table_or_in_words(base: bytes, damage: list[tuple[float, int]], length: float) -> None:
    data = bytearray(base)
    for at, byte in damage:
        data[int(at * len(data))] = byte
    for part in (bytes(data), bytes(data[: int(length * len(data))])):
        try:
            with time_limit(10):
                everything(part)
        except FileProblem:
            continue


def test_a_drive_of_damaged_files(tmp_path: Path, modelhub: Modelhub) -> None:
    chance = random.Random(7)
    for number in range(150):
        data = bytearray(BASES[number % len(BASES)])
        for _ in range(chance.choice((1, 2, 8, 32))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        (tmp_path / f"{number}.weights.h5").write_bytes(data)
    (tmp_path / "good.weights.h5").write_bytes(good())
    summary = modelhub("scan", tmp_path, "--json").json
    assert summary["found"] + summary["unknown"] == 151
    found = modelhub("ls", "--json").json
    assert next(item for item in found if item["path"] == "good.weights.h5")["state"] == "ready"
    assert {item["state"] for item in found} <= {"ready", "invalid", "incomplete", "unsupported"}
    assert not [item["reason"] for item in found if "plugin" in (item["reason"] or "")]

"""HDF5 and Keras files that are wrong or hostile: each gets its state and its reason, soon, and nothing else is held up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Modelhub
from tests.corpus.hdf5_bad import BAD, good, whole


def test_each_is_refused_in_words_and_holds_nobody_up(tmp_path: Path, modelhub: Modelhub) -> None:
    """One scan of a drive of them all, as it happens: in workers, for the library is C."""
    for name, (make, _, _) in BAD.items():
        make(tmp_path / name)
    (tmp_path / "good.weights.h5").write_bytes(good())
    assert modelhub("scan", tmp_path, "--json").json["seconds"] < 30
    shown = {Path(item["path"]).name: item for item in modelhub("ls", "--json").json}
    assert shown["good.weights.h5"]["state"] == "ready"
    for name, (_, states, word) in BAD.items():
        assert shown[name]["state"] in states, (name, shown[name]["state"], shown[name]["reason"])
        assert word in shown[name]["reason"], (name, shown[name]["reason"])


@pytest.mark.parametrize("settings", [{}, {"libver": "latest"}], ids=["", "latest"])
def test_any_damage_ends_in_a_state(tmp_path: Path, modelhub: Modelhub, settings: dict[str, str]) -> None:
    """Hundreds of files, each damaged where headers stand. What makes the library crash or hang is that file's finding."""
    chance = random.Random(7)
    for number in range(150):
        data = bytearray(whole() if number % 3 else good(**settings))
        for _ in range(chance.choice((1, 2, 8, 32))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        (tmp_path / f"{number}.weights.h5").write_bytes(data)
    (tmp_path / "good.weights.h5").write_bytes(good())
    summary = modelhub("scan", tmp_path, "--json").json
    assert summary["found"] + summary["unknown"] == 151
    found = modelhub("ls", "--json").json
    assert next(item for item in found if item["path"] == "good.weights.h5")["state"] == "ready"
    assert {item["state"] for item in found} <= {"ready", "invalid", "incomplete", "unsupported"}
    assert not [item["reason"] for item in found if "bug" in (item["reason"] or "")]

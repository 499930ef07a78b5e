"""Models that XGBoost 3.2 and LightGBM 4.7 wrote (``files``: five trees over five features), and damaged ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

FILES = Path(__file__).with_name("files")


@pytest.mark.parametrize("name", ["x.json", "x.ubj"])
def test_xgboost(name: str, modelhub) -> None:
    shown = modelhub("show", FILES / name, "--json").json
    assert (shown["format"], shown["state"], shown["architecture"]) == ("xgboost", "ready", "xgboost")
    said = shown["metadata"]
    assert (said["objective"], said["trees"], said["features"], said["version"]) == ("binary:logistic", 5, 5, "3.2.0")


def test_lightgbm(modelhub) -> None:
    shown = modelhub("show", FILES / "l.txt", "--json").json
    assert (shown["format"], shown["state"]) == ("lightgbm", "ready")
    said = shown["metadata"]
    assert (said["objective"], said["trees"], said["features"]) == ("binary sigmoid:1", 5, 5)


def test_damaged_ones(tmp_path: Path, modelhub) -> None:
    for name in ("x.ubj", "x.json", "l.txt"):
        data = (FILES / name).read_bytes()
        for number, cut in enumerate((len(data) // 3, len(data) // 2)):
            (tmp_path / f"cut{number}-{name}").write_bytes(data[:cut])
    data, chance = (FILES / "x.ubj").read_bytes(), random.Random(1)
    for number in range(60):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 4))):
            broken[chance.randrange(20, len(data))] = chance.choice((0, 0x5B, 0x7B, 0x7F, 0x80, 0xFF))
        (tmp_path / f"bad{number}.ubj").write_bytes(broken)
    start = data[:19]
    (tmp_path / "deep.ubj").write_bytes(start + b"L" + bytes(7) + b"\x01a" + b"[" * 100_000)
    (tmp_path / "long.ubj").write_bytes(start + b"L" + bytes(7) + b"\x01a[$d#L" + b"\x7f" + b"\xff" * 7)
    (tmp_path / "wide.ubj").write_bytes(start + b"L" + bytes(7) + b"\x01a[$Z#L" + bytes(3) + b"\xff" * 5)
    modelhub("scan", tmp_path)
    listed = modelhub("ls", "--json").json
    assert len(listed) > 60
    for item in listed:
        assert not (item["reason"] or "").startswith("the plugin of"), item
        if "cut" in item["path"] or item["path"] in ("deep.ubj", "long.ubj", "wide.ubj"):
            assert item["state"] in ("invalid", "incomplete"), item


def test_other_documents_are_nobodys(tmp_path: Path, modelhub) -> None:
    (tmp_path / "a.json").write_text('{"learner": {"name": "Ann"}}')
    (tmp_path / "b.txt").write_text("tree\nof life\n")
    assert modelhub("scan", tmp_path, "--json").json["found"] == 0

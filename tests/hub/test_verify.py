"""``verify`` at its levels, through the installed command: real files, real damage."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Modelhub


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    weights = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 8)}
    place = tmp_path / "drive"
    place.mkdir()
    save_file(weights, place / "one.safetensors")
    torch.save(weights, place / "two.bin")
    return place


def findings(report: dict[str, Any], severity: str) -> list[str]:
    return [finding["message"] for finding in report["findings"] if finding["severity"] == severity]


def test_structure_and_safety_are_the_default_and_read_no_weights(drive: Path, modelhub: Modelhub) -> None:
    (report,) = modelhub("verify", drive / "one.safetensors", "--json").json
    assert report["ok"]
    assert report["bytes"] == 0
    assert set(report) >= {"model", "ok", "level", "findings", "seconds", "bytes"}


def test_a_short_file_is_no(drive: Path, modelhub: Modelhub) -> None:
    os.truncate(drive / "one.safetensors", 1000)
    os.utime(drive / "one.safetensors", (1, 1))
    (report,) = modelhub("verify", drive / "one.safetensors", "--json", status=1).json
    assert not report["ok"]
    assert any("bytes are missing" in text or "ends at" in text for text in findings(report, "error"))


def test_the_formats_own_library_has_a_say(drive: Path, modelhub: Modelhub) -> None:
    from modelhub import plugins

    assert "safetensors-library" in {check.name for check in plugins.get().checks}
    without = modelhub("verify", drive / "one.safetensors", "--json").json[0]
    assert not [finding for finding in without["findings"] if finding["check"] == "safetensors-library"]


def test_a_payload_is_named_and_never_run(drive: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"w": torch.ones(3), "x": Payload()}, drive / "evil.bin")
    (report,) = modelhub("verify", drive / "evil.bin", "--json", status=1).json
    assert any("system" in text for text in findings(report, "unsafe"))
    for words in (("scan", drive), ("show", drive / "evil.bin"), ("convert", drive / "evil.bin", "--to", "safetensors")):
        modelhub(*words, status=None)
    assert not (tmp_path / "owned").exists()


def test_a_plain_pickle_with_a_payload_is_unsafe_too(drive: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",)

    (drive / "plain.pt").write_bytes(pickle.dumps(Payload()))
    report = modelhub("verify", drive / "plain.pt", "--json", status=1).json[0]
    assert any("exec" in text for text in findings(report, "unsafe"))
    assert not (tmp_path / "owned").exists()


def test_digest_records_then_compares_then_finds_rot(drive: Path, modelhub: Modelhub) -> None:
    path = drive / "one.safetensors"
    modelhub("scan", drive)
    first = modelhub("verify", path, "--level", "digest", "--json").json[0]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert any(sha256 in text and "nothing to compare with" in text for text in findings(first, "info"))
    assert modelhub("show", path, "--json").json["digest"] == f"sha256:{sha256}"
    again = modelhub("verify", path, "--level", "digest", "--json").json[0]
    assert again["ok"]
    assert again["findings"] == []
    assert again["bytes"] == path.stat().st_size

    stamp = path.stat()
    with open(path, "r+b") as file:  # one bit, and the clock set back: what a failing disk does
        file.seek(-100, 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    rotten = modelhub("verify", path, "--level", "digest", "--json", status=1).json[0]
    assert any("rotted" in text and sha256 in text for text in findings(rotten, "error"))


def test_new_content_is_not_rot(drive: Path, modelhub: Modelhub) -> None:
    path = drive / "one.safetensors"
    modelhub("scan", drive)
    modelhub("verify", path, "--level", "digest")
    save_file({"a.weight": torch.zeros(64, 64) + 3}, path)
    modelhub("scan", drive)
    assert modelhub("verify", path, "--level", "digest", "--json").json[0]["ok"]


def test_against_a_list_of_sums(drive: Path, modelhub: Modelhub) -> None:
    sums = drive / "SHA256SUMS"
    with open(sums, "wb") as out:
        subprocess.run(["sha256sum", "one.safetensors", "two.bin"], cwd=drive, stdout=out, check=True)
    reports = modelhub("verify", drive / "one.safetensors", drive / "two.bin", "--against", sums, "--json").json
    assert [report["ok"] for report in reports] == [True, True]
    sums.write_text(sums.read_text().replace(sums.read_text()[:8], "00000000"))
    reports = modelhub("verify", drive / "one.safetensors", drive / "two.bin", "--against", sums, "--json", status=1).json
    assert [report["ok"] for report in reports] == [False, True]
    sums.write_text("this is no list\n")
    assert modelhub("verify", drive / "one.safetensors", "--against", sums, status=3).stderr.count("\n") == 1


def test_against_another_model(drive: Path, modelhub: Modelhub) -> None:
    assert modelhub("verify", drive / "one.safetensors", "--against", drive / "two.bin", "--json").json[0]["ok"]
    other = {"a.weight": torch.zeros(64, 64), "b.weight": torch.zeros(64, 8)}
    torch.save(other, drive / "two.bin")
    report = modelhub("verify", drive / "one.safetensors", "--against", drive / "two.bin", "--json", status=1).json[0]
    assert {finding.get("tensor") for finding in report["findings"] if finding["severity"] == "error"} == {"a.weight", "b.weight"}


def test_values_are_read_and_nan_is_named(tmp_path: Path, modelhub: Modelhub) -> None:
    wild = torch.randn(50, 50).bfloat16()
    wild[3, 4], wild[0, 0] = float("nan"), float("inf")
    save_file({"calm": torch.randn(10), "wild": wild, "mask": torch.zeros(3, dtype=torch.bool)}, tmp_path / "x.safetensors")
    report = modelhub("verify", tmp_path / "x.safetensors", "--level", "values", "--json").json[0]
    (finding,) = [finding for finding in report["findings"] if finding["severity"] == "warning"]
    assert finding["tensor"] == "wild"
    assert finding["message"] == "1 NaN and 1 infinite of 2500 values"
    assert report["bytes"] == 10 * 4 + 50 * 50 * 2


def test_a_flipped_byte_in_a_zip_is_found_where_its_crc_says(drive: Path, modelhub: Modelhub) -> None:
    path = drive / "two.bin"
    data = bytearray(path.read_bytes())
    at = data.index(torch.load(path)["a.weight"].numpy().tobytes()[:64])
    data[at + 1000] ^= 1
    path.write_bytes(data)
    assert modelhub("verify", path, "--json").json[0]["ok"]
    report = modelhub("verify", path, "--level", "values", "--json", status=1).json[0]
    assert any("CRC" in text.upper() for text in findings(report, "error"))


def test_all_levels_and_several_models_and_the_highest_status(drive: Path, modelhub: Modelhub) -> None:
    done = modelhub("verify", drive / "one.safetensors", drive / "missing.bin", "--level", "all", "--json", status=3)
    assert done.json
    assert modelhub("verify", drive / "one.safetensors", "--level", "wishful", status=2).stderr.startswith("modelhub: error")


def test_what_a_check_found_is_kept_until_the_next_one(tmp_path: Path, modelhub: Modelhub) -> None:
    wild = torch.tensor([1.0, float("nan")])
    save_file({"wild": wild}, tmp_path / "x.safetensors")
    modelhub("scan", tmp_path)
    modelhub("verify", "x", "--level", "values")
    for again in ("all", "values", "structure"):  # each level in place of what was found at it before, however that was asked for
        modelhub("verify", "x", "--level", again)
        assert [finding["message"] for finding in modelhub("show", "x", "--json").json["findings"]] == ["1 NaN of 2 values"]
    save_file({"wild": torch.ones(2)}, tmp_path / "x.safetensors")
    modelhub("scan", tmp_path)
    modelhub("verify", "x", "--level", "values")
    assert modelhub("show", "x", "--json").json["findings"] == []


def test_a_file_that_goes_before_it_is_checked_is_no_fault_of_the_check(drive: Path) -> None:
    from modelhub import plugins
    from modelhub.detect import inspect_path
    from modelhub.verify import run_check

    found = inspect_path(str(drive / "two.bin"), plugins.get().formats)
    (drive / "two.bin").unlink()
    (finding,) = run_check(found, "zip-crc")
    assert (finding.severity, finding.message) == ("error", "cannot be read: No such file or directory")
    assert finding.file == str(drive / "two.bin")

"""Conversions that are cut short: Ctrl-C, kill -9, a disk that fills. Nothing under the real name, nothing left after the next
run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Modelhub, command_path

SIZE = 60_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 MB in eight tensors: long enough to be caught at."""
    path = tmp_path_factory.mktemp("source") / "big.bin"
    torch.save({f"w{i}": torch.arange(SIZE // 8, dtype=torch.float32) + i for i in range(8)}, path)
    return path


def scratch(place: Path) -> list[str]:
    return [name for name in os.listdir(place) if name.startswith(".modelhub-")]


def cut_short(source: Path, target: Path, number: signal.Signals, to: str = "safetensors:f64") -> int:
    """Start a conversion, send it ``number`` once it writes, return what it ended with."""
    process = subprocess.Popen(
        [command_path(), "convert", str(source), "--to", to, "-o", str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size > 1 << 20 for path in target.parent.rglob("output/*")):
            break
        time.sleep(0.002)
    assert process.poll() is None, "it was done before it could be interrupted"
    process.send_signal(number)
    _, complaint = process.communicate(timeout=30)
    assert b"Traceback" not in complaint
    return process.returncode


def test_control_c_ends_with_130_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    before = source.stat()
    started = time.monotonic()
    assert cut_short(source, tmp_path / "out.safetensors", signal.SIGINT) == 130
    assert time.monotonic() - started < 20
    assert os.listdir(tmp_path) == []
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_what_a_kill_leaves_is_gone_after_the_next_run(source: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"the old one")
    for _ in range(3):
        process = subprocess.Popen(
            [command_path(), "convert", str(source), "--to", "safetensors:f64", "-o", str(target), "--force"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not any(path.stat().st_size > 1 << 20 for path in tmp_path.rglob("output/*")):
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert target.read_bytes() == b"the old one"
    assert len(scratch(tmp_path)) == 1  # each run swept its predecessor's
    assert modelhub("scan", tmp_path, "--json").json["found"] <= 1  # and the scanner never saw any
    modelhub("convert", source, "--to", "safetensors", "-o", target, "--force")
    assert os.listdir(tmp_path) == ["out.safetensors"]
    assert torch.equal(load_file(target)["w3"], torch.arange(SIZE // 8, dtype=torch.float32) + 3)


def test_a_disk_that_fills_is_said_in_one_line(source: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        pytest.skip("not allowed to mount: a full disk cannot be made here")
    try:
        done = modelhub("convert", source, "--to", "safetensors", "-o", disk / "out.safetensors", status=3)
        assert "bytes free" in done.stderr
        assert done.stderr.count("\n") == 1
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_at_once_and_one_name(source: Path, tmp_path: Path) -> None:
    command = [command_path(), "convert", str(source), "--to", "safetensors", "-o", str(tmp_path / "out.safetensors")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    ends = sorted(process.wait(timeout=60) for process in both)
    complaints = b"".join(process.stderr.read() for process in both if process.stderr)
    assert ends == [0, 3]
    assert b"there already" in complaints
    assert os.listdir(tmp_path) == ["out.safetensors"]
    assert load_file(tmp_path / "out.safetensors").keys() == {f"w{i}" for i in range(8)}

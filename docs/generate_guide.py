"""Re-runs the commands that stand in ``console`` blocks of the guide and the README, on the sample drive, and writes what they
print.

    python docs/generate_guide.py

``tests/test_guide.py`` does the same and compares, so that no block can go stale. Each document has a directory of its own to
run in, with the sample drive as ``models``, and a home of its own; what differs from run to run (ids, times, free space) is
made alike.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import random
import re
import select
import shutil
import signal
import sqlite3
import string
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = (PROJECT / "docs" / "guide.md", PROJECT / "README.md")
COLUMNS = 118
SECONDS = 120
"""What a command may take. The longest takes a few seconds."""
HERE = "/home/ada"
"""What the documents call the directory that their commands run in."""

ONCE = "compiling kernels for this processor"
"""What is said where kernels are compiled, which is done once a machine."""
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def render(document: str, drive: Path) -> str:
    """``document`` with the output of every command in its blocks as it is now."""
    sandbox = _make_sandbox()
    try:
        shutil.copytree(drive, sandbox / "models", copy_function=_link)
        ids: dict[str, str] = {}
        return BLOCK.sub(lambda match: f"```console\n{_run_block(match[1], sandbox, ids)}```", document)
    finally:
        shutil.rmtree(sandbox, ignore_errors=True)


def _make_sandbox() -> Path:
    """A directory whose path is as long as `HERE`, so that tables are laid out as if it were that."""
    while True:
        place = Path("/tmp", "".join(random.choices(string.ascii_lowercase, k=len(HERE) - len("/tmp/"))))
        try:
            place.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return place


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _run_block(block: str, sandbox: Path, ids: dict[str, str]) -> str:
    lines = []
    for line in block.splitlines():
        if line.startswith("$ "):
            lines.append(line)
            told = _tidy(_run(line[2:], sandbox), sandbox, ids).splitlines()
            lines += [text.rstrip() for text in told if ONCE not in text]
    return "".join(f"{line}\n" for line in lines)


def _run(command: str, sandbox: Path) -> str:
    """What a person sees who types ``command`` in a terminal of `COLUMNS` columns."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MODELHUB_", "COLUMNS"))}
    environ |= {
        "HOME": str(sandbox),
        "MODELHUB_HOME": str(sandbox / ".modelhub"),
        "NO_COLOR": "1",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=sandbox,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(terminal)
    errors: list[bytes] = []
    assert process.stderr
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else b""))
    listener.start()
    output = b""
    until = time.monotonic() + SECONDS
    while True:
        if not select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"`{command}` had not ended after {SECONDS} s; it had printed {output!r}")
        try:
            data = os.read(reader, 65536)
        except OSError:  # the terminal has no other side any more
            break
        if not data:
            break
        output += data
    os.close(reader)
    process.wait()
    listener.join()
    process.stderr.close()
    return (output.replace(b"\r\n", b"\n") + errors[0]).decode()


def _tidy(output: str, sandbox: Path, ids: dict[str, str]) -> str:
    """The same text for the same thing: the directory gets its name, each random id the next of a fixed row."""
    for identity in _ids(sandbox / ".modelhub" / "catalog.db"):
        ids.setdefault(identity, hashlib.sha256(str(len(ids)).encode()).hexdigest()[: len(identity)])
    for identity, fixed in ids.items():
        output = output.replace(identity, fixed).replace(identity[:8], fixed[:8])
    return output.replace(str(sandbox), HERE)


def _ids(catalog: Path) -> list[str]:
    """The ids in a catalog, in the order of their places. Not by ``ls``, which would double the time of it all."""
    if not catalog.exists():
        return []
    with closing(sqlite3.connect(catalog)) as connection:
        return [identity for (identity,) in connection.execute("SELECT id FROM checkpoint ORDER BY path")]


def normalise(document: str) -> str:
    """``document`` without what differs from machine to machine and from day to day."""
    for pattern, text in (
        (r"\b\d+(?:\.\d+)? s\b", "0 s"),
        (r"\b\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", "DATE"),
        (r"\d+(?:\.\d+)? [kMGT]?B(?:/s| free)", "0 B"),
        (r"^(?:ok|note|warning) +(?:extra|watching|root|catalog|modelhub): .*\n", ""),
        (r"\b(?:ext[234]|overlay|tmpfs|xfs|btrfs|zfs|f2fs)\b", "FS"),
        (r"modelhub \d+\.\d+\.\d+", "modelhub 0.0.0"),
        (r"[ \t]+", " "),
    ):
        document = re.sub(pattern, text, document, flags=re.MULTILINE)
    return document


def main() -> int:
    sys.path.insert(0, str(PROJECT / "examples"))
    from sample_drive import gather

    drive = gather(PROJECT / "sample" / "drive")
    for path in DOCUMENTS:
        before = path.read_text()
        after = render(before, drive)
        if normalise(after) != normalise(before):
            path.write_text(after)
            print(f"rewrote {path.relative_to(PROJECT)}")
        else:
            print(f"{path.relative_to(PROJECT)} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())

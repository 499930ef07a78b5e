"""Files that a slow library makes, made once for all tests and all processes that run them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT


def made_once(program: Path, name: str) -> Path:
    """The directory that ``program DIRECTORY`` fills. It is kept from one run to the next while the program stays as it is: read
    it, never write into it."""
    key = hashlib.sha256(program.read_bytes()).hexdigest()[:16]
    place = PROJECT / ".pytest_cache" / f"{name}-{key}"
    place.parent.mkdir(exist_ok=True)
    with open(place.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            fresh = place.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            done = subprocess.run([sys.executable, program, fresh], capture_output=True, text=True, timeout=280, check=False)
            assert not done.returncode, done.stderr[-3000:]
            os.replace(fresh, place)
    return place

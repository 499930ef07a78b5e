"""The command line: ``main`` is what the ``modelhub`` command runs. One file per command; none is imported before it is asked
for."""

from __future__ import annotations

import gc
import os
import sys


def main() -> int:
    """Run the command of ``sys.argv`` and return its exit status. Never lets a traceback out, unless ``--debug`` asks for it."""
    # Work is shared out among threads here; numpy's own would only wait for each other's processors, spinning.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    # What is imported, and what a scan sees, is no garbage: looking for some every 700 objects takes a twentieth of the time.
    gc.set_threshold(10_000, 20, 20)
    try:
        from modelhub.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # while this much was being imported
        return 130

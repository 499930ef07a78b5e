"""The command line: ``main`` is what the ``modelhub`` command runs. One file per command; none is imported before it is asked
for."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command of ``sys.argv`` and return its exit status. Never lets a traceback out, unless ``--debug`` asks for it."""
    try:
        from modelhub.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # while this much was being imported
        return 130

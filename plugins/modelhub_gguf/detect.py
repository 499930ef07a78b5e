"""Tells GGUF files: by their magic, whatever they are called, and broken ones by their name."""

from __future__ import annotations

import os
from typing import Literal

from modelhub import Detection, File, FileProblem, Rejected

from modelhub_gguf.header import MAGIC, check_start
from modelhub_gguf.splits import group_of_parts

SUFFIX = ".gguf"


def detect(file: File) -> Detection | Rejected | None:
    """A file with the magic, alone or with the other parts of a split. One that only has the name is a broken one."""
    if not file.head.startswith(MAGIC):
        return _only_named(file)
    try:
        check_start(file)
    except FileProblem as problem:
        return Rejected(str(problem), confidence=90, state=_state(problem))
    group = group_of_parts(file)
    if group is None:
        return Detection([file.path], confidence=95)
    directory = os.path.dirname(file.path)
    files = [os.path.join(directory, name) for name in group.present]
    return Detection(files, confidence=95, missing=group.missing, name=group.stem)


def _only_named(file: File) -> Rejected | None:
    if not file.name.lower().endswith(SUFFIX):
        return None
    if MAGIC.startswith(file.head[:4]):
        return Rejected(f"{file.name} is {file.size} bytes long, a GGUF header takes 24 at least", state="incomplete")
    if not any(file.head[:4]):
        return Rejected(f"{file.name} starts with zeros: nothing has been written there yet", state="incomplete")
    return Rejected(f"{file.name} starts with {file.head[:4]!r}, {MAGIC!r} was expected", confidence=30)


def _state(problem: FileProblem) -> Literal["invalid", "unsupported", "incomplete"]:
    return "incomplete" if problem.state == "incomplete" else "unsupported" if problem.state == "unsupported" else "invalid"

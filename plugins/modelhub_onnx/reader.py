"""Tells ONNX models, with the files that hold their external data, and reads their tables."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, Columns, Detection, File, FileProblem, InvalidFile, Metadata, Rejected, Tensor

from modelhub_onnx import describe
from modelhub_onnx.graph import looks_like_one, parse
from modelhub_onnx.known import model_in
from modelhub_onnx.model import Model

SUFFIX = ".onnx"
OTHER_SUFFIXES = (".pb",)
"""Early models were called model.pb; so are TensorFlow's, and test data."""
DATA_SUFFIXES = (".onnx.data", ".onnx_data")
ORT_SUFFIX = ".ort"

_seen: dict[tuple[str, int, int, int], Model] = {}
"""The model that `detect` parsed last, for the `read` that follows: which files belong to a model stands in its tensors."""


def detect(file: File) -> Detection | Rejected | None:
    """A file that holds a model; the answer names its external data, so the whole header is parsed."""
    name = file.name.lower()
    if name.endswith(DATA_SUFFIXES):
        return _of_data(file)
    if name.endswith(ORT_SUFFIX):
        if file.head[4:8] != b"ORTM":
            return None
        return Rejected("a model in ONNX Runtime's own format (.ort), which no other program reads", 90, state="unsupported")
    if name.endswith(OTHER_SUFFIXES):
        try:
            if not looks_like_one(file):
                return None
        except FileProblem:
            return None
    _seen.clear()
    try:
        model = model_in(file)
    except FileProblem as problem:
        return Rejected(str(problem), 30, state="incomplete" if problem.state == "incomplete" else "invalid")
    _seen[_key(file)] = model
    files = [file.path, *sorted(model.externals.files)]
    return Detection(files, confidence=95, missing=[*model.externals.missing])


def _of_data(file: File) -> Detection | Rejected | None:
    """A data file stands for the model that it is named after, where that names it."""
    stem = file.path[: -len(".data" if file.path.lower().endswith(".data") else "_data")]
    if os.path.basename(stem) not in file.siblings:
        return None
    with File(stem, siblings=file.siblings) as primary:
        answer = detect(primary)
    return answer if isinstance(answer, Detection) and file.path in answer.files else None


def _key(file: File) -> tuple[str, int, int, int]:
    info = os.stat(file.path)
    return file.path, info.st_ino, info.st_size, info.st_mtime_ns


def load(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint: the one that `detect` has just parsed, or parsed now."""
    file = checkpoint.primary
    model = _seen.pop(_key(file), None) if _seen else None
    return model or parse(file)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Columns | Metadata]:
    """Tensors in the order of the file, then what the model says of itself."""
    model = load(checkpoint)
    strange = sorted(set(model.externals.files) - set(checkpoint.files))
    if strange:
        raise InvalidFile(f"external data in {os.path.basename(strange[0])}, which was not there when the model was looked at")
    if model.uses:
        from modelhub_onnx import logical

        yield from logical.tensors(model, checkpoint)
    else:
        if model.names:
            yield model.columns
        yield from model.tensors
    if model.described is None:
        model.described = describe.metadata(model)
    yield model.described

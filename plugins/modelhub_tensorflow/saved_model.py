"""Tells SavedModels (a directory with ``saved_model.pb``, ``variables`` and ``assets``), and reads their tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from modelhub import (
    Checkpoint,
    Detection,
    File,
    FileProblem,
    Finding,
    InvalidFile,
    Listing,
    Metadata,
    Rejected,
    Tensor,
)

from modelhub_tensorflow import bundle, elements, graph, reader

MODEL, AS_TEXT = "saved_model.pb", "saved_model.pbtxt"
VARIABLES = "variables"
INDEX = "variables/variables.index"
BESIDE = ("keras_metadata.pb", "fingerprint.pb", "signatures_metadata.json", "tfhub_module.pb")
_FOLDERS = ("variables", "assets", "assets.extra")
MAX_FILES, MAX_DEPTH = 20_000, 6


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A directory with ``saved_model.pb``."""
    if MODEL in listing.files:
        return _detected(listing.path, listing.file(MODEL))
    if AS_TEXT in listing.files:
        return Rejected(f"a SavedModel as text ({AS_TEXT}), which TensorFlow loads and this does not", 60, state="unsupported")
    return None


def detect(file: File) -> Detection | Rejected | None:
    """``saved_model.pb`` itself, where somebody points at it."""
    return _detected(os.path.dirname(file.path), file) if file.name == MODEL else None


def _detected(directory: str, file: File) -> Detection | Rejected | None:
    if not file.head:
        return Rejected(f"{MODEL} is empty", 60)
    # schema version 1 as a number, then a graph; a graph by itself is often called so as well.
    if not file.head.startswith(b"\x08\x01\x12"):
        if graph.looks_like_one(file):
            return None
        return Rejected(f"{MODEL} begins with {file.head[:4].hex()}, a SavedModel with 080112", 60)
    inside = _inside(directory)
    files = [MODEL, *(name for name in BESIDE if name in file.siblings), *inside]
    missing: list[str] = []
    if INDEX in inside:
        try:
            with File(os.path.join(directory, INDEX)) as index:
                found = reader.header(index)
            shards = [f"{VARIABLES}/{found.shard_name(number)}" for number in range(found.shards)]
            missing = [name for name in shards if name not in inside]
        except FileProblem as problem:
            return Rejected(f"{VARIABLES}: {problem}", 90)
    elif any(bundle.shard_of(name.rpartition("/")[2]) for name in inside):
        missing = [INDEX]
    return Detection([os.path.join(directory, name) for name in files], 97, missing=missing, name=_name(directory))


def _name(directory: str) -> str:
    """What people call the model: where versions are directories that are numbered, as TensorFlow Serving has them, the one above
    comes first (``mnist/1``)."""
    above, name = os.path.split(directory)
    numbered = name.isascii() and name.isdigit() and os.path.basename(above)
    return f"{os.path.basename(above)}/{name}" if numbered else name


def _inside(directory: str) -> list[str]:
    """Files of the folders that belong to a SavedModel, by their paths in it; links to directories are not followed."""
    found: list[str] = []
    todo = [(name, 1) for name in _FOLDERS]
    while todo:
        name, depth = todo.pop()
        try:
            entries = sorted(os.scandir(os.path.join(directory, name)), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_DEPTH:
                    todo.append((path, depth + 1))
            elif entry.is_file() and len(found) < MAX_FILES:
                found.append(path)
    return sorted(found)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Variables by their names, or where there are none the constants of the graph; then what the model says of itself."""
    model = graph.of_saved_model(checkpoint.open(MODEL))
    values = graph.describe(model)
    tensors: list[Tensor] = []
    if INDEX in checkpoint:
        found = bundle.read(checkpoint.open(INDEX))
        tensors, more = reader.table(found, checkpoint, os.path.join(checkpoint.directory, VARIABLES))
        values |= more
        yield from tensors
    if any(tensor.dtype in elements.NUMBERS for tensor in tensors):  # an index may hold the graph of objects alone
        if model.constants:
            values["constants"] = len(model.constants)
    else:
        yield from model.constants
    assets = sum(name.startswith(os.path.join(checkpoint.directory, "assets") + os.sep) for name in checkpoint.files)
    if assets:
        values["assets"] = assets
    yield from model.findings
    yield Metadata(values=values)


# --- graphs in files of their own -----------------------------------------------------------------------------------


def detect_graph(file: File) -> Detection | Rejected | None:
    """A frozen graph (``.pb``), or one that is stored beside a checkpoint (``.meta``)."""
    if file.name.endswith(".pbtxt"):
        start = file.head.lstrip()
        if not start.startswith((b"node {", b"node{", b"meta_info_def", b"library {", b"versions {")):
            return None
        return Rejected("a TensorFlow graph as text, which TensorFlow loads and this does not", 50, state="unsupported")
    if file.name.endswith(reader.META):
        return Detection([file.path], 60) if graph.looks_like_meta(file) else None
    return Detection([file.path], 70) if graph.looks_like_one(file) else None


def load_graph(file: File) -> graph.Graph:
    return graph.of_meta(file) if file.name.endswith(reader.META) else graph.of_graph(file)


def read_graph(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Constants that may be weights, then what the graph says of itself."""
    found = load_graph(checkpoint.primary)
    if not found.operators:
        raise InvalidFile(f"{checkpoint.primary.name} has no nodes")
    yield from found.constants
    yield from found.findings
    values: dict[str, Any] = graph.describe(found)
    yield Metadata(values=values)

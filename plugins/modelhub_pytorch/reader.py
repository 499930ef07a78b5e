"""Reads PyTorch checkpoints of every layout into one table: zip, TorchScript, legacy; one file, or shards with an index.

`read_files` is for other plugins too, whose directories hold such files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from modelhub import Checkpoint, File, FileProblem, Finding, InvalidFile, Metadata, Tensor, UnsupportedFile, check_index

from modelhub_pytorch.allow import Report
from modelhub_pytorch.archive import Archive, Pickled
from modelhub_pytorch.awareness import settle
from modelhub_pytorch.flatten import class_of, is_optimizer, is_random_state, leaves, plain_values
from modelhub_pytorch.legacy import Legacy, is_legacy
from modelhub_pytorch.pickle_vm import Machine
from modelhub_pytorch.rebuild import World
from modelhub_pytorch.stubs import TensorRef
from modelhub_pytorch.values import Place, Values

Records = Iterator[Tensor | Metadata | Finding]
STORED = "__metadata__"
"""Under this key of a state dict's ``_metadata`` our writer keeps the free text of the source; torch ignores it."""
_MAX_PLAIN = 64 << 20


def read(checkpoint: Checkpoint) -> Records:
    """The tensors of a checkpoint, file by file; findings of its pickles first, also where reading then fails."""
    weights = [path for path in checkpoint.files if not path.endswith(".json")]
    yield from read_files(checkpoint, weights)


def read_files(checkpoint: Checkpoint, files: Iterable[str]) -> Records:
    """The tensors of some of a checkpoint's files (absolute paths, or relative to its directory), one `Metadata`, and findings.

    Several files are shards: a name may stand in one of them only; an index among the checkpoint's files is held against them."""
    paths = list(files)
    owners: dict[str, str] = {}
    values: dict[str, Any] = {}
    stored: dict[str, str] = {}
    precisions: dict[str, None] = {}
    for path in paths:
        file = checkpoint.open(path)
        for record in read_file(file):
            if isinstance(record, Metadata):
                values.update(record.values)
                stored.update(record.stored)
                precisions[record.precision] = None
                continue
            if isinstance(record, Tensor) and len(paths) > 1 and record.view != "logical":
                other = owners.setdefault(record.name, file.name)
                if other != file.name:
                    raise InvalidFile(f"tensor {record.name[:200]!r} stands in two shards: {other} and {file.name}")
            yield record
    yield Metadata(values=values, stored=stored, precision=next(iter(precisions)) if len(precisions) == 1 else "")
    if len(paths) > 1:
        for index in checkpoint.files:
            if index.endswith(".bin.index.json"):
                present = {os.path.basename(path) for path in paths}
                yield from check_index(checkpoint.open(index), owners, present, "pytorch-index")


def read_file(file: File) -> Records:
    """One file: findings, then tensors, then `Metadata`. Raises after the findings where it cannot be read."""
    report = Report(file.name)
    try:
        pickled, place = _load(file, report)
    except FileProblem:
        yield from report.findings()
        raise
    yield from report.findings()
    yield from _records(file, pickled, place)


def _load(file: File, report: Report) -> tuple[Pickled, Place]:
    if file.head.startswith(b"PK\x03\x04"):
        archive = Archive(file)
        return archive.load(report), archive.place
    if is_legacy(file.head):
        legacy = Legacy(file)
        return legacy.load(report), legacy.place
    world = World(file.name, report)
    if file.size > _MAX_PLAIN:
        raise UnsupportedFile(f"{file.name} is a pickle, but no PyTorch checkpoint, and too long to look for what it names")
    machine = Machine(file.read(0, file.size), file.name, world.resolve, world.persistent, report)
    _, end = machine.load()
    if end != file.size:
        report.note(f"{file.size - end} bytes follow the end of the pickle")
    raise UnsupportedFile(f"{file.name} is a pickle, but no PyTorch checkpoint: it has no tables of tensors to read")


def scan(file: File, report: Report) -> None:
    """Follow every pickle of ``file`` for what it names; a broken one as far as it goes."""
    try:
        _load(file, report)
    except FileProblem as problem:
        if not isinstance(problem, UnsupportedFile):
            report.note(f"cannot be followed to its end: {problem.message}")


def _records(file: File, pickled: Pickled, place: Place) -> Records:
    values = Values(file.name, place, pickled.big)
    tensors: list[Tensor] = []
    for name, ref, view in leaves(pickled.root):
        tensors.extend(values.tensors(name, ref, view))
    if pickled.constants is not None:
        constants = pickled.constants if type(pickled.constants) in (list, tuple) else ()
        for number, constant in enumerate(constants):
            if type(constant) is TensorRef:
                tensors.extend(values.tensors(f"constants.{number}", constant, "both"))
    found = settle(tensors, lambda place: file.read(place.offset, place.nbytes))
    yield from found.tensors
    yield from found.findings
    # Storages that no tensor rests on count too: one that is not there, or of another length, makes the file invalid.
    for storage in pickled.world.storages.values():
        values.check(storage)
    yield Metadata(values={**_describe(pickled), **found.shown}, stored=_stored(pickled), precision=found.precision)


def _describe(pickled: Pickled) -> dict[str, Any]:
    values = plain_values(pickled.root)
    if pickled.constants is not None:
        values["kind"] = "torchscript"
    elif type(pickled.root) is dict and is_optimizer(pickled.root):
        values["kind"] = "optimizer"
    elif type(pickled.root) is dict and is_random_state(pickled.root):
        values["kind"] = "random state"
    elif class_of(pickled.root):
        values["kind"] = "module"
    if class_of(pickled.root):
        values["class"] = class_of(pickled.root)
    if pickled.big:
        values["byteorder"] = "big"
    return values


def _stored(pickled: Pickled) -> dict[str, str]:
    """The free text that our writer put beside the state dict."""
    for target, state in pickled.attributes:
        if target is pickled.root and type(state) is dict and type(state.get("_metadata")) is dict:
            texts = state["_metadata"].get(STORED)
            if type(texts) is dict:
                return {key: text for key, text in texts.items() if type(key) is str and type(text) is str}
    return {}

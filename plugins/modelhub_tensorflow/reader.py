"""Tells checkpoints of the second version (``NAME.index`` with its data files), and reads their tables."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from modelhub import (
    Checkpoint,
    Detection,
    Extent,
    File,
    FileProblem,
    Finding,
    InvalidFile,
    Metadata,
    Rejected,
    Tensor,
    dtypes,
    ops,
)

from modelhub_tensorflow import bundle, elements, graph, objects, sorted_table
from modelhub_tensorflow.bundle import INDEX, Bundle, Stored

META, STATE = ".meta", "checkpoint"
DATA_SUFFIXES = tuple(f"-of-{count:05d}" for count in range(1, 65))
"""Ends of data files' names; those of more are known by their index alone."""
MAX_STATE = 1 << 20


def detect(file: File) -> Detection | Rejected | None:
    """The bundle of an index, a data file or a ``.meta`` beside them."""
    if file.name.endswith(INDEX):
        return _of_index(file)
    part = bundle.shard_of(file.name)
    stem = part[0] if part else file.name.removesuffix(META) if file.name.endswith(META) else ""
    if not stem:
        return None
    if stem + INDEX not in file.siblings:
        if part is None:
            return None
        files = [name for name in file.siblings if (other := bundle.shard_of(name)) and (other[0], other[2]) == (stem, part[2])]
        return Detection(files, 30, missing=[stem + INDEX], name=stem)
    with File(os.path.join(os.path.dirname(file.path), stem + INDEX), siblings=file.siblings) as index:
        answer = _of_index(index)
    return answer if isinstance(answer, Detection) and file.name in answer.files else None


def _of_index(file: File) -> Detection | Rejected | None:
    stem = file.name.removesuffix(INDEX)
    if not sorted_table.is_table(file):
        # Other programs call files so as well: it is a broken one of ours only where data stands beside it.
        mine = any((other := bundle.shard_of(name)) and other[0] == stem for name in file.siblings)
        if not mine:
            return None
        return Rejected(f"does not end in {sorted_table.MAGIC.hex()}, as an index of TensorFlow's does: it was cut", 60)
    try:
        found = header(file)
    except FileProblem as problem:
        return Rejected(str(problem), 90)
    names = [found.shard_name(number) for number in range(found.shards)]
    files = [file.name, *(name for name in names if name in file.siblings)]
    if stem + META in file.siblings:
        files.append(stem + META)
    if STATE in file.siblings and is_latest(file, stem):
        files.append(STATE)
    return Detection(files, 95, missing=bundle.missing(found, file.siblings), name=stem)


def header(file: File) -> Bundle:
    """The bundle's header alone: its first entry."""
    found = Bundle(file.name.removesuffix(INDEX))
    for _, place in sorted_table.blocks(file):
        first = next(iter(sorted_table.block(file, place)), None)
        if first is None or first.key:
            break
        bundle.parse_header(first.value, file.name, found)
        return found
    raise InvalidFile(f"{file.name} has no header: an index begins with one, under the empty key")


def is_latest(file: File, stem: str) -> bool:
    """Whether the text file ``checkpoint`` names this one as the latest: it belongs to that."""
    path = os.path.join(os.path.dirname(file.path), STATE)
    size = file.siblings[STATE]
    if size > MAX_STATE:
        return False
    try:
        with File(path, size) as state:
            text = state.read(0, size).decode("utf-8", "replace")
    except (FileProblem, OSError):
        return False
    first = next((line for line in text.splitlines() if line.startswith("model_checkpoint_path:")), "")
    return first.partition(":")[2].strip().strip('"').rpartition("/")[2] == stem


# --- tables ---------------------------------------------------------------------------------------------------------


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Tensors in the order of their keys, then what the checkpoint says of itself."""
    if not checkpoint.primary.name.endswith(INDEX):
        return  # data files alone: what they hold stands in the index
    found = bundle.read(checkpoint.primary)
    tensors, values = table(found, checkpoint, checkpoint.directory)
    yield from tensors
    meta = found.stem + META
    if meta in checkpoint:
        beside = graph.of_meta(checkpoint.open(meta))
        yield from beside.findings
        values |= graph.describe(beside)
    yield Metadata(values=values)


def table(found: Bundle, checkpoint: Checkpoint, directory: str) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors of a bundle whose data files stand in ``directory``, and what is to be said of it."""
    who = found.stem + INDEX
    said, names, copies = names_of(found, graph_of(found, directory, checkpoint.files))
    tensors = []
    state = 0
    for key, name in names.items():  # the graph itself is the names that were taken from it
        entry = found.entries[key]
        record = _tensor(name, key, entry, found, directory, checkpoint, who)
        if key in copies or (not found.ours and objects.is_state(key, name, found.entries, said)):
            record = record._replace(view="stored")
            state += key not in copies
        tensors.append(record)
    values: dict[str, Any] = {"checkpoint": "TensorFlow 2 objects" if bundle.GRAPH in found.entries else "variables by name"}
    if state:
        values["optimizer_tensors"] = state
    if found.slices:
        values["partitioned"] = sum(1 for entry in found.entries.values() if entry.slices)
    if found.big_endian:
        values["byte_order"] = "big"
    return tensors, values


def graph_of(found: Bundle, directory: str, files: Collection[str]) -> bytes:
    """The graph of objects as it is stored; b"" where there is none, or its data file is not among ``files``."""
    entry = found.entries.get(bundle.GRAPH)
    if entry is None or entry.number != elements.STRING or entry.shape.sides or entry.slices:
        return b""
    path = os.path.join(directory, found.shard_name(entry.shard))
    if path not in files:
        return b""
    if entry.size > objects.MAX_GRAPH:
        raise InvalidFile(f"{found.stem}{INDEX}: a graph of objects of {entry.size} bytes, at most {objects.MAX_GRAPH} are read")
    with File(path) as file:
        return objects.strings(file.read(entry.offset, entry.size), 1, file.name)[0]


def names_of(found: Bundle, graph: bytes) -> tuple[objects.Names, dict[str, str], set[str]]:
    """What the graph of objects says, the name of every key, and the keys that are copies of others."""
    said = objects.names(graph, f"{found.stem}{INDEX}: the graph of objects")
    keys = [key for key in found.entries if key != bundle.GRAPH]
    return said, *objects.readable(keys, said, {key: entry.same for key, entry in found.entries.items()})


def _tensor(name: str, key: str, entry: Stored, found: Bundle, directory: str, present: Checkpoint, who: str) -> Tensor:
    shape, dtype = entry.shape.sides, elements.stored_dtype(entry.number)
    if dtype is None:
        return Tensor(
            name, elements.label(entry.number).upper(), shape, None, unsupported=f"{elements.label(entry.number)} tensor"
        )
    gone = _gone(key, entry, found, directory, present)
    if gone:
        return Tensor(name, dtype, shape, None, unsupported=f"tensor in {gone}, which is not there")
    if not entry.slices:
        return Tensor(name, dtype, shape, _value(entry, dtype, shape, found, directory, f"{who}: {key[:200]!r}"))
    parts, boxes = [], []
    for piece in entry.slices:
        stored = found.slices.get(bundle.slice_key(key, piece))
        where = f"{who}: {key[:200]!r}"
        if stored is None:
            raise InvalidFile(f"{where} is said to have a slice {[list(side) for side in piece.sides]}, which has no entry")
        side = bundle.box(piece, shape, where)
        sizes = tuple(length for _, length in side)
        if stored.number != entry.number or stored.shape.sides != sizes:
            raise InvalidFile(f"{where}: a slice of {list(sizes)} is stored as {list(stored.shape.sides)}")
        parts.append(_value(stored, dtype, sizes, found, directory, where))
        boxes.append(side)
    try:
        return Tensor(name, dtype, shape, ops.place(parts, boxes, dtype, shape))
    except ValueError as error:
        raise InvalidFile(f"{who}: the slices of {key[:200]!r} do not make it: {error}") from error


def _gone(key: str, entry: Stored, found: Bundle, directory: str, present: Checkpoint) -> str:
    """The name of a data file that a tensor takes and that is not there, or ""."""
    parts = [found.slices.get(bundle.slice_key(key, piece)) for piece in entry.slices] if entry.slices else [entry]
    names = (found.shard_name(part.shard) for part in parts if part is not None)
    return next((name for name in names if os.path.join(directory, name) not in present), "")


def _value(entry: Stored, dtype: str, shape: tuple[int, ...], found: Bundle, directory: str, who: str) -> Any:
    expected = dtypes.get(dtype).nbytes(shape)
    if entry.size != expected:
        raise InvalidFile(f"{who}: {dtype} {list(shape)} takes {expected} bytes, {entry.size} are stored")
    extent = Extent(os.path.join(directory, found.shard_name(entry.shard)), entry.offset, entry.size)
    if entry.number in elements.NARROW and entry.size:
        return elements.narrow(extent, entry.number, shape)
    return ops.byteswap(extent, dtype, shape) if found.big_endian and dtypes.get(dtype).block_bytes > 1 else extent

"""Validators of TensorFlow's files: checksums of tensors, operators that reach out of the model."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, FileProblem, Finding, Table, crc32c

from modelhub_tensorflow import bundle, elements, graph, saved_model, sorted_table
from modelhub_tensorflow.bundle import INDEX, Bundle, Stored
from modelhub_tensorflow.reader import META

CHECKSUMS, CUSTOM = "tensorflow-crc", "tensorflow-custom"
_STEP = 4 << 20
_SHOWN = 20


def checksums(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """The CRC-32C that the index has of every tensor, held against its bytes."""
    path = next((path for path in checkpoint.files if path.endswith(INDEX)), None)
    if path is None:
        if sorted_table.is_table(checkpoint.primary):
            yield from _blocks(checkpoint)
        return
    found = bundle.read(checkpoint.open(path))
    bad = 0
    for name, entry in found.data():
        file = os.path.join(os.path.dirname(path), found.shard_name(entry.shard))
        if file not in checkpoint:
            continue
        try:
            crc = _crc(checkpoint, file, entry, found)
        except FileProblem as problem:
            yield Finding(CHECKSUMS, "error", str(problem), tensor=name, file=os.path.basename(file))
            continue
        if crc != entry.crc:
            bad += 1
            if bad <= _SHOWN:
                message = f"its CRC-32C is {crc:08x}, the index says {entry.crc:08x}: the data is damaged, or not this index's"
                yield Finding(CHECKSUMS, "error", message, tensor=name, file=os.path.basename(file))
    if bad > _SHOWN:
        yield Finding(CHECKSUMS, "error", f"and {bad - _SHOWN} more tensors whose CRC-32C is another")


def _blocks(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Of a checkpoint of the first version, whose tensors stand in its blocks."""
    file = checkpoint.primary
    for key, place in sorted_table.blocks(file):
        end, crc = place.offset + place.nbytes + 1, 0  # the block's kind counts
        for offset in range(place.offset, end, _STEP):
            crc = crc32c(file.read(offset, min(_STEP, end - offset)), crc)
        stored = int.from_bytes(file.read(end, 4), "little")
        if sorted_table.mask(crc) != stored:
            message = f"the CRC-32C of the block at offset {place.offset} is {sorted_table.mask(crc):08x}, {stored:08x} is stored"
            yield Finding(CHECKSUMS, "error", f"{message}; it ends at key {key[:80]!r}", file=file.name)


def _crc(checkpoint: Checkpoint, path: str, entry: Stored, found: Bundle) -> int:
    """The masked CRC-32C of an entry's bytes. Of strings, that of their lengths as numbers of four (eight) bytes, of the checksum
    that follows them, and of the texts."""
    file, value, start, end = checkpoint.open(path), 0, entry.offset, entry.offset + entry.size
    if entry.number == elements.STRING:
        count = 1
        for side in entry.shape.sides:
            count *= side
        data, at, lengths = file.read(start, entry.size), 0, bytearray()
        for _ in range(count):
            length, at = sorted_table.varint(data, at, len(data), file.name)
            lengths += length.to_bytes(4 if length < 1 << 32 else 8, "little")
        return sorted_table.mask(crc32c(data[at:], crc32c(bytes(lengths))))
    for offset in range(start, end, _STEP):
        value = crc32c(file.read(offset, min(_STEP, end - offset)), value)
    return sorted_table.mask(value)


def custom(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Operators that do not come with TensorFlow. (Those that reach out of the model were reported when it was read.)"""
    for file in checkpoint:
        if file.name == saved_model.MODEL:
            found = graph.of_saved_model(file)
        elif file.name.endswith((META, ".pb")) and file.name not in saved_model.BESIDE:
            found = saved_model.load_graph(file)
        else:
            continue
        names = [f"{name} ({count})" for name, count in sorted(found.custom.items())]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            message = "custom operators, whose native code is not in the file and is needed to run it"
            yield Finding(CUSTOM, "warning", f"{message}: {', '.join(names[:_SHOWN])[:1000]}{more}", file=file.name)

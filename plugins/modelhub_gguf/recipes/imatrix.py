"""Importance matrices, as ``llama-imatrix`` writes them: where each tensor's weights stand, and the op that yields them.

Two layouts (llama.cpp ``common/imatrix-loader.cpp``, ``tools/imatrix/imatrix.cpp``), told by their first bytes: a GGUF of
``general.type`` imatrix with two F32 tensors for each of the model's (``NAME.in_sum2``: sums of squared activations by matrix and
column; ``NAME.counts``: how many, by matrix), and an older ``.dat``. What encoders are given is sum / count (``load_imatrix``,
``tools/quantize/quantize.cpp``), and 1 where a matrix was never used. Only headers are read here; the op reads its sums when a
tensor is encoded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from modelhub import Extent, File, IncompleteFile, Inline, InvalidFile, Node, Op, Tensor, ops

from modelhub_gguf.fields import Field, string, u32
from modelhub_gguf.header import MAGIC, load, parse
from modelhub_gguf.recipes.model import EMBEDDINGS

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"

Value: TypeAlias = Extent | Inline | Node

_MAX_ENTRIES = 1 << 18
_MAX_TEXT = 1 << 16
_MAX_NOTE = 127
"""Bytes of a text that ``llama-quantize`` notes (``llama_model_kv_override``, ``include/llama.h``): longer ones are cut."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's sums (``values`` F32 items, matrix by matrix) and counts (``matrices`` F32 items)."""

    sums: Value
    values: int
    counts: Value
    matrices: int


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """``entries`` by the tensor's name; ``datasets``: what it was measured on; ``chunks``: on how much of it (0: not said)."""

    file: str
    entries: Mapping[str, Entry]
    datasets: Sequence[str | bytes] = ()
    chunks: int = 0

    def weights(self, tensor: Tensor) -> Value | None:
        """The weights of a tensor's columns, of shape (columns,) or (matrices, columns); None where nothing is known of them.
        ValueError where they are of another model: as many weights as the tensor has columns in all its matrices are expected."""
        entry = self.entries.get(tensor.name)
        if entry is None:
            return None
        columns = tensor.shape[-1]
        matrices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
        if entry.values != matrices * columns:
            if tensor.name in EMBEDDINGS:  # rows of these are looked up, not multiplied: nothing was measured of their columns
                return None
            raise ValueError(
                f"{self.file} has {entry.values} weights for {tensor.name}, which has {matrices * columns}"
                f" ({matrices} x {columns}): it was measured on another model"
            )
        return ops.node(
            "gguf.importance", entry.sums, entry.counts, matrices=matrices, columns=columns, file=self.file, tensor=tensor.name
        )

    def native(self) -> dict[str, Field]:
        """What ``llama-quantize`` notes of it in a file's header."""
        found = {"quantize.imatrix.file": string(_cut(self.file))}
        if self.datasets:
            found["quantize.imatrix.dataset"] = string(_cut(self.datasets[0]))
        found["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks > 0:
            found["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return found


def read_imatrix(path: str) -> ImportanceMatrix:
    """The importance matrix in a file. `InvalidFile` or `IncompleteFile` where it is none."""
    with File(path) as file:
        return _read_gguf(file) if file.head.startswith(MAGIC) else _read_dat(file)


def _cut(text: str | bytes) -> str | bytes:
    data = (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))[:_MAX_NOTE]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# --- the layouts --------------------------------------------------------------------------------------------------


def _read_gguf(file: File) -> ImportanceMatrix:
    header = parse(file)
    kind = header.fields.get("general.type")
    if kind is None or kind.value != "imatrix":
        raise InvalidFile(
            f"{file.path} is a GGUF, but no importance matrix: general.type says {getattr(kind, 'value', None)!r:.40}"
        )
    missing = [key for key in (DATASETS, CHUNKS, CHUNK_SIZE) if key not in header.fields]
    if missing:
        raise InvalidFile(f"{file.path}: {', '.join(missing)} missing: llama-imatrix writes it")
    parts: dict[str, dict[str, Tensor]] = {}
    for tensor in header.columns.tensors():
        for suffix in (SUMS, COUNTS):
            if tensor.name.endswith(suffix):
                parts.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
    entries: dict[str, Entry] = {}
    for name, pair in parts.items():
        sums, counts = pair.get(SUMS), pair.get(COUNTS)
        if sums is None or counts is None:
            raise InvalidFile(
                f"{file.path}: {name}{COUNTS if sums else SUMS} is missing, {name}{SUMS if sums else COUNTS} is there"
            )
        entries[name] = Entry(*_floats(file, sums, header.byteorder), *_floats(file, counts, header.byteorder))
    if not entries:
        raise InvalidFile(f"{file.path} holds no importance weights: tensors called NAME{SUMS} were expected")
    chunks = header.fields[CHUNKS].value
    datasets = load(header, DATASETS)
    return ImportanceMatrix(
        file.path,
        entries,
        [text for text in datasets if isinstance(text, str | bytes)] if isinstance(datasets, list) else (),
        chunks if isinstance(chunks, int) else 0,
    )


def _floats(file: File, tensor: Tensor, byteorder: str) -> tuple[Value, int]:
    """A tensor's bytes and how many F32 items they are."""
    value = tensor.value
    if tensor.dtype != "F32" or not isinstance(value, Extent):
        raise InvalidFile(f"{file.path}: {tensor.name} is {tensor.dtype}, the format has it as F32")
    items = value.nbytes // 4
    return (value if byteorder == "little" else ops.byteswap(value, "F32", (items,))), items


def _read_dat(file: File) -> ImportanceMatrix:
    """Little-endian i32: entries; of each its name's length, the name, how many calls it was measured over, its values, and so
    many F32; then perhaps how many chunks, and the name of what it was measured on."""

    def number(at: int, what: str, most: int) -> int:
        (found,) = struct.unpack("<i", file.read(at, 4))
        if not 0 < found <= most:
            raise InvalidFile(
                f"{file.path}: {what} at offset {at} is {found}, 1 to {most} was expected: is it an importance matrix?"
            )
        return int(found)

    at, entries = 4, dict[str, Entry]()
    for index in range(number(0, "the number of entries", _MAX_ENTRIES)):
        length = number(at, f"the name's length of entry {index}", _MAX_TEXT)
        name = file.read(at + 4, length).split(b"\0")[0].decode("utf-8", "surrogateescape")
        at += 4 + length
        (calls,) = struct.unpack("<i", file.read(at, 4))
        values = number(at + 4, f"the number of values of {name[:200]!r}", 1 << 28)
        at += 8
        if at + 4 * values > file.size:
            raise IncompleteFile(f"{file.path}: {values} values of {name[:200]!r} at offset {at}, the file ends at {file.size}")
        entries[name] = Entry(Extent(file.path, at, 4 * values), values, Inline(struct.pack("<f", max(calls, 1))), 1)
        at += 4 * values
    chunks, datasets = 0, list[bytes]()
    if at + 4 <= file.size:
        (chunks,) = struct.unpack("<i", file.read(at, 4))
        if at + 8 <= file.size:
            length = min(int.from_bytes(file.read(at + 4, 4), "little", signed=True), file.size - at - 8, _MAX_TEXT)
            datasets = [file.read(at + 8, length).split(b"\0")[0]] if length > 0 else []
    return ImportanceMatrix(file.path, entries, datasets, chunks)


# --- the op -------------------------------------------------------------------------------------------------------

_Specs: TypeAlias = Sequence[tuple[str, tuple[int, ...]]]
_Args: TypeAlias = Mapping[str, Any]


def _infer(inputs: _Specs, args: _Args) -> tuple[str, tuple[int, ...]]:
    columns, matrices = int(args["columns"]), int(args["matrices"])
    if len(inputs) != 2 or columns < 1 or matrices < 1:
        raise ValueError("gguf.importance takes sums and counts, for one column of one matrix at least")
    sums, counts = (_items(spec) for spec in inputs)
    if sums != matrices * columns:
        raise ValueError(f"{args['file']}: {sums} sums for {args['tensor']}, {matrices} x {columns} were expected")
    if not counts or sums % counts:
        raise ValueError(f"{args['file']}: {counts} counts for the {sums} sums of {args['tensor']}: they do not divide")
    return "F32", (columns,) if matrices == 1 else (matrices, columns)


def _items(spec: tuple[str, tuple[int, ...]]) -> int:
    """How many floats an input holds: bare bytes, or F32."""
    dtype, shape = spec
    items = prod(shape)
    if dtype == "U8" and items % 4 == 0:
        return items // 4
    if dtype != "F32":
        raise ValueError(f"gguf.importance takes F32, not {dtype} {list(shape)}")
    return items


def _rows(sources: Sequence[Any], args: _Args, start: int, stop: int) -> Any:
    import numpy as np

    sums, counts = (np.ascontiguousarray(source.read(0, source.shape[0])).reshape(-1).view("<f4") for source in sources)
    columns, matrices = int(args["columns"]), int(args["matrices"])
    where = f"{args['file']}: the weights of {args['tensor']}"
    if not np.isfinite(sums).all() or not np.isfinite(counts).all():
        raise ValueError(f"{where} are not all finite: it cannot be used; measure it anew")
    if (sums < 0).any():
        raise ValueError(f"{where} are not all positive, as sums of squares are: it cannot be used; measure it anew")
    # Counts are whole numbers that the file holds as floats; llama.cpp rounds them, half away from zero.
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32).reshape(-1, 1)
    used = whole > 0
    weights = np.where(used, sums.reshape(len(counts), -1) / np.where(used, whole, np.float32(1)), np.float32(1))
    found = weights.astype(np.float32).reshape((columns,) if matrices == 1 else (matrices, columns))
    return found[start:stop]


def _memory(inputs: _Specs, args: _Args, rows: int) -> int:
    """The inputs are read whole, and stand there in a few copies; they are as large as a few rows of the tensor."""
    return 32 * sum(_items(spec) for spec in inputs)


IMPORTANCE = Op(name="gguf.importance", rows=_rows, infer=_infer, memory=_memory)
"""(sums, counts) -> sums / counts of each matrix, 1 where its count is 0; F32, (columns,) or (matrices, columns)."""

"""The frozen records that plugins and the core exchange. Nothing here does any work.

A checkpoint is a table of tensors; a tensor's value says where its bytes lie (`Extent`), or how they follow from bytes
that lie somewhere (`Node`). What plugins declare that they can do is in `modelhub.declared`. Records grow only by fields with
defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

Args: TypeAlias = "Mapping[str, Any]"
"""Arguments of an op: JSON-serialisable (str, int, float, bool, None, lists and string-keyed maps of them)."""


# --- values -------------------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    """``nbytes`` bytes at ``offset`` of ``file`` (an absolute path, undecodable bytes surrogate-escaped)."""

    file: str
    offset: int
    nbytes: int


class Inline(NamedTuple):
    """A few bytes that stand in no file: a computed constant, a value that was encoded inside a header."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Node:
    """An op applied to inputs; it yields ``dtype`` elements of ``shape``. Build one with the functions of `modelhub.ops`."""

    op: str
    inputs: tuple[Value, ...]
    args: Args
    dtype: str
    shape: tuple[int, ...]


Value: TypeAlias = "Extent | Inline | Node"


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    ``dtype`` names an entry of `modelhub.dtypes`; ``shape`` counts elements, outermost dimension first; the bytes of
    ``value`` are little-endian, C order. ``view`` tells the tables it belongs to: ``both``, ``stored`` only (packed
    words, optimiser state: checked, never converted) or ``logical`` only (a tie noted in the metadata, a dequantized
    whole). ``unsupported`` says why its value cannot be had ("sparse COO tensor"); ``value`` is None then.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: Value | None
    view: str = "both"
    unsupported: str = ""


class Columns(NamedTuple):
    """Many tensors of one file that are plain extents, column by column: what a reader may yield in their place where a drive
    holds tens of thousands of its files. All columns are equally long; ``shapes`` holds lists or tuples; ``offsets`` count from
    the file's start.

    The core measures every shape against its bytes, so a reader need not; ``explain`` is called where something is wrong, to
    raise it in the words of the format."""

    file: str
    names: Sequence[str]
    dtypes: Sequence[str]
    shapes: Sequence[Sequence[int]]
    offsets: Sequence[int]
    nbytes: Sequence[int]
    explain: Callable[[], None] | None = None

    def tensors(self) -> list[Tensor]:
        """The same as records. Where a side is no whole number from 0 up, ``explain`` is called first: whoever computes with
        shapes before the core has seen them is spared that."""
        sides = [*chain.from_iterable(self.shapes)]
        if self.explain and sides and not ({*map(type, sides)} == {int} and min(sides) >= 0):
            self.explain()
        return [
            Tensor(name, dtype, tuple(shape), Extent(self.file, offset, nbytes))
            for name, dtype, shape, offset, nbytes in zip(*self[1:6], strict=True)
        ]


# --- what a reader says of a checkpoint besides its tensors --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a checkpoint says of itself.

    ``values`` is what ``show`` prints and the catalog searches: plain JSON values; names the field uses where there is one
    (architecture, context_length, embedding_length, vocab_size, quantization, license, base_model, ...).
    ``stored`` is the free text-to-text map that the container keeps and a conversion carries over.
    ``container`` says what holds the tensors where the format is a layout around another (a directory of shards).
    ``precision`` overrides the label that the core derives from the dtypes ("GPTQ-INT4").
    ``native`` is what a container's own header holds beyond ``stored``, in the records of the plugin that writes it: a
    `Conversion` or a `Recipe` puts it there for the writer. The core merges such maps, and neither reads nor keeps them.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    precision: str = ""
    native: Mapping[str, Any] = field(default_factory=dict)


Severity: TypeAlias = Literal["info", "warning", "error", "unsafe"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a check has to say. ``error`` and ``unsafe`` fail a verification; the others do not."""

    check: str
    severity: Severity
    message: str
    tensor: str = ""
    file: str = ""


# --- detection ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Detection:
    """This file (or directory) is mine.

    ``files``: every file of the checkpoint that is there, the primary one (whose place names the checkpoint) first.
    ``missing``: names of parts that an index or a shard's name promises and that are not there: the checkpoint is incomplete.
    ``confidence``: 0-100. By convention 90 and up for a magic number or a full look at the content, 50 for a plausible
    content, 20 for a name alone; among equals the claim on more files wins.
    ``name``: what people would call it; by default the primary file's (or directory's) stem.
    """

    files: Sequence[str]
    confidence: int = 50
    missing: Sequence[str] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Mine, but broken or refused: indexed in ``state`` (invalid or unsupported) with this reason, never as unknown.

    ``files``: all that belongs to it, the primary one first, where that is more than the one file that was asked about, or where
    it is a directory whose files are known; without them, a directory gets what in it is unknown to all.
    """

    reason: str
    confidence: int = 50
    state: Literal["invalid", "unsupported", "incomplete"] = "invalid"
    files: Sequence[str] = ()


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartFile:
    """Begin the next output file. ``name`` is relative to the output directory; "" is the output file itself."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Write a tensor's bytes (or any value's) here. The engine answers with a `Placed`.

    ``align``: pad with zeros to a multiple of this first. ``checksum``: "", "crc32" or "crc32c".
    """

    tensor: Tensor
    align: int = 1
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a `Put` went: bytes ``offset``..``offset + nbytes`` of the file that is being written.

    ``checksum`` is a call, because the bytes may still be on their way: calling it waits for them. Call it as late as
    possible (in a `Patch`), so that tensors are written in parallel.
    """

    offset: int
    nbytes: int
    checksum: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Patch:
    """Overwrite bytes at ``offset`` of the file being written with ``data()``; called when every tensor is in place."""

    offset: int
    data: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Tail:
    """Append ``data()`` at the end of the file being written, once every tensor is in place. The last piece of a file."""

    data: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class CopyFile:
    """Put a whole file of the source beside the output as ``name`` (a tokenizer, a licence)."""

    name: str
    source: str


Piece: TypeAlias = "bytes | StartFile | Put | Patch | Tail | CopyFile"
Writer: TypeAlias = "Generator[Piece, Placed | None, None]"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What the user asked of an output: ``name`` is its stem; ``max_shard_size`` in bytes, 0 for one file."""

    name: str = "model"
    max_shard_size: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)

"""fastText's models: arguments, a dictionary, the input matrix (words, then the buckets of their pieces) and the output matrix.

(``src/fasttext.cc``, ``args.cc``, ``dictionary.cc``, ``densematrix.cc``, ``quantmatrix.cc``, ``productquantizer.cc``.)
Of a quantized model (``.ftz``) the matrix is what its codes stand for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from modelhub import Checkpoint, Detection, Extent, File, IncompleteFile, InvalidFile, Metadata, Tensor, UnsupportedFile, ops

MAGIC = (793712314).to_bytes(4, "little")
VERSION = 12
_ARGS = ("dim", "ws", "epoch", "minCount", "neg", "wordNgrams", "loss", "model", "bucket", "minn", "maxn", "lrUpdateRate")
_MODELS = {1: "cbow", 2: "skipgram", 3: "supervised"}
_LOSSES = {1: "hierarchical softmax", 2: "negative sampling", 3: "softmax", 4: "one versus all"}
_START = 8 + 4 * len(_ARGS) + 8
MAX_WORDS = 20_000_000
WINDOW = 1 << 15
MAX_WORD = 1 << 16


def detect(file: File) -> Detection | None:
    """The magic number, and arguments that make sense."""
    head = file.head
    if not head.startswith(MAGIC) or len(head) < _START:
        return None
    version, dim, *rest = struct.unpack_from("<14i", head, 4)[:14]
    sane = 0 < version < 1000 and 0 < dim < 1 << 20 and rest[5] in _LOSSES and rest[6] in _MODELS
    return Detection([file.path], confidence=92) if sane else None


class _Cursor:
    """Reads on from ``at``, in windows."""

    def __init__(self, file: File, at: int) -> None:
        self.file, self.at, self.base, self.window = file, at, 0, b""

    def take(self, nbytes: int) -> bytes:
        low = self.at - self.base
        if low < 0 or low + nbytes > len(self.window):
            size = min(max(nbytes, WINDOW), max(nbytes, self.file.size - self.at))
            self.window, self.base, low = self.file.read(self.at, size), self.at, 0
        self.at += nbytes
        return self.window[low : low + nbytes]

    def number(self, layout: str) -> int:
        value: int = struct.unpack("<" + layout, self.take(struct.calcsize(layout)))[0]
        return value

    def word(self) -> None:
        """Past a text that ends in a zero."""
        start = self.at
        for _ in range(2):
            low = self.at - self.base
            end = self.window.find(b"\0", low, low + MAX_WORD) if 0 <= low < len(self.window) else -1
            if end >= 0:
                self.at = self.base + end + 1
                return
            self.window, self.base = self.file.read(start, min(WINDOW, self.file.size - start)), start
        problem = IncompleteFile if self.file.size - start < MAX_WORD else InvalidFile
        raise problem(f"{self.file.name}: a word at offset {start} without an end")


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    file = checkpoint.primary
    version, *values = struct.unpack_from(f"<{1 + len(_ARGS)}i", file.read(4, _START - 4))
    if version > VERSION:
        raise UnsupportedFile(f"{file.name}: fastText's version {version}; up to {VERSION} are read")
    args = dict(zip(_ARGS, values, strict=True))
    cursor = _Cursor(file, _START)
    size, words, labels = (cursor.number("i") for _ in range(3))
    tokens, pruned = cursor.number("q"), cursor.number("q")
    if not 0 <= size <= MAX_WORDS or words < 0 or labels < 0 or words + labels != size or not -1 <= pruned <= MAX_WORDS:
        raise InvalidFile(f"{file.name}: a dictionary of {size}: {words} words, {labels} labels, {pruned} pruned pieces")
    for _ in range(size):
        cursor.word()
        cursor.take(9)  # how often it was seen, and whether it is a label
    cursor.at += 8 * max(0, pruned)
    quantized = cursor.number("?")
    yield from _matrix(cursor, "input", bool(quantized))
    yield from _matrix(cursor, "output", bool(cursor.number("?")))
    if cursor.at != file.size:
        raise InvalidFile(f"{file.name}: {file.size - cursor.at} bytes after the output matrix, at offset {cursor.at}")
    shown = {
        "architecture": "fasttext", "task": _MODELS[args["model"]], "loss": _LOSSES[args["loss"]], "vocab_size": words,
        "embedding_length": args["dim"], "word_ngrams": args["wordNgrams"], "buckets": args["bucket"], "tokens": tokens,
        "pieces": f"{args['minn']} to {args['maxn']} letters" if args["maxn"] > 0 else "none",
    }  # fmt: skip
    yield Metadata(values={**shown, **({"labels": labels} if labels else {})}, precision="PQ" if quantized else "")


def _matrix(cursor: _Cursor, name: str, quantized: bool) -> Iterator[Tensor]:
    """A dense matrix, or what a quantized one is made of."""
    path, file = cursor.file.path, cursor.file
    normed = quantized and bool(cursor.number("?"))
    rows, columns = cursor.number("q"), cursor.number("q")
    if not 0 <= rows < 1 << 40 or not 0 <= columns < 1 << 24:
        raise InvalidFile(f"{file.name}: the {name} matrix is {rows} x {columns}")

    def plain(part: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> Tensor:
        found = Tensor(part, dtype, shape, Extent(path, cursor.at, nbytes))
        cursor.at += nbytes
        if cursor.at > file.size:
            file.read(found.value.offset if isinstance(found.value, Extent) else 0, min(nbytes, 1 << 30))  # says what is missing
            raise InvalidFile(f"{file.name}: {part} ends at {cursor.at}, the file at {file.size}")
        return found

    if not quantized:
        yield plain(name, "F32", (rows, columns), 4 * rows * columns)
        return
    count = cursor.number("i")
    if not 0 <= count < 1 << 40 or not rows or count % rows or not columns:
        raise InvalidFile(f"{file.name}: {count} codes for the {rows} rows of the {name} matrix")
    parts = [plain(f"{name}.codes", "U8", (rows, count // rows), count)]
    part = _quantizer(cursor, f"{name}.centroids", columns, plain, parts)
    if normed:
        parts.append(plain(f"{name}.norm_codes", "U8", (rows,), rows))
        _quantizer(cursor, f"{name}.norm_centroids", 1, plain, parts)
    if count // rows != -(-columns // part):
        raise InvalidFile(f"{file.name}: {count // rows} codes a row, for {columns} columns in parts of {part}")
    for stored in parts:
        yield stored._replace(view="stored")
    values = [ops.typed(stored.value, stored.dtype, stored.shape) for stored in parts if stored.value is not None]
    whole = ops.node("fasttext.pq", *values, dim=columns, part=part)
    yield Tensor(name, "F32", (rows, columns), whole, view="logical")


def _quantizer(cursor: _Cursor, name: str, wanted: int, plain: Any, parts: list[Tensor]) -> int:
    """Takes the centroids to ``parts``; the length of the parts that a row is cut into."""
    dim, _, part, last = (cursor.number("i") for _ in range(4))
    if dim != wanted or not 0 < part <= dim or (last != dim % part and last != part):
        raise InvalidFile(
            f"{cursor.file.name}: {name} are of {dim} in parts of {part} and {last}, rows of {wanted} were expected"
        )
    parts.append(plain(name, "F32", (256 * dim,), 4 * 256 * dim))
    return part

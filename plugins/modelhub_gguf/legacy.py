"""The files before GGUF: llama.cpp's ``ggml``, ``ggmf`` and ``ggjt`` of 2023, and whisper.cpp's, which are still made. Told, and
their tables read; to GGUF they go by `modelhub_gguf.legacy_convert`.

Layout (llama.cpp ``convert_llama_ggml_to_gguf.py``; ``llama.cpp`` of June 2023, ``llama_file_loader``; whisper.cpp
``whisper_model_load``): the magic; a version but for ``ggml``; hyper-parameters, u32 each; the vocabulary (length, bytes, and a
float32 score but for ``ggml``); then tensors up to the end, each its number of dimensions, length of name, type, dimensions
innermost first, name, and its bytes (in ``ggjt`` from a multiple of 32 on). All little-endian.

Blocks changed twice in May 2023: in ``ggjt`` 2 the order of the nibbles of Q4 and Q5, in ``ggjt`` 3 the scales of Q4 and Q8 (from
float32 to float16). What is older than today's layout is listed with its size, and has no value here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import Any, Literal, NamedTuple

from modelhub import (
    Checkpoint,
    Detection,
    Extent,
    File,
    FileProblem,
    IncompleteFile,
    InvalidFile,
    Metadata,
    Rejected,
    Tensor,
    UnsupportedFile,
    dtypes,
)

from modelhub_gguf.keys import FILE_TYPES
from modelhub_gguf.types import BY_NUMBER, REMOVED

GGML, GGMF, GGJT = b"lmgg", b"fmgg", b"tjgg"
MAGICS = (GGML, GGMF, GGJT)
DTYPES = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TITLES = {GGML: "ggml", GGMF: "ggmf", GGJT: "ggjt"}

_LLAMA = ("vocab_size", "embedding_length", "n_mult", "head_count", "block_count", "n_rot", "file_type")
_WHISPER = (
    "vocab_size", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state", "n_text_head",
    "n_text_layer", "n_mels", "file_type",
)  # fmt: skip
_MAX_VOCABULARY = 1 << 20
_MAX_TOKEN = 4096
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 4
_MAX_COUNT = (1 << 63) - 1
_OLD_BYTES = {
    "Q4_0": (32, 20), "Q4_1": (32, 24), "Q4_2": (16, 10), "Q4_3": (16, 12), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 36),
}  # fmt: skip
"""Elements and bytes of a block before ggjt 3 (``ggml.c`` of April and May 2023)."""
_FACTOR = 1000
"""A file type of whisper.cpp's counts the layout of blocks in thousands (``GGML_QNT_VERSION_FACTOR``)."""


class Legacy(NamedTuple):
    """``family``: "llama" or "whisper"; ``version`` 0 for ``ggml``; ``numbers``: the hyper-parameters by name; ``tokens``: from
    where to where the vocabulary stands."""

    magic: bytes
    version: int
    family: str
    numbers: dict[str, int]
    tokens: tuple[int, int]
    tensors: list[Tensor]

    @property
    def title(self) -> str:
        return f"{TITLES[self.magic]} {self.version}" if self.version else TITLES[self.magic]


def detect(file: File) -> Detection | Rejected | None:
    """A file with one of the magics."""
    if not file.head.startswith(MAGICS):
        return None
    try:
        _start(file)
    except FileProblem as problem:
        state: Literal["invalid", "incomplete", "unsupported"] = "invalid"
        if problem.state == "incomplete":
            state = "incomplete"
        elif problem.state == "unsupported":
            state = "unsupported"
        return Rejected(str(problem), confidence=60, state=state)
    return Detection([file.path], confidence=90)


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    """The table, and what the hyper-parameters say."""
    legacy = parse(checkpoint.primary)
    values: dict[str, Any] = {"architecture": legacy.family, "file_version": legacy.title}
    numbers = legacy.numbers
    if legacy.family == "llama":
        values.update({name: numbers[name] for name in ("vocab_size", "embedding_length", "block_count", "head_count")})
        width = next((t.shape[0] for t in legacy.tensors if t.name.endswith(".feed_forward.w1.weight") and t.shape), 0)
        if width:
            values["feed_forward_length"] = width
    else:
        values.update({name: numbers[name] for name in _WHISPER[:-1]})
    kind = FILE_TYPES.get(numbers["file_type"] % _FACTOR)
    if kind:
        values["quantization"] = kind.label
    yield Metadata(values=values)
    yield from legacy.tensors


def parse(file: File) -> Legacy:
    """The whole table of one file. `InvalidFile`, `IncompleteFile` or `UnsupportedFile` say what is wrong, where."""
    magic, version, family, numbers, position = _start(file)
    cursor = _Cursor(file, position)
    count = numbers["vocab_size"]
    if family == "whisper":
        mels, bins = cursor.unpack("2I", "the size of the filters")
        if mels * bins > 1 << 20:
            raise InvalidFile(f"{file.name}: {mels} x {bins} mel filters, 80 x 201 or 128 x 201 were expected")
        cursor.skip(4 * mels * bins, "the filters")
        (count,) = cursor.unpack("I", "the size of the vocabulary")
    if count > _MAX_VOCABULARY:
        raise InvalidFile(f"{file.name} declares a vocabulary of {count} tokens, at most {_MAX_VOCABULARY} are read")
    start = cursor.position
    for number in range(count):
        cursor.token(number, scored=family == "llama" and magic != GGML)
    tokens = (start, cursor.position)
    current = numbers["file_type"] // _FACTOR >= 2 if family == "whisper" else version >= 3
    tensors = list(_tensors(cursor, magic, version, current))
    return Legacy(magic, version, family, numbers, tokens, tensors)


def _start(file: File) -> tuple[bytes, int, str, dict[str, int], int]:
    """Magic, version, family, hyper-parameters, and where they end."""
    magic = file.head[:4]
    cursor = _Cursor(file, 4)
    version = 0
    if magic != GGML:
        (version,) = cursor.unpack("I", "the version")
        if not 0 < version <= (3 if magic == GGJT else 1):
            raise UnsupportedFile(f"{file.name} is {TITLES[magic]} of version {version}, which was never released")
    words = cursor.unpack("11I" if magic == GGML else "7I", "the hyper-parameters")
    llama = dict(zip(_LLAMA, words, strict=False))
    heads, width = llama["head_count"], llama["embedding_length"]
    if heads and width and width == heads * llama["n_rot"] and llama["vocab_size"]:
        return magic, version, "llama", llama, cursor.position - (16 if magic == GGML else 0)
    if magic == GGML:
        whisper = dict(zip(_WHISPER, words, strict=True))
        heads, width = whisper["n_audio_head"], whisper["n_audio_state"]
        if whisper["n_mels"] in (80, 128) and heads and not width % heads and 0 < whisper["n_audio_layer"] < 1000:
            return magic, version, "whisper", whisper, cursor.position
        raise UnsupportedFile(
            f"{file.name} is a ggml file, but neither llama.cpp's nor whisper.cpp's",
            "the program that it was made for may have a converter to GGUF",
        )
    raise InvalidFile(f"{file.name}: {width} columns, {heads} heads and {llama['n_rot']} rotary dimensions are no llama's")


def _tensors(cursor: _Cursor, magic: bytes, version: int, current: bool) -> Iterator[Tensor]:
    """Tensor after tensor up to the end of the file; ``current``: quantized blocks are laid out as they are today."""
    file = cursor.file
    seen: set[str] = set()
    while cursor.position < file.size:
        what = f"tensor {len(seen)}"
        if len(seen) == _MAX_TENSORS:
            raise InvalidFile(f"{file.name} holds more than {_MAX_TENSORS} tensors")
        dimensions, length, number = cursor.unpack("3I", what)
        if dimensions > _MAX_DIMENSIONS or not 0 < length < _MAX_TOKEN:
            raise InvalidFile(
                f"{file.name}: {what} at byte {cursor.position - 12} has {dimensions} dimensions and a name of {length} bytes: "
                "something before it is longer or shorter than it should be"
            )
        shape = tuple(reversed(cursor.unpack(f"{dimensions}I", what)))
        name = cursor.take(length, what).decode("utf-8", "surrogateescape")
        if name in seen:
            raise InvalidFile(f"{file.name}: a tensor called {name[:200]!r} stands twice")
        seen.add(name)
        if magic == GGJT:
            cursor.skip(-cursor.position % 32, "padding")
        yield _tensor(cursor, name, shape, number, version, current)


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], number: int, version: int, current: bool) -> Tensor:
    file, what = cursor.file, f"tensor {name[:200]!r}"
    kind = BY_NUMBER[number].name if number in BY_NUMBER else REMOVED.get(number, "")
    if not kind:
        raise UnsupportedFile(f"{file.name}: {what} is of type {number}, which is not known")
    elements = prod(shape)
    if elements > _MAX_COUNT:
        raise InvalidFile(f"{file.name}: {what}: the dimensions {list(shape)} overflow 63 bits")
    old = kind in _OLD_BYTES and not current and not (version == 2 and kind in ("Q5_0", "Q5_1"))
    block, nbytes = _OLD_BYTES[kind] if old else (BY_NUMBER[number].block, BY_NUMBER[number].nbytes)
    if (shape[-1] if shape else 1) % block:
        raise InvalidFile(f"{file.name}: {what} has rows of {shape[-1] if shape else 1} elements; {kind} packs {block} together")
    size = elements // block * nbytes
    start = cursor.position
    cursor.skip(size, what)
    if not old:
        return Tensor(name, kind, shape, Extent(file.path, start, size))
    reason = f"{kind} tensor in blocks as they were before the end of May 2023"
    return Tensor(name, kind if dtypes.find(kind) else "U8", shape, None, unsupported=reason)


class _Cursor:
    """Goes through a file; what it holds of it is a short window."""

    def __init__(self, file: File, position: int) -> None:
        self.file = file
        self.position = position
        self._base, self._data = 0, file.head

    def take(self, nbytes: int, what: str, ahead: int = 512) -> bytes:
        """The next bytes; ``ahead``: how many are worth reading in one go."""
        start = self.position - self._base
        if start < 0 or start + nbytes > len(self._data):
            if self.position + nbytes > self.file.size:
                raise IncompleteFile(
                    f"{self.file.name}: {what} takes {nbytes} bytes at offset {self.position}, the file ends at {self.file.size}"
                )
            self._base, start = self.position, 0
            self._data = self.file.read(self.position, min(max(nbytes, ahead), self.file.size - self.position))
        self.position += nbytes
        return self._data[start : start + nbytes]

    def unpack(self, codes: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + codes, self.take(struct.calcsize("<" + codes), what))

    def skip(self, nbytes: int, what: str) -> None:
        if self.position + nbytes > self.file.size:
            raise IncompleteFile(
                f"{self.file.name}: {what} ends at byte {self.position + nbytes}, the file ends at {self.file.size}"
            )
        self.position += nbytes

    def token(self, number: int, *, scored: bool) -> tuple[bytes, float]:
        """A token of the vocabulary and its score (0 where there are none)."""
        what = f"token {number}"
        length = int.from_bytes(self.take(4, what, 1 << 18), "little")
        if length >= _MAX_TOKEN:
            raise InvalidFile(f"{self.file.name}: {what} is {length} bytes long, less than {_MAX_TOKEN} were expected")
        data = self.take(length + (4 if scored else 0), what, 1 << 18)
        return data[:length], struct.unpack("<f", data[length:])[0] if scored else 0.0


def vocabulary(file: File, legacy: Legacy) -> list[tuple[bytes, float]]:
    """The tokens of a llama file with their scores."""
    cursor = _Cursor(file, legacy.tokens[0])
    return [cursor.token(number, scored=legacy.magic != GGML) for number in range(legacy.numbers["vocab_size"])]

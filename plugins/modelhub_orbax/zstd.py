"""Zstandard: short runs unpacked at once for the reader of headers, long ones by an op, in bounded memory.

(RFC 8878.) The library is imported where it is used. A block of at most 128 KiB takes three bytes and its content, of which there
is one byte at the least: no run unpacks to more than `MOST` times its length, and one that claims to is refused unread.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, Op, UnsupportedFile

MOST = 32 << 10
MAX_WINDOW = 128 << 20
"""What Zstandard itself allows without being asked (``ZSTD_WINDOWLOG_LIMIT_DEFAULT``)."""
HINT = "pip install 'modelhub-registry[orbax]'"
_STEP = 1 << 20


def _library() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedFile("it is compressed by Zstandard, and the library for that is not installed", HINT) from None
    return zstandard


def unpack(data: bytes, limit: int, where: str) -> bytes:
    """All of ``data``, which must not become longer than ``limit``."""
    library = _library()
    limit = min(limit, MOST * len(data))
    try:
        with library.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(data, read_across_frames=True) as reader:
            parts, size = [], 0
            while part := reader.read(min(_STEP, limit + 1 - size)):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise InvalidFile(f"{where}: {len(data)} bytes unpack to more than {limit}")
    except library.ZstdError as error:
        raise InvalidFile(f"{where}: {len(data)} bytes of Zstandard are broken: {error}") from error
    return b"".join(parts)


class _Source(io.RawIOBase):
    """The compressed run as a stream. It does not keep its source: that keeps the stream, and the library's readers, which are
    in between, are no part of Python's search for cycles."""

    def __init__(self, source: Any) -> None:
        self.source, self.total, self.taken = weakref.ref(source), source.shape[0], 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        step = min(size if size >= 0 else self.total, self.total - self.taken)
        source = self.source()
        if step <= 0 or source is None:
            return b""
        data: bytes = source.read(self.taken, self.taken + step).tobytes()
        self.taken += step
        return data


class _Stream:
    """Stands somewhere in the output; going back means starting over."""

    def __init__(self, source: Any) -> None:
        self.library = _library()
        machine = self.library.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self.reader = machine.stream_reader(_Source(source), read_size=_STEP, read_across_frames=True)
        self.position = 0

    def take(self, nbytes: int) -> bytes:
        parts, got = [], 0
        while got < nbytes:
            part = self.next(min(_STEP, nbytes - got), got)
            if not part:
                raise InvalidFile(f"a run of Zstandard ends after {self.position + got} bytes, {self.position + nbytes} expected")
            parts.append(part)
            got += len(part)
        self.position += got
        return b"".join(parts)

    def next(self, nbytes: int, ahead: int = 0) -> bytes:
        """Up to ``nbytes`` bytes, none at the end. ``ahead``: of `position`, where it is to be told."""
        try:
            part: bytes = self.reader.read(nbytes)
        except self.library.ZstdError as error:
            raise InvalidFile(f"a run of Zstandard is broken near byte {self.position + ahead}: {error}") from error
        return part


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    nbytes = args["nbytes"]
    if len(inputs) != 1 or inputs[0][0] != "U8" or len(inputs[0][1]) != 1:
        raise ValueError("orbax.zstd takes one run of bytes")
    if type(nbytes) is not int or not 0 <= nbytes <= MOST * inputs[0][1][0]:
        raise ValueError(f"orbax.zstd: {inputs[0][1][0]} bytes do not unpack to {nbytes}")
    return "U8", (nbytes,)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    source = sources[0]
    stream: _Stream | None = source.state.get("zstd")
    if stream is None or stream.position > start:
        stream = source.state["zstd"] = _Stream(source)
    while stream.position < start:
        stream.take(min(_STEP, start - stream.position))
    data = stream.take(stop - start)
    if stop == args["nbytes"] and stream.next(1):
        raise InvalidFile(f"a run of Zstandard holds more than the {stop} bytes expected")
    return np.frombuffer(data, np.uint8)


OP = Op(name="orbax.zstd", rows=_rows, infer=_infer, seekable=False)

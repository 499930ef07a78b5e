"""Bytes that stand in a pickle as text: what Python 3 writes in protocol 2 is UTF-8 of the bytes taken for Latin-1.

So each byte from 0x80 on takes two: C2 or C3, and another. The op turns the run back, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, Op

STEP = 1 << 20


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    nbytes = args["nbytes"]
    if len(inputs) != 1 or inputs[0][0] != "U8" or len(inputs[0][1]) != 1 or type(nbytes) is not int:
        raise ValueError("paddle.latin takes one run of bytes")
    if not nbytes <= inputs[0][1][0] <= 2 * nbytes:
        raise ValueError(f"{inputs[0][1][0]} bytes of text are not {nbytes} bytes")
    return "U8", (nbytes,)


class _Stream:
    def __init__(self, source: Any) -> None:
        self.source, self.total = source, source.shape[0]
        self.taken = self.position = 0
        self.pending = b""

    def take(self, nbytes: int) -> bytes:
        while len(self.pending) < nbytes:
            if self.taken >= self.total:
                have = self.position + len(self.pending)
                raise InvalidFile(f"bytes in a pickle's text end after {have}, {self.position + nbytes} expected")
            stop = min(self.total, self.taken + STEP)
            data = self.source.read(self.taken, stop).tobytes()
            if stop < self.total and data[-1] in (0xC2, 0xC3):
                data, stop = data[:-1], stop - 1
            try:
                self.pending += data.decode("utf-8").encode("latin-1")
            except UnicodeError as error:
                raise InvalidFile(f"bytes in a pickle's text are none, near byte {self.taken}: {error}") from error
            self.taken = stop
        found, self.pending = self.pending[:nbytes], self.pending[nbytes:]
        self.position += nbytes
        return found


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    source = sources[0]
    stream: _Stream | None = source.state.get("latin")
    if stream is None or stream.position > start:
        stream = source.state["latin"] = _Stream(source)
    while stream.position < start:
        stream.take(min(STEP, start - stream.position))
    found = stream.take(stop - start)
    if stop == args["nbytes"] and (stream.pending or stream.taken < stream.total):
        raise InvalidFile(f"bytes in a pickle's text are more than the {stop} expected")
    return np.frombuffer(found, np.uint8)


OP = Op(name="paddle.latin", rows=_rows, infer=_infer, seekable=False)

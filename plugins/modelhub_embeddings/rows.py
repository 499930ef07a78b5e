"""The ops that take vectors out of a run in which each stands behind its word, row by row, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, Op

STEP = 1 << 20
MAX_WORD = 1 << 12
_Spec = tuple[str, tuple[int, ...]]


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    shape = tuple(args["shape"])
    if len(inputs) != 1 or inputs[0][0] != "U8" or len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError("word2vec takes one run of bytes, and gives a matrix")
    return "F32", shape


class _Stream:
    """Stands behind some row; going back means starting over."""

    def __init__(self, source: Any, dim: int) -> None:
        self.source, self.total, self.dim = source, source.shape[0], dim
        self.taken = self.row = 0
        self.data, self.at = b"", 0

    def more(self) -> bool:
        """Read on; False at the end."""
        stop = min(self.total, self.taken + STEP)
        if stop == self.taken:
            return False
        self.data = self.data[self.at :] + self.source.read(self.taken, stop).tobytes()
        self.at, self.taken = 0, stop
        return True

    def until(self, mark: bytes, limit: int) -> int:
        """Where the next ``mark`` stands in what is read."""
        start = self.at
        while (found := self.data.find(mark, start)) < 0:
            start = len(self.data) - self.at
            if start > limit or not self.more():
                raise InvalidFile(f"row {self.row}: a word or a line without an end")
        return found

    def binary(self) -> bytes:
        while self.at < len(self.data) or self.more():
            if self.data[self.at] not in b"\r\n":
                break
            self.at += 1
        self.at = self.until(b" ", MAX_WORD) + 1
        while len(self.data) - self.at < 4 * self.dim:
            if not self.more():
                raise InvalidFile(f"row {self.row}: the file ends in its vector")
        self.at += 4 * self.dim
        self.row += 1
        return self.data[self.at - 4 * self.dim : self.at]

    def text(self) -> bytes:
        import numpy as np

        while b"\n" not in self.data[self.at :]:
            if len(self.data) - self.at > 64 * self.dim + MAX_WORD:
                raise InvalidFile(f"row {self.row}: a line without an end")
            if not self.more():
                break
        end = self.data.find(b"\n", self.at)
        line = self.data[self.at : end if end >= 0 else len(self.data)]
        self.at = end + 1 if end >= 0 else len(self.data)
        numbers = line.rstrip().split(b" ")[1:]
        if len(numbers) != self.dim:
            raise InvalidFile(f"row {self.row}: {len(numbers)} numbers behind a word, {self.dim} were expected")
        try:
            found = np.array([number.decode("ascii") for number in numbers]).astype("<f4")
        except ValueError as error:
            raise InvalidFile(f"row {self.row}: {error}") from error
        self.row += 1
        return found.tobytes()


def _rows(kind: str, sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    source, dim = sources[0], args["shape"][1]
    stream: _Stream | None = source.state.get(kind)
    if stream is None or stream.row > start:
        stream = source.state[kind] = _Stream(source, dim)
    take = stream.binary if kind == "binary" else stream.text
    while stream.row < start:
        take()
    data = b"".join(take() for _ in range(stop - start))
    return np.frombuffer(data, "<f4").reshape(stop - start, dim)


def _binary(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    return _rows("binary", sources, args, start, stop)


def _text(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    return _rows("text", sources, args, start, stop)


OPS = (
    Op(name="word2vec.binary", rows=_binary, infer=_infer, seekable=False),
    Op(name="word2vec.text", rows=_text, infer=_infer, seekable=False),
)

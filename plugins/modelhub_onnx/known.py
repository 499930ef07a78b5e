"""Models that are laid out like one that was read before: the same to the byte but for their weights, as the checkpoints of one
training run are, and fine-tunes of one model. They need not be parsed again: what parsing one of them looked at is compared.

What a model is depends on the bytes that were read of it, without those of the weights among them. They are worth keeping once a
second file of that size turns up; where many such files are all different, not each of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

from modelhub import Extent, File, Inline, Tensor

from modelhub_onnx.external import Externals
from modelhub_onnx.graph import parse
from modelhub_onnx.model import Model

REMEMBERED = 8
"""How many models are remembered, and how many sizes of files."""
MAX_BYTES = 1 << 20
MAX_PIECES = 20_000
"""A model of which more is read is parsed each time."""
SMALL = 64
"""Weights of fewer bytes are compared with what stands around them."""
START = 4096
"""So much is compared before anything is read: detection has read it."""


class _Read(NamedTuple):
    """What was read in one go: what of it counts, and what that was."""

    start: int
    nbytes: int
    pick: Callable[[bytes], Any]
    said: Any


class _Known(NamedTuple):
    """``start``: what files like this one start with, `START` bytes at the most."""

    size: int
    start: bytes
    reads: list[_Read]
    model: Model


_known: list[_Known] = []
_parsed: dict[int, int] = {}
"""Size -> how many files of it were parsed one after the other, none of them like the other."""


class _Recorded(File):
    """A file that keeps what is read of it, up to `MAX_BYTES`."""

    __slots__ = ("left", "reads")

    def __init__(self, file: File) -> None:
        super().__init__(file.path, file.size, file.siblings, asked=file.asked)
        self.reads: list[tuple[int, bytes]] = []
        self.left = MAX_BYTES

    def read(self, offset: int, nbytes: int) -> bytes:
        data = super().read(offset, nbytes)
        self.left -= nbytes
        if self.left >= 0:
            self.reads.append((offset, data))
        return data


def model_in(file: File) -> Model:
    """The model in ``file``, as `modelhub_onnx.graph.parse` reads it."""
    size = file.size
    for number, known in enumerate(_known):
        if known.size == size and file.head.startswith(known.start) and _is_like(file, known):
            _known.insert(0, _known.pop(number))
            _parsed[size] = 1
            return _moved(known.model, file)
    count = _parsed.pop(size, 0) + 1
    while len(_parsed) >= REMEMBERED:
        del _parsed[next(iter(_parsed))]
    _parsed[size] = count
    if count not in (2, 4, 8) and count % 16:
        return parse(file)
    recorded = _Recorded(file)
    with recorded:
        model = parse(recorded)
    _remember(recorded, model)
    return model


def _is_like(file: File, known: _Known) -> bool:
    return all(pick(file.read(start, nbytes)) == said for start, nbytes, pick, said in known.reads)


def _remember(file: _Recorded, model: Model) -> None:
    # What stands in other files is to be looked for each time; ops name the file somewhere inside.
    plain = all(tensor.value is None or isinstance(tensor.value, Extent | Inline) for tensor in model.tensors)
    if file.left < 0 or not plain or model.externals.files or model.externals.missing:
        return
    extents = list(zip(model.offsets, model.nbytes, strict=True))
    extents += [(tensor.value.offset, tensor.value.nbytes) for tensor in model.tensors if isinstance(tensor.value, Extent)]
    weights = sorted(extent for extent in extents if extent[1] >= SMALL)
    if len(weights) > MAX_PIECES:
        return
    reads = []
    for start, data in file.reads:
        pieces = [slice(low - start, high - start) for low, high in _between(weights, start, start + len(data))]
        if pieces:
            pick = itemgetter(*pieces)
            reads.append(_Read(start, len(data), pick, pick(data)))
    model.freeze()
    low, high = next(_between(weights, 0, START), (0, 0))
    begins = file.reads[0][1][low:high] if (low, file.reads[0][0]) == (0, 0) else b""
    del _known[REMEMBERED - 1 :]
    _known.insert(0, _Known(file.size, begins, reads, model))


def _between(weights: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What lies between ``weights``, in their order, in ``start``..``stop``."""
    for number in range(bisect_right(weights, start, key=sum), len(weights)):
        offset, nbytes = weights[number]
        if offset >= stop:
            break
        if offset > start:
            yield start, offset
        start = offset + nbytes
    if start < stop:
        yield start, stop


def _moved(model: Model, file: File) -> Model:
    """The same model in another file."""
    tensors = [_tensor(tensor, file.path) for tensor in model.tensors]
    return replace(model, externals=Externals(file), tensors=tensors)


def _tensor(tensor: Tensor, path: str) -> Tensor:
    value = tensor.value
    return tensor._replace(value=value._replace(file=path)) if isinstance(value, Extent) else tensor
